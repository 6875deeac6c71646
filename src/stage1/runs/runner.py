"""The most memory that this process holds while a stage runs, as the kernel counts it.

The one way a run goes: stages in order, each skipped where its inputs are unchanged.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stage1.config import RunConfig, load_config
from stage1.errors import Checkpointed, ConfigError, NotCertifiable, SourceChanged, Stage1Error
from stage1.policy import POLICY_FILES, Certificate
from stage1.runs.directory import RunDir, config_digest, opened
from stage1.runs.progress import Progress
from stage1.storage.files import digest_bytes

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def reset_peak() -> bool:
    """Start counting the peak anew; False where this machine cannot (only Linux can)."""
    try:
        _CLEAR.write_text("5")  # man 5 proc: resets VmHWM to what is resident now
    except OSError:
        return False
    return True


def peak_mib() -> float | None:
    """Largest resident size since `reset_peak`, MiB of this process alone; None where the kernel does not say."""
    try:
        text = _STATUS.read_text(encoding="ascii")
    except OSError:
        return None
    found = [line.split()[1] for line in text.splitlines() if line.startswith("VmHWM:")]
    return round(int(found[0]) / 1024, 1) if found else None


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
    """What a stage gets beside the run directory."""

    progress: Progress
    stop: Stop


@dataclass(frozen=True)
class Stage:
    """One stage: which sections of the config and which files it depends on, and the function that does it.

    external: a digest of what it reads outside the run directory, or of settings that count only in some runs. work
    returns the files it wrote. wanted: whether a run with this config has the stage at all.
    """

    name: str
    sections: tuple[str, ...]
    reads: tuple[str, ...]
    work: Callable[[RunDir, Context], list[Path]]
    external: Callable[[RunDir], str] | None = None
    wanted: Callable[[RunConfig], bool] = lambda config: True

    def files(self, run: RunDir) -> tuple[str, ...]:
        """The files it reads; "{policy}" stands for the one policy file of the run, "{pretrained}" and "{backbone}" for
        the weights that `pretrain`, and `tune` or `pretrain`, have made in this run, "{along}" for the head that `tune`
        trained along, "{views}" for views.json: none where it has none."""
        from stage1.stages.tune import along_file, backbone_file, pretrained_file
        from stage1.stages.views import views_file

        config = run.config
        places = {
            "policy": POLICY_FILES[config.policy.name],
            "pretrained": pretrained_file(config),
            "backbone": backbone_file(config),
            "along": along_file(config),
            "views": views_file(config),
        }
        return tuple(file for name in self.reads if (file := name.format(**places)))

    def inputs(self, run: RunDir) -> str:
        """Digest of everything the result depends on. Raises MissingError where an input file is not there yet."""
        parts = {
            "config": config_digest(run.config, self.sections),
            "external": self.external(run) if self.external else "",
            "files": {name: run.digest_of(name) for name in self.files(run)},
        }
        return digest_bytes(json.dumps(parts, sort_keys=True).encode())


@dataclass(frozen=True)
class RunResult:
    """Where a run ended: its folder, what it certified, its bundle (None where nothing was certified), stages done
    anew.
    """

    folder: Path
    certificate: Certificate | None
    bundle: Path | None
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    seconds: float = 0.0
    summary: dict[str, Any] = field(default_factory=dict)


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
        return execute(directory, Progress(quiet=quiet), ignore_acceptance=ignore_acceptance)


def execute(run: RunDir, progress: Progress, *, force: bool = False, ignore_acceptance: bool = False) -> RunResult:
    """All stages of an opened run directory, in order; before the bundle the acceptance gates must have passed."""
    from stage1.stages import STAGES
    from stage1.stages.checks import check_split
    from stage1.stages.preflight import preflight
    from stage1.stages.tune import require_alone

    require_alone("`stage1 run`")
    preflight(run.config, [row["stage"] for row in outlook(run) if force or not row["skip"]])
    began = time.monotonic()
    done: list[str] = []
    skipped: list[str] = []
    with _terminable() as stop:
        for stage in STAGES:
            if not stage.wanted(run.config):
                run.forget(stage.name)
                continue
            if stage.name == "bundle":
                if not _certificate(run).certified:
                    continue
                _require_accepted(run, progress, ignore_acceptance)
            (done if _do(stage, run, Context(progress, stop), force) else skipped).append(stage.name)
            if stage.name == "split":
                check_split(run)  # also where it was skipped: the rest of the config may have changed since
    run.keep_config()  # what changed may be of no stage
    certificate = _certificate(run)
    if not certificate.certified:
        leftover = " bundle/ is of an earlier state of this run." if (run / "bundle").exists() else ""
        raise NotCertifiable(
            f"{certificate.reason} Needed: {certificate.needed or 'see the reason.'} Report:"
            f" {run / 'report.html'}.{leftover}"
        )
    return RunResult(run.path, certificate, run / "bundle", tuple(done), tuple(skipped), time.monotonic() - began)


def execute_one(
    run: RunDir, name: str, progress: Progress, *, force: bool = False, ignore_acceptance: bool = False
) -> bool:
    """One stage alone. Returns False where it was skipped as unchanged.

    Raises ConfigError where an earlier stage is out of date under the present config, so that no stage ever works on
    what another config made; where the run has no such stage; and under torchrun for any stage but `tune`.
    """
    from stage1.stages import STAGES
    from stage1.stages.checks import check_split
    from stage1.stages.tune import ASKED_BY, require_alone

    if name != "tune":
        require_alone(f"`stage1 {name}`")
    position = [stage.name for stage in STAGES].index(name)
    if not STAGES[position].wanted(run.config):
        raise ConfigError(f"{run.path}: this run has no stage {name!r}; ask for it with {ASKED_BY[name]}")
    for stage in STAGES[:position]:
        if stage.wanted(run.config) and not run.is_current(stage.name, stage.inputs(run)):
            raise ConfigError(
                f"{run.path}: stage {stage.name!r} is not done or out of date; run `stage1 {stage.name} {run.path}` (or"
                " `stage1 run`) first"
            )
    if name == "bundle":
        _require_accepted(run, progress, ignore_acceptance)
    if name == "split":
        from stage1.stages.checks import check_views
        from stage1.stages.preflight import known_classes
        from stage1.stages.split import images_stand

        force = force or not images_stand(run)
        if (classes := known_classes(run.config)) is not None:
            check_views(run.config, classes)
    else:
        check_split(run, views_only=True)
    with _terminable() as stop:
        done = _do(STAGES[position], run, Context(progress, stop), force)
    if name == "split":
        check_split(run, views_only=True)
    return done


def outlook(run: RunDir) -> list[dict[str, Any]]:
    """For --dry-run: per stage its inputs, their digest where known, and whether it would be skipped.

    Raises ConfigError where the config asks for what there is not with the classes that it names.
    """
    from stage1.stages import STAGES
    from stage1.stages.checks import check_stated

    check_stated(run.config)
    rows: list[dict[str, Any]] = []
    stale = False
    for stage in STAGES:
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
                "reads": list(stage.files(run)),
                "inputs_digest": digest,
                "skip": skip,
            }
        )
    return rows


def _do(stage: Stage, run: RunDir, context: Context, force: bool) -> bool:
    from stage1.stages.preflight import require_extras

    if context.stop():
        raise Checkpointed(f"stopped by SIGTERM before {stage.name}; run the same command to go on")
    inputs = stage.inputs(run)
    if not force and run.is_current(stage.name, inputs):
        context.progress.say(f"{stage.name:<10} unchanged")
        return False
    stored, entry = run.stored, run.state.get(stage.name)
    require_extras(run.config, [stage.name])
    run.forget(stage.name)
    context.progress.say(f"{stage.name:<10} ...")
    counted = reset_peak()
    began = time.monotonic()
    try:
        if stage.name != "split":  # whose sources may still be refused
            run.keep_config()
        written = stage.work(run, context)
        run.keep_config()
    except (Checkpointed, KeyboardInterrupt):
        raise  # the same command goes on from here
    except Exception as error:
        run.put_back(stored if stage.name != "split" else run.stored, stage.name, entry)
        if isinstance(error, SourceChanged):
            run.forget(
                "split"
            )  # size and time of the file may be the same: what it digests from outside would not tell
        raise
    seconds = time.monotonic() - began
    run.record(stage.name, inputs, iter(written), seconds, peak_mib() if counted else None)
    context.progress.say(f"{stage.name:<10} done in {time.monotonic() - began:.1f} s")
    return True


def _require_accepted(run: RunDir, progress: Progress, ignore: bool) -> None:
    from stage1.stages.acceptance import require_accepted

    for line in require_accepted(run, ignore=ignore):
        progress.say(line)


def _certificate(run: RunDir) -> Certificate:
    return Certificate.load(run / "certificate.json")


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
