"""One run of one arm of benchmarks/arms.py: scores of the roles that are judged, and what they cost."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arm_bench.problems import Problem
from stage1.config import RunConfig, load_config
from stage1.runs.directory import opened
from stage1.runs.progress import Progress
from stage1.runs.runner import execute_one, outlook
from stage1.runs.schema import FEATURES_KIND, PRETRAIN_KIND, TRAIN_KIND, TUNE_KIND
from stage1.scores import ROLES, Scores, read_role
from stage1.stages import STAGES
from stage1.storage.documents import read_document
from stage1.storage.files import digest_bytes, write_text
from stage1.training import train_head
from stage1.training.selection import LabelledFeatures, all_outputs
from stage1.training.sweep import candidates, train_sweep

JUDGED = ("val_select", "val_calib", "val_test")


@dataclass(frozen=True)
class Arm:
    """A recipe and what is changed in it; or the mean of the logits of other arms with the same seed."""

    recipe: str
    changes: tuple[str, ...] = ()
    what: str = ""
    mean_of: tuple[str, ...] = ()


@dataclass(frozen=True)
class Trained:
    """Scores of the judged roles by one trained model, and what it cost. parameters: those that were trained."""

    scores: Mapping[str, Scores]
    seconds: float
    parameters: int
    note: str


def trained(data: Problem, arms: Mapping[str, Arm], name: str, seed: int, work: Path) -> Trained:
    """The run of arm `name` with this seed; one that is there under `work` is read."""
    arm = arms[name]
    if arm.mean_of:
        return _mean([trained(data, arms, part, seed, work) for part in arm.mean_of])
    config = _config(data, arm, seed)
    # What an arm does not read decides nothing: its runs stay what they are when another section changes.
    sections: tuple[Any, ...] = (config.head, config.train, config.sweep, seed)
    if config.tunes:
        sections = (*sections, config.images, config.adapter)
    ids = [data.table.ids[data.rows(role)].tolist() for role in ROLES]
    place = work / data.name / "arms" / f"{name}-{seed}-{digest_bytes(repr((sections, data.size, ids)).encode())[:12]}"
    if not (place / "done.json").is_file():
        (_tune if config.tunes else _train)(data, config, seed, place)
    facts = json.loads((place / "done.json").read_text(encoding="utf-8"))
    stored = np.load(place / "outputs.npz")
    scores = {
        role: Scores(
            logits=stored[f"{role}_logits"].astype(np.float64),
            labels=data.labels(role),
            groups=data.groups(role),
            ids=data.table.ids[data.rows(role)],
            gate=stored[f"{role}_gate"].astype(np.float64) if f"{role}_gate" in stored else None,
        )
        for role in JUDGED
    }
    return Trained(scores, facts["seconds"], facts["parameters"], facts["note"])


def _config(data: Problem, arm: Arm, seed: int) -> RunConfig:
    overrides = [
        *arm.changes,
        f"seed={seed}",
        f"train.risk.miss_rate={data.risks['fnr']}",
        f"train.risk.false_exit_rate={data.risks['false_exit_rate']}",
    ]
    config, _ = load_config(recipe=arm.recipe, overrides=overrides, environment={})
    if config.tunes:
        config, _ = load_config(
            recipe=arm.recipe, overrides=[*overrides, *data.overrides, "images.threads=1"], environment={}
        )
    return config


def _mean(parts: Sequence[Trained]) -> Trained:
    scores = {
        role: Scores(
            logits=np.mean([part.scores[role].logits for part in parts], axis=0),
            labels=first.labels,
            groups=first.groups,
            ids=first.ids,
        )
        for role, first in parts[0].scores.items()
    }
    return Trained(scores, sum(part.seconds for part in parts), sum(part.parameters for part in parts), "")


# ---- a head on cached features ---------------------------------------------------------------------------------------


def _train(data: Problem, config: RunConfig, seed: int, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    train, select = (LabelledFeatures(data.features[role], data.labels(role)) for role in ("train", "val_select"))
    settings, head, own, note = config.train, config.head, seed, ""
    began = time.process_time()
    if config.sweep.enabled:
        entrants = candidates(config.sweep, settings, head, seed)
        best = train_sweep(train, select, entrants, n_classes=2, groups=data.groups("val_select"), resamples=20)[
            0
        ].candidate
        settings, head, own = best.train, best.head, best.seed
        note = f"lr {settings.learning_rate:g}, wd {settings.weight_decay:g}, ls {settings.label_smoothing:g}"
    result = train_head(
        train.features,
        train.labels,
        select.features,
        select.labels,
        config=settings.model_copy(update={"checkpoint_every": settings.epochs}),
        head=head,
        n_classes=2,
        seed=own,
        folder=place,
        fresh=True,
        groups=data.groups("train"),
    )
    seconds = time.process_time() - began
    if result.gate is not None and result.gate.collapsed:
        note = f"gate collapsed: {result.gate.collapsed}"
    outputs: dict[str, NDArray[np.float32]] = {}
    for role in JUDGED:
        logits, gate = all_outputs([result.head], data.features[role])[0]
        outputs[f"{role}_logits"] = logits
        if gate is not None:
            outputs[f"{role}_gate"] = gate
    parameters = sum(parameter.numel() for parameter in result.head.parameters())
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    _keep(place, outputs, seconds, parameters, note)


def _keep(place: Path, outputs: Mapping[str, NDArray[Any]], seconds: float, parameters: int, note: str) -> None:
    np.savez(place / "outputs.npz", **outputs)  # type: ignore[arg-type]
    facts = {"seconds": seconds, "parameters": parameters, "note": note.splitlines()[0] if note else ""}
    write_text(place / "done.json", json.dumps(facts))


# ---- a backbone that learns too: the stages of a run -----------------------------------------------------------------


def _tune(data: Problem, config: RunConfig, seed: int, place: Path) -> None:
    found = run_stages(config, place, JUDGED)
    for role, scores in found.items():
        if scores.ids is None or scores.ids.tolist() != data.table.ids[data.rows(role)].tolist():
            (place / "done.json").unlink()
            raise SystemExit(f"{place}: {role} is not that of the other arms; start over with another --work")


def run_stages(config: RunConfig, place: Path, roles: Sequence[str]) -> dict[str, Scores]:
    """Every stage up to the scores, in a run directory under `place`, to outputs.npz and done.json there.

    SIGTERM stops it with a checkpoint, and the same call goes on.
    """
    spent = place / "cpu_seconds"
    place.mkdir(parents=True, exist_ok=True)
    with opened(place / "run", config) as run:
        stages = [row["stage"] for row in outlook(run, STAGES)]
        for stage in stages[: stages.index("score") + 1]:
            began = time.process_time()
            try:
                execute_one(run, STAGES, stage, Progress(quiet=False))
            finally:
                if stage in ("pretrain", "tune", "extract", "train"):
                    before = float(spent.read_text(encoding="utf-8")) if spent.is_file() else 0.0
                    write_text(spent, str(before + time.process_time() - began))
        found = {role: read_role(run.path, role) for role in roles}
        train = read_document(run / "train.json", TRAIN_KIND)
        head = 2 * (read_document(run / "features.json", FEATURES_KIND)["dim"] + 1)
        parameters, note = head, ""
        if config.tunes:
            tune = read_document(run / "tune" / "tune.json", TUNE_KIND)
            along = train.get("along", {}).get("ships") == "along"
            head_note = "head trained along" if along else f"head epoch {train['best_epoch']}"
            note = f"backbone epoch {tune['best_epoch']}{' (average)' if tune['used_ema'] else ''}, {head_note}"
            parameters += tune["trainable"]
        elif (run / "pretrain.json").is_file():
            pretrain = read_document(run / "pretrain.json", PRETRAIN_KIND)
            note = (
                f"{pretrain['share']:.1%} of the backbone trained before the head, loss {pretrain['loss_first']:.4f} to"
                f" {pretrain['loss_last']:.4f}"
            )
    outputs: dict[str, NDArray[Any]] = {}
    for role, scores in found.items():
        outputs[f"{role}_logits"] = scores.logits
        for key in ("labels", "groups", "ids"):
            if (values := getattr(scores, key)) is not None:
                outputs[f"{role}_{key}"] = np.asarray(values)
    _keep(place, outputs, float(spent.read_text(encoding="utf-8")), parameters, note)
    for folder in ("features", "tune/checkpoints"):
        shutil.rmtree(place / "run" / folder, ignore_errors=True)
    return found
