"""The page of thresholds by slice: each slice with its own pair, counts and claim, and what has no claim."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stage1.cli.printing import slice_lines
from stage1.policy import fit_policy
from stage1.report import write_report
from stage1.report.explorer import collect
from stage1.report.figures.figure import Documents
from stage1.report.figures.score import FIGURE
from stage1.scores import Scores

from ..drawing import figures_undrawn
from .conftest import CLASSES, Sample, build, draw


def with_cities(scores: Scores) -> Scores:
    rows = np.arange(len(scores))
    return replace(scores, slices={"city": np.where(rows % 100 == 0, "Ulm", np.where(rows % 2 == 0, "Bonn", "Kiel"))})


@pytest.fixture
def sliced() -> Sample:
    sample = build(targets={"fnr": 0.1, "false_exit_rate": 0.1})
    calib = with_cities(draw(3000, 0.3, 3))
    policy = fit_policy(
        "softmax", calib=calib, risks={"fnr": 0.1, "false_exit_rate": 0.1}, classes=CLASSES, slices=("city",)
    )
    sample.certificate = {**policy.certificate.to_document(), "schema_version": 1}
    sample.policy = {**policy.to_document(), "schema_version": 1}
    sample.evaluation |= {"lo": None, "hi": None}
    sample.calibration = calib
    return sample


def test_every_slice_stands_with_its_own_thresholds(sliced, tmp_path):
    with figures_undrawn():
        write_report(tmp_path, **sliced.arguments())
    page = (tmp_path / "report.html").read_text()
    assert "Each slice with thresholds of its own, at delta 0.01667 (3 slices share 0.05)" in page
    assert "Images of a slice that is not shown, of any other, or of none, defer." in page
    row = page[page.index("city = Ulm") :].split("</tr>")[0]
    assert row.count("never") == 2
    assert "not shown, defers" in row
    assert "cannot certify" in row  # the reason, in the slice's own numbers
    bonn = page[page.index("city = Bonn") :].split("</tr>")[0]
    assert "holds" in bonn
    assert "never" not in bonn


def test_one_pair_does_not_stand_for_all(sliced):
    assert "Each slice has thresholds of its own" in collect(sliced.certificate, sliced.policy, sliced.calibration)
    words = FIGURE.words(Documents(certificate=sliced.certificate, evaluation=sliced.evaluation, policy=sliced.policy))
    assert "Each city has thresholds of its own" in words.caption
    assert "Threshold lo" not in words.alt


def test_the_terminal_lists_every_slice(sliced):
    bonn, kiel, ulm = slice_lines(sliced.certificate)
    assert bonn.startswith("  city=Bonn  holds: ")
    assert "exit (lo " in kiel
    assert ulm.startswith("  city=Ulm   defers: ")
    assert "cannot certify" in ulm
    assert slice_lines(build().certificate) == []
