"""kill -9 at random moments, then resume: the same weights and the same certificate, bit by bit."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from stage1.storage.files import digest_file

from ..command_line import stage1
from ..once import common_folder
from .conftest import SETTINGS

SAME = (
    "model_best.pth",
    "model.onnx",
    "certificate.json",
    "thresholds.json",
    "calibration.json",
    "evaluation.json",
    "bundle/bundle.json",
    "metrics.csv",
)


SAME_ENGINE = "features.engine=onnx"  # auto measures, and a loaded machine may measure otherwise the next time


# `stage1`, but that it takes the backbone's graph that this run of the tests has traced already (8 s of CPU).
TRACED = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv.pop(1))
from tests.tracing import traced_once
from stage1.cli import main
with traced_once(Path(sys.argv.pop(1))):
    main()
"""


def command(photos, folder, *more: str, start: tuple[str, ...] = ("-m", "stage1.cli")) -> list[str]:
    return [
        sys.executable,
        *start,
        "run",
        "--recipe",
        "baseline",
        *SETTINGS,
        "train.epochs=30",
        f"data.table={photos}",
        "--output",
        str(folder),
        *more,
    ]


def run_to_the_end(photos, folder) -> float:
    began = time.monotonic()
    result = subprocess.run(command(photos, folder, SAME_ENGINE), capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return time.monotonic() - began


def kill_and_resume(photos, tmp_path, kills: int, seed: int) -> None:
    pytest.importorskip("timm", reason="the extra train is not installed")
    seconds = run_to_the_end(photos, tmp_path / "whole")
    expected = {name: digest_file(tmp_path / "whole" / name) for name in SAME}
    rng = np.random.default_rng(seed)
    for number in range(kills):
        folder = tmp_path / f"killed{number}"
        while True:
            moment = float(rng.uniform(0.05, 1.0)) * seconds
            began = time.monotonic()
            with subprocess.Popen(
                command(photos, folder, SAME_ENGINE),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            ) as process:
                try:
                    process.wait(timeout=moment)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    break
            # It was at its end before the moment came (a warm cache is faster): that kills nothing, draw again.
            seconds = min(seconds, time.monotonic() - began)
            shutil.rmtree(folder)
        done = sorted(path.name for path in folder.glob("*")) if folder.exists() else []
        print(f"kill {number} after {moment:.1f} of {seconds:.1f} s; there: {', '.join(done) or 'nothing'}")
        run_to_the_end(photos, folder)
        assert {name: digest_file(folder / name) for name in SAME} == expected, f"kill {number}"


def test_kill_twice_and_resume(photos, tmp_path, tmp_path_factory):
    """One run, killed while it extracts and again after training, when the next files are being made."""
    pytest.importorskip("timm", reason="the extra train is not installed")
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    start = ("-c", TRACED, str(Path(__file__).parents[2]), str(common_folder(tmp_path_factory) / "graphs"))
    done = stage1(*command(photos, whole, SAME_ENGINE)[3:])
    assert done.returncode == 0, done.stderr
    for name in ("splits.json", "train.json"):
        with subprocess.Popen(
            command(photos, folder, SAME_ENGINE, start=start),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            while process.poll() is None and not (folder / name).exists():
                time.sleep(0.02)
            assert process.poll() is None, "it ended before it could be killed"
            os.killpg(process.pid, signal.SIGKILL)
    assert not (folder / "certificate.json").exists()
    done = stage1(*command(photos, folder, SAME_ENGINE)[3:])
    assert done.returncode == 0, done.stderr
    assert {name: digest_file(folder / name) for name in SAME} == {name: digest_file(whole / name) for name in SAME}


@pytest.mark.slow
def test_kill_at_20_random_moments_and_resume(photos, tmp_path):
    kill_and_resume(photos, tmp_path, kills=20, seed=6)


def test_sigterm_checkpoints_and_exits_75(finished, photos, tmp_path):
    """In a run whose features are there, whose head is to be trained again for very long."""
    shutil.copytree(finished.folder, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    slow = command(photos, tmp_path / "run", "--allow-change", "train.epochs=100000", "train.patience=100000")
    with subprocess.Popen(slow, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "checkpoints" / "last.safetensors").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "Traceback" not in errors
    assert (tmp_path / "run" / "checkpoints" / "last.safetensors").exists()
