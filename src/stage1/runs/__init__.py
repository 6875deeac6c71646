"""Runs: the run directory, what a stage is, and the one way the stages of a run are done."""

from stage1.runs.directory import RunDir, opened
from stage1.runs.runner import RunResult, execute, execute_one, outlook
from stage1.runs.stage import Context, Stage, Stop

__all__ = ["Context", "RunDir", "RunResult", "Stage", "Stop", "execute", "execute_one", "opened", "outlook"]
