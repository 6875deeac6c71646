from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from stage1.config import RiskTrainingConfig
from stage1.errors import DataError
from stage1.training.conformal import (
    allowed_rank,
    deferral_loss,
    halves,
    lower_threshold,
    order_statistic,
    soft_deferral,
    soft_exceedance,
    upper_threshold,
)

POSITIVES = torch.tensor([-1.0, -0.4, 0.1, 0.5, 0.9, 1.3, 1.8, 2.2, 2.9], dtype=torch.float64)
NEGATIVES = torch.tensor([-2.0, -1.0, -0.2, 0.3], dtype=torch.float64)


def toy(w: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ALGORITHMS 3: threshold at alpha = .2 from nine positives, soft exceedance of four negatives, T = .1."""
    threshold = lower_threshold(torch.sigmoid(w * POSITIVES + b), 0.2)
    return threshold, soft_exceedance(torch.sigmoid(w * NEGATIVES + b), threshold, 0.1)


def test_toy_threshold_loss_and_gradients() -> None:
    w, b = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (1.0, 0.0))
    threshold, loss = toy(w, b)
    loss.backward()
    assert float(threshold.detach()) == pytest.approx(0.4013123399, abs=5e-11)
    assert float(loss.detach()) == pytest.approx(0.4339343027, abs=5e-11)
    assert w.grad is not None
    assert b.grad is not None
    assert float(w.grad) == pytest.approx(0.0247740480, abs=5e-11)
    assert float(b.grad) == pytest.approx(-0.0304357449, abs=5e-11)
    step = 1e-6
    for index, gradient in enumerate((w.grad, b.grad)):
        moved = [
            [
                torch.tensor(value + sign * step * (place == index), dtype=torch.float64)
                for place, value in enumerate((1.0, 0.0))
            ]
            for sign in (1, -1)
        ]
        finite = (float(toy(*moved[0])[1]) - float(toy(*moved[1])[1])) / (2 * step)
        assert finite == pytest.approx(float(gradient), abs=1e-8)


def test_without_the_thresholds_gradient_the_toy_has_another_one() -> None:
    """The point of the method: a threshold taken as a constant points elsewhere."""
    w = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    threshold = lower_threshold(torch.sigmoid(w * POSITIVES), 0.2).detach()
    soft_exceedance(torch.sigmoid(w * NEGATIVES), threshold, 0.1).backward()
    assert w.grad is not None
    assert float(w.grad) < -0.05


@pytest.mark.parametrize(
    ("n", "alpha", "rank"), [(9, 0.2, 2), (9, 0.1, 1), (8, 0.1, 0), (49, 0.02, 1), (48, 0.02, 0), (99, 0.05, 5)]
)
def test_rank_is_that_of_conformal_risk_control(n: int, alpha: float, rank: int) -> None:
    assert allowed_rank(n, alpha) == rank


def test_thresholds_hold_their_level_over_draws() -> None:
    """Expected miss rate (k - 1) + 1 over n + 1 <= alpha with continuous scores; one rank further breaks it."""
    rng = np.random.default_rng(0)
    n, alpha, draws = 30, 0.1, 4000
    missed, beyond = [], []
    for _ in range(draws):
        scores = torch.tensor(rng.uniform(size=n))
        missed.append(float(lower_threshold(scores, alpha)))  # uniform scores: P(s < lo) is lo itself
        beyond.append(float(order_statistic(scores, allowed_rank(n, alpha) + 1)))
        assert 1.0 - float(upper_threshold(scores, alpha)) == pytest.approx(float(lower_threshold(1.0 - scores, alpha)))
    error = np.std(missed) / np.sqrt(draws)
    assert np.mean(missed) <= alpha + 3 * error
    assert np.mean(beyond) > alpha + 3 * error


def test_a_window_averages_neighbouring_order_statistics() -> None:
    scores = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0])
    assert float(order_statistic(scores, 3, window=0.2)) == pytest.approx(3.0)
    assert float(order_statistic(scores, 1, window=0.4)) == pytest.approx(2.0)  # cut at the end: 1, 2, 3
    with pytest.raises(DataError, match="rank 6 of 5"):
        order_statistic(scores, 6)


def test_soft_deferral_becomes_the_share_between_the_thresholds() -> None:
    scores = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0])
    lo, hi = torch.tensor(-1.5), torch.tensor(1.0)
    assert float(soft_deferral(scores, lo, hi, 1e-3)) == pytest.approx(0.6)
    assert float(soft_deferral(scores, hi, lo, 1e-3)) == pytest.approx(0.0, abs=1e-6)


def test_each_half_has_its_share_of_each_class() -> None:
    labels = torch.tensor(np.random.default_rng(1).integers(0, 2, 101))
    calibrating, paying = halves(labels)
    assert sorted(torch.cat([calibrating, paying]).tolist()) == list(range(101))
    for label in (0, 1):
        counts = [int((labels[rows] == label).sum()) for rows in (calibrating, paying)]
        assert counts[0] - counts[1] in (0, 1)


def test_the_loss_cannot_be_won_by_scaling_the_scores() -> None:
    rng = np.random.default_rng(2)
    labels = torch.tensor(rng.integers(0, 2, 400))
    scores = torch.tensor(rng.normal(size=400)) + 1.5 * labels
    config = RiskTrainingConfig(miss_rate=0.05, false_exit_rate=0.05)
    losses = [float(deferral_loss(factor * scores + 3.0, labels, config)) for factor in (0.01, 1.0, 100.0)]
    assert losses == pytest.approx([losses[0]] * 3)
    # With a temperature in the scores' own units, shrinking wins: what the division is for.
    lo, hi = scores[labels == 1].quantile(0.05), scores[labels == 0].quantile(0.95)
    fixed = [float(soft_deferral(factor * scores, factor * lo, factor * hi, 0.5)) for factor in (0.01, 1.0)]
    assert fixed[0] < 0.26 < fixed[1]


def test_constant_scores_cost_a_quarter_and_have_a_finite_gradient() -> None:
    labels = torch.tensor([0, 1] * 60)
    scores = torch.full((120,), 0.7, requires_grad=True)
    loss = deferral_loss(scores, labels, RiskTrainingConfig(miss_rate=0.05, false_exit_rate=0.05))
    loss.backward()
    assert float(loss) == pytest.approx(0.25)
    assert scores.grad is not None
    assert torch.isfinite(scores.grad).all()


def test_better_scores_cost_less() -> None:
    rng = np.random.default_rng(3)
    labels = torch.tensor(rng.integers(0, 2, 1000))
    noise = torch.tensor(rng.normal(size=1000))
    losses = [float(deferral_loss(noise + gap * labels, labels, RiskTrainingConfig())) for gap in (0.5, 2.0, 3.0, 5.0)]
    assert all(worse > better for worse, better in itertools.pairwise(losses))


def test_too_few_images_for_a_level_are_counted() -> None:
    labels = torch.tensor([1] * 60 + [0] * 60)
    scores = torch.linspace(-1, 1, 120)
    with pytest.raises(
        DataError, match=r"train\.risk\.miss_rate: 30 positives .* cannot hold 0.02 \(49 needed\).*batch_size"
    ):
        deferral_loss(scores, labels, RiskTrainingConfig())
    with pytest.raises(DataError, match=r"false_exit_rate: 30 negatives .* 0.01 \(99 needed\)"):
        deferral_loss(scores, labels, RiskTrainingConfig(miss_rate=0.1, false_exit_rate=0.01))
    with pytest.raises(DataError, match="cannot be split"):
        deferral_loss(scores[:1], labels[:1], RiskTrainingConfig())
