from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import Checkpointed, DataError
from stage1.model.head import Gate, GatedHead, gate_inputs
from stage1.training import cross_fitted_gate_targets, gate_health, load_head, train_head
from stage1.training.gate import GateTargets, fit_gate
from stage1.training.selection import all_outputs


def partly_thrown(n: int, seed: int, dim: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The class is the sign of column 0; where column 1 > .5 the label is thrown."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, dim)).astype(np.float32)
    return x, np.where(x[:, 1] > 0.5, rng.integers(0, 2, n), (x[:, 0] > 0)).astype(np.int64)


SELECT, TEST = partly_thrown(500, 1), partly_thrown(4000, 2)
QUICK = TrainConfig(epochs=8, learning_rate=0.02, patience=8)


def targets_of(data: tuple[np.ndarray, np.ndarray], groups: np.ndarray | None = None, **options: Any) -> GateTargets:
    options = {"config": QUICK, "head": HeadConfig(), "seed": 0, **options}
    return cross_fitted_gate_targets(
        *data, groups, select_features=SELECT[0], select_labels=SELECT[1], n_classes=2, **options
    )


def test_groups_stay_whole_and_every_row_is_answered_once() -> None:
    data = partly_thrown(600, 0)
    groups = np.array([f"video{index // 4}" for index in range(600)])
    made = targets_of(data, groups)
    assert all(len(np.unique(made.fold[groups == name])) == 1 for name in np.unique(groups))
    assert len(np.unique(made.fold)) == 5
    assert (made.logits != 0).any(axis=1).all()
    assert np.array_equal(made.right, made.logits.argmax(axis=1) == data[1])
    # A group's fold follows from its name alone: others may come or go.
    half = targets_of((data[0][:300], data[1][:300]), groups[:300])
    assert np.array_equal(half.fold, made.fold[:300])


def test_targets_are_of_a_classifier_that_has_not_seen_the_row(tmp_path: Path) -> None:
    """A head that learns thrown labels by heart is right on nearly all of train and, out of fold, on half of it."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(120, 150)).astype(np.float32), rng.integers(0, 2, 120)
    select = rng.normal(size=(100, 150)).astype(np.float32), rng.integers(0, 2, 100)
    config = TrainConfig(epochs=15, learning_rate=0.05, weight_decay=0.0, select_by="accuracy", patience=15)
    options: Any = {"config": config, "head": HeadConfig(kind="mlp", hidden=32, dropout=0.0), "n_classes": 2, "seed": 0}
    made = cross_fitted_gate_targets(x, y, None, select_features=x, select_labels=y, **options)
    fitted = train_head(x, y, x, y, folder=tmp_path, **options).head
    assert (fitted(torch.tensor(x)).argmax(dim=1).numpy() == y).mean() > 0.97
    assert made.right.mean() < 0.75  # chance plus what choosing the epoch on all rows gives away
    by_stranger = cross_fitted_gate_targets(x, y, None, select_features=select[0], select_labels=select[1], **options)
    assert 0.35 < by_stranger.right.mean() < 0.65


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_fitted_gate_knows_more_than_the_margin(kind: str, tmp_path: Path) -> None:
    config = HeadConfig(kind="linear", gate=kind, hidden=32)  # type: ignore[arg-type]
    result = train_head(
        *partly_thrown(2000, 0), *SELECT, config=QUICK, head=config, n_classes=2, seed=0, folder=tmp_path
    )
    assert isinstance(result.head, GatedHead)
    logits, gate = all_outputs([result.head], TEST[0])[0]
    assert gate is not None
    right = logits.argmax(axis=1) == TEST[1]
    margin = np.abs(logits[:, 1] - logits[:, 0])
    by_gate, by_margin = gate_health(gate, right).auroc, gate_health(margin, right).auroc
    assert by_gate is not None
    assert by_margin is not None
    assert by_gate > by_margin + 0.1
    assert result.gate is not None
    assert result.gate.collapsed is None
    # Calibrated as well: a gate logit is a log-odds of being right.
    sure = gate > np.log(9)
    assert right[sure].mean() > 0.87
    loaded = load_head(tmp_path, config, 6, 2)
    assert np.array_equal(all_outputs([loaded], TEST[0])[0][1], gate)
    # The classifier is the one that is trained without a gate.
    alone = train_head(
        *partly_thrown(2000, 0),
        *SELECT,
        config=QUICK,
        head=HeadConfig(),
        n_classes=2,
        seed=0,
        folder=tmp_path / "alone",
    )
    assert np.array_equal(all_outputs([alone.head], TEST[0])[0][0], logits)


def test_stopped_anywhere_a_gate_ends_the_same(tmp_path: Path) -> None:
    data = partly_thrown(400, 0)
    options: Any = {"config": QUICK, "head": HeadConfig(gate="mlp", hidden=8), "n_classes": 2, "seed": 0}
    train_head(*data, *SELECT, folder=tmp_path / "whole", **options)
    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return asked[0] % 61 == 0

    stops = 0
    while True:
        try:
            train_head(*data, *SELECT, folder=tmp_path / "often", stop=stop, **options)
            break
        except Checkpointed:
            stops += 1
    assert stops >= 4  # in the classifier, in folds, in the gate
    best = [(tmp_path / name / "model_best.pth").read_bytes() for name in ("whole", "often")]
    assert best[0] == best[1]


def test_where_nothing_is_wrong_the_gate_is_constant_and_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)).astype(np.float32)
    x[:, 0] += np.where(np.arange(300) % 2, 9.0, -9.0)
    y = np.arange(300) % 2
    result = train_head(x, y, x, y, config=QUICK, head=HeadConfig(gate="linear"), n_classes=2, seed=0, folder=tmp_path)
    assert result.gate is not None
    assert result.gate.collapsed is not None
    assert result.gate.collapsed == "not fitted: 0 wrong answers on images held out of train, a gate needs at least 10"
    gate = all_outputs([result.head], x)[0][1]
    assert gate is not None
    assert gate == pytest.approx(np.log(301), abs=1e-3)


def test_too_few_groups_are_refused_by_name() -> None:
    data = partly_thrown(100, 0)
    with pytest.raises(DataError, match=r"head\.gate: all 100 train images fall in one fold"):
        targets_of(data, np.full(100, "one road"))
    # All images of class 1 in one group: outside its fold there is none.
    with pytest.raises(DataError, match=r"no image of class 1 is left.*head\.gate=none"):
        targets_of(data, np.where(data[1] == 1, "only", [f"v{index}" for index in range(100)]))
    with pytest.raises(DataError, match="2 or more"):
        targets_of(data, folds=1)


def judged(gate: Gate, features: np.ndarray, logits: np.ndarray) -> np.ndarray:
    made = gate(gate_inputs(torch.tensor(features), torch.tensor(logits))).numpy()
    return np.asarray(made[:, 1] - made[:, 0])


def planted(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, logits = rng.normal(size=(1000, 4)).astype(np.float32), rng.normal(size=(1000, 2)).astype(np.float32)
    return x, logits, x[:, 2] > -0.7


def test_the_gate_is_fitted_on_the_targets_that_are_given(tmp_path: Path) -> None:
    """Planted targets that have nothing to do with the classifier: the gate follows them."""
    x, logits, right = planted(0)
    given = GateTargets(right[:700], logits[:700], np.zeros(700, np.int64))
    gate = fit_gate(
        x[:700],
        given,
        x[700:],
        logits[700:],
        right[700:],
        config=TrainConfig(epochs=25, learning_rate=0.5),
        head=HeadConfig(gate="linear"),
        seed=0,
        folder=tmp_path,
    )
    assert ((judged(gate, x[700:], logits[700:]) > 0) == right[700:]).mean() > 0.9


def test_where_features_add_nothing_the_gate_is_what_the_margin_says(tmp_path: Path) -> None:
    """Many columns of noise, few wrong answers: a gate that fitted them would order worse than the margin it
    started from.
    """
    rng = np.random.default_rng(0)
    x, logits = rng.normal(size=(600, 300)).astype(np.float32), 2.0 * rng.normal(size=(600, 2)).astype(np.float32)
    margin = np.abs(logits[:, 1] - logits[:, 0])
    right = rng.random(600) < 1 / (1 + np.exp(-(0.8 * margin - 0.3)))
    given = GateTargets(right[:400], logits[:400], np.zeros(400, np.int64))
    # The rate that the classifier has; its tenth is still enough to fit noise, so val_select must say no.
    gate = fit_gate(
        x[:400],
        given,
        x[400:],
        logits[400:],
        right[400:],
        config=TrainConfig(epochs=20, learning_rate=0.5),
        head=HeadConfig(gate="linear"),
        seed=0,
        folder=tmp_path,
    )
    values = judged(gate, x[400:], logits[400:])
    assert np.array_equal(np.argsort(values), np.argsort(margin[400:]))
    oracle = pytest.importorskip("sklearn.linear_model").LogisticRegression(C=1e6).fit(margin[:400, None], right[:400])
    assert float(gate.slope) == pytest.approx(oracle.coef_[0, 0], rel=0.03)
    assert float(gate.offset) == pytest.approx(oracle.intercept_[0], abs=0.03)


# ---- collapse ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("logits", "accuracy", "name"),
    [
        (lambda rng: rng.normal(9.0, 1.0, 400), 0.8, "all in"),
        (lambda rng: rng.normal(-9.0, 1.0, 400), 0.8, "all out"),
        (lambda rng: np.full(400, 1.4) + 1e-5 * rng.normal(size=400), 0.8, "no spread"),
        (lambda rng: rng.normal(9.0, 1.0, 400), 0.9975, None),  # sure, and rightly so
        (lambda rng: rng.normal(1.0, 1.0, 400), 0.8, None),
        (lambda rng: rng.normal(9.0, 5.0, 400), 0.8, None),
    ],
)
def test_collapse_has_a_name(logits: Any, accuracy: float, name: str | None) -> None:
    rng = np.random.default_rng(0)
    right = np.arange(400) < accuracy * 400
    health = gate_health(logits(rng), right)
    assert (health.collapsed is None) if name is None else str(health.collapsed).startswith(f"{name}: ")
    assert 0.0 <= health.low <= health.high <= 1.0


def test_health_reads_the_order() -> None:
    right = np.array([True, True, False, True])
    assert gate_health(np.array([3.0, 2.0, 1.0, 0.0]), right).auroc == pytest.approx(2 / 3)
    assert gate_health(np.array([3.0, 2.0]), np.array([True, True])).auroc is None
    assert gate_health(np.array([1.0, -1.0, 2.0, 3.0]), right).passed == 0.75
    with pytest.raises(DataError, match="finite"):
        gate_health(np.array([np.nan]), np.array([True]))
