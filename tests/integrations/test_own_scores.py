"""The Python blocks of docs/BRING_YOUR_OWN_SCORES.md run, section by section, where the library of the section is
installed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from stage1.scores import read_scores

PAGE = Path(__file__).parents[2] / "docs" / "BRING_YOUR_OWN_SCORES.md"
NEEDS = {
    "A plain CSV": (),
    "scikit-learn": ("sklearn",),
    "XGBoost": ("sklearn", "xgboost"),
    "Hugging Face": ("torch", "transformers", "accelerate"),
}
# XGBoost's block goes on with the data of scikit-learn's.
BEFORE = {"XGBoost": "scikit-learn"}


def sections() -> dict[str, str]:
    """Title -> all Python of a section, one text."""
    text = PAGE.read_text(encoding="utf-8")
    parts = re.split(r"^## (.*)$", text, flags=re.M)[1:]
    code = {
        title: "\n".join(re.findall(r"```python\n(.*?)```", body, flags=re.S))
        for title, body in zip(parts[::2], parts[1::2], strict=True)
    }
    return {title: block for title, block in code.items() if block}


def test_every_section_with_code_is_known_here():
    assert list(sections()) == list(NEEDS)


@pytest.mark.parametrize("title", NEEDS)
def test_the_code_of_the_page_compiles(title):
    compile(sections()[title], title, "exec")


@pytest.mark.parametrize("title", NEEDS)
def test_the_code_of_the_page_runs(title, tmp_path):
    for name in NEEDS[title]:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    code = sections()
    first = code[BEFORE[title]] + "\n" if title in BEFORE else ""
    result = subprocess.run(
        [sys.executable, "-c", first + code[title]],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=240,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"},
    )
    assert result.returncode == 0, result.stderr
    for path in tmp_path.glob("from_*.parquet"):
        scores, _ = read_scores(path)
        assert scores.labels is not None
        assert np.ptp(scores.margin) > 0, f"{path.name}: a constant score"


def test_the_columns_of_the_table_are_the_ones_that_the_reader_knows(tmp_path):
    text = PAGE.read_text(encoding="utf-8")
    header = ["logit_0", "logit_1", "label", "id", "group", "role", "gate", "slice_city", "extra_spread"]
    for name in header:
        assert f"`{re.sub('city|spread', 'NAME', name)}" in text, name
    (tmp_path / "all.csv").write_text(",".join(header) + "\n0,1,1,a,g,val_calib,0.5,Rome,0.1\n")
    scores, roles = read_scores(tmp_path / "all.csv")
    assert roles is not None
    assert scores.gate is not None
    assert scores.groups is not None
    assert set(scores.slices) == {"city"}
    assert set(scores.extra) == {"spread"}
