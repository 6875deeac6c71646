"""The stages of a run, what each needs and makes, and the one way they are run."""

from stage1.pipeline.rundir import RunDir, opened
from stage1.pipeline.runner import RunResult, execute, execute_one, outlook, run

__all__ = ["RunDir", "RunResult", "execute", "execute_one", "opened", "outlook", "run"]
