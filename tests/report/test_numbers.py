"""Numbers as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.report.numbers import number, percent, upper_percent, whole, words


@pytest.mark.parametrize(
    "value,text",
    [
        (0.0173, "1.73 %"),
        (0.4512, "45.1 %"),
        (0.05, "5 %"),
        (0.00012, "0.012 %"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.9996, "99.96 %"),
        (0.99952843, "99.953 %"),
        (0.2, "20 %"),
        (None, "–"),
    ],
)
def test_percent_keeps_the_digits_that_a_share_needs(value, text):
    assert percent(value).replace("\u00a0", " ") == text


@given(st.floats(min_value=0.0, max_value=1.0))
def test_a_share_below_one_is_never_printed_as_all(value):
    assert (percent(value) == "100\u00a0%") <= (value > 1 - 1e-8)


@given(st.floats(min_value=1e-6, max_value=1.0))
def test_a_printed_upper_bound_is_still_a_bound(value):
    printed = float(upper_percent(value).split("\u00a0")[0])
    assert printed >= 100 * value * (1 - 1e-6)
    assert printed <= 100 * value * 1.1 + 1e-9


@pytest.mark.parametrize("value", [0.02, 0.05, 0.1, 0.07, 0.29, 0.58])
def test_a_round_bound_is_not_pushed_up_by_float_noise(value):
    assert upper_percent(value) == percent(value)


def test_loose_fields_are_readable_in_one_line():
    assert (
        words({"n": 1234, "share": 0.25, "names": ["a", "b"], "left": None, "on": True})
        == "n 1,234, share 0.25, names a, b, left –, on True"
    )
    assert (whole(1234567), whole(None), number(0.123456), number(None)) == ("1,234,567", "–", "0.1235", "–")
