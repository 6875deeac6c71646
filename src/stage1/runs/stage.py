"""What a stage is, and what it gets: the runner does any sequence of these, and knows none of them by name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stage1.config import RunConfig
from stage1.errors import Checkpointed
from stage1.runs.directory import RunDir, config_digest
from stage1.runs.progress import Progress
from stage1.storage.files import digest_bytes


class Stop:
    """Set by SIGTERM. A stage with checkpoints asks it; between stages the run ends by itself."""

    def __init__(self) -> None:
        self.wanted = False
        self.immediate = True

    def __call__(self) -> bool:
        return self.wanted

    def on_signal(self, number: int, frame: object) -> None:
        self.wanted = True
        if self.immediate:
            raise Checkpointed("stopped by SIGTERM; run the same command to go on")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, SIGTERM only sets `wanted`: the stage writes its checkpoint first."""
        self.immediate = False
        try:
            yield
        finally:
            self.immediate = True


@dataclass(frozen=True)
class Context:
    """What a stage gets beside the run directory.

    alone: the stage was asked for by itself (`stage1 split RUN`), so what later stages need of the config may still be
    given to them. ignore_acceptance: bundle although an acceptance gate failed.
    """

    progress: Progress
    stop: Stop
    alone: bool = False
    ignore_acceptance: bool = False


def _nothing(*given: object) -> None:
    return None


def _always(given: object) -> bool:
    return True


@dataclass(frozen=True)
class Stage:
    """One stage: what it depends on, the function that does it, and what is checked around it.

    Its result depends on `sections` of the config, on the files that `reads` names, and on `external`: a digest of what
    it reads outside the run directory, or of settings that count only in some runs. `work` returns the files it wrote.
    The checks, in the order in which they are asked; each raises a Stage1Error kind:

    | hook | when | sees |
    |---|---|---|
    | consistent | before anything, and in --dry-run | the config alone |
    | preflight | of the stages that will run, before the first image is read | the config and this machine |
    | ready | right before the stage | the run directory |
    | checked | right after the stage, also where it was skipped or is not the one asked for | the run directory |
    """

    name: str
    sections: tuple[str, ...]
    reads: Callable[[RunConfig], tuple[str, ...]]
    work: Callable[[RunDir, Context], list[Path]]
    external: Callable[[RunDir], str] = lambda run: ""
    wanted: Callable[[RunConfig], bool] = _always  # whether a run with this config has the stage at all
    asked_by: str = ""  # the keys that ask for it, where not every run has it
    modules: tuple[str, ...] = ()  # what it imports beyond the core
    modules_by_config: Callable[[RunConfig], Iterable[str]] = lambda config: ()  # and what only some configs need
    consistent: Callable[[RunConfig], None] = _nothing
    preflight: Callable[[RunConfig], None] = _nothing
    ready: Callable[[RunDir, Context], None] = _nothing
    checked: Callable[[RunDir, Context], None] = _nothing
    holds: Callable[[RunDir], bool] = _always  # asked of the stage alone: whether what it made holds, beyond digests
    reads_sources: bool = False  # config.yaml waits for its end, and it is out of date where a source has changed
    distributed: bool = False  # whether processes of torchrun may share its work

    def inputs(self, run: RunDir) -> str:
        """Digest of everything the result depends on. Raises MissingError where an input file is not there yet."""
        parts = {
            "config": config_digest(run.config, self.sections),
            "external": self.external(run),
            "files": {name: run.digest_of(name) for name in self.reads(run.config)},
        }
        return digest_bytes(json.dumps(parts, sort_keys=True).encode())
