"""A whole bundle in milliseconds: a model made by hand, scores from a known population, a policy fitted in earnest."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from stage1.bundle import write_bundle
from stage1.bundle.card import model_card
from stage1.bundle.manifest import sealed
from stage1.policy import Certificate, fit_policy
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores
from stage1.storage.files import digest_bytes, digest_file

CLASSES = ("none", "roadwork")
SPEC = Preprocessing(size=16)
LICENCE = "Apache License\nVersion 2.0\n"


def tiny_model(
    outputs: int = 2, name: str = "logits", size: int | str = 16, scale: float = 6.0, *, by_colour: bool = False
) -> bytes:
    """Mean colour -> logits [0, scale * (red - blue), ...]: a red image is class 1, a blue one class 0.

    by_colour: three outputs, scale * (red, green, blue).
    """
    onnx = pytest.importorskip("onnx")
    make = onnx.helper
    weight = np.zeros((3, outputs), dtype=np.float32)
    if by_colour:
        weight[:, :] = scale * np.eye(3)
    else:
        weight[0, 1], weight[2, 1] = scale, -scale
    graph = make.make_graph(
        [
            make.make_node("GlobalAveragePool", ["image"], ["pooled"]),
            make.make_node("Flatten", ["pooled"], ["features"]),
            make.make_node("Gemm", ["features", "weight", "bias"], [name]),
        ],
        "tiny",
        [make.make_tensor_value_info("image", onnx.TensorProto.FLOAT, ["N", 3, size, size])],
        [make.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["N", outputs])],
        [
            onnx.numpy_helper.from_array(weight, "weight"),
            onnx.numpy_helper.from_array(np.zeros(outputs, dtype=np.float32), "bias"),
        ],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def draw(n: int, seed: int = 0, *, per_group: int | None = None) -> Scores:
    """Two classes that overlap a little, half and half, in the raw score of the tiny model."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margin = rng.normal(np.where(labels == 1, 1.8, -1.8), 1.0)
    ids = [digest_bytes(f"{seed} {row}".encode()) for row in range(n)]
    groups = None if per_group is None else [f"video {row // per_group}" for row in range(n)]
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, ids=ids, groups=groups)


def picture(
    colour: tuple[int, int, int] = (200, 60, 60), size: tuple[int, int] = (40, 30), kind: str = "JPEG"
) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, kind)
    return buffer.getvalue()


@dataclass(frozen=True)
class Parts:
    """What a run hands to the bundle stage."""

    run: Path
    calibration: Scores
    model: bytes
    evaluation: dict[str, Any] | None = None
    facts: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "tiny demo",
            "backbone": "tiny",
            "backbone_licence": "Apache-2.0",
            "base_model": None,
            "config_digest": "c" * 64,
            "versions": {"onnxruntime": "1"},
            "data": {"source": "colours", "roles": {"train": {"none": 10, "roadwork": 12}}},
        }
    )

    def arguments(self) -> dict[str, Any]:
        return {
            "model": self.run / "model.onnx",
            "preprocessing": SPEC,
            "classes": CLASSES,
            "policy_file": self.run / "thresholds.json",
            "certificate_file": self.run / "certificate.json",
            "calibration": self.calibration,
            "facts": self.facts,
            "licences": {"Apache-2.0": LICENCE},
            "evaluation": self.evaluation,
        }

    def write(self, folder: Path, **changes: Any) -> Path:
        return write_bundle(folder, **(self.arguments() | changes))


def make_parts(
    run: Path, *, n: int = 2000, seed: int = 0, per_group: int | None = None, model: bytes | None = None, **fit: Any
) -> Parts:
    """Fit a policy on drawn scores and lay the files of a run into the folder `run`."""
    run.mkdir(parents=True, exist_ok=True)
    calibration = draw(n, seed, per_group=per_group)
    options = {"risks": {"fnr": 0.02, "false_exit_rate": 0.02}, "classes": CLASSES, "seed": seed} | fit
    policy = fit_policy("softmax", calib=calibration, **options)
    policy.save(run / "thresholds.json")
    policy.certificate.save(run / "certificate.json")
    parts = Parts(run, calibration, model or tiny_model())
    (run / "model.onnx").write_bytes(parts.model)
    return parts


@pytest.fixture
def parts(tmp_path: Path) -> Parts:
    return make_parts(tmp_path / "run")


@pytest.fixture
def bundle(parts: Parts, tmp_path: Path) -> Path:
    return parts.write(tmp_path / "bundle")


@pytest.fixture
def with_evaluation(parts: Parts) -> Parts:
    from stage1.evaluation import evaluate
    from stage1.policy import load_policy

    policy, scores = load_policy(parts.run), draw(400, seed=9)
    decision = policy.decide(scores)
    targets = {name: risk.target for name, risk in policy.certificate.risks.items()}
    document = evaluate(
        scores,
        decision.exit,
        decision.label,
        lo=policy.lo,
        hi=policy.hi,
        classes=CLASSES,
        targets=targets,
        policy="softmax",
        certified=policy.certified,
        resamples=50,
    )
    return replace(parts, evaluation=document)


def reseal(folder: Path, *, card: bool = False, **changes: Any) -> None:
    """What somebody does who edits a bundle and knows how it is protected: new digests for everything.

    card: the model card is written anew from the documents too.
    """
    document = json.loads((folder / "bundle.json").read_text()) | changes
    made_of = document["created_from"]
    for name, file in (
        ("model", "model.onnx"),
        ("policy", document["policy_file"]),
        ("certificate", "certificate.json"),
        ("map", "calibration.json"),
        ("views", "views.json"),
    ):
        if name in made_of:
            made_of[name] = digest_file(folder / file)
    if card:
        certificate = Certificate.load(folder / "certificate.json")
        (folder / "README.md").write_text(model_card(document, certificate, document["evaluation"]))
    document["files"] = {
        name: {"sha256": digest_file(folder / name), "size": (folder / name).stat().st_size}
        for name in sorted(
            path.relative_to(folder).as_posix()
            for path in folder.rglob("*")
            if path.is_file() and path.name != "bundle.json"
        )
    }
    (folder / "bundle.json").write_text(json.dumps(sealed(document), indent=2, ensure_ascii=False) + "\n")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


@pytest.fixture(name="reseal")
def _reseal() -> Callable[..., None]:
    return reseal


@pytest.fixture(name="edit")
def _edit() -> Callable[..., None]:
    return edit


@pytest.fixture(name="make_parts")
def _make_parts(tmp_path: Path) -> Callable[..., Parts]:
    return lambda **options: make_parts(tmp_path / "run", **options)


@pytest.fixture(name="tiny_model")
def _tiny_model() -> Callable[..., bytes]:
    return tiny_model


@pytest.fixture(name="picture")
def _picture() -> Callable[..., bytes]:
    return picture


@pytest.fixture(name="draw_scores")
def _draw_scores() -> Callable[..., Scores]:
    return draw
