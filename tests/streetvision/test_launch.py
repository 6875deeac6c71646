"""Registering with a stand-in of the client's registry, and running a stand-in of its miner, here and in the
client's own venv.
"""

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
from unittest import mock

import pytest
from PIL import Image

from stage1.errors import ConfigError
from stage1.inference import load_bundle
from stage1.runtime.crops import ViewPolicy
from stage1.streetvision import Stage1Detector, register
from stage1.streetvision.challenge import LEVELS, challenge
from stage1.streetvision.check import scenes
from stage1.streetvision.launch import NEEDED, miner_command
from stage1.views import Pooled, ViewsDocument

from ..cascade.server import misbehave, serving
from ..command_line import stage1 as in_this_process
from ..runs.conftest import one_line_error
from ..runs.conftest import stage1 as in_a_process
from .bundles import make_bundle
from .test_cascade import detector_of, http

# A stand-in with the real client's module names, flags and behaviour (streetvision-subnet v2.0.4), written for these
# tests: a registry, a base class, stock detectors of which ROADWORK is the default, a parser that passes over what it
# does not know and is asked twice, first for the words of every neuron. The requests come from a file in place of its
# network.
REGISTRY = """
class Registry:
    def __init__(self):
        self.data = {}
    def register_module(self, module_name=None):
        def put(kind):
            self.data[module_name or kind.__name__] = kind
            return kind
        return put
    def __getitem__(self, name):
        return self.data[name]
    def __contains__(self, name):
        return name in self.data
DETECTOR_REGISTRY = Registry()
OTHER = Registry()
"""
DETECTORS = """
from abc import ABC, abstractmethod
from base_miner.registry import DETECTOR_REGISTRY
class FeatureDetector(ABC):
    def __init__(self, model_name, config_name=None, device="cpu"):
        if type(self).__name__ == "Stage1Detector":
            raise RuntimeError("the client's constructor reads the client's own folder")
        self.load_model()
    @abstractmethod
    def load_model(self): ...
    @abstractmethod
    def __call__(self, image): ...
@DETECTOR_REGISTRY.register_module(module_name="ROADWORK")
class RoadworkDetector(FeatureDetector):
    def __init__(self, model_name="ROADWORK", config_name="roadwork.yaml", device="cpu"):
        super().__init__(model_name, config_name, device)
    def load_model(self):
        make = DETECTOR_REGISTRY["ViT"]
        self.detector = make(model_name="ViT_roadwork", config_name="ViT_roadwork.yaml", device="cpu")
    def __call__(self, image):
        return self.detector(image)
@DETECTOR_REGISTRY.register_module(module_name="ViT")
class ViTImageDetector(FeatureDetector):
    def load_model(self):
        print("THE STOCK MODEL IS SERVED")
    def __call__(self, image):
        return 0.5
"""
MINER = """
import argparse, asyncio, base64, io, json, os, sys
from PIL import Image
import base_miner.detectors
from base_miner.registry import DETECTOR_REGISTRY
def config(of_miner):
    parser = argparse.ArgumentParser()
    parser.add_argument("--netuid", type=int, default=1)
    parser.add_argument("--wallet.name", type=str, default="default")
    parser.add_argument("--neuron.epoch_length", type=int, default=100)
    parser.add_argument("--neuron.dont_save_events", action="store_true", default=False)
    if of_miner:
        parser.add_argument("--neuron.image_detector_config", type=str, default="roadwork.yaml")
        parser.add_argument("--neuron.image_detector", type=str, default="ROADWORK")
        parser.add_argument("--neuron.image_detector_device", type=str, default="cpu")
        parser.add_argument("--neuron.name", type=str, default="miner")
    return vars(parser.parse_known_args()[0])
class Miner:
    def __init__(self):
        self.config = config(False) | config(True)
        self.load_image_detector()
    def load_image_detector(self):
        name, file = self.config["neuron.image_detector"], self.config["neuron.image_detector_config"]
        device = self.config["neuron.image_detector_device"]
        if "none" in (str(name).lower(), str(file).lower()):
            self.image_detector = None
            return
        if device == "auto":
            device = "cpu"
        if os.environ.get("CLIENT_HAS_TORCH"):
            import torch, transformers
            assert transformers.__version__ == "4.45.2", transformers.__version__
        self.image_detector = DETECTOR_REGISTRY[name](config_name=file, device=device)
    async def forward_image(self, sent):
        if self.image_detector is None:
            return -1.0
        try:
            return self.image_detector(Image.open(io.BytesIO(base64.b64decode(sent))))
        except Exception as error:
            print("Error performing inference", error, file=sys.stderr)
            return -1.0
miner = Miner()
answers = [asyncio.run(miner.forward_image(line)) for line in open(os.environ["STANDIN_REQUESTS"])]
print(json.dumps({
    "answers": answers, "argv": sys.argv[1:], "main": __name__,
    "derived": isinstance(miner.image_detector, base_miner.detectors.FeatureDetector),
    "roots": sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)),
    "path": sys.path, "counts": getattr(miner.image_detector, "counts", None),
}))
"""
# Of our extras and of the command line: what a detector never imports, so that the client's own versions of them (it
# has timm) stay out of it.
NEVER = {"typer", "timm", "torchvision", "simplejpeg", "sklearn", "onnx", "matplotlib"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("the client")
    package = folder / "base_miner"
    package.mkdir()
    (folder / "neurons").mkdir()
    for name, text in (("__init__", ""), ("registry", REGISTRY), ("detectors", DETECTORS), ("miner", MINER)):
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


def environment(client: Path, asked: Path | None = None, **more: str) -> dict[str, str]:
    sent = {} if asked is None else {"STANDIN_REQUESTS": str(asked)}
    # What is tested may itself be found by PYTHONPATH (a second checkout); it stays behind the client.
    path = os.pathsep.join([str(client), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]).rstrip(os.pathsep)
    return {**os.environ, "PYTHONPATH": path, **sent, **more}


def stage1(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """The command line in the process of the tests; the miner that `streetvision run` becomes (exec) has its own."""

    def become(_: str, words: list[str]) -> None:
        done = subprocess.run(words, capture_output=True, text=True, timeout=300)
        sys.stdout.write(done.stdout)
        sys.stderr.write(done.stderr)
        raise SystemExit(done.returncode)

    with mock.patch("os.execvp", become):
        return in_this_process(*arguments, environment=environment)


def words_for(config: Path | str, name: str = "Stage1") -> list[str]:
    return ["--neuron.image_detector", name, "--neuron.image_detector_config", str(config)]


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
    target = [str(client / "neurons" / "miner.py")] if form == "script" else ["-m", "base_miner.miner"]
    asked = ["--netuid", "72", *words_for(config, "Ours"), "--neuron.image_detector_device", "auto"]
    start = in_a_process if form == "script" else stage1  # once as a user has it: our process becomes the miner
    run = start(
        "streetvision",
        "run",
        "--registry",
        "base_miner.registry",
        "--name",
        "Ours",
        "--",
        sys.executable,
        *target,
        *asked,
        environment=environment(client, tmp_path / "requests"),
    )
    assert run.returncode == 0, run.stderr
    assert "detector 'Ours' is registered" in run.stderr
    assert f"the miner built our detector 'Ours': bundle {bundle}, digest " in run.stderr
    found = json.loads(run.stdout)
    assert (found["argv"], found["main"], found["derived"]) == (asked, "__main__", False)
    assert not set(found["roots"]) & NEVER
    rows = load_bundle(bundle).predict(made)
    assert [answer > 0.5 for answer in found["answers"]] == [row.label == "roadwork" for row in rows]
    assert found["counts"]["fallback"] == 0


def test_our_environment_does_not_reach_the_clients_path(client, bundle, tmp_path):
    """A copy of the package in a folder full of other packages, as in site-packages: only stage1 may be seen from
    there.
    """
    site = tmp_path / "site-packages"
    import stage1 as package

    shutil.copytree(Path(package.__file__).parent, site / "stage1", ignore=shutil.ignore_patterns("__pycache__"))
    (site / "transformers.py").write_text("raise RuntimeError('ours, not the client\\'s')")
    requests(tmp_path / "requests", 2)
    words = miner_command(
        [sys.executable, str(client / "neurons" / "miner.py"), *words_for(bundle)],
        registry="base_miner.registry:DETECTOR_REGISTRY",
        base="base_miner.detectors:FeatureDetector",
    )
    words[words.index("-c") + 2] = str(site / "stage1")
    run = subprocess.run(
        words, capture_output=True, text=True, env=environment(client, tmp_path / "requests"), timeout=120
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert found["derived"]
    assert str(site) not in found["path"]
    assert found["path"][0] == str(client / "neurons")


@pytest.mark.parametrize(
    "options, words",
    [
        (["--registry", "no_such_client.registry"], "--registry: cannot import 'no_such_client.registry'"),
        (["--registry", "base_miner.registry:NOTHING"], "has no 'NOTHING'"),
        (["--registry", "base_miner.registry:Registry.x"], "has no 'Registry.x'"),
        (["--registry", "json:JSONDecoder"], "has no `register_module`"),
        (["--registry", "base_miner.registry", "--base", "base_miner.detectors:Nobody"], "--base: "),
    ],
)
def test_what_cannot_be_registered_is_one_line_before_the_miner_starts(client, options, words):
    run = stage1(
        "streetvision",
        "run",
        *options,
        "--",
        sys.executable,
        client / "neurons" / "miner.py",
        environment=environment(client),
    )
    one_line_error(run, 2, words)
    assert run.stdout == ""


def launched(client: Path, asked: Path, *words: str | Path, options: tuple[str | Path, ...] = ()):
    """The stand-in with the client's real flags, started as docs/CLIENT.md says."""
    return stage1(
        "streetvision",
        "run",
        "--registry",
        "base_miner.registry",
        *options,
        "--",
        sys.executable,
        client / "neurons" / "miner.py",
        *words,
        environment=environment(client, asked),
    )


@pytest.mark.parametrize(
    "words, said",
    [
        (["--neuron.detector", "Stage1"], "--neuron.detector is no word of the client's"),
        (["--neuron.detector=Stage1"], "did you mean --neuron.image_detector Stage1?"),
        (["--neuron.image_detecter", "Stage1"], "did you mean --neuron.image_detector Stage1?"),
        (["--neuron.image_detector", "Stage1", "--neuron.config", "stage1.yaml"], "--neuron.config is no word"),
        (
            ["--neuron.image_detector", "Stage1", "--neuron.image-detector-config", "x"],
            "did you mean --neuron.image_detector_config?",
        ),
        (["--neuron.image_detector", "stage1"], "names 'stage1', and ours is registered as 'Stage1'"),
        (["--neuron.image_detector=ROADWORK"], "names 'ROADWORK'"),
        (["--neuron.image_detector", "None"], "names 'None'"),
        (["--neuron.image_detector", "--netuid", "72"], "names nothing"),
        (["--neuron.image_detector", "Stage1", "--neuron.image_detector_config", "None"], "IMAGE_DETECTOR_CONFIG=FILE"),
    ],
)
def test_words_that_would_serve_the_stock_model_are_refused_before_the_miner_starts(client, tmp_path, words, said):
    run = launched(client, tmp_path / "requests", *words)
    one_line_error(run, 2, said)
    assert run.stdout == ""


def test_a_word_of_a_newer_client_passes_where_it_is_named():
    given = ["python", "miner.py", "--neuron.queue=3", *words_for("a.yaml")]
    with pytest.raises(ConfigError, match="--neuron.queue is no word"):
        miner_command(given, registry="r")
    for known in ("queue", "--neuron.queue"):
        assert miner_command(given, registry="r", also_known=[known])[-6:] == given[1:]


def test_a_miner_that_builds_its_stock_model_ends_before_it_serves(client, tmp_path):
    """No word for the detector at all: the client's default is its own, and the launcher used to call ours
    registered.
    """
    requests(tmp_path / "requests", 2)
    for options in ((), ("--base", "base_miner.detectors:FeatureDetector")):  # registered before ours, and after it
        run = launched(client, tmp_path / "requests", "--netuid", "72", options=options)
        one_line_error(run, 2, "the miner builds its own detector 'ROADWORK'", "--neuron.image_detector Stage1")
        assert "STOCK" not in run.stdout


def test_a_stock_model_behind_ours_is_no_reason_to_stop(client, bundle, tmp_path):
    made = requests(tmp_path / "requests", 2)
    (client / "second.py").write_text(
        "import base_miner.detectors\nfrom base_miner.registry import DETECTOR_REGISTRY\n"
        "asked = DETECTOR_REGISTRY['ViT'](model_name='v')\n"
    )
    config = tmp_path / "detector.yaml"
    config.write_text(f"bundle: {json.dumps(str(bundle))}\nstage2: second:asked\n")
    run = launched(client, tmp_path / "requests", *words_for(config))
    assert run.returncode == 0, run.stderr
    assert "the miner built our detector 'Stage1'" in run.stderr
    assert len(json.loads(run.stdout.splitlines()[-1])["answers"]) == len(made)


def test_config_of_the_launcher_is_passed_on_as_the_clients_word(client, bundle, tmp_path):
    """The client always passes a configuration, roadwork.yaml of its own where it is told of none."""
    requests(tmp_path / "requests", 2)
    named = ["--neuron.image_detector", "Stage1"]
    run = launched(client, tmp_path / "requests", *named, options=("--config", bundle))
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["argv"] == words_for(bundle)
    one_line_error(launched(client, tmp_path / "requests", *named), 3, "roadwork.yaml: no such file")
    with pytest.raises(ConfigError, match="give one of the two"):
        miner_command(["python", "miner.py", *words_for("/a.yaml")], registry="r", config="/b.yaml")


def test_a_changed_byte_of_the_bundle_is_one_line_at_the_start(client, bundle, tmp_path):
    requests(tmp_path / "requests", 2)
    shutil.copytree(bundle, tmp_path / "bundle")
    model = tmp_path / "bundle" / "model.onnx"
    data = bytearray(model.read_bytes())
    data[len(data) // 2] ^= 1
    model.write_bytes(bytes(data))
    run = launched(client, tmp_path / "requests", *words_for(tmp_path / "bundle"))
    one_line_error(run, 5, "model.onnx")
    assert run.stdout == ""


def test_a_miner_that_builds_no_detector_is_told_so_at_its_end(client, tmp_path):
    (tmp_path / "miner.py").write_text("print('no detector here')\n")
    run = stage1(
        "streetvision",
        "run",
        "--registry",
        "base_miner.registry",
        "--",
        sys.executable,
        tmp_path / "miner.py",
        environment=environment(client),
    )
    assert run.returncode == 0
    assert "warning: the miner ended without building a detector" in run.stderr


def test_a_miner_that_cannot_be_started_is_one_line(tmp_path):
    refused = stage1("streetvision", "run", "--registry", "x", "--", "bash", "start.sh")
    one_line_error(refused, 2, "runs no Python script")
    missing = in_a_process("streetvision", "run", "--registry", "x", "--", tmp_path / "bin" / "python", "miner.py")
    one_line_error(missing, 3, "No such file")


def test_print_shows_the_command_and_runs_nothing():
    shown = stage1("streetvision", "run", "--registry", "x", "--print", "--", "python", "miner.py", "--wallet", "w")
    assert shown.returncode == 0
    assert shown.stdout.startswith("python -c ")
    assert shown.stdout.rstrip().endswith("-- miner.py --wallet w")


# ---- the client's own environment ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("views", [None, ViewsDocument(ViewPolicy(grid=(2, 2)), Pooled())], ids=["whole", "pooled"])
def test_200_challenges_in_the_clients_environment(client, views, tmp_path):
    """Python 3.11 with transformers 4.45.2, torch, onnxruntime and Pillow, and none of our training extras."""
    venv = os.environ.get("CLIENT_VENV")
    if not venv:
        pytest.skip("CLIENT_VENV names no virtual environment; `make client-venv` builds one and says its path")
    bundle = make_bundle(tmp_path / "bündle of ours", views=views)
    made = requests(tmp_path / "requests", 200, each=25)
    run = stage1(
        "streetvision",
        "run",
        "--registry",
        "base_miner.registry",
        "--base",
        "base_miner.detectors:FeatureDetector",
        "--",
        Path(venv) / "bin" / "python",
        client / "neurons" / "miner.py",
        *words_for(bundle),
        environment=environment(client, tmp_path / "requests", CLIENT_HAS_TORCH="1"),
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert len(found["answers"]) == 200
    assert all(isinstance(answer, float) and 0.0 <= answer <= 1.0 for answer in found["answers"])
    assert found["counts"]["fallback"] == 0
    assert found["derived"]
    assert {"torch", "transformers"} <= set(found["roots"])
    assert not set(found["roots"]) & NEVER
    detector = Stage1Detector(config_name=str(bundle))
    here = [detector(Image.open(io.BytesIO(data))) for data in made]
    assert found["answers"] == pytest.approx(here, abs=1e-6)


@pytest.mark.parametrize("where", ["our own", pytest.param("the client's", marks=pytest.mark.slow)])
def test_a_miner_with_a_cascade_asks_its_stages(client, bundle, tmp_path, where):
    venv = os.environ.get("CLIENT_VENV")
    if where == "the client's" and not venv:
        pytest.skip("CLIENT_VENV names no virtual environment; `make client-venv` builds one and says its path")
    python = sys.executable if where == "our own" else Path(venv or "") / "bin" / "python"
    made = requests(tmp_path / "requests", 24, each=3)
    with serving(misbehave) as server:
        # Hardly anything exits, so that there is something to ask.
        detector = detector_of(tmp_path, bundle, http(server.url("/ok")), exit={"below": 1e-6})
        here = [detector(Image.open(io.BytesIO(data))) for data in made]
        run = stage1(
            "streetvision",
            "run",
            "--registry",
            "base_miner.registry",
            "--",
            python,
            client / "neurons" / "miner.py",
            *words_for(tmp_path / "detector.yaml"),
            environment=environment(client, tmp_path / "requests"),
        )
        assert run.returncode == 0, run.stderr
        assert len(server.requests) == 2 * 24
    found = json.loads(run.stdout)
    assert found["answers"] == pytest.approx(here, abs=1e-6)
    assert found["counts"]["stage2"] == 24
    assert not set(found["roots"]) & NEVER


# ---- check -----------------------------------------------------------------------------------------------------------


def test_check_plays_every_level_and_prints_latency_and_reward(bundle):
    run = stage1("streetvision", "check", bundle, "--count", "10", "--quiet", "--json")
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["failures"], found["images"], found["count"]) == (0, 48, 10)
    assert [row["level"] for row in found["latency"]] == [*LEVELS, "all"]
    assert [row["n"] for row in found["latency"]] == [10, 10, 10, 10, 40]
    for row in found["latency"]:
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"] <= row["max_ms"] < found["deadline_ms"]
    assert [row["level"] for row in found["reward"]] == [*LEVELS, "mixture"]
    assert all(0 <= row["low"] <= row["reward"] <= row["high"] <= 1 for row in found["reward"])
    by = found["answered_by"]
    assert by["exit"] + by["stage1"] + by["stage2"] + by["fallback"] == 40
    shown = stage1("streetvision", "check", bundle, "--count", "2", "--quiet").stdout
    assert "expected reward" in shown
    assert "(no interval)" in shown  # two scenes of each class are too few for one
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
    from stage1.streetvision.check import check

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
    one_line_error(result, 3, "no " + ", ".join(NEEDED))
    assert result.stdout == ""
