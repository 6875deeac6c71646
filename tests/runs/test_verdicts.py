"""The verdict through the command line: one word and one colour on the last lines of calibrate and evaluate, on
page and card.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
from typer.testing import CliRunner

from stage1.cli import app

CASES = {
    "good": (1, ["risks={fnr: 0.05, false_exit_rate: 0.05}"], "GREEN", "green", "Certified"),
    "one-sided": (1, ["risks={fnr: 0.05}", "allow_one_sided=true"], "AMBER", "amber", "Certified, with care"),
    "reversed": (-1, ["risks={fnr: 0.05, false_exit_rate: 0.05}"], "RED", "red", "Do not trust it"),
}


def table(path, sign, n=2500, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.4).astype(int)
    margin = sign * rng.normal(np.where(labels == 1, 1.9, -1.9), 1.0)
    rows = [f"i{row},{('none', 'roadwork')[labels[row]]},0,{margin[row]:.6f}" for row in range(n)]
    path.write_text("\n".join(["id,label,s_none,s_roadwork", *rows]) + "\n")
    return path


@pytest.mark.parametrize("case", CASES)
def test_one_word_and_one_colour_everywhere(tmp_path, case):
    pytest.importorskip("matplotlib")
    pytest.importorskip("jinja2")
    sign, options, shout, colour, title = CASES[case]
    scores, folder = table(tmp_path / "scores.csv", sign), tmp_path / "out"

    def last_line(*arguments):
        done = CliRunner().invoke(app, [str(item) for item in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout.strip().splitlines()[-1]

    given = ["--values", "logits", "--columns", "scores=s_none,s_roadwork", "-o", folder]
    first = last_line("calibrate", "--scores", scores, *given, "data.classes=[none,roadwork]", *options)
    second = last_line(
        "evaluate",
        "--scores",
        folder / "scores.parquet",
        "--values",
        "logits",
        "--policy",
        folder,
        "evaluation.resamples=20",
    )
    for line in (first, second):
        assert line.startswith(f"{shout}  {title}.")
        assert ("reversed score columns" in line) == (case == "reversed")
        assert ("no limit" in line) == (case == "one-sided")
    last_line("report", folder)
    page = (folder / "report.html").read_text()
    assert f'<body class="{colour}">' in page
    assert title in re.search(r"<h1>.*?</h1>", page, flags=re.DOTALL)[0]
    assert ("reversed score columns" in page) == (case == "reversed")
