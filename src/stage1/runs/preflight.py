"""What stages need beside the images, looked for before the first of them is read: extras, and what each names."""

from __future__ import annotations

from collections.abc import Sequence

from stage1.config import RunConfig
from stage1.extras import require
from stage1.runs.stage import Stage


def preflight(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Everything that can be known of `stages` (those which will run) from the config and this machine alone.

    Raises MissingError (an extra, weights, a device, a source that is not there), ConfigError (a backbone, a size or an
    adapter that cannot be had, a target that is none of these classes), and what reading weights raises.
    """
    require_extras(config, stages)
    for stage in stages:
        stage.preflight(config)


def require_extras(config: RunConfig, stages: Sequence[Stage]) -> None:
    """Raises MissingError where what `stages` import is not installed; nothing is imported to find out."""
    needed = [module for stage in stages for module in stage.modules]
    needed += [module for stage in stages for module in stage.modules_by_config(config)]
    require(dict.fromkeys(needed), f"stage {stages[0].name}" if len(stages) == 1 else "this run")
