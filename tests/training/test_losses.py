from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from stage1.errors import DataError
from stage1.training.losses import (
    class_weights,
    cross_entropy_sum,
    deep_gamblers_sum,
    entropy_sum,
    selectivenet_loss,
    self_adaptive_sum,
    updated_targets,
)

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


# ---- selective losses ----------------------------------------------------------------------------------------------

TOY = {
    "losses": torch.tensor([0.1, 0.2, 0.3, 2.0], dtype=torch.float64),
    "gate": torch.tensor([0.9, 0.8, 0.7, 0.2], dtype=torch.float64),
    "auxiliary": torch.tensor([0.15, 0.25, 0.35, 1.5], dtype=torch.float64),
}


def undivided(losses: torch.Tensor, gate: torch.Tensor, auxiliary: torch.Tensor, coverage: float) -> torch.Tensor:
    """The authors' code: mean(l g), not divided by mean(g)."""
    return 0.5 * ((losses * gate).mean() + 32.0 * torch.relu(coverage - gate.mean()) ** 2) + 0.5 * auxiliary.mean()


def test_selectivenet_is_the_papers_loss_and_not_that_of_its_code() -> None:
    assert float(selectivenet_loss(**TOY, coverage=0.8)) == pytest.approx(0.806635, abs=5e-7)
    assert float(undivided(**TOY, coverage=0.8)) == pytest.approx(0.748750, abs=5e-7)


def test_selectivenet_does_not_reward_answering_less() -> None:
    halved = {**TOY, "gate": TOY["gate"] / 2}
    # Below every coverage target that could cost something, the risk of who is let through alone counts.
    assert float(selectivenet_loss(**halved, coverage=0.1)) == pytest.approx(
        float(selectivenet_loss(**TOY, coverage=0.1))
    )
    assert float(undivided(**halved, coverage=0.1)) < float(undivided(**TOY, coverage=0.1))


def test_selectivenet_is_finite_where_every_gate_underflows() -> None:
    raw = torch.full((4,), -200.0, requires_grad=True)
    losses = TOY["losses"].float().requires_grad_(True)
    loss = selectivenet_loss(losses, torch.sigmoid(raw), TOY["auxiliary"].float(), coverage=0.8)
    loss.backward()
    expected = 0.5 * (float(losses.mean()) + 32 * 0.8**2) + 0.5 * float(TOY["auxiliary"].mean())
    assert float(loss) == pytest.approx(expected, rel=1e-6)
    assert raw.grad is not None
    assert losses.grad is not None
    assert torch.isfinite(raw.grad).all()
    assert losses.grad.tolist() == pytest.approx([0.125] * 4)


def test_selectivenet_weights_are_repeated_rows() -> None:
    weights = torch.tensor([1.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    repeated = {name: values.repeat_interleave(weights.long()) for name, values in TOY.items()}
    weighted = selectivenet_loss(**TOY, row_weights=weights, coverage=0.8, penalty=5.0, mix=0.3)
    assert float(weighted) == pytest.approx(float(selectivenet_loss(**repeated, coverage=0.8, penalty=5.0, mix=0.3)))


def test_selectivenet_closes_on_the_wrong_and_opens_on_the_right() -> None:
    raw = torch.logit(TOY["gate"]).requires_grad_(True)
    selectivenet_loss(TOY["losses"], torch.sigmoid(raw), TOY["auxiliary"], coverage=0.5).backward()
    assert raw.grad is not None
    assert (raw.grad[:3] < 0).all()
    assert raw.grad[3] > 0


def test_deep_gamblers_oracle_and_limit() -> None:
    every = torch.log(torch.tensor([[0.6, 0.3, 0.1]], dtype=torch.float64))
    one = torch.ones(1, dtype=torch.float64)
    assert float(deep_gamblers_sum(every, torch.tensor([0]), one, 2.2)) == pytest.approx(0.437800, abs=5e-7)
    # Who gets nothing for abstaining bets as under cross-entropy.
    assert float(deep_gamblers_sum(every, torch.tensor([0]), one, 1e12)) == pytest.approx(-np.log(0.6))


@pytest.mark.parametrize("chance", [0.97, 0.85, 0.72, 0.6, 0.5])
def test_deep_gamblers_abstain_by_kellys_rule(chance: float) -> None:
    """The best bet on images of which a share q is of class 0: hold (1 - q) o / (o - 1), everything where q <= 1 /
    o.
    """
    raw = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    shares = torch.tensor([chance, 1 - chance], dtype=torch.float64)
    optimizer = torch.optim.Adam([raw], lr=0.1)
    for _ in range(1500):
        optimizer.zero_grad()
        deep_gamblers_sum(raw.expand(2, 3), torch.tensor([0, 1]), shares, 1.5).backward()
        optimizer.step()
    abstention = float(raw.detach().softmax(dim=1)[0, 2])
    assert abstention == pytest.approx(min(1.0, (1 - chance) * 3.0), abs=0.01)


def test_self_adaptive_loss_and_targets_by_hand() -> None:
    every = torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.2, 0.2, 0.6]], dtype=torch.float64))
    labels, before = torch.tensor([0, 1]), torch.tensor([1.0, 0.5], dtype=torch.float64)
    targets = updated_targets(before, every, labels, 0.9)
    assert targets.tolist() == pytest.approx([0.9 + 0.06, 0.45 + 0.02])
    expected = -(0.96 * np.log(0.6) + 0.04 * np.log(0.1)) - 2.0 * (0.47 * np.log(0.2) + 0.53 * np.log(0.6))
    weights = torch.tensor([1.0, 2.0], dtype=torch.float64)
    assert float(self_adaptive_sum(every, labels, targets, weights)) == pytest.approx(expected)
    # A believed label is cross-entropy.
    full = self_adaptive_sum(every, labels, torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    assert float(full) == pytest.approx(-np.log(0.6) - np.log(0.2))


def test_entropy_is_that_of_the_softmax_and_its_gradient_decides() -> None:
    raw = torch.tensor([[0.0, 0.0, 0.0], [3.0, 0.0, -1.0]], dtype=torch.float64, requires_grad=True)
    p = raw.detach()[1].softmax(dim=0).numpy()
    value = entropy_sum(raw, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert value.item() == pytest.approx(np.log(3) - 2.0 * (p * np.log(p)).sum())
    value.backward()
    assert raw.grad is not None
    assert raw.grad[1, 0] < 0 < raw.grad[1, 1]  # a step down makes the likeliest class likelier
