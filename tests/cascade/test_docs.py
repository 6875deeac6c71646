"""The cascade file in the documents is one that is read, and names every command."""

from __future__ import annotations

import re
from pathlib import Path

from stage1.cascade import load_cascade
from stage1.cascade.calls import OUTCOMES

PAGE = Path(__file__).parents[2] / "docs" / "CASCADE.md"


def test_the_example_is_a_cascade_file(tmp_path):
    (example,) = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    (tmp_path / "cascade.yaml").write_text(example)
    config = load_cascade(tmp_path / "cascade.yaml")
    assert [stage.kind for stage in config.stages] == ["bundle", "http"]
    assert config.risks == {"miss_rate": 0.05, "false_exit_rate": 0.05}


def test_every_outcome_stands_in_the_documents():
    text = PAGE.read_text(encoding="utf-8")
    assert [outcome for outcome in OUTCOMES if f"`{outcome}`" not in text] == []
