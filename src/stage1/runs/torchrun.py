"""Processes that torchrun started: which of them this one is, and which stages share their work."""

from __future__ import annotations

import os
from collections.abc import Iterable

from stage1.errors import ConfigError
from stage1.runs.stage import Stage


def is_follower() -> bool:
    """Whether torchrun started this process as another than the first one: it computes, and writes nothing."""
    return int(os.environ.get("RANK", "0")) > 0


def require_alone(what: str, stages: Iterable[Stage]) -> None:
    """Raises ConfigError under torchrun: only the distributed ones of `stages` share their work between processes."""
    if (world := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        shared = " and ".join(f"`{stage.name}`" for stage in stages if stage.distributed) or "no stage"
        raise ConfigError(
            f"{what} is the work of one process, torchrun started {world}; start it without, only {shared} takes many"
        )
