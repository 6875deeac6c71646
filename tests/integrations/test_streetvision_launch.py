"""Registering with a stand-in of the client's registry, and running a stand-in of its miner, here and in the client's own venv."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from pathlib import Path

import pytest
from PIL import Image

from stage1.aggregation import FrozenViews, Pooled
from stage1.data.challenge import LEVELS, challenge
from stage1.errors import ConfigError
from stage1.inference import load_bundle
from stage1.integrations.streetvision import Stage1Detector, register
from stage1.integrations.streetvision.check import scenes
from stage1.integrations.streetvision.launch import miner_command
from stage1.views import ViewPolicy

from ..inference.cascade_server import misbehave, serving
from ..pipeline.conftest import one_line_error, stage1
from .streetvision_bundles import make_bundle
from .test_streetvision_cascade import detector_of, http

# What the contract says of the client, and no more: a registry, a base class, a miner that builds a detector by keywords.
REGISTRY = """
class Registry:
    def __init__(self):
        self.found = {}
    def register_module(self, module_name):
        def put(kind):
            self.found[module_name] = kind
            return kind
        return put
DETECTOR_REGISTRY = Registry()
OTHER = Registry()
"""
DETECTOR = """
from abc import ABC, abstractmethod
class FeatureDetector(ABC):
    def __init__(self, model_name, config_name=None, device="cpu"):
        raise RuntimeError("the client's constructor reads the client's own folder")
    @abstractmethod
    def load_model(self): ...
    @abstractmethod
    def __call__(self, image): ...
"""
MINER = """
import argparse, base64, io, json, os, sys
from PIL import Image
from streetclient.registry import DETECTOR_REGISTRY
from streetclient.detector import FeatureDetector
parser = argparse.ArgumentParser()
parser.add_argument("--neuron.detector", dest="name")
parser.add_argument("--neuron.config", dest="config")
parser.add_argument("--requests")
given = parser.parse_args()
device = "cpu"
if os.environ.get("CLIENT_HAS_TORCH"):
    import torch, transformers
    assert transformers.__version__ == "4.45.2", transformers.__version__
    device = torch.device("cpu")
kind = DETECTOR_REGISTRY.found[given.name]
detector = kind(model_name=given.name, config_name=given.config, device=device)
answers = []
for line in open(given.requests):
    answers.append(detector(Image.open(io.BytesIO(base64.b64decode(line)))))
print(json.dumps({
    "answers": answers, "argv": sys.argv[1:], "main": __name__, "derived": issubclass(kind, FeatureDetector),
    "roots": sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)),
    "path": sys.path, "counts": detector.counts,
}))
"""
# The Cython modules of simplejpeg lie in its package; those beside it (cython_runtime) may be PyYAML's, which is allowed.
OURS = {"scipy", "pydantic", "jsonschema", "pyarrow", "typer", "timm", "torchvision", "simplejpeg"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("the client")
    package = folder / "streetclient"
    package.mkdir()
    (folder / "neurons").mkdir()
    for name, text in (("__init__", ""), ("registry", REGISTRY), ("detector", DETECTOR), ("miner", MINER)):
        (package / f"{name}.py").write_text(text)
    (folder / "neurons" / "miner.py").write_text(MINER)
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("bündle of ours"))


def requests(path: Path, n: int, each: int = 2) -> list[bytes]:
    """n challenges of the four levels in turn, one base64 line each; returns the JPEGs."""
    frames = scenes(each=each, size=128)
    made = [
        challenge(frames[index % len(frames)].image, LEVELS[index // len(frames) % 4], seed=1, copy=index).jpeg
        for index in range(n)
    ]
    path.write_text("".join(base64.b64encode(data).decode() + "\n" for data in made))
    return made


def environment(client: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(client), **more}


# ---- in this process -------------------------------------------------------------------------------------------------


class Registry:
    def __init__(self) -> None:
        self.found: dict[str, type] = {}

    def register_module(self, module_name: str):
        return lambda kind: self.found.setdefault(module_name, kind)


def test_register_puts_the_class_under_its_name():
    registry = Registry()
    assert register(registry) is Stage1Detector
    assert registry.found == {"Stage1": Stage1Detector}
    register(registry, name="Again")
    assert set(registry.found) == {"Stage1", "Again"}


def test_register_derives_from_the_clients_base_without_calling_its_constructor(bundle):
    class FeatureDetector:
        def __init__(self, model_name, config_name=None, device="cpu"):
            raise RuntimeError("not to be called")

    registry = Registry()
    kind = register(registry, base=FeatureDetector)
    assert issubclass(kind, FeatureDetector)
    detector = registry.found["Stage1"](model_name="m", config_name=str(bundle), device="cpu")
    assert detector(Image.new("RGB", (8, 8), (200, 60, 60))) > 0.5


def test_register_refuses_what_is_no_registry():
    with pytest.raises(ConfigError, match="dict has no `register_module`"):
        register({})


def test_register_names_what_a_base_asks_for_and_we_do_not_have():
    class FeatureDetector(ABC):
        @abstractmethod
        def explain(self): ...

    with pytest.raises(ConfigError, match="also asks for `explain`"):
        register(Registry(), base=FeatureDetector)


@pytest.mark.parametrize(
    "given, before, target",
    [
        ("python neurons/miner.py --a b", ["python"], ["neurons/miner.py", "--a", "b"]),
        (
            "/x/bin/python3.11 -u -X dev -m pkg.miner --a",
            ["/x/bin/python3.11", "-u", "-X", "dev"],
            ["-m", "pkg.miner", "--a"],
        ),
        ("poetry run python miner", ["poetry", "run", "python"], ["miner"]),
        ("neurons/miner.py --python 3", [sys.executable], ["neurons/miner.py", "--python", "3"]),
        ("-m pkg.miner", [sys.executable], ["-m", "pkg.miner"]),
        ("miner.py --helper python", [sys.executable], ["miner.py", "--helper", "python"]),
    ],
)
def test_the_miners_python_and_its_arguments_are_kept(given, before, target):
    words = miner_command(given.split(), registry="client.registry", name="N")
    boot = words.index("-c")
    assert words[:boot] == before
    assert words[words.index("--") + 1 :] == target
    assert words[boot + 2 : words.index("--")][1:] == ["--registry", "client.registry", "--name", "N"]


@pytest.mark.parametrize("given", ["", "python", "python -m", "bash start.sh", "python -u", "-m"])
def test_a_command_that_runs_no_script_is_refused(given):
    with pytest.raises(ConfigError, match="runs no Python script"):
        miner_command(given.split(), registry="client.registry")


# ---- a miner in a process of its own ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["script", "module"])
def test_the_miner_runs_with_our_detector_registered(client, bundle, tmp_path, form):
    made = requests(tmp_path / "requests", 12)
    config = tmp_path / "detector.yaml"
    config.write_text(f"bundle: {json.dumps(str(bundle))}\n")
    target = [str(client / "neurons" / "miner.py")] if form == "script" else ["-m", "streetclient.miner"]
    asked = ["--neuron.detector", "Ours", "--requests", str(tmp_path / "requests")]
    run = stage1(
        "streetvision", "run", "--registry", "streetclient.registry", "--name", "Ours", "--config", config,
        "--", sys.executable, *target, *asked, environment={"PYTHONPATH": str(client)},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    assert "detector 'Ours' is registered" in run.stderr
    found = json.loads(run.stdout)
    assert (found["argv"], found["main"], found["derived"]) == (asked, "__main__", False)
    assert not set(found["roots"]) & OURS
    rows = load_bundle(bundle).predict(made)
    assert [answer > 0.5 for answer in found["answers"]] == [row.label == "roadwork" for row in rows]
    assert found["counts"]["fallback"] == 0


def test_our_environment_does_not_reach_the_clients_path(client, bundle, tmp_path):
    """A copy of the package in a folder full of other packages, as in site-packages: only stage1 may be seen from there."""
    site = tmp_path / "site-packages"
    import stage1 as package

    shutil.copytree(Path(package.__file__).parent, site / "stage1", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "transformers.py").write_text("raise RuntimeError('ours, not the client\\'s')")
    requests(tmp_path / "requests", 2)
    words = miner_command(
        [sys.executable, str(client / "neurons" / "miner.py"), "--neuron.detector", "Stage1", "--neuron.config", str(bundle),
         "--requests", str(tmp_path / "requests")], registry="streetclient.registry:DETECTOR_REGISTRY",
        base="streetclient.detector:FeatureDetector",
    )  # fmt: skip
    words[words.index("-c") + 2] = str(site / "stage1")
    run = subprocess.run(words, capture_output=True, text=True, env=environment(client), timeout=120)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["derived"]
    assert str(site) not in found["path"]
    assert found["path"][0] == str(client / "neurons")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--registry", "no_such_client.registry"], "--registry: cannot import 'no_such_client.registry'"),
        (["--registry", "streetclient.registry:NOTHING"], "has no 'NOTHING'"),
        (["--registry", "streetclient.registry:Registry.x"], "has no 'Registry.x'"),
        (["--registry", "json:JSONDecoder"], "has no `register_module`"),
        (["--registry", "streetclient.registry", "--base", "streetclient.detector:Nobody"], "--base: "),
    ],
)
def test_what_cannot_be_registered_is_one_line_before_the_miner_starts(client, options, words):
    run = stage1("streetvision", "run", *options, "--", sys.executable, client / "neurons" / "miner.py",
                 environment={"PYTHONPATH": str(client)})  # fmt: skip
    assert run.returncode == 1
    assert words in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""


def test_a_miner_that_cannot_be_started_is_one_line(tmp_path):
    refused = stage1("streetvision", "run", "--registry", "x", "--", "bash", "start.sh")
    one_line_error(refused, 2, "runs no Python script")
    missing = stage1("streetvision", "run", "--registry", "x", "--", tmp_path / "bin" / "python", "miner.py")
    one_line_error(missing, 3, "No such file")


def test_print_shows_the_command_and_runs_nothing():
    shown = stage1("streetvision", "run", "--registry", "x", "--print", "--", "python", "miner.py", "--wallet", "w")
    assert shown.returncode == 0
    assert shown.stdout.startswith("python -c ")
    assert shown.stdout.rstrip().endswith("-- miner.py --wallet w")


# ---- the client's own environment ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("views", [None, FrozenViews(ViewPolicy(grid=(2, 2)), Pooled())], ids=["whole", "pooled"])
def test_200_challenges_in_the_clients_environment(client, views, tmp_path):
    """Python 3.11 with transformers 4.45.2, torch, onnxruntime and Pillow, and none of our training extras."""
    venv = os.environ.get("CLIENT_VENV")
    if not venv:
        pytest.skip("CLIENT_VENV names no virtual environment; `make client-venv` builds one and says its path")
    bundle = make_bundle(tmp_path / "bündle of ours", views=views)
    made = requests(tmp_path / "requests", 200, each=25)
    run = stage1(
        "streetvision", "run", "--registry", "streetclient.registry", "--base", "streetclient.detector:FeatureDetector",
        "--config", bundle, "--", Path(venv) / "bin" / "python", client / "neurons" / "miner.py",
        "--neuron.detector", "Stage1", "--requests", tmp_path / "requests",
        environment={"PYTHONPATH": str(client), "CLIENT_HAS_TORCH": "1"},
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found["answers"]) == 200
    assert all(isinstance(answer, float) and 0.0 <= answer <= 1.0 for answer in found["answers"])
    assert found["counts"]["fallback"] == 0
    assert found["derived"]
    assert {"torch", "transformers"} <= set(found["roots"])
    assert not set(found["roots"]) & OURS
    detector = Stage1Detector(config_name=str(bundle))
    here = [detector(Image.open(io.BytesIO(data))) for data in made]
    assert found["answers"] == pytest.approx(here, abs=1e-6)


@pytest.mark.parametrize("where", ["our own", pytest.param("the client's", marks=pytest.mark.slow)])
def test_a_miner_with_a_cascade_asks_its_stages_without_our_packages(client, bundle, tmp_path, where):
    venv = os.environ.get("CLIENT_VENV")
    if where == "the client's" and not venv:
        pytest.skip("CLIENT_VENV names no virtual environment; `make client-venv` builds one and says its path")
    python = sys.executable if where == "our own" else Path(venv or "") / "bin" / "python"
    made = requests(tmp_path / "requests", 24, each=3)
    with serving(misbehave) as server:
        # Hardly anything exits, so that there is something to ask.
        detector = detector_of(tmp_path, bundle, http(server.url("/ok")), exit={"below": 1e-6})
        here = [detector(Image.open(io.BytesIO(data))) for data in made]
        (tmp_path / "detector.json").write_text((tmp_path / "detector.yaml").read_text())
        run = stage1(
            "streetvision", "run", "--registry", "streetclient.registry", "--config", tmp_path / "detector.json", "--", python,
            client / "neurons" / "miner.py", "--neuron.detector", "Stage1", "--requests", tmp_path / "requests",
            environment={"PYTHONPATH": str(client)},
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
        assert len(server.requests) == 2 * 24
    found = json.loads(run.stdout)
    assert found["answers"] == pytest.approx(here, abs=1e-6)
    assert found["counts"]["stage2"] == 24
    assert not set(found["roots"]) & OURS


# ---- check -----------------------------------------------------------------------------------------------------------


def test_check_plays_every_level_and_prints_latency_and_reward(bundle):
    run = stage1("streetvision", "check", bundle, "--count", "8", "--quiet", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["failures"], found["images"], found["count"]) == (0, 48, 8)
    assert [row["level"] for row in found["latency"]] == [*LEVELS, "all"]
    assert [row["n"] for row in found["latency"]] == [8, 8, 8, 8, 32]
    for row in found["latency"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"] < found["deadline_ms"]
    assert [row["level"] for row in found["reward"]] == [*LEVELS, "mixture"]
    assert all(0 <= row["low"] <= row["reward"] <= row["high"] <= 1 for row in found["reward"])
    by = found["answered_by"]
    assert by["exit"] + by["stage1"] + by["stage2"] + by["fallback"] == 32
    shown = stage1("streetvision", "check", bundle, "--count", "2", "--quiet").stdout
    assert "expected reward" in shown
    assert "p99 ms" in shown


def test_check_takes_labelled_images_and_a_detector_yaml(bundle, tmp_path):
    rows = ["image,label"]
    for index in range(6):
        colour = (200, 60, 60) if index % 2 else (60, 60, 200)
        Image.effect_noise((40, 30), 5 + index).convert("RGB")
        image = Image.new("RGB", (240, 200 + index), colour)
        image.save(tmp_path / f"{index}.png")
        rows.append(f"{index}.png,{'roadwork' if index % 2 else 'none'}")
    (tmp_path / "labels.csv").write_text("\n".join(rows))
    (tmp_path / "detector.json").write_text(json.dumps({"bundle": str(bundle), "stage2": "math:sqrt"}))
    run = stage1(
        "streetvision",
        "check",
        tmp_path / "detector.json",
        "--images",
        tmp_path / "labels.csv",
        "--count",
        "4",
        "--json",
        "-q",
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["images"] == 6
    # Plain red and blue: nothing in a street, everything to this model. L0 leaves the colours as they are.
    assert (found["reward"][0]["tpr"], found["reward"][0]["fpr"]) == (1.0, 0.0)


def test_check_counts_what_breaks_the_contract(bundle, monkeypatch):
    from stage1.integrations.streetvision.check import check

    detector = Stage1Detector(config_name=str(bundle))
    turns = iter(range(100))
    monkeypatch.setattr(
        Stage1Detector, "__call__", lambda self, image: (0.5, 1.5, 1 / max(next(turns) - 3, 0))[next(turns) % 3]
    )
    found = check(detector, scenes(each=1, size=64), count=2, resamples=50)
    assert found["failures"] > 0
    assert found["first_failure"]
    assert found["reward"] == []


@pytest.mark.parametrize(
    "arguments, code, words",
    [
        (["nowhere"], 3, "nowhere: no such file"),
        (["BUNDLE", "--count", "1"], 2, "--count 1"),
        (["BUNDLE", "--images", "nowhere.csv"], 3, "nowhere.csv"),
    ],
)
def test_check_refuses_in_one_line(bundle, arguments, code, words):
    run = stage1("streetvision", "check", *(bundle if word == "BUNDLE" else word for word in arguments), "--quiet")
    one_line_error(run, code, words)


def test_a_python_without_what_the_detector_needs_is_one_line(tmp_path):
    """Isolated and without site-packages, as a miner's Python that lacks onnxruntime."""
    (tmp_path / "miner.py").write_text("print('never')\n")
    words = miner_command([sys.executable, "-I", "-S", "miner.py"], registry="client.registry")
    result = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=60)
    one_line_error(result, 1, "no PIL, numpy, onnxruntime")
    assert result.stdout == ""
