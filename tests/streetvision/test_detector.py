"""The detector against the client's contract, and against the batches of `predict` on the same pictures."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import socket
import subprocess
import sys
import threading
import time
import tomllib
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.inference import load_bundle
from stage1.runtime.crops import ViewPolicy
from stage1.streetvision import Stage1Detector
from stage1.streetvision.classifier import ABOVE_HALF
from stage1.streetvision.launch import NEEDED
from stage1.views import Learned, Pool, Sequence, Step, ViewsDocument

from ..bundle.conftest import edit, reseal, tiny_model
from ..limits import ends_within
from .bundles import bundle_of_classes, make_bundle

KINDS = {
    "softmax": {},
    "softmax, platt": {"map_name": "platt"},
    "softmax, beta": {"map_name": "beta"},
    "softmax, isotonic": {"map_name": "isotonic"},
    "gate": {"policy": "gate"},
    "gate of the model": {"policy": "gate", "gate": True},
    "gate refused": {"policy": "gate", "kept": "softmax", "map_name": "temperature"},
    "scrc": {"policy": "scrc"},
    "scrc T": {"policy": "scrc", "variant": "T"},
    "scrc, platt": {"policy": "scrc", "map_name": "platt"},
    "scrc by the gate": {"policy": "scrc", "gate": True},
    "nothing certified": {"n": 60},
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("streetvision"))


@pytest.fixture
def detector(bundle: Path) -> Stage1Detector:
    return Stage1Detector(model_name="test", config_name=str(bundle), device="cpu")


def pictures(n: int = 60, seed: int = 3) -> list[Image.Image]:
    """Colours from clear to doubtful, of many sizes, some of them JPEGs that are read lazily, in every mode."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        lean = rng.normal(0, 30)
        base = np.array([120 + lean, 120, 120 - lean]) + rng.normal(0, 12, (*rng.integers(1, 90, 2), 3))
        image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
        if index % 3 == 0:
            stream = io.BytesIO()
            image.save(stream, "JPEG", quality=75, exif=_turned() if index % 2 else b"")
            image = Image.open(stream)
        elif index % 3 == 1:
            image = image.convert(("P", "RGBA", "CMYK", "YCbCr", "L")[index % 5])
        found.append(image)
    return found


def _turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


def yaml_for(tmp_path: Path, bundle: Path, **keys: object) -> str:
    path = tmp_path / "detector.yaml"
    path.write_text("\n".join(f"{key}: {json.dumps(value)}" for key, value in {"bundle": str(bundle), **keys}.items()))
    return str(path)


# ---- the same answers as our predictor -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_same_exits_labels_and_probabilities_as_the_predictor(kind, tmp_path):
    folder = make_bundle(tmp_path, **KINDS[kind])
    detector = Stage1Detector(config_name=str(folder))
    rows = load_bundle(folder).predict(pictures())
    answers = [detector.answer(picture) for picture in pictures()]
    exits = 0
    for row, answer in zip(rows, answers, strict=True):
        assert answer.stage1 is not None
        assert (answer.stage1.exit, detector.classes[answer.stage1.label]) == (row.exit, row.label)
        assert answer.stage1.probability == pytest.approx(row.probability, abs=1e-6)
        exits += row.exit
        if row.exit:
            assert (answer.value > 0.5) == (row.label == "roadwork")
    assert exits == 0 if kind == "nothing certified" else 5 <= exits < len(rows)
    assert sum(detector.counts.values()) == len(rows)


VIEWS = ViewPolicy(grid=(2, 2))
TWO = Sequence(
    (0, 4, 1, 2, 3),
    tuple(Step(Pool("mean"), 1.1, 0.05, -1.5, 1.5, (-0.1, 0.1)) for _ in range(5)),
    {"views": 2.0, "coverage": 0.5, "coverage_all": 0.5, "tolerance": 0.01},
)
VIEWED = {
    "whole": {"views": ViewsDocument(VIEWS, Pool("whole"))},
    "mean": {"views": ViewsDocument(VIEWS, Pool("mean")), "map_name": "platt"},
    "topk": {"views": ViewsDocument(VIEWS, Pool("topk:2")), "policy": "scrc"},
    "noisy or of a gated model": {"views": ViewsDocument(VIEWS, Pool("noisy_or")), "policy": "gate", "gate": True},
    "learned": {"views": ViewsDocument(VIEWS, Learned(True, (0.5, 0.3, 0.2, 0.1, 0.1), 0.1)), "map_name": "isotonic"},
    "adaptive": {"views": ViewsDocument(VIEWS, Pool("max"), TWO)},
    "whole of a gated model": {"views": ViewsDocument(VIEWS, Pool("whole")), "policy": "gate", "gate": True},
}


@pytest.mark.parametrize("kind", VIEWED)
def test_bundles_of_several_views_are_looked_at_as_they_were_certified(kind, tmp_path):
    folder = make_bundle(tmp_path, **VIEWED[kind])
    detector = Stage1Detector(config_name=str(folder))
    rows = load_bundle(folder).predict(pictures())
    for row, picture in zip(rows, pictures(), strict=True):
        found = detector.stage1_answer(picture)
        assert (found.exit, detector.classes[found.label]) == (row.exit, row.label)
        assert found.probability == pytest.approx(row.probability, abs=1e-6)
    assert detector.counts["views_add_nothing"] == sum(row.small for row in rows) > 0
    assert 0 < sum(row.exit for row in rows) < len(rows)
    if kind == "adaptive":
        assert {row.views for row in rows} > {1}


ISOLATED = """
import sys
class NoExtras:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ImportError("not in the client's environment: " + name)
EXTRAS = set(sys.argv.pop(1).split(","))
sys.meta_path.insert(0, NoExtras())
import json
from PIL import Image
from stage1.streetvision import Stage1Detector
detector = Stage1Detector(model_name="isolated", config_name=sys.argv[1], device="cpu")
answers = [detector.answer(Image.open(name)).stage1 for name in sys.argv[2:]]
print(json.dumps([[a.exit, a.label, a.probability] for a in answers]))
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names))))
"""


def core() -> set[str]:
    """What the core requires, by the names under which it is imported."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    names = (re.split(r"[^A-Za-z0-9_-]", requirement)[0] for requirement in project["dependencies"])
    return {{"pyyaml": "yaml", "pillow": "PIL"}.get(name, name.replace("-", "_")) for name in names}


# What the detector does without: our extras, and of the core what the command line and the torch half need.
EXTRAS = (
    *("torch", "torchvision", "timm", "onnx", "onnxscript", "datasets", "huggingface_hub", "transformers", "sklearn"),
    *("peft", "matplotlib", "jinja2", "simplejpeg", "tensorboard", "pandas", "typer", "rich", "safetensors"),
)


def isolated(folder: Path | str, paths: list[str]) -> tuple[list, set[str]]:
    """(exit, label, probability) of each picture by a detector in a process without our extras; what it imported."""
    run = subprocess.run(
        [sys.executable, "-c", ISOLATED, ",".join(EXTRAS), str(folder), *paths],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    answers, modules = (json.loads(line) for line in run.stdout.splitlines())
    return answers, set(modules)


@pytest.mark.parametrize(
    "kind", ["softmax, platt", "gate of the model", "softmax, isotonic", "scrc, platt", "adaptive"]
)
def test_needs_the_core_alone_of_what_we_require(kind, tmp_path):
    folder = make_bundle(tmp_path, **(KINDS | VIEWED)[kind])
    paths = []
    for index, picture in enumerate(pictures(20)):
        paths.append(str(tmp_path / f"{index}.png"))
        picture.convert("RGB").save(paths[-1])
    answers, modules = isolated(yaml_for(tmp_path, folder), paths)
    for row, (leaves, label, probability) in zip(load_bundle(folder).predict(paths), answers, strict=True):
        assert (row.exit, row.label) == (leaves, ("none", "roadwork")[label])
        assert probability == pytest.approx(row.probability, abs=1e-6)
    # What the launcher looks for in the miner's Python before it starts is what is imported there.
    assert modules & core() <= set(NEEDED) <= core()


# ---- always a float, never an exception ----------------------------------------------------------------------------


# By way of what a mode that is not converted to directly is made.
BETWEEN = {"RGBa": ["RGBA"], "La": ["LA"], "PA": ["P"]}
MODES = (
    "1",
    "L",
    "P",
    "PA",
    "LA",
    "La",
    "RGB",
    "RGBA",
    "RGBX",
    "RGBa",
    "CMYK",
    "YCbCr",
    "HSV",
    "I;16",
    "I;16L",
    "I;16B",
)


@pytest.mark.parametrize("mode", MODES)
def test_every_usual_mode_is_answered_as_the_predictor_does(bundle, detector, mode):
    image = Image.new("RGB", (40, 30), (200, 60, 60))
    for step in [*BETWEEN.get(mode, []), mode]:
        image = Image.new(mode, (40, 30), 40_000) if mode.startswith("I;16") else image.convert(step)
    answer = detector.answer(image)
    assert answer.by != "fallback", answer.trouble
    (row,) = load_bundle(bundle).predict([image])
    assert answer.stage1.probability == pytest.approx(row.probability, abs=1e-6)


def test_a_big_endian_tiff_is_answered_as_its_bytes_are(bundle, detector):
    stream = io.BytesIO()
    Image.new("I;16B", (40, 30), 40_000).save(stream, "TIFF", big_endian=True)
    image = Image.open(io.BytesIO(stream.getvalue()))
    assert image.mode == "I;16B"
    (row,) = load_bundle(bundle).predict([stream.getvalue()])
    assert detector.answer(image).stage1.probability == pytest.approx(row.probability, abs=1e-6)


@pytest.mark.parametrize("mode", ["F", "LAB", "I"])
def test_a_mode_without_a_range_gets_the_fallback_answer(bundle, detector, mode):
    image = Image.new(mode, (8, 8))
    assert detector(image) == 0.5
    assert f"unsupported mode: pixels of mode {mode} have" in detector.answer(image).trouble
    assert load_bundle(bundle).predict([image])[0].error == detector.answer(image).trouble


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1), (224, 224), (37, 4000)])
def test_every_shape_is_answered(detector, size):
    assert detector.answer(Image.new("RGB", size, (200, 60, 60))).by == "exit"


def broken_pictures() -> dict[str, object]:
    stream = io.BytesIO()
    Image.effect_noise((300, 300), 60).convert("RGB").save(stream, "JPEG")
    noise = io.BytesIO()
    Image.effect_noise((64, 64), 60).save(noise, "PNG")
    return {
        "truncated JPEG": Image.open(io.BytesIO(stream.getvalue()[:3000])),
        "truncated PNG": Image.open(io.BytesIO(noise.getvalue()[:900])),
        "no pixels": Image.new("RGB", (0, 0)),
        "closed": _closed(stream.getvalue()),
        "None": None,
        "bytes": stream.getvalue(),
        "an array": np.zeros((8, 8, 3), np.uint8),
    }


def _closed(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.close()
    return image


@pytest.mark.parametrize("name", broken_pictures())
def test_a_broken_picture_gets_the_fallback_answer_counted_and_logged(bundle, tmp_path, name, caplog):
    detector = Stage1Detector(config_name=yaml_for(tmp_path, bundle, fallback_answer=0.25))
    with caplog.at_level(logging.WARNING, "stage1.streetvision"):
        value = detector(broken_pictures()[name])
    assert (type(value), value) == (float, 0.25)
    assert detector.counts["fallback"] == 1
    assert len(caplog.records) == 1
    assert "\n" not in caplog.text.strip()


def test_a_picture_beyond_the_bundles_limit_is_refused_unread(detector):
    detector._bundle.spec = type(detector._bundle.spec)(size=16, max_pixels=1000)
    assert "too large" in detector.answer(Image.new("RGB", (40, 30))).trouble


def test_a_model_that_gives_nan_gets_the_fallback_answer(tmp_path):
    # Certified with a sound model, then swapped for one that breaks: what a bad export or bad memory looks like.
    folder = make_bundle(tmp_path)
    (folder / "model.onnx").write_bytes(tiny_model(scale=math.nan))
    reseal(folder)
    detector = Stage1Detector(config_name=str(folder))
    assert detector(Image.new("RGB", (8, 8), (200, 60, 60))) == 0.5
    assert "NaN" in detector.answer(Image.new("RGB", (8, 8))).trouble


def test_damaged_exif_is_taken_as_upright(detector, monkeypatch):
    image = Image.new("RGB", (40, 30), (200, 60, 60))
    monkeypatch.setattr(image, "getexif", lambda: 1 / 0)
    assert detector.answer(image).by == "exit"


def test_an_error_of_our_own_is_caught_too(detector, monkeypatch):
    monkeypatch.setattr(detector, "answer", lambda image: 1 / 0)
    assert detector(Image.new("RGB", (8, 8))) == 0.5
    assert detector.counts["fallback"] == 1


def test_many_threads_at_once_get_their_own_answers(detector):
    asked = [Image.new("RGB", (16, 16), (60 + 140 * (index % 2), 60, 200 - 140 * (index % 2))) for index in range(16)]
    found: dict[int, float] = {}

    def ask(index: int) -> None:
        for _ in range(10):
            found[index] = detector(asked[index])

    workers = [threading.Thread(target=ask, args=(index,)) for index in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [found[index] > 0.5 for index in range(8)] == [bool(index % 2) for index in range(8)]
    assert sum(detector.counts.values()) == 80


# ---- the constructor's contract ------------------------------------------------------------------------------------


class Device:
    """Stands in for torch.device."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


@pytest.mark.parametrize("device", ["cpu", Device("cpu"), "cuda", Device("cuda:0"), "mps"])
def test_device_is_a_string_or_an_object_like_a_torch_device(bundle, device, caplog):
    with caplog.at_level(logging.WARNING, "stage1.streetvision"):
        detector = Stage1Detector(model_name="m", config_name=str(bundle), device=device)
    assert detector.device is device
    if str(device) == "cpu":
        assert detector.provider == "CPU"
        assert not caplog.records
    elif detector.provider == "CPU":
        assert f"device {device}" in caplog.text


def test_every_key_of_the_yaml_is_an_attribute(bundle, tmp_path):
    keys = {
        "decision_threshold": 0.7,
        "stage2": "math:sqrt",
        "stage2_threshold": 0.4,
        "deadline_s": 2.5,
        "fallback_answer": 0.0,
        "threads": 2,
    }
    detector = Stage1Detector(model_name="m", config_name=yaml_for(tmp_path, bundle, **keys), device="cpu")
    assert {name: getattr(detector, name) for name in keys} == keys
    assert detector.bundle == str(bundle)
    detector.load_model()  # the client may call it again
    assert detector(Image.new("RGB", (8, 8), (200, 60, 60))) > 0.5


# ---- bundles that it does not serve --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["model.onnx", "thresholds.json", "certificate.json", "calibration.parquet", "README.md"]
)
def test_one_changed_byte_is_refused_by_name(tmp_path, file):
    folder = make_bundle(tmp_path)
    data = bytearray((folder / file).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / file).write_bytes(bytes(data))
    with pytest.raises(IntegrityError, match=file):
        Stage1Detector(config_name=str(folder))


def _edited(folder: Path, file: str, **changes: object) -> None:
    edit(folder / file, lambda document: document.update(changes))
    if file != "bundle.json":
        reseal(folder)


def _cut(file: Path) -> None:
    file.write_bytes(b"12")


def _swapped(folder: Path, model: bytes) -> None:
    (folder / "model.onnx").write_bytes(model)
    reseal(folder)


def _without_lo(folder: Path) -> None:
    edit(folder / "thresholds.json", lambda document: document.pop("lo"))
    reseal(folder)


SPOILT = {
    "manifest edited": (lambda f: _edited(f, "bundle.json", certified=False), IntegrityError, "was changed"),
    "newer": (lambda f: _edited(f, "thresholds.json", schema_version=9), IntegrityError, "schema_version 9"),
    "file missing": (lambda f: (f / "certificate.json").unlink(), IntegrityError, "certificate.json: missing"),
    "shorter": (lambda f: _cut(f / "model.onnx"), IntegrityError, "model.onnx: 2 bytes"),
    "not JSON": (lambda f: (f / "bundle.json").write_text("{"), IntegrityError, "not valid JSON"),
    "no bundle": (lambda f: (f / "bundle.json").unlink(), MissingError, "not a bundle"),
    "uncertified policy": (lambda f: _edited(f, "thresholds.json", certified=False), IntegrityError, "thresholds.json"),
    "no lo": (_without_lo, IntegrityError, "thresholds.json"),
    "other classes": (lambda f: reseal(f, classes=["a", "b", "c"]), IntegrityError, "thresholds.json: classes"),
    "no model": (lambda f: _swapped(f, b"no"), IntegrityError, "ONNX Runtime cannot load"),
    "another output": (lambda f: _swapped(f, tiny_model(name="scores")), IntegrityError, "logits"),
    "another size": (lambda f: _swapped(f, tiny_model(size=32)), IntegrityError, "takes 32"),
}


@pytest.mark.parametrize("case", SPOILT)
def test_a_spoilt_bundle_is_one_line_at_the_start(tmp_path, case):
    spoil, kind, words = SPOILT[case]
    folder = make_bundle(tmp_path)
    spoil(folder)
    with pytest.raises(kind, match=words) as caught:
        Stage1Detector(config_name=str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "classes, words", [(("roadwork", "none"), "class 0 is roadwork"), (("a", "b", "c"), "3 classes")]
)
def test_a_bundle_that_cannot_answer_the_clients_question_is_refused_by_name(tmp_path, classes, words):
    folder = bundle_of_classes(tmp_path, classes)
    with pytest.raises(ConfigError, match=words) as caught:
        Stage1Detector(config_name=str(folder))
    assert "\n" not in str(caught.value)


def test_a_gate_on_columns_of_the_caller_is_refused_by_name(tmp_path):
    folder = make_bundle(tmp_path, "gate")

    def name_a_column(document):
        document["model"]["features"][1] = "view_spread"

    edit(folder / "gateparams.json", name_a_column)
    reseal(folder)
    with pytest.raises(ConfigError, match="view_spread"):
        Stage1Detector(config_name=str(folder))


def test_a_gate_needs_the_models_gate_output(tmp_path):
    folder = make_bundle(tmp_path, "gate", gate=True)
    (folder / "model.onnx").write_bytes(tiny_model())
    reseal(folder)
    with pytest.raises(IntegrityError, match="gate_logits"):
        Stage1Detector(config_name=str(folder))


# ---- deferral ------------------------------------------------------------------------------------------------------

DOUBTFUL = Image.new("RGB", (16, 16), (122, 120, 120))
CLEAR = Image.new("RGB", (16, 16), (200, 60, 60))
CALLS: list[Image.Image] = []
RELEASE = threading.Event()


def says_none(image):
    CALLS.append(image)
    return np.float32(0.125)


def hangs(image):
    RELEASE.wait(30)
    return 1.0


ANSWERS: dict[str, object] = {}


def answers(image):
    found = ANSWERS["now"]
    if isinstance(found, BaseException):
        raise found
    return found


def with_stage2(tmp_path: Path, bundle: Path, function, **keys: object) -> Stage1Detector:
    # Under the name by which pytest knows this module, which is in no folder of sys.path.
    return Stage1Detector(config_name=yaml_for(tmp_path, bundle, stage2=f"{__name__}:{function.__name__}", **keys))


def test_what_defers_is_asked_of_stage_2_and_what_exits_is_not(bundle, tmp_path):
    CALLS.clear()
    detector = with_stage2(tmp_path, bundle, says_none)
    assert detector.answer(CLEAR).by == "exit"
    assert CALLS == []
    answer = detector.answer(DOUBTFUL)
    assert (answer.by, answer.value, CALLS) == ("stage2", pytest.approx(0.125), [DOUBTFUL])
    assert answer.stage1.probability > 0.5


def test_stage_2_has_a_threshold_of_its_own(bundle, tmp_path):
    assert with_stage2(tmp_path, bundle, says_none, stage2_threshold=0.1)(DOUBTFUL) > 0.5
    assert with_stage2(tmp_path, bundle, says_none, stage2_threshold=0.125)(DOUBTFUL) == 0.5


@pytest.mark.parametrize(
    "answer",
    [
        math.nan,
        math.inf,
        1.7,
        -0.1,
        "0.7",
        b"1",
        True,
        np.True_,
        np.array(False),
        None,
        [0.2, 0.3],
        {},
        ValueError("HTTP 500"),
        SystemExit(3),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_garbage_of_stage_2_leaves_stage_1s_answer(bundle, tmp_path, answer, caplog):
    ANSWERS["now"] = answer
    detector = with_stage2(tmp_path, bundle, answers)
    with caplog.at_level(logging.WARNING, "stage1.streetvision"):
        found = detector.answer(DOUBTFUL)
    assert found.by == "stage1"
    assert found.value == pytest.approx(found.stage1.probability)
    assert detector.counts["stage2_failed"] == 1
    assert found.trouble.startswith("stage2: ")
    assert "\n" not in found.trouble
    assert "stage2" in caplog.text


def test_a_stage_2_that_hangs_is_left_at_the_deadline_and_its_slots_run_out(bundle, tmp_path):
    RELEASE.clear()
    try:
        detector = with_stage2(tmp_path, bundle, hangs, deadline_s=0.1)
        for turn in range(18):
            with ends_within(15):  # the calls would hang for longer
                answer = detector.answer(DOUBTFUL)
            assert answer.by == "stage1"
            # Sixteen calls hang; after that a slot is waited for, no longer than for an answer.
            assert ("no result before the deadline" if turn < 16 else "have not returned") in answer.trouble
        assert detector.counts["stage2_failed"] == 18
    finally:
        RELEASE.set()
    with ends_within(60):
        while detector.answer(DOUBTFUL).by != "stage2":
            time.sleep(0.02)


def test_200_threads_at_once_all_get_the_answer_of_the_model(bundle, tmp_path):
    """More calls than slots: "none" at once used to be the answer of most of them."""
    (tmp_path / "detector.json").write_text(json.dumps({"bundle": str(bundle), "deadline_s": 8.0}))
    detector = Stage1Detector(config_name=str(tmp_path / "detector.json"))
    picture = Image.new("RGB", (64, 64), (200, 60, 60))
    alone, together = detector(picture), threading.Barrier(200)

    def ask(_: int) -> float:
        together.wait(60)
        return detector(picture.copy())

    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(ask, range(200)))
    assert alone > 0.5
    assert set(found) == {alone}
    assert detector.counts["fallback"] == 0


def asks_by_name(image):
    with urllib.request.urlopen("http://stage2.hangs/answer", timeout=0.05) as reply:  # which does not bound the lookup
        return float(reply.read())


def test_a_resolver_that_hangs_inside_stage_2_does_not_outlast_the_deadline(bundle, tmp_path, monkeypatch):
    RELEASE.clear()

    def getaddrinfo(*_: object, **__: object) -> list:
        RELEASE.wait(30)
        raise OSError("released")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    try:
        detector = with_stage2(tmp_path, bundle, asks_by_name, deadline_s=0.2)
        with ends_within(15):  # the lookup would hang for longer
            answer = detector.answer(DOUBTFUL)
        assert answer.by == "stage1"
        assert answer.trouble == "stage2: no result before the deadline"
    finally:
        RELEASE.set()


def test_a_stage_1_that_hangs_gets_the_fallback_answer_at_the_deadline(bundle, tmp_path, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(Stage1Detector, "stage1_answer", lambda self, image: released.wait(120))
    detector = Stage1Detector(config_name=yaml_for(tmp_path, bundle, deadline_s=0.1))
    with ends_within(60):
        assert detector(CLEAR) == 0.5
    released.set()


# ---- the decision lands on one half --------------------------------------------------------------------------------


@pytest.mark.parametrize("threshold", [0.02, 0.5, 0.62, 0.97])
def test_deferred_answers_turn_at_the_decision_threshold(bundle, tmp_path, threshold):
    detector = Stage1Detector(config_name=yaml_for(tmp_path, bundle, decision_threshold=threshold))
    found = [detector.answer(picture) for picture in pictures(40)]
    assert {answer.by for answer in found} == {"exit", "stage1"}
    for answer in found:
        roadwork = answer.stage1.label == 1 if answer.by == "exit" else answer.stage1.probability > threshold
        assert (answer.value >= ABOVE_HALF) == roadwork
        assert answer.value >= ABOVE_HALF or answer.value <= 0.5
    # In the order of stage 1's probability, answers never fall.
    order = sorted(found, key=lambda answer: answer.stage1.probability)
    values = [answer.value for answer in order]
    assert all(np.diff(values) >= -1e-12)
