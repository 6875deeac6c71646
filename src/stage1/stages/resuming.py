"""Whether a stage resumes from its checkpoints: a file beside them records what they were made from."""

from __future__ import annotations

from pathlib import Path

from stage1.storage.files import write_text


def is_fresh(path: Path, inputs: str) -> bool:
    return not path.is_file() or path.read_text(encoding="utf-8") != inputs


def remember(path: Path, inputs: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, inputs)
