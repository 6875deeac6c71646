from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from stage1.errors import DataError
from stage1.training.losses import class_weights, cross_entropy_sum

LABELS = np.array([0, 0, 0, 0, 1, 2, 2], dtype=np.int64)


def logits() -> torch.Tensor:
    return torch.tensor(np.random.default_rng(0).normal(size=(7, 3)), dtype=torch.float32)


def test_balanced_weights_are_n_over_k_count_and_sum_to_n() -> None:
    weights = class_weights(LABELS, 3, "balanced")
    assert weights.tolist() == pytest.approx([7 / 12, 7 / 3, 7 / 6])
    assert float(weights[torch.tensor(LABELS)].sum()) == pytest.approx(7.0)
    assert class_weights(LABELS, 3, "none").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["none", "balanced"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_divided_by_the_weights_it_is_torchs_mean(kind: str, smoothing: float) -> None:
    weights, labels = class_weights(LABELS, 3, kind), torch.tensor(LABELS)  # type: ignore[arg-type]
    ours = cross_entropy_sum(logits(), labels, weights, smoothing) / weights[labels].sum()
    torchs = functional.cross_entropy(logits(), labels, weight=weights, label_smoothing=smoothing)
    assert float(ours) == pytest.approx(float(torchs), rel=1e-6)


def test_label_smoothing_equals_cross_entropy_with_soft_targets() -> None:
    values = logits().double().numpy()
    log_p = values - np.log(np.exp(values).sum(axis=1, keepdims=True))
    targets = np.full((7, 3), 0.3 / 3)
    targets[np.arange(7), LABELS] += 0.7
    ours = cross_entropy_sum(logits(), torch.tensor(LABELS), torch.ones(3), 0.3)
    assert float(ours) == pytest.approx(-(targets * log_p).sum(), rel=1e-6)


def test_a_class_without_images_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="all 3 images are of class 1"):
        class_weights(np.ones(3, dtype=np.int64), 2, "none")
    with pytest.raises(DataError, match="class 1 has no image"):
        class_weights(np.array([0, 2]), 3, "balanced")
