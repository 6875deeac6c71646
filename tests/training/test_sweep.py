"""The batched sweep is the same training as one head after the other, and its winner is that head."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig, SweepConfig, TrainConfig
from stage1.errors import Checkpointed, ConfigError, Stage1Error
from stage1.training import train_head
from stage1.training.selection import LabelledFeatures, all_logits
from stage1.training.sweep import COLUMNS, Candidate, Swept, candidates, train_sweep, write_sweep

from .conftest import blobs

TRAIN, SELECT = blobs(300, 6, 2, 0), blobs(150, 6, 2, 1)
SMALL = SweepConfig(
    learning_rates=[0.003, 0.03], weight_decays=[0.0, 0.5], label_smoothings=[0.0, 0.1], hidden=[3, 8], seeds=2
)


def swept(heads: list[Candidate], **options: Any) -> list[Swept]:
    return train_sweep(LabelledFeatures(*TRAIN), LabelledFeatures(*SELECT), heads, n_classes=2, resamples=20, **options)


def alone(candidate: Candidate, folder: Path) -> Any:
    return train_head(
        *TRAIN, *SELECT, config=candidate.train, head=candidate.head, n_classes=2, seed=candidate.seed, folder=folder
    )


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": "balanced", "clip_norm": 0.05, "select_by": "augrc"},
        {"ema_decay": 0.0, "clip_norm": None, "patience": 2, "select_by": "accuracy"},
    ],
)
def test_every_candidate_ends_as_it_does_alone(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    config = TrainConfig(**{"epochs": 4, "batch_size": 32, **options})
    heads = candidates(SMALL, config, HeadConfig(kind=kind, hidden=5, dropout=0.3), 3)  # type: ignore[arg-type]
    assert len(heads) == {"linear": 16, "mlp": 32}[kind]
    found = swept(heads)
    for place in (*range(0, len(found), 5), len(found) - 1):
        one, many = alone(found[place].candidate, tmp_path / str(place)), found[place]
        assert (one.best_epoch, one.used_ema, one.epochs_run) == (many.best_epoch, many.used_ema, many.epochs_run)
        np.testing.assert_allclose(all_logits([one.head], SELECT[0])[0], many.logits, atol=1e-4)
        assert many.metrics.nll == pytest.approx(one.metrics["nll"], abs=1e-5)


def test_a_broken_schedule_is_seen_by_that_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: with the images of an epoch in another order the logits part by more than the tolerance."""
    from stage1.training import sweep_batch

    order = sweep_batch.epoch_order
    monkeypatch.setattr(sweep_batch, "epoch_order", lambda n, seed, epoch: order(n, seed, epoch + 1))
    found = swept(candidates(SMALL, TrainConfig(epochs=4, batch_size=32), HeadConfig(), 3))
    gaps = [
        np.abs(all_logits([alone(item.candidate, tmp_path / str(place)).head], SELECT[0])[0] - item.logits).max()
        for place, item in enumerate(found[-4:])
    ]
    assert max(gaps) > 1e-4


def test_default_grid_is_64_and_its_first_seed_is_the_runs() -> None:
    heads = candidates(SweepConfig(enabled=True), TrainConfig(epochs=7), HeadConfig(), 5)
    assert len(heads) == 64
    assert len({item.model_dump_json() for item in (entry.train for entry in heads)}) == 32
    assert len({entry.seed for entry in heads}) == 2
    assert heads[0].seed == 5
    assert all(entry.train.epochs == 7 for entry in heads)


def test_best_first_by_augrc_with_an_interval_around_it() -> None:
    found = swept(
        candidates(SMALL, TrainConfig(epochs=4, batch_size=32), HeadConfig(), 3), groups=np.arange(150).astype(str)
    )
    keys = [item.metrics.key("augrc") for item in found]
    assert keys == sorted(keys)
    assert all(item.augrc_low <= item.metrics.augrc <= item.augrc_high for item in found)
    assert found[0].metrics.augrc < found[-1].metrics.augrc


def test_a_planted_good_configuration_wins() -> None:
    """One rate at which nothing is learnt, one at which it is."""
    sweep = SweepConfig(learning_rates=[1e-7, 0.02], weight_decays=[0.0], label_smoothings=[0.0], seeds=4)
    found = swept(candidates(sweep, TrainConfig(epochs=6, batch_size=32), HeadConfig(kind="mlp", hidden=8), 0))
    assert [item.candidate.train.learning_rate for item in found] == [0.02] * 4 + [1e-7] * 4


def test_groups_widen_the_interval() -> None:
    heads = candidates(
        SweepConfig(learning_rates=[0.01], weight_decays=[0.0], label_smoothings=[0.0], seeds=1),
        TrainConfig(epochs=3),
        HeadConfig(),
        0,
    )
    copies = LabelledFeatures(np.repeat(SELECT[0], 8, axis=0), np.repeat(SELECT[1], 8))
    names = np.repeat(np.arange(150), 8).astype(str)
    spans = []
    for groups in (None, names):
        item = train_sweep(LabelledFeatures(*TRAIN), copies, heads, n_classes=2, groups=groups, resamples=200)[0]
        spans.append(item.augrc_high - item.augrc_low)
    assert spans[1] > 1.8 * spans[0]  # eight copies of an image are one image: about sqrt(8)


def test_the_table_reads_back(tmp_path: Path) -> None:
    found = swept(candidates(SMALL, TrainConfig(epochs=2), HeadConfig(kind="mlp", hidden=5), 3))
    write_sweep(tmp_path / "sweep.csv", found)
    with open(tmp_path / "sweep.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert tuple(rows[0]) == COLUMNS
    assert [int(row["rank"]) for row in rows] == list(range(1, 33))
    assert [float(row["augrc"]) for row in rows] == [item.metrics.augrc for item in found]
    assert {row["hidden"] for row in rows} == {"3", "8"}


def test_equal_calls_give_equal_bits_and_the_global_state_stays() -> None:
    torch.manual_seed(11)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    heads = candidates(SMALL, TrainConfig(epochs=2), HeadConfig(kind="mlp", hidden=5), 3)
    one, two = swept(heads), swept(heads)
    assert all(np.array_equal(a.logits, b.logits) for a, b in zip(one, two, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def test_three_classes() -> None:
    train, select = blobs(300, 5, 3, 0), blobs(200, 5, 3, 1)
    heads = candidates(SMALL, TrainConfig(epochs=5, batch_size=32), HeadConfig(), 0)
    found = train_sweep(LabelledFeatures(*train), LabelledFeatures(*select), heads, n_classes=3, resamples=10)
    assert found[0].logits.shape == (200, 3)
    assert found[0].metrics.accuracy > 0.55


@pytest.mark.parametrize(
    ("head", "train"),
    [
        ({"kind": "sat"}, {}),
        ({"members": 3}, {}),
        ({}, {"objective": "risk"}),
        ({}, {"entropy": 0.1}),
        ({}, {"accumulate": 2}),
    ],
)
def test_what_a_sweep_does_not_know_is_refused(head: Any, train: Any) -> None:
    with pytest.raises(ConfigError, match=r"sweep\.enabled: with") as caught:
        candidates(SMALL, TrainConfig(**train), HeadConfig(**head), 0)
    assert "\n" not in str(caught.value)


def test_a_candidate_that_diverges_is_named() -> None:
    sweep = SweepConfig(learning_rates=[0.01, 1e38], weight_decays=[0.0], label_smoothings=[0.0], seeds=1)
    heads = candidates(sweep, TrainConfig(epochs=3, clip_norm=None, warmup=0.0), HeadConfig(), 0)
    with pytest.raises(Stage1Error, match=r"sweep: 1 of 2 candidates .* learning_rate 1e\+38.*sweep\.learning_rates"):
        swept(heads)


def test_candidates_out_of_order_and_a_stop() -> None:
    heads = candidates(SMALL, TrainConfig(epochs=3), HeadConfig(), 0)
    with pytest.raises(ConfigError, match="seed by seed"):
        swept(heads[::-1][1:])
    seen: list[int] = []
    with pytest.raises(Checkpointed, match="epoch 3"):
        swept(heads, progress=seen.append, stop=lambda: len(seen) == 2)
    assert seen == [1, 2]
