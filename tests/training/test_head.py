from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import DataError, MissingError, Stage1Error
from stage1.training import TrainResult, load_head, train_head
from stage1.training.checkpoint import LAST, load_checkpoint
from stage1.training.selection import select_metrics

Fit = Callable[..., TrainResult]
Blobs = Callable[..., tuple[np.ndarray, np.ndarray]]


def rows_of(folder: Path) -> list[dict[str, float]]:
    with open(folder / "metrics.csv", newline="") as stream:
        return [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]


def weights_of(result: TrainResult) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in result.head.state_dict().values()])


# ---- does it learn -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_classes", [2, 3])
def test_reaches_the_accuracy_of_logistic_regression(n_classes: int, tmp_path: Path, make_blobs: Blobs) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is the oracle")
    train, select, test = (make_blobs(n, 20, n_classes, seed) for n, seed in ((1500, 0), (500, 1), (4000, 2)))
    result = train_head(
        *train,
        *select,
        config=TrainConfig(epochs=120, learning_rate=5e-3, patience=120, class_weights="none"),
        head=HeadConfig(),
        n_classes=n_classes,
        seed=0,
        folder=tmp_path,
    )
    ours = result.head(torch.tensor(test[0])).argmax(dim=1).numpy() == test[1]
    mean, std = train[0].mean(axis=0), train[0].std(axis=0)
    oracle = linear_model.LogisticRegression(max_iter=2000).fit((train[0] - mean) / std, train[1])
    theirs = oracle.predict((test[0] - mean) / std) == test[1]
    difference = ours.astype(float) - theirs.astype(float)  # paired: same test images
    error = difference.std() / math.sqrt(len(difference))
    assert theirs.mean() > 0.75
    assert difference.mean() >= -3 * error - 1e-12


def test_mlp_learns_what_a_line_cannot(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4000, 2)).astype(np.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(np.int64)
    accuracy = {}
    for kind in ("linear", "mlp"):
        result = train_head(
            x[:2000],
            y[:2000],
            x[2000:],
            y[2000:],
            config=TrainConfig(epochs=30, learning_rate=1e-2),
            head=HeadConfig(kind=kind, hidden=32),
            n_classes=2,
            seed=0,
            folder=tmp_path / kind,  # type: ignore[arg-type]
        )
        accuracy[kind] = result.metrics["accuracy"]
    assert accuracy["linear"] < 0.65
    assert accuracy["mlp"] > 0.93


def test_balanced_weights_move_the_prior_towards_the_rare_class(fit: Fit, make_blobs: Blobs) -> None:
    features, labels = make_blobs(600, 6, 2, 0, noise=3.0)
    keep = np.flatnonzero((labels == 0) | (np.arange(600) % 8 == 0))
    train = (features[keep], labels[keep])
    share = {}
    for kind in ("none", "balanced"):
        result = fit(kind, kind="linear", train=train, class_weights=kind, epochs=15)
        share[kind] = float((result.head(torch.tensor(features)).argmax(dim=1) == 1).float().mean())
    assert share["none"] < 0.3
    assert 0.35 < share["balanced"] < 0.65


# ---- the pieces do what they say -----------------------------------------------------------------------------------


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_accumulated_batches_equal_the_big_batch(class_weights: str, fit: Fit) -> None:
    options: dict[str, Any] = {"class_weights": class_weights, "label_smoothing": 0.1, "clip_norm": 0.05, "epochs": 4}
    big = weights_of(fit("big", batch_size=48, **options))
    added = weights_of(fit("added", batch_size=12, accumulate=4, **options))
    uneven = weights_of(fit("uneven", batch_size=7, accumulate=4, **options))  # 28 a step: another problem
    np.testing.assert_allclose(added, big, atol=2e-5)
    assert np.abs(uneven - big).max() > 1e-3


def test_first_step_is_adamw_by_hand_and_clipping_rescales_the_gradient(fit: Fit, make_blobs: Blobs) -> None:
    features, labels = make_blobs(150, 6, 2, 0)
    result = fit(
        epochs=1,
        batch_size=200,
        warmup=0.0,
        learning_rate=0.1,
        weight_decay=0.5,
        clip_norm=1e-9,
        ema_decay=0.0,
        class_weights="none",
        seed=3,
    )
    from stage1.model.head import build_head, feature_statistics
    from stage1.training.optim import sub_seed

    head = build_head(HeadConfig(), 6, 2, sub_seed(3, "head"))
    head.standardise(*feature_statistics(features))
    head.start_at(np.bincount(labels) / len(labels))
    torch.nn.functional.cross_entropy(head(torch.tensor(features)), torch.tensor(labels)).backward()
    parameters = dict(head.named_parameters())
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in parameters.values()))
    for name, decay in (("layers.0.weight", 0.5), ("layers.0.bias", 0.0)):
        gradient = parameters[name].grad.double() * 1e-9 / (norm + 1e-6)
        start = parameters[name].detach().double()
        # after one step the bias-corrected moments are g and g^2; 1e-8 is Adam's epsilon, which such small g can feel
        expected = start * (1 - 0.1 * decay) - 0.1 * gradient / (gradient.abs() + 1e-8)
        np.testing.assert_allclose(result.head.state_dict()[name].numpy(), expected.numpy(), atol=1e-5)


def test_batch_larger_than_the_data_is_one_step_an_epoch(fit: Fit, tmp_path: Path) -> None:
    fit(batch_size=10_000, epochs=3)
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]


def test_dropout_is_off_in_the_result_and_drawn_from_the_seed(fit: Fit) -> None:
    one, same, other = (weights_of(fit(str(i), kind="mlp", seed=s)) for i, s in enumerate((1, 1, 2)))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


def test_features_may_be_a_read_only_memory_map(fit: Fit, tmp_path: Path, make_blobs: Blobs) -> None:
    features, labels = make_blobs(150, 6, 2, 0)
    np.save(tmp_path / "x.npy", features)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert np.array_equal(weights_of(fit("map", train=(mapped, labels))), weights_of(fit("memory")))


def test_torchs_global_state_is_left_as_it_was(fit: Fit) -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(5)
    before = torch.get_rng_state()
    inside = []
    with torch.no_grad():
        fit(kind="mlp", progress=lambda row: inside.append(torch.get_num_threads()))
        assert not torch.is_grad_enabled()
    with pytest.raises(DataError):
        fit("bad", train=(np.zeros((4, 6), np.float32), np.zeros(4, np.int64)))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert set(inside) == {1}
    assert not torch.are_deterministic_algorithms_enabled()


# ---- choosing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["nll", "accuracy", "augrc"])
def test_shipped_weights_are_those_of_the_best_row(by: str, fit: Fit, tmp_path: Path, make_blobs: Blobs) -> None:
    result = fit(select_by=by, epochs=12, learning_rate=0.3, patience=12, clip_norm=None)
    rows = rows_of(tmp_path / "run")
    candidates = [(row[f"{prefix}_{by}"], row, prefix) for row in rows for prefix in ("select", "ema")]
    best_value = max(c[0] for c in candidates) if by == "accuracy" else min(c[0] for c in candidates)
    tied = [(row[f"{prefix}_nll"], row["epoch"], prefix) for value, row, prefix in candidates if value == best_value]
    nll, epoch, prefix = min(tied, key=lambda item: item[0])
    assert (result.best_metric, result.best_epoch, result.used_ema) == (best_value, epoch, prefix == "ema")
    assert result.metrics["nll"] == nll
    features, labels = make_blobs(80, 6, 2, 1)
    shipped = select_metrics(result.head(torch.tensor(features)).numpy(), labels)
    assert shipped.nll == pytest.approx(nll, rel=1e-6)
    loaded = load_head(tmp_path / "run", HeadConfig(), 6, 2)
    assert torch.equal(loaded(torch.tensor(features)), result.head(torch.tensor(features)))
    assert not result.head.training


def test_noisy_training_ships_the_average_and_without_ema_there_is_none(fit: Fit, tmp_path: Path) -> None:
    noisy: dict[str, Any] = {"learning_rate": 0.1, "batch_size": 4, "warmup": 0.0, "epochs": 3, "clip_norm": None}
    averaged, raw = fit("ema", ema_decay=0.99, **noisy), fit("raw", ema_decay=0.0, **noisy)
    assert averaged.used_ema
    assert not raw.used_ema
    assert averaged.best_metric < raw.best_metric
    assert all("ema_nll" not in row for row in rows_of(tmp_path / "raw"))
    assert [row["select_nll"] for row in rows_of(tmp_path / "raw")] == [
        row["select_nll"] for row in rows_of(tmp_path / "ema")
    ]


def test_patience_stops_after_epochs_without_improvement(fit: Fit, tmp_path: Path) -> None:
    result = fit(epochs=200, patience=4, learning_rate=0.2)
    rows = rows_of(tmp_path / "run")
    assert result.epochs_run == len(rows) == result.best_epoch + 4 < 200
    assert min(min(row["select_nll"], row["ema_nll"]) for row in rows[-4:]) >= result.best_metric
    events = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "done"
    assert events[-1]["stopped_early"] is True
    assert events[0]["threads"] == 1


def test_rows_carry_the_schedule_and_progress_sees_them(fit: Fit, tmp_path: Path) -> None:
    seen: list[dict[str, Any]] = []
    fit(epochs=3, progress=seen.append, patience=10)
    rows = rows_of(tmp_path / "run")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows] == [10, 20, 30]
    assert [{k: v for k, v in row.items() if v is not None} for row in seen] == rows
    assert rows[0]["learning_rate"] == pytest.approx(0.02 * 0.5 * (1 + math.cos(math.pi * (9 - 2) / (30 - 2))))
    assert rows[-1]["learning_rate"] < rows[0]["learning_rate"]


def test_no_time_of_day_outside_the_log(fit: Fit, tmp_path: Path) -> None:
    for name in ("one", "two"):
        fit(name)
    for file in (LAST, "model_best.pth", "metrics.csv"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_tensorboard_events_are_written_when_asked(fit: Fit, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="extra `track` is not installed")
    fit("with", tensorboard=True, epochs=2)
    fit("without", epochs=2)
    assert any((tmp_path / "with" / "tensorboard").iterdir())
    assert not (tmp_path / "without" / "tensorboard").exists()


# ---- bad input -----------------------------------------------------------------------------------------------------


def test_bad_data_is_named(fit: Fit, tmp_path: Path, make_blobs: Blobs) -> None:
    features, labels = make_blobs(150, 6, 2, 0)
    spoiled = features.copy()
    spoiled[17, 2] = np.nan
    cases: list[tuple[dict[str, Any], str]] = [
        ({"train": (features, np.ones(150, np.int64))}, "train: all 150 images are of class 1"),
        ({"train": (features, labels + 1)}, "train: label 2 is outside 0..1"),
        ({"train": (spoiled, labels)}, "train: features of row 17 hold NaN"),
        ({"train": (features, labels[:-1])}, r"train: labels are int64 \(149,\)"),
        ({"train": (features, labels.astype(np.float32))}, "train: labels are float32"),
        ({"train": (features.astype(np.float64), labels)}, "train: features are float64"),
        ({"select": (features[:0], labels[:0])}, "val_select: no images"),
        ({"select": (features[:, :5], labels)}, "val_select: 5 feature columns, train has 6"),
        ({"select": (spoiled, labels)}, "val_select: features of row 17 hold NaN"),
        ({"n_classes": 3}, "train: class 2 has no image"),
    ]
    for options, message in cases:
        with pytest.raises(DataError, match=message) as caught:
            fit("bad", **options)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "bad").exists()


def test_missing_tensorboard_costs_nothing_that_was_there(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit()
    before = (tmp_path / "run" / LAST).read_bytes()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingError):
        fit(tensorboard=True, fresh=True)
    assert (tmp_path / "run" / LAST).read_bytes() == before


def test_divergence_names_the_step_and_keeps_the_last_good_checkpoint(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage1.training import head_run as run_module

    original, calls = run_module.cross_entropy_sum, [0]

    def breaks(*args: Any) -> torch.Tensor:
        calls[0] += 1
        return original(*args) * (math.nan if calls[0] == 24 else 1.0)

    monkeypatch.setattr(run_module, "cross_entropy_sum", breaks)
    with pytest.raises(Stage1Error, match=r"loss nan.* at step 24 \(epoch 3\); lower train\.learning_rate") as caught:
        fit(epochs=5)
    assert str(tmp_path / "run" / LAST) in str(caught.value)
    assert caught.value.exit_code == 1
    stored = load_checkpoint(tmp_path / "run" / LAST)
    assert stored is not None
    assert stored[1]["position"]["epoch"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in stored[0].values())
    assert len(rows_of(tmp_path / "run")) == 2


def test_a_real_overflow_is_caught_before_any_checkpoint(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(Stage1Error, match="no checkpoint was written yet"):
        fit(learning_rate=1e38, warmup=0.0, weight_decay=0.0, clip_norm=None)
    assert not (tmp_path / "run" / LAST).exists()
