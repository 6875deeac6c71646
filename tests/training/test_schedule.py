from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.training.optim import epoch_order, learning_rate, steps_per_epoch, sub_seed, warmup_steps


def test_closed_form_values() -> None:
    rates = [learning_rate(step, total=12, warmup=4, base=0.8) for step in range(13)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates[8] == pytest.approx(0.4)  # half of the cosine
    assert rates[6] == pytest.approx(0.4 * (1 + math.cos(math.pi / 4)))
    assert rates[12] == 0.0


def test_no_warmup_starts_at_the_base_and_all_warmup_never_divides_by_zero() -> None:
    assert learning_rate(0, total=10, warmup=0, base=0.1) == 0.1
    assert [learning_rate(step, total=2, warmup=2, base=0.1) for step in (0, 1, 2)] == [0.05, 0.1, 0.0]


@given(total=st.integers(1, 500), share=st.floats(0, 1), base=st.floats(1e-6, 1.0))
def test_rates_rise_then_fall_within_the_base(total: int, share: float, base: float) -> None:
    warmup = warmup_steps(total, share)
    rates = np.array([learning_rate(step, total=total, warmup=warmup, base=base) for step in range(total)])
    assert (rates > 0).all()
    assert rates.max() <= base * (1 + 1e-12)
    assert (np.diff(rates[:warmup]) > 0).all()
    assert (np.diff(rates[warmup:]) < 0).all()


@pytest.mark.parametrize("n, batch, accumulate, steps", [(10, 4, 1, 3), (10, 4, 2, 2), (8, 4, 2, 1), (3, 64, 4, 1)])
def test_steps_cover_all_samples(n: int, batch: int, accumulate: int, steps: int) -> None:
    assert steps_per_epoch(n, batch, accumulate) == steps


def test_every_epoch_visits_each_sample_once_in_another_order() -> None:
    first, second = epoch_order(100, 7, 0), epoch_order(100, 7, 1)
    assert Counter(first.tolist()) == Counter(second.tolist()) == Counter(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, epoch_order(100, 7, 0))
    assert not np.array_equal(first, epoch_order(100, 8, 0))


def test_sub_seeds_differ_by_purpose_and_position() -> None:
    seeds = [
        sub_seed(s, p, *at) for s in (0, 1, 11) for p in ("order", "head") for at in ((), (0,), (1,), (0, 1), (1, 0))
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sub_seed(0, "order", 0) == 3955691223199900983  # stored runs depend on it
