"""run: from images to a bundle, in one call."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from stage1.config import RunConfig, load_config
from stage1.runs.directory import opened
from stage1.runs.progress import Progress
from stage1.runs.runner import RunResult, execute
from stage1.stages import STAGES


def run(
    config: RunConfig | str | os.PathLike[str] | None = None,
    *,
    recipe: str | None = None,
    overrides: Sequence[str] = (),
    output: str | os.PathLike[str] | None = None,
    allow_change: bool = False,
    quiet: bool = True,
    ignore_acceptance: bool = False,
) -> RunResult:
    """Run every stage, from images to a bundle, in the run directory `output` (default runs/<config name>).

    config: a RunConfig, a YAML file, or None with a recipe. Stages whose inputs are unchanged are skipped.
    Raises NotCertifiable after the report is written where nothing can be certified, Stage1Error where an acceptance
    gate failed (ignore_acceptance: bundle nevertheless; its card says so); other Stage1Error kinds as they come.
    Example: run(recipe="demo", output="runs/demo").bundle
    """
    if not isinstance(config, RunConfig):
        config, _ = load_config(config, recipe=recipe, overrides=overrides)
    with opened(output or Path("runs") / config.name, config, allow_change=allow_change) as directory:
        return execute(directory, STAGES, Progress(quiet=quiet), ignore_acceptance=ignore_acceptance)
