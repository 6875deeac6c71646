"""compare of run directories: arms with one or several seeds, on one split, chosen on val_select, confirmed on val_test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from stage1.config import RunConfig, differences
from stage1.data.table import SampleTable
from stage1.documents import SCHEMA_VERSION, validate, write_document
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.evaluation.arms import ENOUGH_SEEDS, MODEL_METRICS, POLICY_METRICS, ArmRun, best_arm, compare_arms
from stage1.evaluation.comparison import NO_DIFFERENCE
from stage1.files import digest_ids, write_bytes, write_text
from stage1.pipeline.costs import recorded_stages, run_facts
from stage1.pipeline.rundir import RunDir, stored_config
from stage1.policy import POLICY_FILES, Policy, load_policy
from stage1.scores import ROLES, Scores, read_role

CHOOSE_ON = ("val_select", "val_test")
# Seeds, and where things lie: runs that differ in nothing else are seeds of one arm.
_NOT_THE_ARM = ("seed", "features.store", "features.workers")


@dataclass(frozen=True)
class Entrant:
    """One run directory that takes part."""

    path: Path
    config: RunConfig
    table: SampleTable

    @classmethod
    def read(cls, path: Path) -> Entrant:
        """Raises MissingError where it is no run directory with a split."""
        config = stored_config(path)
        if config is None:
            raise MissingError(
                f"{path}: not a run directory; compare run directories, or two score files (with --values)"
            )
        return cls(path, config, SampleTable.read(path / "samples.parquet"))

    @cached_property
    def digests(self) -> dict[str, str]:
        """Digest of the image ids of each role."""
        return {role: digest_ids(self.table.ids[self.table.rows(role)].tolist()) for role in ROLES}

    @cached_property
    def policy(self) -> Policy | None:
        """The certified (or refused) exit policy; None where the run was not calibrated."""
        there = any((self.path / name).is_file() for name in POLICY_FILES.values())
        return load_policy(self.path) if there and (self.path / "certificate.json").is_file() else None

    @property
    def target(self) -> str | None:
        """What the policy was asked to certify, as text; None without one."""
        if self.policy is None or self.policy.certificate is None:
            return None
        certificate = self.policy.certificate
        risks = {name: risk.target for name, risk in certificate.risks.items()}
        return json.dumps([risks, certificate.confidence, certificate.assume_iid], sort_keys=True)

    def scores(self, role: str) -> Scores:
        """Scores of a role. Raises IntegrityError where they are not of this split."""
        scores = read_role(self.path, role)
        if scores.ids is None or digest_ids(scores.ids.tolist()) != self.digests[role]:
            raise IntegrityError(f"{self.path}: scores of {role} are of another split; run `stage1 score {self.path}`")
        return scores

    @property
    def certified(self) -> bool | None:
        """Whether it certified anything; None where it was not calibrated."""
        certificate = None if self.policy is None else self.policy.certificate
        return None if certificate is None else certificate.certified

    @property
    def scored(self) -> int:
        """How many images the stage `score` answers."""
        return sum(len(self.table.rows(role)) for role in ROLES if role != "train")

    def arm_run(self, role: str, *, decide: bool) -> ArmRun:
        scores = self.scores(role)
        if not decide or self.policy is None:
            return ArmRun(scores)
        decision = self.policy.decide(scores)
        return ArmRun(scores, decision.exit, decision.label)


def compare_runs(
    runs: Sequence[Path], arms: Mapping[str, Sequence[Path]], *, on: str = "val_select", by: str = "augrc",
    resamples: int = 1000, level: float = 0.95, seed: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """The document of kind "comparison_arms" (schemas/comparison_arms.schema.json).

    runs: run directories; those whose configs differ in nothing but the seed are one arm, called by the config's name (by the
    folder's where two arms share it). arms: name -> run directories, given by hand; they come first. The first arm is the
    reference. on: the role on which all are compared and the best by the metric `by` is chosen; chosen on val_select, it is then
    confirmed against the reference on val_test, once, and nothing else is looked at there.
    Raises DataError naming the role and the first run whose images differ from the first run's, MissingError (no run, not scored),
    ConfigError (fewer than two arms, a run given twice, two runs of one arm with one seed, a bad option).
    """
    if on not in CHOOSE_ON:
        raise ConfigError(f"--on {on}: arms are compared on {' or '.join(CHOOSE_ON)}")
    if by not in (known := (*MODEL_METRICS, *POLICY_METRICS)):
        raise ConfigError(f"--by {by}: use {', '.join(known)}")
    given = [path for paths in arms.values() for path in paths] + list(runs)
    _refuse_twice(given)
    grouped = _grouped({name: [Entrant.read(path) for path in paths] for name, paths in arms.items()},
                       [Entrant.read(path) for path in runs])  # fmt: skip
    if len(grouped) < 2:
        raise ConfigError(
            f"{', '.join(map(str, given))}: one arm only (its runs differ in nothing but the seed); give a second arm to compare with"
        )
    everyone = [entrant for entrants in grouped.values() for entrant in entrants]
    refuse_other_splits(everyone)
    notes = _notes(grouped, on, by)
    decide = len({entrant.target for entrant in everyone}) == 1 and everyone[0].target is not None
    if by in POLICY_METRICS and not decide:
        raise ConfigError(
            f"--by {by}: the runs have no policy of one and the same target; calibrate them alike, or use --by augrc"
        )

    def found(role: str, names: Sequence[str]) -> dict[str, Any]:
        entered = {name: [entrant.arm_run(role, decide=decide) for entrant in grouped[name]] for name in names}
        return compare_arms(entered, n_resamples=resamples, level=level, seed=seed)

    comparison = found(on, list(grouped))
    chosen, reference = best_arm(comparison, by), comparison["reference"]
    confirmation = None
    if on == "val_select":
        confirmation = {"role": "val_test", **found("val_test", list(dict.fromkeys((reference, chosen))))}
    for arm in comparison["arms"]:
        arm["runs"] = [
            run_facts(entrant.path, entrant.config.seed, entrant.scored, entrant.certified)
            for entrant in grouped[arm["name"]]
        ]
    document = {
        "schema_version": SCHEMA_VERSION,
        "on": on,
        "by": by,
        "classes": list(everyone[0].table.classes),
        "target": json.loads(everyone[0].target)[0] if decide and everyone[0].target else None,
        "splits": {role: {"n": len(everyone[0].table.rows(role)), "digest": everyone[0].digests[role]} for role in ROLES},
        **comparison,
        "chosen": chosen,
        "confirmation": confirmation,
        "conclusion": _conclusion(comparison, confirmation, chosen, by, on),
        "notes": notes,
    }  # fmt: skip
    validate(document, "comparison_arms", "comparison")
    return document


def write_comparison(document: Mapping[str, Any], folder: Path) -> list[Path]:
    """comparison.json, comparison.md, comparison.png and comparison.svg in `folder`. Raises MissingError without matplotlib."""
    from stage1.report.arms_figure import arms_drawing
    from stage1.report.arms_table import arms_markdown

    drawing = arms_drawing(document)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / "comparison.json", dict(document), "comparison_arms")
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


def _grouped(named: dict[str, list[Entrant]], rest: Sequence[Entrant]) -> dict[str, list[Entrant]]:
    groups: list[list[Entrant]] = []
    for entrant in rest:
        for group in groups:
            if not _apart(group[0], entrant):
                group.append(entrant)
                break
        else:
            groups.append([entrant])
    names = [group[0].config.name for group in groups]
    found = dict(named)
    for group, name in zip(groups, names, strict=True):
        folder = group[0].path
        choices = [*([name] if names.count(name) == 1 else []), folder.name, str(folder), f"{folder} (no --arm)"]
        found[next(choice for choice in choices if choice and choice not in found)] = group
    for name, entrants in found.items():
        if not entrants:
            raise ConfigError(f"--arm {name}: no runs; it looks like {name}=runs/a0,runs/a1")
        by_seed: dict[int, Entrant] = {}
        for entrant in entrants:
            if (twin := by_seed.setdefault(entrant.config.seed, entrant)) is not entrant:
                raise ConfigError(
                    f"{twin.path} and {entrant.path}: both are seed {entrant.config.seed} of the arm {name!r}; another run of an arm "
                    "needs another seed (seed=1), another arm another config or --arm"
                )
    return found


def _apart(a: Entrant, b: Entrant) -> list[str]:
    """Keys, other than seeds and places, in which two runs' configs differ."""
    keys = [line.partition(":")[0] for line in differences(a.config, b.config)]
    return [key for key in keys if key not in _NOT_THE_ARM]


def refuse_other_splits(everyone: Sequence[Entrant]) -> None:
    first = everyone[0]
    for other in everyone[1:]:
        if other.table.classes != first.table.classes:
            raise DataError(
                f"{other.path}: classes {', '.join(other.table.classes)}, {first.path} has {', '.join(first.table.classes)}; "
                "compare runs of one problem"
            )
        for role in ROLES:
            if other.digests[role] != first.digests[role]:
                counts = [len(entrant.table.rows(role)) for entrant in (other, first)]
                raise DataError(
                    f"{other.path}: {role} holds other images than in {first.path} ({counts[0]} and {counts[1]}, digests "
                    f"{other.digests[role][:12]} and {first.digests[role][:12]}); compare runs of one split (same data, split.seed and fractions)"
                )


def _notes(grouped: Mapping[str, Sequence[Entrant]], on: str, by: str) -> list[str]:
    notes = []
    if few := [f"{name} ({len(entrants)})" for name, entrants in grouped.items() if len(entrants) < ENOUGH_SEEDS]:
        notes.append(
            f"Fewer than {ENOUGH_SEEDS} seeds: {', '.join(few)}. An interval holds the spread from seed to seed only as far as these seeds show it."
        )
    for name, entrants in grouped.items():
        apart = sorted({key for entrant in entrants[1:] for key in _apart(entrants[0], entrant) if key != "name"})
        if apart:
            notes.append(f"The runs of {name} differ in more than the seed: {', '.join(apart[:6])}.")
    everyone = [entrant for entrants in grouped.values() for entrant in entrants]
    targets = {entrant.target for entrant in everyone}
    if None in targets:
        lacking = next(entrant.path.name for entrant in everyone if entrant.target is None)
        notes.append(
            f"coverage and exit_error are left out: {lacking} has no certificate; `stage1 calibrate` makes one."
        )
    elif len(targets) > 1:
        other = next(entrant.path.name for entrant in everyone if entrant.target != everyone[0].target)
        notes.append(
            f"coverage and exit_error are left out: {other} was certified for another target than {everyone[0].path.name}."
        )
    if stale := [entrant.path.resolve().name for entrant in everyone if _stale(entrant)]:
        more = f" and {len(stale) - 3} more" if len(stale) > 3 else ""
        notes.append(
            f"Not up to date with their config or this version: {', '.join(stale[:3])}{more}; `stage1 run` would redo what is."
        )
    if by in POLICY_METRICS:
        notes.append(
            f"Chosen by {by}, which looks at val_calib through the thresholds: certifying the best of {len(grouped)} arms so is "
            f"{len(grouped)} attempts. For one certificate ask each at delta / {len(grouped)}, or choose by augrc."
        )
    if on == "val_test":
        notes.append("Compared on val_test itself: nothing untouched is left to confirm a choice made here.")
    return notes


def _stale(entrant: Entrant) -> bool:
    from stage1.pipeline.stages import STAGES

    if entrant.policy is None:
        return False
    run = RunDir(entrant.path, entrant.config, recorded_stages(entrant.path))
    stage = next(stage for stage in STAGES if stage.name == "calibrate")
    try:
        return not run.is_current(stage.name, stage.inputs(run))
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
    span = "interval undefined" if row["low"] is None else (
        f"{judged['level']:.0%} interval {row['low']:+.5f} to {row['high']:+.5f}"
    )  # fmt: skip
    difference = "undefined" if row["difference"] is None else f"{row['difference']:+.5f}"
    verdict = {
        chosen: f"{chosen} is better",
        reference: f"{reference} is better, against what {on} said",
    }.get(row["better"] or "", NO_DIFFERENCE if row["low"] is not None else "undefined")
    return f"{chosen} has the best {by} on {on}. On {role}: {by} {difference} against {reference} ({span}): {verdict}."
