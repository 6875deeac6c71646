"""compare: two models on the same images, from run directories or score files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stage1.documents import SCHEMA_VERSION, validate
from stage1.errors import DataError
from stage1.pipeline.score_files import checked_values
from stage1.scores import Scores, read_role, read_scores


def compare_sources(
    a: Path, b: Path, *, values: str, columns: Mapping[str, str], resamples: int, level: float, seed: int
) -> dict[str, Any]:
    """The comparison document of two sources: run directories (their val_test) or score files (rows of val_test, or all).

    Raises DataError where they do not hold the same images, MissingError where one is not there.
    """
    from stage1.evaluation.comparison import compare

    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    scores = [_scores(path, values, columns) for path in (a, b)]
    document = {
        "schema_version": SCHEMA_VERSION,
        **compare(*scores, names=names, n_resamples=resamples, level=level, seed=seed),
    }
    validate(document, "comparison", f"{a} against {b}")
    return document


def _scores(path: Path, values: str, columns: Mapping[str, str]) -> Scores:
    if path.is_dir():
        return read_role(path, "val_test")
    scores, roles = read_scores(path, values=checked_values(values), columns=columns)
    if roles is None:
        return scores
    if not (roles == "val_test").any():
        raise DataError(f"{path}: no row has the role val_test; models are compared on it")
    return scores.take(roles == "val_test")
