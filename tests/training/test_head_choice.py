"""The head trained along with the backbone against the one trained again: the better one ships, and the files say
which.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from stage1.calibration import fit_map
from stage1.config import HeadConfig, TrainConfig, load_config
from stage1.errors import IntegrityError, MissingError
from stage1.model.head import BEST_WEIGHTS, load_head
from stage1.runtime.preprocessing import load_tensor
from stage1.scores import Scores
from stage1.storage.files import digest_file
from stage1.training import TrainResult, train_head
from stage1.training.head_choice import TUNED_HEAD, Judged, better_head, scaled_nll, why_not_compared
from stage1.training.selection import SelectMetrics, all_logits, select_metrics

from .conftest import blobs
from .image_tasks import fit, stripes

DIM = 6
FACTS: dict[str, Any] = {
    "best_epoch": 7,
    "used_ema": True,
    "epochs_run": 9,
    "metrics": {"train_loss": 0.125, "nll": 9.0},
}
WEAK, STRONG = {"epochs": 1, "learning_rate": 1e-6}, {"epochs": 15, "learning_rate": 0.03}


def trained(folder: Path, classes: int, **config: Any) -> TrainResult:
    train, select = blobs(180, DIM, classes, 0), blobs(90, DIM, classes, 1)
    settings = TrainConfig(batch_size=30, **config)
    return train_head(*train, *select, config=settings, head=HeadConfig(), n_classes=classes, seed=3, folder=folder)


def asked(refit: TrainResult, joint: Path, folder: Path, classes: int, by: Any = "nll"):
    select = blobs(90, DIM, classes, 1)
    return better_head(refit, joint / BEST_WEIGHTS, FACTS, *select, by=by, n_classes=classes, folder=folder)


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("by", ["nll", "accuracy", "augrc"])
def test_the_one_trained_along_ships_where_it_is_better(tmp_path, classes, by):
    refit, joint = tmp_path / "again", tmp_path / "along"
    weak, strong = trained(refit, classes, **WEAK, select_by=by), trained(joint, classes, **STRONG, select_by=by)
    shipped, compared = asked(weak, joint, refit, classes, by)
    assert compared.ships == "along"
    for found, result in ((compared.joint, strong), (compared.refit, weak)):
        assert found.metrics.to_json() == {name: result.metrics[name] for name in ("nll", "accuracy", "augrc")}
        assert found.value(by) == (found.scaled_nll if by == "nll" else result.metrics[by])
    assert digest_file(refit / BEST_WEIGHTS) == digest_file(joint / BEST_WEIGHTS)
    # It is told of as what it is: the epoch of the stage that made it, its own value on these features.
    assert (shipped.best_epoch, shipped.used_ema, shipped.epochs_run) == (7, True, 9)
    assert shipped.best_metric == shipped.metrics[by] == strong.metrics[by]
    assert shipped.metrics["train_loss"] == 0.125
    features = blobs(50, DIM, classes, 2)[0]
    assert np.array_equal(all_logits([shipped.head], features)[0], all_logits([strong.head], features)[0])


@pytest.mark.parametrize("classes", [2, 3])
@pytest.mark.parametrize("by", ["nll", "accuracy", "augrc"])
def test_and_does_not_where_it_is_worse(tmp_path, classes, by):
    refit, joint = tmp_path / "again", tmp_path / "along"
    trained(joint, classes, **WEAK, select_by=by)
    strong = trained(refit, classes, **STRONG, select_by=by)
    before = digest_file(refit / BEST_WEIGHTS)
    shipped, compared = asked(strong, joint, refit, classes, by)
    assert compared.ships == "again"
    assert shipped is strong
    assert digest_file(refit / BEST_WEIGHTS) == before != digest_file(joint / BEST_WEIGHTS)
    assert compared.refit.key(by) < compared.joint.key(by)


def test_equal_is_not_better(tmp_path):
    result = trained(tmp_path, 2, **STRONG)
    shipped, compared = asked(result, tmp_path, tmp_path, 2)
    assert (compared.ships, shipped) == ("again", result)
    assert compared.joint == compared.refit


def rescaled(folder: Path, slope: float) -> None:
    """The same answers in the same order by the head in `folder`, more or less sure of all."""
    weights = torch.load(folder / BEST_WEIGHTS, weights_only=True)
    for name in ("layers.0.weight", "layers.0.bias"):
        weights[name] *= slope
    torch.save(weights, folder / BEST_WEIGHTS)


@pytest.mark.parametrize("slope", [0.05, 15.0])
def test_how_sure_a_head_is_of_itself_decides_nothing(tmp_path, slope):
    """Its NLL may be the larger one by much: the calibration map takes that away."""
    refit, joint = tmp_path / "again", tmp_path / "along"
    middling = trained(refit, 2, epochs=5, learning_rate=0.003)
    strong = trained(joint, 2, **STRONG)
    rescaled(joint, slope)
    shipped, compared = asked(middling, joint, refit, 2, "nll")
    assert compared.joint.metrics.nll > compared.refit.metrics.nll
    assert compared.joint.scaled_nll < compared.refit.scaled_nll
    assert compared.joint.scaled_nll <= strong.metrics["nll"]
    assert compared.ships == "along"
    assert shipped.best_metric == compared.joint.metrics.nll  # train.json has it as it is


def test_each_metric_has_its_own_winner_and_the_scaled_nll_settles_ties():
    one = Judged(SelectMetrics(nll=0.9, accuracy=0.90, augrc=0.03), scaled_nll=0.2)
    other = Judged(SelectMetrics(nll=0.3, accuracy=0.95, augrc=0.04), scaled_nll=0.3)
    assert one.key("nll") < other.key("nll")
    assert other.key("accuracy") < one.key("accuracy")
    assert one.key("augrc") < other.key("augrc")
    tied = Judged(SelectMetrics(nll=0.1, accuracy=0.90, augrc=0.03), scaled_nll=0.25)
    assert all(one.key(by) < tied.key(by) for by in ("nll", "accuracy", "augrc"))
    assert [one.value(by) for by in ("nll", "accuracy", "augrc")] == [0.2, 0.90, 0.03]


@pytest.mark.parametrize("classes", [2, 4])
def test_scaled_nll_is_that_of_the_best_temperature(classes):
    """Oracle: logits of which the labels were drawn at a known slope; and the calibration map that does the same."""
    rng = np.random.default_rng(classes)
    logits = rng.normal(0, 1.5, (5000, classes))
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    labels = (odds.cumsum(axis=1) < rng.random((5000, 1))).sum(axis=1)
    for slope in (0.2, 1.0, 8.0):
        given = (logits / slope).astype(np.float32)
        found = scaled_nll(given, labels)
        fitted = fit_map("temperature", Scores(logits=given.astype(np.float64), labels=labels))
        mapped = fitted.log_probabilities(given.astype(np.float64))
        assert found == pytest.approx(-mapped[np.arange(len(labels)), labels].mean(), abs=1e-6)
        assert found <= select_metrics(given, labels).nll
    assert scaled_nll(np.array([[9.0, 0.0], [0.0, 9.0]], np.float32), np.array([0, 1])) == pytest.approx(0, abs=1e-9)


def test_a_second_call_after_a_kill_puts_it_right(tmp_path):
    """`train_head` on a finished checkpoint writes its own head again; the comparison then ends the same."""
    refit, joint = tmp_path / "again", tmp_path / "along"
    trained(joint, 2, **STRONG)
    _, first = asked(trained(refit, 2, **WEAK), joint, refit, 2)
    shipped = digest_file(refit / BEST_WEIGHTS)
    repeated = trained(refit, 2, **WEAK)
    assert digest_file(refit / BEST_WEIGHTS) != shipped
    _, second = asked(repeated, joint, refit, 2)
    assert second == first
    assert digest_file(refit / BEST_WEIGHTS) == shipped


def test_weights_that_are_not_there_or_of_another_shape(tmp_path):
    refit, joint = tmp_path / "again", tmp_path / "along"
    result = trained(refit, 2, **WEAK)
    with pytest.raises(MissingError, match=r"model_best\.pth"):
        asked(result, joint, refit, 2)
    trained(joint, 3, **WEAK)
    with pytest.raises(IntegrityError, match=r"\(3, 6\), expected \(2, 6\)"):
        asked(result, joint, refit, 2)


@pytest.mark.parametrize(
    "overrides, words",
    [
        (["head.kind=mlp"], "head.kind=mlp"),
        (["head.members=3"], "head.members=3"),
        (["head.gate=linear"], "head.gate=linear"),
        (["head.kind=sat"], "head.kind=sat"),
        (["sweep.enabled=true"], "sweep"),
        (["train.objective=risk"], "objective=risk"),
        (["train.entropy=0.01"], "entropy=0.01"),
        (["views.grid=2x2", "views.train=mil"], "views.train=mil"),
    ],
)
def test_what_is_not_compared_is_said(overrides, words):
    reason = why_not_compared(load_config(recipe="finetune", overrides=overrides)[0])
    assert reason is not None
    assert words in reason


@pytest.mark.parametrize("overrides", [[], ["head.gate=none"], ["views.grid=2x2"], ["train.class_weights=balanced"]])
def test_what_is_compared(overrides):
    assert why_not_compared(load_config(recipe="finetune", overrides=overrides)[0]) is None


def three(n: int, seed: int) -> tuple[list[str], list[bytes], np.ndarray]:
    """Stripes, and plain grey as a third class."""
    names, items, labels = stripes(n, seed)
    for row in range(0, n, 3):
        stream = io.BytesIO()
        noise = np.random.default_rng(row + 1000 * seed).normal(128, 10, (32, 32, 3))
        Image.fromarray(np.clip(noise, 0, 255).astype(np.uint8)).save(stream, "PNG")
        items[row], labels[row] = stream.getvalue(), 2
    return names, items, labels


@pytest.mark.parametrize("rate, averaged", [(0.1, True), (0.003, False)])
def test_of_three_classes_and_an_average_the_file_is_the_head_of_the_best_epoch(tmp_path, rate, averaged):
    """On features of the tuned backbone it has the metrics that image training chose it by."""
    pytest.importorskip("timm", reason="the extra train is not installed")
    select = three(24, 1)
    made = fit(
        tmp_path,
        train=three(48, 0),
        select=select,
        n_classes=3,
        images={"unfreeze": "last"},
        epochs=2,
        learning_rate=rate,
        ema_decay=0.9,
    )
    assert made.used_ema == averaged
    batch = np.stack([load_tensor(item, made.backbone.preprocessing) for item in select[1]])
    head = load_head(tmp_path / BEST_WEIGHTS, TUNED_HEAD, made.backbone.dim, 3)
    found = select_metrics(all_logits([head], made.backbone.features(batch))[0], select[2])
    assert found.nll == pytest.approx(made.metrics["nll"], abs=1e-5)
    assert found.accuracy == pytest.approx(made.metrics["accuracy"])
