"""The one way a run goes: stages in order, each skipped where its inputs are unchanged."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage1.errors import Checkpointed, ConfigError, SourceChanged, Stage1Error
from stage1.policy import Certificate
from stage1.runs.directory import RunDir
from stage1.runs.memory import peak_mib, reset_peak
from stage1.runs.preflight import preflight, require_extras
from stage1.runs.progress import Progress
from stage1.runs.stage import Context, Stage, Stop
from stage1.runs.torchrun import require_alone


@dataclass(frozen=True)
class RunResult:
    """Where a run ended: folder, what is certified, bundle (None: nothing certified), stages done again."""

    folder: Path
    certificate: Certificate | None
    bundle: Path | None
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)


def execute(
    run: RunDir, stages: Sequence[Stage], progress: Progress, *, force: bool = False, ignore_acceptance: bool = False
) -> RunResult:
    """All `stages` of an opened run directory, in order. Raises what a check of a stage, or its work, raises."""
    require_alone("`stage1 run`", stages)
    coming = {row["stage"] for row in outlook(run, stages) if force or not row["skip"]}
    preflight(run.config, [stage for stage in stages if stage.name in coming])
    began = time.monotonic()
    done: list[str] = []
    skipped: list[str] = []
    with _terminable() as stop:
        context = Context(progress, stop, ignore_acceptance=ignore_acceptance)
        for stage in stages:
            if not stage.wanted(run.config):
                run.forget(stage.name)
                continue
            stage.ready(run, context)
            (done if _do(stage, stages, run, context, force) else skipped).append(stage.name)
            stage.checked(run, context)  # also where it was skipped: the rest of the config may have changed since
    run.keep_config()  # what changed may be of no stage
    certificate, bundle = run / "certificate.json", run / "bundle"
    return RunResult(
        run.path,
        Certificate.load(certificate) if certificate.is_file() else None,
        bundle if bundle.is_dir() else None,
        tuple(done),
        tuple(skipped),
        time.monotonic() - began,
    )


def execute_one(
    run: RunDir,
    stages: Sequence[Stage],
    name: str,
    progress: Progress,
    *,
    force: bool = False,
    ignore_acceptance: bool = False,
) -> bool:
    """One of `stages` alone. Returns False where it was skipped as unchanged.

    Raises ConfigError where an earlier stage is out of date under the present config, so that no stage ever works on
    what another config made; where the run has no such stage; and under torchrun for any stage that is not distributed.
    """
    position = [stage.name for stage in stages].index(name)
    stage, earlier = stages[position], [other for other in stages[:position] if other.wanted(run.config)]
    if not stage.distributed:
        require_alone(f"`stage1 {name}`", stages)
    if not stage.wanted(run.config):
        raise ConfigError(f"{run.path}: this run has no stage {name!r}; ask for it with {stage.asked_by}")
    for other in earlier:
        if not run.is_current(other.name, other.inputs(run)):
            raise ConfigError(
                f"{run.path}: stage {other.name!r} is not done or out of date; run `stage1 {other.name} {run.path}` (or"
                " `stage1 run`) first"
            )
    with _terminable() as stop:
        context = Context(progress, stop, alone=True, ignore_acceptance=ignore_acceptance)
        stage.ready(run, context)
        for other in earlier:
            other.checked(run, context)
        done = _do(stage, stages, run, context, force or not stage.holds(run))
        stage.checked(run, context)
    return done


def outlook(run: RunDir, stages: Sequence[Stage]) -> list[dict[str, Any]]:
    """For --dry-run: per stage its inputs, their digest where known, and whether it would be skipped.

    Raises ConfigError where the config asks for what the classes that it names do not allow.
    """
    for stage in stages:
        stage.consistent(run.config)
    rows: list[dict[str, Any]] = []
    stale = False
    for stage in stages:
        if not stage.wanted(run.config):
            continue
        try:
            digest = None if stale else stage.inputs(run)
        except Stage1Error:
            digest = None
        skip = digest is not None and run.is_current(stage.name, digest)
        stale = stale or not skip
        rows.append(
            {
                "stage": stage.name,
                "config": list(stage.sections),
                "reads": list(stage.reads(run.config)),
                "inputs_digest": digest,
                "skip": skip,
            }
        )
    return rows


def _do(stage: Stage, stages: Sequence[Stage], run: RunDir, context: Context, force: bool) -> bool:
    if context.stop():
        raise Checkpointed(f"stopped by SIGTERM before {stage.name}; run the same command to go on")
    inputs = stage.inputs(run)
    if not force and run.is_current(stage.name, inputs):
        context.progress.say(f"{stage.name:<10} unchanged")
        return False
    stored, entry = run.stored, run.state.get(stage.name)
    require_extras(run.config, [stage])
    run.forget(stage.name)
    context.progress.say(f"{stage.name:<10} ...")
    counted = reset_peak()
    began = time.monotonic()
    try:
        if not stage.reads_sources:  # which may still be refused
            run.keep_config()
        written = stage.work(run, context)
        run.keep_config()
    except (Checkpointed, KeyboardInterrupt):
        raise  # the same command resumes from here
    except Exception as error:
        run.put_back(run.stored if stage.reads_sources else stored, stage.name, entry)
        if isinstance(error, SourceChanged):
            # Size and time of the file may be the same: what the stage digests from outside would not tell.
            for reader in stages:
                if reader.reads_sources:
                    run.forget(reader.name)
        raise
    seconds = time.monotonic() - began
    run.record(stage.name, inputs, iter(written), seconds, peak_mib() if counted else None)
    context.progress.say(f"{stage.name:<10} done in {time.monotonic() - began:.1f} s")
    return True


@contextmanager
def _terminable() -> Iterator[Stop]:
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals belong to the main thread; a caller in another one stops the run in its own way
        return
    before = signal.signal(signal.SIGTERM, stop.on_signal)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
