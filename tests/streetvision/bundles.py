"""Bundles of every kind that a detector serves, each in milliseconds: a model made by hand, scores from a known
population.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1.bundle import write_bundle
from stage1.calibration import CalibrationMap, FittedMap, fit_map
from stage1.policy import Policy, ViewsClaim, fit_policy, on_views
from stage1.policy.calibrated import fit_calibrated
from stage1.scores import Scores
from stage1.storage.files import digest_bytes
from stage1.views import ViewsDocument

from ..bundle.conftest import CLASSES, LICENCE, SPEC, make_parts, tiny_model

RISKS = {
    "softmax": {"fnr": 0.03, "false_exit_rate": 0.03},
    "gate": {"fnr": 0.02, "false_exit_rate": 0.02},
    "scrc": {"miss_rate": 0.05, "false_exit_rate": 0.05},
}


def gated_model() -> bytes:
    """The tiny model with a second output: the sharper the colours differ, the surer."""
    onnx = pytest.importorskip("onnx")
    model = onnx.load_from_string(tiny_model())
    make, graph = onnx.helper, model.graph
    graph.node.extend(
        [
            make.make_node("ReduceMax", ["logits"], ["strongest"], axes=[1], keepdims=0),
            make.make_node("ReduceMin", ["logits"], ["weakest"], axes=[1], keepdims=0),
            make.make_node("Sub", ["strongest", "weakest"], ["gate_logits"]),
        ]
    )
    graph.output.append(make.make_tensor_value_info("gate_logits", onnx.TensorProto.FLOAT, ["N"]))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def view_model(
    views: int = 5,
    *,
    gate: bool = False,
    outputs: int = 2,
    drop: str | None = None,
    scale: float = 6.0,
    share: float = 0.5,
) -> bytes:
    """A model of all views at once: red minus blue of the first view and the largest of it over the others, half each.

    without_view is not what a head would say, only something of each view that has to arrive: the score less this share
    of what the view says. drop: an output that is left out.
    """
    onnx = pytest.importorskip("onnx")
    make, floats = onnx.helper, onnx.TensorProto.FLOAT
    weight = np.array([[scale], [0.0], [-scale]], dtype=np.float32)
    ends = np.array([[-0.4, 0.6] + [-1.0] * (outputs - 2)], dtype=np.float32)
    constants = {
        "weight": weight,
        "ends": ends,
        "half": np.float32(0.5),
        "share": np.float32(share),
        "one": np.array([1]),
        "last": np.array([views]),
        "zero": np.array([0]),
        "axis": np.array([1]),
        "end": np.array([-1]),
    }
    nodes = [
        ("ReduceMean", ["image"], ["colours"], {"axes": [3, 4], "keepdims": 0}),  # [N, V, 3]
        ("MatMul", ["colours", "weight"], ["reds"], {}),  # [N, V, 1]
        ("Slice", ["reds", "zero", "one", "axis"], ["first"], {}),
        ("Slice", ["reds", "one", "last", "axis"], ["others"], {}),
        ("ReduceMax", ["others"], ["largest"], {"axes": [1], "keepdims": 1}),
        ("Add", ["first", "largest"], ["twice"], {}),
        ("Mul", ["twice", "half"], ["score"], {}),  # [N, 1, 1]
        ("Squeeze", ["score", "end"], ["row"], {}),
        ("MatMul", ["row", "ends"], ["logits"], {}),
        ("Mul", ["reds", "share"], ["shares"], {}),
        ("Sub", ["score", "shares"], ["left"], {}),  # [N, V, 1]
        ("MatMul", ["left", "ends"], ["without_view"], {}),
        ("Squeeze", ["row", "end"], ["flat"], {}),
        ("Abs", ["flat"], ["gate_logits"], {}),
    ]
    made = {"logits": ["N", outputs], "without_view": ["N", views, outputs], **({"gate_logits": ["N"]} if gate else {})}
    graph = make.make_graph(
        [make.make_node(kind, takes, gives, **more) for kind, takes, gives, more in nodes],
        "views",
        [make.make_tensor_value_info("image", floats, ["N", views, 3, 16, 16])],
        [make.make_tensor_value_info(name, floats, shape) for name, shape in made.items() if name != drop],
        [onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def population(n: int, seed: int, *, gate: bool, spread: bool = False) -> Scores:
    """Two classes that overlap; the gate and the spread of the views, where there are any, know a little of which
    answers are right.
    """
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margin = rng.normal(np.where(labels == 1, 1.8, -1.8), 1.0)
    right = (margin > 0) == (labels == 1)
    signal = np.abs(margin) + rng.normal(np.where(right, 0.5, -0.5), 0.5)
    ids = [digest_bytes(f"{seed} {row}".encode()) for row in range(n)]
    logits = np.stack([np.zeros(n), margin], axis=1)
    extra = {"view_spread": rng.exponential(np.where(right, 0.3, 0.9))} if spread else {}
    return Scores(logits=logits, labels=labels, ids=ids, gate=signal if gate else None, extra=extra)


def bundle_of_classes(folder: Path, classes: tuple[str, ...]) -> Path:
    """A sound bundle of two classes of these names, or of more."""
    if len(classes) == 2:
        return make_parts(folder / "run", classes=classes).write(folder / "bundle", classes=classes)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, len(classes), 2000)
    logits = rng.normal(0, 1, (2000, len(classes)))
    logits[np.arange(2000), labels] += 4.0
    ids = [digest_bytes(f"{row}".encode()) for row in range(2000)]
    scores = Scores(logits=logits, labels=labels, ids=ids)
    select, calib = scores.take(np.arange(800)), scores.take(np.arange(800, 2000))
    policy = fit_policy("softmax", calib=calib, select=select, risks={"error": 0.1}, classes=classes)
    parts = make_parts(folder / "run", n=60)
    policy.save(parts.run / "thresholds.json")
    policy.certificate.save(parts.run / "certificate.json")
    (parts.run / "model.onnx").write_bytes(tiny_model(outputs=len(classes)))
    return parts.write(folder / "bundle", classes=classes, calibration=calib, selection=select)


def make_bundle(
    folder: Path,
    policy: str = "softmax",
    map_name: str | None = None,
    *,
    gate: bool = False,
    spread: bool = False,
    views: ViewsDocument | None = None,
    **fit: Any,
) -> Path:
    """A bundle below `folder` with this policy and, where named, this calibration map. spread: of views, for the
    gate policy.
    """
    if policy == "softmax" and map_name is None and views is None:
        return make_parts(folder / "run", **fit).write(folder / "bundle")
    run = folder / "run"
    run.mkdir(parents=True)
    select, calib = (population(n, seed, gate=gate, spread=spread) for n, seed in ((1200, 5), (2500, 6)))
    options = {"risks": RISKS[policy], "classes": CLASSES} | ({"coverage": 0.5} if policy == "scrc" else {}) | fit

    claim = None if views is None else ViewsClaim(views.digest, views.description)

    def fitted(rows: Scores | None, units: Scores, calibration: CalibrationMap | None = None) -> Policy:
        return on_views(fit_policy(policy, calib=units, select=rows, calibration=calibration, **options), claim)

    found: Policy = fitted(select, calib)
    map_file = None
    if map_name is not None:
        frozen = FittedMap(fit_map(map_name, select))
        found = fit_calibrated(frozen, fitted, select=select, calib=calib)
        map_file = run / "calibration.json"
        frozen.save(map_file)
    views_file = None
    if views is not None:
        views_file = run / "views.json"
        views.save(views_file)
    assert found.certificate is not None
    file = run / {"softmax": "thresholds.json", "gate": "gateparams.json", "scrc": "scrcparams.json"}[policy]
    found.save(file)
    found.certificate.save(run / "certificate.json")
    together = views is not None and views.pooled
    (run / "model.onnx").write_bytes(
        view_model(views.policy.count, gate=gate) if together else gated_model() if gate else tiny_model()
    )
    parts = make_parts(folder / "facts", n=60)
    return write_bundle(
        folder / "bundle",
        model=run / "model.onnx",
        preprocessing=SPEC,
        classes=CLASSES,
        policy_file=file,
        certificate_file=run / "certificate.json",
        calibration=calib,
        selection=select,
        map_file=map_file,
        views_file=views_file,
        facts=parts.facts,
        licences={"Apache-2.0": LICENCE},
    )
