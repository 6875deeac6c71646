"""Certificate, page and terminal of every unit that a certificate may count."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest

from stage1.scores import Scores, write_scores
from stage1.storage.fields import Unit

from ..test_bad_scores import stage1

WORDS = {
    "image": "independent images, for calibration",
    "group": "groups, one image of each, for calibration",
    "group_draws": "groups, 21 draws of one image of each, for calibration",
    "group_mean": "groups, all images by group means, for calibration",
}


@pytest.mark.parametrize("unit", get_args(Unit))
def test_the_page_says_what_was_counted(unit, tmp_path):
    pytest.importorskip("jinja2", reason="the extra report is not installed")
    rng = np.random.default_rng(7)
    groups = np.repeat([f"g{i}" for i in range(900)], 2)
    labels = np.repeat(rng.integers(2, size=900), 2)
    margin = 8 * (labels - 0.5) + rng.normal(size=1800)
    logits = np.stack([np.zeros(1800), margin], axis=1)
    write_scores(tmp_path / "scores.npz", Scores(logits=logits, labels=labels, groups=groups))
    out = tmp_path / "out"
    asked = ["risks={error: 0.05}", f"unit={unit}", f"assume_iid={str(unit == 'image').lower()}"]
    made = stage1("calibrate", "--scores", tmp_path / "scores.npz", "--output", out, *asked)
    assert made.returncode == 0, made.stderr
    assert json.loads((out / "certificate.json").read_text())["unit"] == unit
    judged = stage1("evaluate", "--scores", out / "scores.parquet", "--policy", out, "evaluation.resamples=20")
    assert judged.returncode == 0, judged.stderr
    told = stage1("report", out)
    assert told.returncode == 0, told.stderr
    assert WORDS[unit] in (out / "report.html").read_text()
