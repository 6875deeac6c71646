from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1.errors import Checkpointed, ConfigError, IntegrityError
from stage1.training import TrainResult
from stage1.training.checkpoint import LAST, load_checkpoint

Fit = Callable[..., TrainResult]
FILES = (LAST, Path("model_best.pth"), Path("metrics.csv"))


class StopAt:
    """True at the n-th question, counted from 1; afterwards False."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


def contents(folder: Path) -> dict[str, bytes]:
    return {str(name): (folder / name).read_bytes() for name in FILES}


@pytest.mark.parametrize("kind, every", [("linear", 6), ("mlp", 3), pytest.param("mlp", 1, marks=pytest.mark.slow)])
def test_a_stop_before_any_step_changes_no_bit(kind: str, every: int, fit: Fit, tmp_path: Path) -> None:
    """Every third step of the mlp stands at each of the five places in an epoch. All twenty in the slow run."""
    options: dict[str, Any] = {"kind": kind, "epochs": 4, "batch_size": 16, "accumulate": 2, "clip_norm": 0.3}
    whole = fit("whole", **options)
    steps = 5 * 4  # 150 images, 32 a step: 4 full steps and one of 22 an epoch
    for at in range(1, steps + 1, every):
        folder = f"stopped{at}"
        with pytest.raises(Checkpointed, match="run the same command") as caught:
            fit(folder, stop=StopAt(at), **options)
        assert caught.value.exit_code == 75
        stored = load_checkpoint(tmp_path / folder / LAST)
        assert stored is not None
        assert stored[1]["position"]["epoch"] * 5 + stored[1]["position"]["step"] == at - 1
        resumed = fit(folder, **options)
        assert contents(tmp_path / folder) == contents(tmp_path / "whole")
        assert (resumed.best_epoch, resumed.used_ema, resumed.metrics) == (
            whole.best_epoch,
            whole.used_ema,
            whole.metrics,
        )
        for name, tensor in whole.head.state_dict().items():
            assert np.array_equal(tensor.numpy(), resumed.head.state_dict()[name].numpy())


def test_stopped_again_and_again_it_still_arrives_at_the_same_bits(fit: Fit, tmp_path: Path) -> None:
    fit("whole", kind="mlp", checkpoint_every=3)
    stops = 0
    while True:
        try:
            fit("often", kind="mlp", checkpoint_every=3, stop=StopAt(4))
        except Checkpointed:
            stops += 1
            continue
        break
    assert stops == 19  # 60 steps, three between two stops; the last three end the run
    assert contents(tmp_path / "often") == contents(tmp_path / "whole")


def test_a_finished_run_answers_at_once_and_asks_nobody(fit: Fit, tmp_path: Path) -> None:
    first = fit()
    before = contents(tmp_path / "run")
    (tmp_path / "run" / "model_best.pth").unlink()

    def never(*_: Any) -> bool:
        raise AssertionError("a finished run has no step to take")

    again = fit(stop=never, progress=never)
    assert contents(tmp_path / "run") == before  # the lost file is made again from the checkpoint
    assert again.metrics == first.metrics
    assert again.epochs_run == first.epochs_run


def test_checkpoint_interval_and_tensorboard_may_change_between(fit: Fit, tmp_path: Path) -> None:
    fit("whole")
    with pytest.raises(Checkpointed):
        fit("run", stop=StopAt(25))
    fit("run", checkpoint_every=4)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_another_config_seed_head_or_data_is_refused_and_fresh_starts_anew(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Checkpointed):
        fit(stop=StopAt(15))
    before = contents(tmp_path / "run")
    other = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
    labels = np.arange(150) % 2
    cases: list[tuple[dict[str, Any], str]] = [
        (
            {"learning_rate": 0.5},
            r"train\.learning_rate 0\.02 -> 0\.5.*another run directory, or remove the file",
        ),
        ({"seed": 4}, "seed 3 -> 4"),
        ({"kind": "mlp"}, "head.kind 'linear' -> 'mlp'"),
        ({"train": (other, labels)}, "other features or labels"),
        ({"select": (other, labels)}, "other features or labels"),
    ]
    for options, message in cases:
        with pytest.raises(ConfigError, match=message):
            fit(**options)
        assert contents(tmp_path / "run") == before
    fit(learning_rate=0.5, fresh=True)
    fit("direct", learning_rate=0.5)
    assert contents(tmp_path / "run") == contents(tmp_path / "direct")


def test_a_damaged_checkpoint_is_named_and_fresh_gets_past_it(fit: Fit, tmp_path: Path) -> None:
    fit()
    path = tmp_path / "run" / LAST
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(IntegrityError, match="remove the file"):
        fit()
    fit(fresh=True)


def test_files_of_an_abandoned_run_do_not_pass_for_the_new_one(fit: Fit, tmp_path: Path) -> None:
    fit()
    with pytest.raises(Checkpointed):
        fit(fresh=True, stop=StopAt(1))
    assert not (tmp_path / "run" / "model_best.pth").exists()
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 1  # the header


# One interpreter pays for importing torch; it forks a child per attempt and kills it. Forking is safe here: the parent
# itself never computes. Children that die at the n-th renaming of a file cover the moments that matter most; those
# killed by time cover the rest.
_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
import numpy as np
import torch
from stage1.config import HeadConfig, TrainConfig
from stage1.training import train_head
import stage1.evaluation
import safetensors.torch

torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))])  # the first optimizer of a process imports for a second or two
base = Path(sys.argv[1])
rng = np.random.default_rng(0)
x = rng.normal(size=(200, 6)).astype(np.float32)
y = (x[:, 0] + rng.normal(size=200) > 0).astype(np.int64)
config = TrainConfig(epochs=4, batch_size=16, learning_rate=0.02, checkpoint_every=2)
head = HeadConfig(kind="mlp", hidden=5, dropout=0.3)

def train(folder, pause=0.0):
    def stop():
        time.sleep(pause)
        return False
    rows = x[:140], y[:140], x[140:], y[140:]
    train_head(*rows, config=config, head=head, n_classes=2, seed=1, folder=folder, stop=stop)

def child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

def die_at(folder, count, after):
    replace, left = os.replace, [count]
    def deadly(*args):
        left[0] -= 1
        if left[0] == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*args)
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
    os.replace = deadly
    train(folder)

assert ended(child(lambda: train(base / "whole"))) == 0
kills = 0
for after in (False, True):
    for count in range(1, 100):
        folder = base / f"rename{count}{after}"
        code = ended(child(lambda: die_at(folder, count, after)))
        if code == 0:
            break
        assert code == -signal.SIGKILL, code
        kills += 1
        assert ended(child(lambda: train(folder))) == 0
random.seed(int(sys.argv[2]))
for attempt in range(3):
    for tries in range(1, 100):  # longer and longer lives: on a slow disk too some checkpoint is reached
        pid = child(lambda: train(base / f"time{attempt}", pause=0.002))
        time.sleep(random.uniform(0.0, 0.1 * tries))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == 0:
            break
        kills += 1
    assert ended(child(lambda: train(base / f"time{attempt}"))) == 0
print(kills)
"""


def test_kill_9_at_any_moment_changes_no_bit(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _KILLER, str(tmp_path), "20"], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 16  # two checkpoints of three files, two tables in between, each before and after
    whole = contents(tmp_path / "whole")
    folders = [folder for folder in tmp_path.iterdir() if folder.name != "whole"]
    assert len(folders) >= 19
    for folder in folders:
        assert contents(folder) == whole, folder.name
        assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == sorted(
            [*map(str, FILES), "log.jsonl"]
        )
