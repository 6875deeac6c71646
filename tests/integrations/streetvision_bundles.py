"""Bundles of every kind that a detector serves, each in milliseconds: a model made by hand, scores from a known population."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stage1.aggregation import FrozenViews
from stage1.bundle import write_bundle
from stage1.calibration import FrozenMap, fit_map
from stage1.files import digest_bytes
from stage1.policy import Policy, ViewsClaim, fit_policy, on_views
from stage1.policy.calibrated import fit_calibrated
from stage1.scores import Scores

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


def population(n: int, seed: int, *, gate: bool) -> Scores:
    """Two classes that overlap; the gate, where there is one, knows a little of which answers are right."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    margin = rng.normal(np.where(labels == 1, 1.8, -1.8), 1.0)
    right = (margin > 0) == (labels == 1)
    signal = np.abs(margin) + rng.normal(np.where(right, 0.5, -0.5), 0.5)
    ids = [digest_bytes(f"{seed} {row}".encode()) for row in range(n)]
    logits = np.stack([np.zeros(n), margin], axis=1)
    return Scores(logits=logits, labels=labels, ids=ids, gate=signal if gate else None)


def make_bundle(
    folder: Path,
    policy: str = "softmax",
    map_name: str | None = None,
    *,
    gate: bool = False,
    views: FrozenViews | None = None,
    **fit: Any,
) -> Path:
    """A bundle below `folder` with this policy and, where named, this calibration map."""
    if policy == "softmax" and map_name is None and views is None:
        return make_parts(folder / "run", **fit).write(folder / "bundle")
    run = folder / "run"
    run.mkdir(parents=True)
    select, calib = population(1200, 5, gate=gate), population(2500, 6, gate=gate)
    options = {"risks": RISKS[policy], "classes": CLASSES} | ({"coverage": 0.5} if policy == "scrc" else {}) | fit

    claim = None if views is None else ViewsClaim(views.digest, views.description)

    def fitted(rows: Scores | None, units: Scores) -> Policy:
        return on_views(fit_policy(policy, calib=units, select=rows, **options), claim)

    found: Policy = fitted(select, calib)
    map_file = None
    if map_name is not None:
        frozen = FrozenMap(fit_map(map_name, select))
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
    (run / "model.onnx").write_bytes(gated_model() if gate else tiny_model())
    parts = make_parts(folder / "facts", n=60)
    return write_bundle(
        folder / "bundle", model=run / "model.onnx", preprocessing=SPEC, classes=CLASSES, policy_file=file,
        certificate_file=run / "certificate.json", calibration=calib, selection=select, map_file=map_file,
        views_file=views_file, facts=parts.facts, licences={"Apache-2.0": LICENCE},
    )  # fmt: skip
