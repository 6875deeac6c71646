"""The cost curve of views draws every row, twice where milliseconds are known, and the same bytes for the same rows."""

from __future__ import annotations

import io
import re

import pytest
from PIL import Image

from stage1.report.figures.drawing import style
from stage1.report.figures.views import view_costs

ROWS = [
    {
        "name": "whole",
        "kind": "single",
        "views": 1.0,
        "milliseconds": 12.0,
        "coverage": 0.71,
        "low": 0.68,
        "high": 0.74,
    },
    {"name": "ten", "kind": "all", "views": 10.0, "milliseconds": 80.0, "coverage": 0.85, "low": None, "high": None},
    {
        "name": "5 %",
        "kind": "adaptive",
        "views": 2.0,
        "milliseconds": 20.0,
        "coverage": 0.80,
        "low": 0.81,
        "high": 0.83,
    },
    {
        "name": "1 %",
        "kind": "adaptive",
        "views": 3.5,
        "milliseconds": 33.0,
        "coverage": 0.84,
        "low": 0.82,
        "high": 0.86,
    },
]


def drawn(rows):
    pytest.importorskip("matplotlib")
    with style():
        return view_costs(rows)


def test_two_panels_where_milliseconds_are_known():
    both = drawn(ROWS)
    one = drawn([{**row, "milliseconds": None} for row in ROWS])
    tall, low = (Image.open(io.BytesIO(item.png)).size for item in (both, one))
    assert tall[1] > 1.8 * low[1]
    assert both.svg == drawn(ROWS).svg
    assert both.png == drawn(ROWS).png
    assert not re.search(rb"<dc:date>|20\d\d-\d\d-\d\dT", both.svg)


def test_each_row_is_in_the_picture():
    assert drawn(ROWS).svg != drawn(ROWS[:3]).svg
    assert len(drawn(ROWS).svg) > len(drawn(ROWS[:2]).svg) > len(drawn(ROWS[:1]).svg)


def test_the_order_of_the_adaptive_rows_does_not_matter():
    assert drawn(ROWS).svg == drawn([ROWS[0], ROWS[1], ROWS[3], ROWS[2]]).svg
