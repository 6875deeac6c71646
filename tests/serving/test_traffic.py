"""The last hour of a server, minute by minute."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stage1.serving.traffic import MINUTES, Traffic


def test_an_hour_is_kept_and_no_more() -> None:
    traffic = Traffic(began=0.0)
    for minute in range(200):
        traffic.count(1, 2, 5.0, now=60.0 * minute + 1)
    found = traffic.document(now=60.0 * 199 + 30)
    assert len(found["bars"]) == MINUTES
    assert all(bar == {"exits": 1, "defers": 2} for bar in found["bars"])
    assert (found["images"], found["exits"]) == (3 * MINUTES, MINUTES)
    assert found["since"] == 60.0 * 140
    assert traffic.document(now=60.0 * 199 + 3600)["images"] == 0, "an hour without traffic"


def test_without_traffic_there_is_no_latency() -> None:
    found = Traffic(began=90.0).document(now=100.0)
    assert found["latency_ms"] == {"p50": None, "p99": None}
    assert found["since"] == 90.0


def test_a_clock_that_goes_back_loses_nothing_and_doubles_no_minute() -> None:
    traffic = Traffic(began=0.0)
    traffic.count(1, 0, 5.0, now=7200.0)
    traffic.count(1, 0, 5.0, now=3000.0)
    found = traffic.document(now=3000.0)
    assert found["images"] == 2
    assert found["bars"][-1] == {"exits": 2, "defers": 0}


@given(st.lists(st.floats(0.1, 50_000), min_size=1, max_size=200))
def test_quantiles_are_those_of_the_latencies(values: list[float]) -> None:
    traffic = Traffic(began=0.0)
    for value in values:
        traffic.count(1, 0, value, now=0.0)
    found = traffic.document(now=0.0)["latency_ms"]
    for name, share in (("p50", 0.5), ("p99", 0.99)):
        exact = np.quantile(values, share, method="inverted_cdf")
        # Half a bin (2.5 %), and two digits of rounding (5 %).
        assert abs(found[name] / exact - 1) < 0.08
