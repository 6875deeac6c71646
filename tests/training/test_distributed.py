from __future__ import annotations

import csv
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.errors import DataError, MissingError
from stage1.training.checkpoint import LAST, load_checkpoint
from stage1.training.distributed import Processes, chosen_device, processes
from stage1.training.half import half_precision

from .image_tasks import fit

WORKER = Path(__file__).with_name("distributed_worker.py")
# 45 images: four steps an epoch, the last of 9, an uneven share for two processes.
OPTIONS: dict[str, Any] = {
    "n": 45,
    "epochs": 3,
    "images": {"unfreeze": "last", "augment": "moderate"},
    "class_weights": "balanced",
}


@dataclass(frozen=True)
class Ended:
    returncode: int
    stdout: str
    stderr: str


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module", autouse=True)
def launcher() -> Iterator[subprocess.Popen[str]]:
    """A process of its own that forks the workers: pytest's has had threads, and a fork of it may die of them."""
    global LAUNCHER
    with subprocess.Popen(
        [sys.executable, str(WORKER), "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as LAUNCHER:
        yield LAUNCHER
        LAUNCHER.kill()


LAUNCHER: subprocess.Popen[str]


def together(folder: Path, each: Sequence[dict[str, Any]] = ({}, {}), **options: Any) -> list[Ended]:
    """Run workers as torchrun would, each with its own rank; how they ended, in order of rank.

    Forked, as importing torch and timm anew takes 15 s; `test_torchrun_itself` starts real ones.
    """
    assert LAUNCHER.stdin is not None
    assert LAUNCHER.stdout is not None
    order = {"folder": str(folder), "port": free_port(), "each": [{**OPTIONS, **options, **own} for own in each]}
    print(json.dumps(order), file=LAUNCHER.stdin, flush=True)
    codes = json.loads(LAUNCHER.stdout.readline())
    assert None not in codes, "hangs"
    texts = [[(folder / f"{rank}.{kind}").read_text() for kind in ("out", "err")] for rank in range(len(each))]
    return [Ended(code, *text) for code, text in zip(codes, texts, strict=True)]


def table(folder: Path) -> np.ndarray:
    with (folder / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    return np.array([[float(row[name]) for name in ("step", "train_loss", "select_nll", "ema_nll")] for row in rows])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    folder = tmp_path_factory.mktemp("alone")
    fit(folder, **OPTIONS)
    return table(folder)


def test_two_processes_have_the_loss_curve_of_one_and_a_stop_of_one_stops_both(alone, tmp_path):
    stopped = together(tmp_path, stop=[1, 7])  # the second process is asked to stop, in the second epoch
    assert [process.returncode for process in stopped] == [75, 75], stopped[0].stderr
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    assert (stored[1]["position"]["epoch"], stored[1]["position"]["step"]) == (1, 2)
    done = together(tmp_path)
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    np.testing.assert_allclose(table(tmp_path), alone, rtol=1e-3, atol=1e-5)
    results = [process.stdout.split() for process in done]
    assert [result[0] for result in results] == ["0", "1"]
    assert results[0][1:] == results[1][1:]  # both hold the same model
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events].count("epoch") == 3  # one process writes
    assert events[0]["processes"] == 2


def test_two_processes_plan_the_same_for_a_budget(alone, tmp_path):
    done = together(tmp_path, images={**OPTIONS["images"], "minutes": 60})
    assert [process.returncode for process in done] == [0, 0], done[0].stderr
    np.testing.assert_allclose(table(tmp_path), alone, rtol=1e-3, atol=1e-5)
    events = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events][:2] == ["plan", "start"]
    assert events[0]["epochs"] == 3


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_run_with_a_message_and_a_checkpoint(victim, alone, tmp_path):
    killed = together(tmp_path, kill=[victim, 7])
    other = killed[1 - victim]
    assert killed[victim].returncode == -signal.SIGKILL
    assert other.returncode == 1
    (line,) = [line for line in other.stderr.splitlines() if line.startswith("error: ")]
    assert "another of the 2 processes is gone" in line
    assert "start the same command again to go on" in line
    assert str(tmp_path / LAST) in line
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    # The first process writes where the run stood; where it is the one that died, its last checkpoint is there.
    assert (stored[1]["position"]["epoch"], stored[1]["position"]["step"]) == ((1, 2) if victim else (1, 0))
    fit(tmp_path, **OPTIONS)  # one process can go on where two were
    np.testing.assert_allclose(table(tmp_path), alone, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_torchrun_itself(alone, tmp_path):
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
        str(WORKER),
        str(tmp_path),
        json.dumps(OPTIONS),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(table(tmp_path), alone, rtol=1e-3, atol=1e-5)


def test_processes_with_other_configs_find_out(tmp_path):
    for process in together(tmp_path, [{"learning_rate": 0.01}, {"learning_rate": 0.02}]):
        assert "config or data differs between the 2 processes" in process.stderr
        assert process.returncode == 2


def test_one_process_needs_no_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes(torch.device("cpu")) as group:
        assert group == Processes()
        assert group.first
        assert not group.any(False)
        assert group.any(True)
        part = np.ones((3, 2), np.float32)
        np.testing.assert_array_equal(group.join(part, 3), part)


def test_more_processes_than_images_is_refused(tmp_path):
    assert DataError.exit_code == 2
    done = together(tmp_path, batch_size=1)
    assert all("2 processes: more than images in a batch" in process.stderr for process in done)


def test_devices():
    assert chosen_device("cpu") == torch.device("cpu")
    assert not half_precision("auto", torch.device("cpu"))
    assert half_precision("bfloat16", torch.device("cpu"))
    with pytest.raises(MissingError, match="not supported here"):
        chosen_device("meta")
