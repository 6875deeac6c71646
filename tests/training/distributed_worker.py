"""One process of a distributed test, with torchrun's environment: `main`, or `python distributed_worker.py FOLDER OPTIONS`.

OPTIONS: JSON of `image_tasks.fit`, and kill: this rank kills itself when asked for the n-th time whether to stop;
stop: the same, but it asks to stop.
"""

from __future__ import annotations

import json
import os
import signal
import sys
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


if __name__ == "__main__":
    from image_tasks import fit as fit_stripes

    sys.exit(main(fit_stripes, Path(sys.argv[1]), json.loads(sys.argv[2])))
