"""compare: what was given, and two models of which at least one is a score file (runs: stage1.commands.arms)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stage1.commands.scores import checked_values
from stage1.config import load_config
from stage1.errors import ConfigError, DataError, MissingError
from stage1.evaluation.comparison import COMPARISON_KIND
from stage1.scores import Scores, read_role, read_scores
from stage1.storage.documents import SCHEMA_VERSION, validate


def arms_given(options: Sequence[str]) -> dict[str, list[Path]]:
    """--arm NAME=RUN,RUN,.. as name -> run directories. Raises ConfigError for another form or a name given twice."""
    arms: dict[str, list[Path]] = {}
    for option in options:
        name, sign, runs = option.partition("=")
        paths = [Path(run.strip()) for run in runs.split(",") if run.strip()]
        if not sign or not name.strip() or not paths:
            raise ConfigError(f"--arm {option}: looks like NAME=RUN,RUN,.., e.g. frozen=runs/a0,runs/a1,runs/a2")
        if name.strip() in arms:
            raise ConfigError(f"--arm {name.strip()}: given twice; list all its runs in one, with commas")
        arms[name.strip()] = paths
    return arms


def are_runs(sources: Sequence[Path], arms: Mapping[str, Sequence[Path]]) -> bool:
    """True: arms of run directories. False: two sources of which at least one is a score file.

    Raises ConfigError where it is neither, MissingError where a source is not there.
    """
    if absent := [path for path in sources if not path.exists()]:
        raise MissingError(f"{absent[0]}: no such run directory or score file")
    files = [path for path in sources if path.is_file()]
    if not files:
        if not sources and not arms:
            raise ConfigError("compare: nothing given; give two or more run directories, or two score files")
        return True
    if arms or len(sources) != 2:
        raise ConfigError(
            f"{files[0]}: a score file; those are compared two at a time, run directories as many as you like"
        )
    return False


def class_order(overrides: Sequence[str]) -> list[str] | None:
    """The names in data.classes=[..], None where not given. Raises ConfigError for any other key."""
    if other := [item for item in overrides if item.partition("=")[0].strip() != "data.classes"]:
        raise ConfigError(f"{other[0]}: compare takes data.classes=[..] alone, for score files whose labels are names")
    return load_config(None, overrides=list(overrides))[0].data.classes


def compare_sources(
    a: Path,
    b: Path,
    *,
    values: str | None,
    columns: Mapping[str, str],
    resamples: int,
    level: float,
    seed: int,
    classes: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """The comparison document of two score files (rows of val_test, or all) or two run directories (their val_test).

    classes: names in the order of the score columns, where the labels of a file are names. say: hears how a file was
    read.
    Raises DataError where they do not hold the same images, MissingError where one is not there.
    """
    from stage1.evaluation.comparison import compare

    names = (a.name, b.name) if a.name != b.name else (str(a), str(b))
    scores = [_scores(path, values, columns, classes, say) for path in (a, b)]
    document = {
        "schema_version": SCHEMA_VERSION,
        **compare(*scores, names=names, n_resamples=resamples, level=level, seed=seed),
    }
    validate(document, COMPARISON_KIND, f"{a} against {b}")
    return document


def _scores(
    path: Path,
    values: str | None,
    columns: Mapping[str, str],
    classes: Sequence[str] | None,
    say: Callable[[str], None],
) -> Scores:
    if path.is_dir():
        return read_role(path, "val_test")
    scores, roles = read_scores(path, values=checked_values(values), columns=columns, classes=classes, say=say)
    if roles is None:
        return scores
    if not (roles == "val_test").any():
        raise DataError(f"{path}: no row has the role val_test; models are compared on it")
    return scores.take(roles == "val_test")
