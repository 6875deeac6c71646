"""Heads with losses of their own: they learn what they are for, stop and resume to the same bits, and refuse what
cannot be.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, TrainConfig
from stage1.errors import Checkpointed, ConfigError, DataError
from stage1.model.head import Ensemble
from stage1.training import load_head, train_head
from stage1.training.checkpoint import LAST, config_digest, load_checkpoint, run_facts
from stage1.training.selection import all_outputs

KINDS = ("selectivenet", "deepgamblers", "sat")


def half_hopeless(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The sign of column 0 is the class, but where column 1 is positive labels are thrown: only a gate can know."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    clear = (x[:, 0] > 0).astype(np.int64)
    return x, np.where(x[:, 1] > 0, rng.integers(0, 2, n), clear)


TRAIN, SELECT, TEST = half_hopeless(1500, 0), half_hopeless(400, 1), half_hopeless(3000, 2)


def fit(folder: Path, head: HeadConfig, *, seed: int = 3, **options: Any) -> Any:
    call = {name: options.pop(name) for name in ("stop", "fresh", "groups", "progress") if name in options}
    config = TrainConfig(**{"epochs": 15, "batch_size": 64, "learning_rate": 0.01, "patience": 15, **options})
    return train_head(*TRAIN, *SELECT, config=config, head=head, n_classes=2, seed=seed, folder=folder, **call)


def outputs(head: torch.nn.Module, data: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    logits, gate = all_outputs([head], data[0])[0]
    assert gate is not None
    return gate, logits.argmax(axis=1) == data[1]


def auroc(score: np.ndarray, right: np.ndarray) -> float:
    return float((score[right][:, None] > score[~right][None, :]).mean())


@pytest.mark.parametrize("kind", KINDS)
def test_the_gate_finds_the_images_that_cannot_be_answered(kind: str, tmp_path: Path) -> None:
    head = HeadConfig(kind=kind, hidden=32)  # type: ignore[arg-type]
    result = fit(tmp_path, head, selective={"coverage": 0.5})
    gate, right = outputs(result.head, TEST)
    hopeless = TEST[0][:, 1] > 0
    assert right[~hopeless].mean() > 0.95
    assert auroc(gate, right) > 0.68  # an oracle that knows the hopeless half: .75
    assert auroc(gate, ~hopeless) > 0.85
    assert result.gate is not None
    assert result.gate.collapsed is None
    loaded = load_head(tmp_path, head, 6, 2)
    assert np.array_equal(all_outputs([loaded], TEST[0])[0][1], gate)


def test_a_gate_that_is_asked_for_everything_collapses_and_the_log_says_so(tmp_path: Path) -> None:
    result = fit(
        tmp_path, HeadConfig(kind="selectivenet", hidden=16), selective={"coverage": 0.999, "penalty": 1e6}, epochs=40
    )
    assert result.gate is not None
    assert result.gate.collapsed is not None
    assert result.gate.collapsed.startswith("all in")
    assert '"event": "gate"' in (tmp_path / "log.jsonl").read_text()


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_gives_the_same_bits(kind: str, tmp_path: Path) -> None:
    head = HeadConfig(kind=kind, hidden=8, members=2)  # type: ignore[arg-type]
    options: dict[str, Any] = {"epochs": 5, "accumulate": 2, "entropy": 0.01}
    fit(tmp_path / "whole", head, **options)
    left = [0]

    def stop() -> bool:
        left[0] += 1
        return left[0] % 17 == 0

    stops = 0
    while True:
        try:
            fit(tmp_path / "often", head, stop=stop, **options)
            break
        except Checkpointed:
            stops += 1
    assert stops >= 3
    for name in (LAST, Path("model_best.pth"), Path("metrics.csv")):
        assert (tmp_path / "often" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_sat_believes_thrown_labels_less(tmp_path: Path) -> None:
    fit(tmp_path, HeadConfig(kind="sat", hidden=32))
    stored = load_checkpoint(tmp_path / LAST)
    assert stored is not None
    targets = stored[0]["objective.targets"][0].numpy()
    hopeless = TRAIN[0][:, 1] > 0
    assert targets.shape == (1500,)
    assert targets[hopeless].mean() < targets[~hopeless].mean() - 0.2


@pytest.mark.parametrize("kind", ["deepgamblers", "sat"])
def test_what_ships_is_from_after_the_warm_up(kind: str, tmp_path: Path) -> None:
    """Plain cross-entropy has the better NLL here, and patience would end it before the gate was trained."""
    head = HeadConfig(kind=kind, hidden=8)  # type: ignore[arg-type]
    result = fit(tmp_path, head, epochs=10, selective={"warmup": 0.5}, patience=2, learning_rate=0.05)
    assert result.best_epoch > 5
    assert result.epochs_run >= 6


# ---- ensembles -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mlp", "selectivenet"])
def test_members_are_the_heads_that_would_be_trained_alone(kind: str, tmp_path: Path) -> None:
    """Same data order; first weights one apart; clipped each by itself. Raw weights at the end of training, no
    early choice.
    """
    from stage1.training.optim import sub_seed

    options = {"epochs": 3, "ema_decay": 0.0, "clip_norm": 0.05}
    shape = {"kind": kind, "hidden": 8, "dropout": 0.0}
    fit(tmp_path / "three", HeadConfig(members=3, **shape), **options)  # type: ignore[arg-type]
    fit(tmp_path / "one", HeadConfig(**shape), **options)  # type: ignore[arg-type]
    three, one = (load_checkpoint(tmp_path / name / LAST) for name in ("three", "one"))
    assert three is not None
    assert one is not None
    weights = {name.removeprefix("model."): value for name, value in one[0].items() if name.startswith("model.")}
    differences = []
    for member in range(3):
        own = {name: three[0][f"model.members.{member}.{name}"] for name in weights}
        differences.append(max(float((own[name] - weights[name]).abs().max()) for name in weights))
    assert differences[0] < 1e-5
    assert min(differences[1:]) > 1e-2
    assert sub_seed(3, "head") != sub_seed(4, "head")


def test_an_ensemble_is_at_least_as_good_as_its_mean_member(tmp_path: Path) -> None:
    head = HeadConfig(kind="mlp", hidden=64, members=4)
    result = fit(tmp_path, head, learning_rate=0.03, epochs=20)
    assert isinstance(result.head, Ensemble)
    labels = torch.tensor(TEST[1])

    def nll(module: torch.nn.Module) -> float:
        return float(torch.nn.functional.cross_entropy(module(torch.tensor(TEST[0])), labels))

    members = [nll(member) for member in result.head.members]
    assert nll(result.head) < np.mean(members)  # Jensen: strictly, where members differ at all
    assert np.std(members) > 0
    assert result.gate is None


# ---- entropy and risk ----------------------------------------------------------------------------------------------


def test_entropy_makes_answers_more_decided(tmp_path: Path) -> None:
    sizes = []
    for weight in (0.0, 0.3):
        result = fit(tmp_path / str(weight), HeadConfig(), entropy=weight, epochs=10)
        sizes.append(float(result.head(torch.tensor(TEST[0])).softmax(dim=1).amax(dim=1).mean()))
    assert sizes[1] > sizes[0] + 0.015


def outliers(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two equally good columns; on the first some positives look very negative, on the second some negatives very
    positive.
    """
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    x = (2.0 * y - 1.0)[:, None] + rng.normal(size=(n, 2))
    x[(y == 1) & (rng.random(n) < 0.06), 0] = -3.0
    x[(y == 0) & (rng.random(n) < 0.06), 1] = 3.0
    return (x + 0.3 * rng.normal(size=x.shape)).astype(np.float32), y.astype(np.int64)


def deferred(margin: np.ndarray, labels: np.ndarray, miss_rate: float, false_exit_rate: float) -> float:
    lo, hi = np.quantile(margin[labels == 1], miss_rate), np.quantile(margin[labels == 0], 1 - false_exit_rate)
    return float(((margin >= lo) & (margin <= hi)).mean())


def test_risk_training_defers_less_than_cross_entropy_at_its_levels(tmp_path: Path) -> None:
    """A strict miss rate and a lax false-exit rate: the second column is the better one, which cross-entropy cannot
    know.
    """
    data = outliers(1200, 0), outliers(600, 1), outliers(20000, 2)
    levels = {"miss_rate": 0.02, "false_exit_rate": 0.2}
    share = {}
    for objective in ("ce", "risk"):
        config = TrainConfig(
            epochs=80,
            batch_size=1_000_000,
            learning_rate=0.03,
            patience=80,
            checkpoint_every=80,
            objective=objective,  # type: ignore[arg-type]
            risk=levels,  # type: ignore[arg-type]
        )
        result = train_head(
            *data[0], *data[1], config=config, head=HeadConfig(), n_classes=2, seed=0, folder=tmp_path / objective
        )
        logits = result.head(torch.tensor(data[2][0])).numpy()
        share[objective] = deferred(logits[:, 1] - logits[:, 0], data[2][1], *levels.values())
    assert share["ce"] > 0.25
    assert share["risk"] < share["ce"] - 0.05, share


def test_risk_training_with_too_few_positives_stops_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.risk\.miss_rate: .* positives .*needed"):
        fit(tmp_path, HeadConfig(), objective="risk", batch_size=64)


# ---- refusals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "options", "message"),
    [
        ({"kind": "deepgamblers"}, {"selective": {"reward": 2.0}}, r"train\.selective\.reward: 2 with 2 classes"),
        ({"kind": "sat"}, {"label_smoothing": 0.1}, r"train\.label_smoothing: 0\.1 with head\.kind=sat"),
        ({"kind": "selectivenet"}, {"objective": "risk"}, r"train\.objective: risk with head\.kind=selectivenet"),
        ({}, {"objective": "risk", "accumulate": 2}, r"train\.accumulate: 2 with train\.objective=risk"),
    ],
)
def test_what_does_not_go_together_is_refused(head: Any, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        fit(tmp_path, HeadConfig(**head), **options)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_another_head_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, HeadConfig(kind="sat", hidden=8), epochs=2)
    with pytest.raises(ConfigError, match=r"head\.kind 'sat' -> 'deepgamblers'"):
        fit(tmp_path, HeadConfig(kind="deepgamblers", hidden=8), epochs=2)


def test_options_that_a_head_does_not_read_change_no_digest() -> None:
    def digest(head: HeadConfig, **train: Any) -> str:
        return config_digest(run_facts(TrainConfig(**train), head, dim=4, n_classes=2, seed=0))

    plain, sat = HeadConfig(kind="mlp"), HeadConfig(kind="sat")
    assert digest(plain) == digest(plain, selective={"momentum": 0.5}, risk={"anchor": 2.0})
    assert digest(sat) != digest(sat, selective={"momentum": 0.5})
    assert digest(plain, objective="risk") != digest(plain, objective="risk", risk={"anchor": 2.0})
    assert digest(plain) != digest(plain, entropy=0.1)
    assert len({digest(plain.model_copy(update={"members": count})) for count in (1, 2, 3)}) == 3
