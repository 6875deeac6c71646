"""benchmarks/intervals.py: a row breaks the bars where it must, and each topic's cases answer for the same rows."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

import intervals  # noqa: E402
from interval_bench import populations  # noqa: E402
from interval_bench.tally import Answer, Case, interval_answer, simulate  # noqa: E402


def row(**changes: object) -> dict[str, object]:
    return {"intervals": 400, "covered": 380, "claims": 400, "false_claims": 20, **changes}


@pytest.mark.parametrize(
    "changes, why",
    [
        ({}, None),
        ({"covered": 357}, None),  # .8925, within 3 standard errors of .93
        ({"covered": 350}, "covers 0.875"),
        ({"false_claims": 38}, None),
        ({"false_claims": 40}, "false in 0.100"),
        ({"intervals": 0, "covered": 0, "claims": 0, "false_claims": 0}, None),
    ],
)
def test_a_row_breaks_the_bars_beyond_the_error_of_the_simulation(changes, why):
    assert intervals.broken(row(**changes)) == why


def test_an_interval_that_is_not_printed_is_no_miss():
    def draw(rng):
        value = rng.random()
        return {"share": interval_answer(None if value < 0.5 else value - 0.5, value, 0.25, false_claim=value > 0.9)}

    (found,) = simulate((Case("uniform", draw),), draws=400, seed=1)
    assert 150 < found["intervals"] < 250
    assert found["claims"] == 400
    assert 20 < found["false_claims"] < 60
    assert interval_answer(0.1, 0.2, 0.3) == Answer(False, None, pytest.approx(0.1))


@pytest.mark.parametrize("topic", intervals.TOPICS)
def test_every_topic_has_cases_with_names_of_their_own(topic, monkeypatch):
    monkeypatch.setattr(populations, "LARGE", 20_000)
    cases = importlib.import_module(f"interval_bench.{topic}").CASES
    assert len({case.name for case in cases}) == len(cases) > 0
    smallest = min(cases, key=lambda case: len(case.name))
    assert all(isinstance(answer, Answer) for answer in smallest.draw(np.random.default_rng(0)).values())
