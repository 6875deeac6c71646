"""One process of a distributed test, with torchrun's environment: `main`, or `python distributed_worker.py FOLDER
OPTIONS`.

OPTIONS: JSON of `image_tasks.fit`, and kill: this rank kills itself when asked for the n-th time whether to stop;
stop: the same, but it asks to stop.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stage1.errors import Stage1Error


def main(fit: Callable[..., Any], folder: Path, options: dict[str, Any]) -> int:
    kill, stop = options.pop("kill", None), options.pop("stop", None)
    asked = 0

    def ask() -> bool:
        nonlocal asked
        asked += 1
        rank = int(os.environ.get("RANK", "0"))
        if kill is not None and [rank, asked] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return [rank, asked] == stop

    try:
        result = fit(folder, stop=ask, **options)
    except Stage1Error as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    print(f"{os.environ.get('RANK', '0')} {result.metrics['nll']!r} {result.backbone.fingerprint}", flush=True)
    return 0


def forked(fit: Callable[..., Any], order: dict[str, Any]) -> list[int | None]:
    """Run `main` once for each options in order["each"], in forks with torchrun's environment; their exit codes by
    rank.
    """
    import torch

    folder, each = Path(order["folder"]), order["each"]

    def worker(rank: int) -> None:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(len(each)),
            "LOCAL_WORLD_SIZE": str(len(each)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(order["port"]),
        }
        torch.set_num_threads(1)  # the parent's pool of threads is not there after a fork
        code = 1
        with (folder / f"{rank}.out").open("w") as sys.stdout, (folder / f"{rank}.err").open("w") as sys.stderr:
            try:
                code = main(fit, folder, each[rank])
            except Exception:
                traceback.print_exc()
        os._exit(code)

    fork = multiprocessing.get_context("fork")
    running = [fork.Process(target=worker, args=(rank,)) for rank in range(len(each))]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
    return [process.exitcode for process in running]


if __name__ == "__main__":
    from image_tasks import fit as fit_stripes

    if sys.argv[1] == "--serve":
        for line in sys.stdin:
            print(json.dumps(forked(fit_stripes, json.loads(line))), flush=True)
        sys.exit(0)
    sys.exit(main(fit_stripes, Path(sys.argv[1]), json.loads(sys.argv[2])))
