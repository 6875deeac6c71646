from __future__ import annotations

import numpy as np
import pytest
import torch

from stage1.config import HeadConfig
from stage1.model.head import build_head
from stage1.training.selection import SelectMetrics, all_logits, select_metrics


def test_metrics_by_hand() -> None:
    logits = np.log(np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1])  # case A of ALGORITHMS 4.2: confidences .9 .8 .7 .6 .5, wrong third and fifth
    found = select_metrics(logits, labels)
    assert found.accuracy == pytest.approx(0.6)
    assert found.nll == pytest.approx(-np.log([0.9, 0.8, 0.3, 0.6, 0.5]).mean(), rel=1e-6)
    assert found.augrc == pytest.approx(0.120, abs=1e-9)


def test_large_logits_do_not_overflow() -> None:
    found = select_metrics(np.array([[1e4, -1e4], [-1e4, 1e4]], dtype=np.float32), np.array([0, 0]))
    assert found.nll == pytest.approx(1e4)
    assert found.accuracy == 0.5


def test_augrc_equals_the_closed_form() -> None:
    rng = np.random.default_rng(3)
    logits, labels = rng.normal(size=(300, 3)).astype(np.float32), rng.integers(0, 3, 300)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    right, confidence = p.argmax(axis=1) == labels, p.max(axis=1)
    pairs = confidence[right][:, None] - confidence[~right][None, :]
    auroc, accuracy = (pairs > 0).mean() + 0.5 * (pairs == 0).mean(), right.mean()
    closed = (1 - auroc) * accuracy * (1 - accuracy) + (1 - accuracy) ** 2 / 2
    assert select_metrics(logits, labels).augrc == pytest.approx(closed, abs=1e-9)


def test_smaller_key_is_better_and_nll_breaks_ties() -> None:
    good, bad = SelectMetrics(0.3, 0.9, 0.05), SelectMetrics(0.4, 0.8, 0.10)
    assert all(good.key(by) < bad.key(by) for by in ("nll", "accuracy", "augrc"))  # type: ignore[arg-type]
    assert SelectMetrics(0.3, 0.9, 0.05).key("accuracy") < SelectMetrics(0.4, 0.9, 0.01).key("accuracy")


def test_logits_of_many_rows_equal_one_pass_and_modes_are_kept() -> None:
    x = np.random.default_rng(0).normal(size=(9001, 3)).astype(np.float32)
    head = build_head(HeadConfig(kind="mlp", hidden=4, dropout=0.5), 3, 2, seed=0).train()
    (found,) = all_logits([head], x)
    assert head.training
    np.testing.assert_allclose(found, head.eval()(torch.tensor(x)).detach().numpy(), atol=1e-6)
