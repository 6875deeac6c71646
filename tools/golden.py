"""Golden check: a digest of every artifact of a fixed set of runs, to show that a change of structure changes nothing.

    python tools/golden.py write tools/golden.json     # before: run everything, write the digests
    python tools/golden.py check tools/golden.json     # after: run everything, name what differs (exit 1)
    python tools/golden.py check tools/golden.json --only scores

Digests hold on one kind of machine with one set of library versions (float sums differ elsewhere), so both are
recorded, and `check` refuses (exit 3) where they differ. What may change from run to run is left out: seconds, rates,
memory, dates, paths.
Every scenario goes through the command line, as a user would; a file that appears or disappears is a difference.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

_LIBRARIES = (
    "numpy",
    "scipy",
    "onnxruntime",
    "pillow",
    "pyarrow",
    "torch",
    "timm",
    "onnx",
    "onnxscript",
    "matplotlib",
    "stage1-pro",  # a manifest records the installed version
)
# Keys of JSON and JSONL whose values say when, where or how fast, and nothing of what was computed.
_VOLATILE = re.compile(
    r"seconds|_s$|_ms$|milliseconds|per_second|rate_per|time$|^at$|created|started|finished|date|memory|peak|rss|"
    r"waiting|host|machine|pid|path$|folder|store$|output|^run$|^file$|images_per|latency|duration|elapsed|"
    r"engine_choice|micro$|mtime_ns"
)
_SUFFIXES_OF_TEXT = (".html", ".md", ".yaml", ".csv", ".txt")
# In pages and cards the same things stand in sentences.
_VOLATILE_TEXT = (
    (re.compile(r"\d+(?:\.\d+)?(?:e[-+]?\d+)? ?(?:ms|s|min|MB|MiB|GB|GiB|img/s|images/s|images a second)\b"), "<cost>"),
    (re.compile(r"Seconds per stage</th><td>[^<]*"), "<cost>"),
    (re.compile(r"20\d\d-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?)?(?:Z|[+-]\d\d:?\d\d)?"), "<date>"),
)
# frontier: its axis is the measured time of a call. checkpoints/inputs: a digest of files with dates in them.
_LEFT_OUT = (".lock", "events.out.tfevents", ".tmp", "frontier.png", "frontier.svg", "inputs")
# stages.json repeats digests of files that are compared themselves, with dates and paths in some of them.
_LEFT_OUT_OF = {"stages.json": re.compile(r"^(inputs|sha256|size)$")}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=["write", "check"])
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=sorted(SCENARIOS), action="append", help="these scenarios alone")
    parser.add_argument("--keep", type=Path, help="run here and keep the artifacts")
    given = parser.parse_args()
    names = given.only or list(SCENARIOS)
    if given.action == "check":
        stored = json.loads(given.file.read_text(encoding="utf-8"))
        if other := [key for key, value in machine().items() if stored["machine"].get(key) != value]:
            print(f"{given.file}: written with another {', '.join(other)}; write it here from the older code first")
            return 3
    with tempfile.TemporaryDirectory(prefix="golden-") as scratch:
        made = {name: run_scenario(name, (given.keep or Path(scratch)) / name) for name in names}
    if given.action == "write":
        document = {"machine": machine(), "scenarios": made}
        given.file.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{sum(map(len, made.values()))} artifacts of {len(made)} scenarios -> {given.file}")
        return 0
    lines = list(differences({name: stored["scenarios"][name] for name in names}, made))
    print("\n".join(lines) or f"{sum(map(len, made.values()))} artifacts of {len(made)} scenarios are as they were")
    return 1 if lines else 0


def machine() -> dict[str, str]:
    """What digests of floats depend on: processor, Python, libraries."""
    info = Path("/proc/cpuinfo")
    models = re.findall(r"model name\s*: (.*)", info.read_text()) if info.is_file() else [platform.processor()]
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    return {"processor": models[0] if models else "", "python": platform.python_version(), **versions}


def differences(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]]) -> Iterator[str]:
    """A line for each artifact that appeared, disappeared or changed."""
    for name, files in after.items():
        for path in sorted({*before[name], *files}):
            if path not in files:
                yield f"{name}/{path}: gone"
            elif path not in before[name]:
                yield f"{name}/{path}: new"
            elif files[path] != before[name][path]:
                yield f"{name}/{path}: changed"


def run_scenario(name: str, folder: Path) -> dict[str, str]:
    """Path -> digest of what the scenario leaves in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{name} ...", file=sys.stderr, flush=True)
    SCENARIOS[name](folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    kept = [path for path in files if not any(part in path.name for part in _LEFT_OUT)]
    return {path.relative_to(folder).as_posix(): digest(path, folder) for path in kept}


# ---- digests -----------------------------------------------------------------------------------------------------


def digest(path: Path, root: Path) -> str:
    """sha256 of what a file says, without what may change from run to run; root: replaced in texts."""
    if path.suffix in (".json", ".jsonl"):
        texts = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        left_out = _LEFT_OUT_OF.get(path.name)
        data = json.dumps([settled(json.loads(text), str(root), left_out) for text in texts], sort_keys=True).encode()
    elif path.suffix in _SUFFIXES_OF_TEXT:
        text = path.read_text(encoding="utf-8").replace(str(root), "<root>")
        for pattern, word in _VOLATILE_TEXT:
            text = pattern.sub(word, text)
        data = text.encode()
    elif path.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(path)
        columns = {column: table[column].to_pylist() for column in sorted(table.column_names)}
        data = json.dumps(settled(columns, str(root)), sort_keys=True, default=repr).encode()
    else:
        data = path.read_bytes()
    return hashlib.sha256(data).hexdigest()


def settled(value: Any, root: str, left_out: re.Pattern[str] | None = None) -> Any:
    """The value without volatile keys, digests of files that hold such, and the scratch folder's name."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if not _VOLATILE.search(str(k)) and not (left_out and left_out.match(k))}
        return {key: settled(item, root, left_out) for key, item in kept.items()}
    if isinstance(value, list):
        return [settled(item, root, left_out) for item in value]
    return value.replace(root, "<root>") if isinstance(value, str) else value


# ---- scenarios ---------------------------------------------------------------------------------------------------


def stage1(
    *arguments: str | Path, codes: tuple[int, ...] = (0,), cwd: Path | None = None, save: Path | None = None
) -> None:
    """The command line in a process of its own, one thread each; save: where stdout goes."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "stage1.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=cwd, check=False)
    if done.returncode not in codes:
        raise SystemExit(f"{' '.join(command)}: exit {done.returncode}\n{done.stderr[-2000:]}")
    if save is not None:
        save.write_text(done.stdout, encoding="utf-8")


def smoke(folder: Path) -> None:
    """The whole line once for each policy."""
    stage1("smoke", "--policy", "all", "--output", folder / "runs", save=folder / "stdout.txt")


def views(folder: Path) -> None:
    """A run on five views of each image with a head trained through their pool."""
    stage1(
        "run",
        "--recipe",
        "smoke",
        "--output",
        folder / "run",
        "features.engine=onnx",
        "views={grid: 2x2, train: mil, pool: 'lse:1'}",
        "data.roadscenes={videos: 60, size: 96}",
        codes=(0, 4),
    )


def cascade(folder: Path) -> None:
    """Two bundles as one classifier, certified as a whole; photos answered; the detector on ten challenges with the
    first.
    """
    stage1("run", "--recipe", "smoke", "--output", folder / "first", "features.engine=onnx", codes=(0, 4))
    stage1(
        "run",
        "--recipe",
        "smoke",
        "--output",
        folder / "second",
        "features.engine=onnx",
        "train.epochs=4",
        "seed=1",
        codes=(0, 4),
    )
    (folder / "cascade.yaml").write_text(
        "name: golden\nclasses: [none, roadwork]\nstages:\n"
        "  - {name: first, bundle: first/bundle, exit: auto}\n"
        "  - {name: second, bundle: second/bundle, answer_above: auto}\n"
        "risks: {miss_rate: 0.5, false_exit_rate: 0.5}\nconfidence: 0.9\n",
        encoding="utf-8",
    )
    stage1(
        "cascade",
        "evaluate",
        "cascade.yaml",
        "--table",
        "first",
        "--output",
        "whole",
        "--quiet",
        cwd=folder,
        codes=(0, 4),
    )
    _detector(folder)


def _detector(folder: Path) -> None:
    """What the detector answers to ten images, in a process of its own."""
    code = (
        "import json, sys\nfrom PIL import Image\nfrom stage1.streetvision.detector import Stage1Detector\n"
        "rng = __import__('numpy').random.default_rng(0)\n"
        "made = [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype='uint8')) for _ in range(10)]\n"
        "detector = Stage1Detector(config_name=sys.argv[1])\n"
        "print(json.dumps([detector(image) for image in made]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str((folder / "first" / "bundle").resolve())],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"detector: {done.stderr[-2000:]}")
    (folder / "detector.json").write_text(done.stdout, encoding="utf-8")


def scores(folder: Path) -> None:
    """Certificates, metrics and pages from score files of two and of ten classes."""
    for name, n_classes, risks in (
        ("two", 2, "risks={fnr: 0.05, false_exit_rate: 0.1}"),
        ("ratios", 2, "risks={fnr: 0.1, fpr: 0.1}"),
        ("ten", 10, "risks={error: 0.1}"),
    ):
        file = folder / f"{name}.npz"
        np.savez(file, **_drawn(n_classes))
        out = folder / name
        stage1("calibrate", "--scores", file, "--values", "logits", "--output", out, risks, codes=(0, 4))
        stage1("evaluate", "--scores", out / "scores.parquet", "--values", "logits", "--policy", out, codes=(0, 4))
        stage1("report", out, codes=(0, 4))
        file.unlink()


def _drawn(n_classes: int) -> dict[str, np.ndarray]:
    """Scores of a decent classifier, 2,400 rows."""
    rng = np.random.default_rng(n_classes)
    labels = rng.integers(0, n_classes, 2400)
    logits = rng.normal(0, 1, (2400, n_classes))
    logits[np.arange(2400), labels] += 3.0
    return {"logits": logits, "label": labels, "id": np.array([f"image-{row:05d}" for row in range(2400)])}


SCENARIOS: dict[str, Callable[[Path], None]] = {"smoke": smoke, "views": views, "cascade": cascade, "scores": scores}

if __name__ == "__main__":
    sys.exit(main())
