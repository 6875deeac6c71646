"""No cell of ours starts a formula, numbers stay, and what was marked can be read back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stage1.storage.cells import plain_cell, text_cell

STARTS = "=+-@\t\r\n＝＋－＠"


@pytest.mark.parametrize(
    "text", ["=cmd|'/C calc'!A0", "+1+1", "-1+1", "@SUM(A1)", "\t=1", "\r=1", "＝1+1", "-x.jpg", "-1e", "1-1"]
)
def test_what_a_spreadsheet_would_run_is_text(text):
    cell = text_cell(text)
    assert cell[0] not in STARTS
    assert cell == (text if text == "1-1" else f"'{text}")


@pytest.mark.parametrize("text", ["-0.5", "+3", "-1e-7", "-.5", "12", "", "street.jpg", "'quoted'", "a=b"])
def test_numbers_and_plain_text_stay(text):
    assert text_cell(text) == text


@given(st.one_of(st.text(), st.text(alphabet="'" + STARTS + "a1")))
def test_every_text_is_read_back(text):
    assert plain_cell(text_cell(text)) == text
    assert text_cell(text)[:1] not in list(STARTS) or text_cell(text) == text
