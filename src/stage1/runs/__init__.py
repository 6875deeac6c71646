"""Runs: the run directory, and the one way the stages of a run are done."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stage1.runs.directory import RunDir, opened
    from stage1.runs.runner import RunResult, execute, execute_one, outlook, run

__all__ = ["RunDir", "RunResult", "execute", "execute_one", "opened", "outlook", "run"]


def __getattr__(name: str) -> Any:
    # Lazy until the runner takes the stages as an argument: today it imports them, and they import files of this room.
    if name in __all__:
        from importlib import import_module

        home = "directory" if name in ("RunDir", "opened") else "runner"
        return getattr(import_module(f"stage1.runs.{home}"), name)
    raise AttributeError(f"module 'stage1.runs' has no attribute {name!r}")
