"""compare of run directories: arms of one or more seeds on one split, chosen on val_select, confirmed on val_test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stage1.config import differences
from stage1.errors import ConfigError, MissingError
from stage1.evaluation.arms import ENOUGH_SEEDS, MODEL_METRICS, POLICY_METRICS, best_arm, compare_arms
from stage1.evaluation.comparison import NO_DIFFERENCE
from stage1.evaluation.schema import COMPARISON_ARMS_KIND
from stage1.runs.costs import recorded_stages, run_facts
from stage1.runs.directory import RunDir
from stage1.runs.finished import FinishedRun, refuse_other_splits
from stage1.scores import ROLES
from stage1.stages import calibrate
from stage1.storage.documents import SCHEMA_VERSION, validate, write_document
from stage1.storage.files import write_bytes, write_text

CHOOSE_ON = ("val_select", "val_test")
# Seeds and paths: runs that differ in nothing else are seeds of one arm.
_NOT_THE_ARM = ("seed", "features.store", "features.workers")


def compare_runs(
    runs: Sequence[Path],
    arms: Mapping[str, Sequence[Path]],
    *,
    on: str = "val_select",
    by: str = "augrc",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Any]:
    """The document of kind "comparison_arms" (schemas/comparison_arms.schema.json).

    runs: run directories; those whose configs differ in nothing but the seed are one arm, called by the config's name
    (by the folder's where two arms share it). arms: name -> run directories, given by hand; they come first. The first
    arm is the reference. on: the role on which all are compared and the best by the metric `by` is chosen; chosen on
    val_select, it is then confirmed against the reference on val_test, once, and nothing else is read there.
    Raises DataError naming the role and the first run whose images differ from the first run's, MissingError (no run,
    not scored), ConfigError (fewer than two arms, a run given twice, two runs of one arm with one seed, a bad option).
    """
    if on not in CHOOSE_ON:
        raise ConfigError(f"--on {on}: arms are compared on {' or '.join(CHOOSE_ON)}")
    if by not in (known := (*MODEL_METRICS, *POLICY_METRICS)):
        raise ConfigError(f"--by {by}: use {', '.join(known)}")
    given = [path for paths in arms.values() for path in paths] + list(runs)
    _refuse_twice(given)
    grouped = _grouped(
        {name: [FinishedRun.read(path) for path in paths] for name, paths in arms.items()},
        [FinishedRun.read(path) for path in runs],
    )
    if len(grouped) < 2:
        raise ConfigError(
            f"{', '.join(map(str, given))}: one arm only (its runs differ in nothing but the seed); give a second arm"
            " to compare with"
        )
    everyone = [finished for members in grouped.values() for finished in members]
    refuse_other_splits(everyone)
    notes = _notes(grouped, on, by)
    decide = len({finished.target for finished in everyone}) == 1 and everyone[0].target is not None
    if by in POLICY_METRICS and not decide:
        raise ConfigError(
            f"--by {by}: the runs have no policy of one and the same target; calibrate them alike, or use --by augrc"
        )

    def found(role: str, names: Sequence[str]) -> dict[str, Any]:
        entered = {name: [finished.arm_run(role, decide=decide) for finished in grouped[name]] for name in names}
        return compare_arms(entered, n_resamples=resamples, level=level, seed=seed)

    comparison = found(on, list(grouped))
    chosen, reference = best_arm(comparison, by), comparison["reference"]
    confirmation = None
    if on == "val_select":
        confirmation = {"role": "val_test", **found("val_test", list(dict.fromkeys((reference, chosen))))}
    for arm in comparison["arms"]:
        arm["runs"] = [
            run_facts(finished.path, finished.config.seed, finished.scored, finished.certified)
            for finished in grouped[arm["name"]]
        ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "on": on,
        "by": by,
        "classes": list(everyone[0].table.classes),
        "target": json.loads(everyone[0].target)[0] if decide and everyone[0].target else None,
        "splits": {
            role: {"n": len(everyone[0].table.rows(role)), "digest": everyone[0].digests[role]} for role in ROLES
        },
        **comparison,
        "chosen": chosen,
        "confirmation": confirmation,
        "conclusion": _conclusion(comparison, confirmation, chosen, by, on),
        "notes": notes,
    }  # fmt: skip
    validate(document, COMPARISON_ARMS_KIND, "comparison")
    return document


def write_comparison(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """comparison.json, .md, .png and .svg in `folder`. Raises MissingError without matplotlib."""
    from stage1.report.arms_table import arms_markdown
    from stage1.report.figures.arms import arms_drawing

    drawing = arms_drawing(document)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / "comparison.json", dict(document), COMPARISON_ARMS_KIND)
    write_text(folder / "comparison.md", arms_markdown(document, figure="comparison.png"))
    write_bytes(folder / "comparison.png", drawing.png)
    write_bytes(folder / "comparison.svg", drawing.svg)
    return [folder / f"comparison.{ending}" for ending in ("json", "md", "png", "svg")]


# ---- who is in which arm, and may they be compared ---------------------------------------------------------------


def _refuse_twice(given: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for path in given:
        if (place := path.resolve()) in seen:
            raise ConfigError(f"{path}: given twice (also as {seen[place]}); give each run once")
        seen[place] = path


def _grouped(named: dict[str, list[FinishedRun]], rest: Sequence[FinishedRun]) -> dict[str, list[FinishedRun]]:
    groups: list[list[FinishedRun]] = []
    for finished in rest:
        for group in groups:
            if not _apart(group[0], finished):
                group.append(finished)
                break
        else:
            groups.append([finished])
    names = [group[0].config.name for group in groups]
    found = dict(named)
    for group, name in zip(groups, names, strict=True):
        folder = group[0].path
        choices = [*([name] if names.count(name) == 1 else []), folder.name, str(folder), f"{folder} (no --arm)"]
        found[next(choice for choice in choices if choice and choice not in found)] = group
    for name, members in found.items():
        if not members:
            raise ConfigError(f"--arm {name}: no runs; it looks like {name}=runs/a0,runs/a1")
        by_seed: dict[int, FinishedRun] = {}
        for finished in members:
            if (twin := by_seed.setdefault(finished.config.seed, finished)) is not finished:
                raise ConfigError(
                    f"{twin.path} and {finished.path}: both are seed {finished.config.seed} of the arm {name!r};"
                    " another run of an arm needs another seed (seed=1), another arm another config or --arm"
                )
    return found


def _apart(a: FinishedRun, b: FinishedRun) -> list[str]:
    """Keys, other than seeds and places, in which two runs' configs differ."""
    keys = [line.partition(":")[0] for line in differences(a.config, b.config)]
    return [key for key in keys if key not in _NOT_THE_ARM]


def _notes(grouped: Mapping[str, Sequence[FinishedRun]], on: str, by: str) -> list[str]:
    notes = []
    if few := [f"{name} ({len(members)})" for name, members in grouped.items() if len(members) < ENOUGH_SEEDS]:
        notes.append(
            f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(few)}. An interval holds the spread from seed to seed only as"
            " far as these seeds show it."
        )
    for name, members in grouped.items():
        apart = sorted({key for finished in members[1:] for key in _apart(members[0], finished) if key != "name"})
        if apart:
            notes.append(f"The runs of {name} differ in more than the seed: {', '.join(apart[:6])}.")
    everyone = [finished for members in grouped.values() for finished in members]
    targets = {finished.target for finished in everyone}
    if None in targets:
        lacking = next(finished.path.name for finished in everyone if finished.target is None)
        notes.append(
            f"coverage and exit_error are left out: {lacking} has no certificate; `stage1 calibrate` makes one."
        )
    elif len(targets) > 1:
        other = next(finished.path.name for finished in everyone if finished.target != everyone[0].target)
        notes.append(
            f"coverage and exit_error are left out: {other} was certified for another target than"
            f" {everyone[0].path.name}."
        )
    if stale := [finished.path.resolve().name for finished in everyone if _stale(finished)]:
        more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
        notes.append(
            f"Not up to date with their config or this version: {', '.join(stale[:3])}{more}; `stage1 run` would redo"
            " what is."
        )
    if by in POLICY_METRICS:
        notes.append(
            f"Chosen by {by}, which looks at val_calib through the thresholds: {len(grouped)} arms are {len(grouped)}"
            f" looks, which attempts.json counts (`stage1 attempts RUN`). With attempts.planned={len(grouped)} in each"
            " run all of them hold together at the confidence that is asked for; or choose by augrc."
        )
    if on == "val_test":
        notes.append("Compared on val_test itself: nothing untouched is left to confirm a choice made here.")
    return notes


def _stale(finished: FinishedRun) -> bool:
    if finished.policy is None:
        return False
    run = RunDir(finished.path, finished.config, recorded_stages(finished.path))
    try:
        return not run.is_current(calibrate.STAGE.name, calibrate.STAGE.inputs(run))
    except MissingError:
        return True


# ---- in words ----------------------------------------------------------------------------------------------------


def _conclusion(
    comparison: Mapping[str, Any], confirmation: Mapping[str, Any] | None, chosen: str, by: str, on: str
) -> str:
    reference = comparison["reference"]
    if chosen == reference:
        return f"No arm has a better {by} than {reference} on {on}; {reference} stays."
    judged = comparison if confirmation is None else confirmation
    role = on if confirmation is None else "val_test"
    row = next(row for row in judged["differences"] if row["arm"] == chosen and row["metric"] == by)
    span = (
        row.get("note", "interval undefined")
        if row["low"] is None
        else (f"{judged['level']:.0%} interval {row['low']:+.5f} to {row['high']:+.5f}")
    )
    difference = "undefined" if row["difference"] is None else f"{row['difference']:+.5f}"
    verdict = {
        chosen: f"{chosen} is better",
        reference: f"{reference} is better, against what {on} said",
    }.get(row["better"] or "", NO_DIFFERENCE)
    return f"{chosen} has the best {by} on {on}. On {role}: {by} {difference} against {reference} ({span}): {verdict}."
