"""The head trained along with a tuned backbone against the one trained again on its features: which is better, and
which does val_select pick?

    python benchmarks/along.py --work runs/arms [--keep runs/along] [--redraws 12]

Of every fine-tuned run that benchmarks/arms.py has kept under --work. The head trained again is the best one of the
run's last checkpoint, the other one stands under tune/. Both are applied to features of val_select, val_calib and
val_test by the run's own backbone; the logits of the one that shipped must be the run's scores. About a minute a run;
logits stay under --keep.

Printed, again / along: on val_select the NLL, the NLL at the temperature that is best for the head (`scaled_nll` of
train.json), accuracy and AUGRC; on val_test AUGRC, and coverage of the softmax policy that val_calib certifies for the
target of the data set. redraws: that coverage as the mean over other cuts of val_calib and val_test, as in arms.py;
none where images count as independent.
Then for each metric, and for always the one or the other: how often it takes the head trained along, and what that
gives.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from arm_bench.judging import pooled
from arm_bench.problems import TARGETS
from arm_bench.training import JUDGED

from stage1.config import load_config
from stage1.data.table import SampleTable
from stage1.features import FeatureStore, extract_features
from stage1.model.backbone import load_backbone
from stage1.model.head import build_head, load_head
from stage1.policy import fit_policy
from stage1.runs.artifacts import backbone_file, joint_head_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND, TRAIN_KIND
from stage1.scores import Scores, read_role
from stage1.stages.own_backbone import backbone_config
from stage1.storage.documents import read_document
from stage1.training.checkpoint import LAST, load_checkpoint
from stage1.training.head_choice import TUNED_HEAD, Judged, judged
from stage1.training.selection import all_logits, select_metrics

HEADS = ("again", "along")
SAME = 1e-3  # of a logit, between the kept scores and the head on features made now


@dataclass(frozen=True)
class Head:
    """What one head gives: on val_select, AUGRC and certified coverage on val_test, and the mean of the latter over
    redraws.
    """

    select: Judged
    augrc: float
    coverage: float
    redrawn: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/arms"))
    parser.add_argument("--keep", type=Path, default=Path("runs/along"))
    parser.add_argument("--redraws", type=int, default=12)
    options = parser.parse_args()
    found: dict[str, list[dict[str, Head]]] = {}
    for folder in sorted(options.work.glob("*/arms/finetune*/run")):
        if not (folder / "val_test_logits.pt").is_file():
            continue
        data, name = folder.parts[-4], folder.parent.name.rpartition("-")[0]
        scores = both(
            RunDir(folder, load_config(folder / "config.yaml", environment={})[0]), options.keep, f"{data}-{name}"
        )
        heads = {head: measured(scores[head], data.partition("-")[0], options.redraws) for head in HEADS}
        found.setdefault(data, []).append(heads)
        print(f"{data} {name}: {line(heads)}", flush=True)
    for data, runs in found.items():
        for rule, takes in RULES.items():
            taken = [takes(heads) for heads in runs]
            chosen = [heads["along" if along else "again"] for heads, along in zip(runs, taken, strict=True)]
            print(
                f"{data}, by {rule}: along in {sum(taken)} of {len(runs)}; val_test AUGRC"
                f" {mean(chosen, 'augrc') * 1e3:.2f}e-3, coverage {mean(chosen, 'coverage'):.3f}, redraws"
                f" {mean(chosen, 'redrawn'):.3f}"
            )


def _by(value: Callable[[Judged], float]) -> Callable[[Mapping[str, Head]], bool]:
    return lambda heads: value(heads["along"].select) < value(heads["again"].select)


RULES: dict[str, Callable[[Mapping[str, Head]], bool]] = {
    "nll": _by(lambda one: one.metrics.nll),
    "scaled nll": _by(lambda one: one.scaled_nll),
    "accuracy": _by(lambda one: -one.metrics.accuracy),
    "augrc": _by(lambda one: one.metrics.augrc),
    "nothing, always again": lambda heads: False,
    "nothing, always along": lambda heads: True,
}


def both(run: RunDir, keep: Path, name: str) -> dict[str, dict[str, Scores]]:
    """head -> role -> scores."""
    kept = {role: read_role(run.path, role) for role in JUDGED}
    path = keep / f"{name}.npz"
    if not path.is_file():
        keep.mkdir(parents=True, exist_ok=True)
        np.savez(path, **logits(run, keep / "features" / name))  # type: ignore[arg-type]
    made = np.load(path)
    ships = read_document(run / "train.json", TRAIN_KIND).get("along", {}).get("ships", "again")
    for role, scores in kept.items():
        if not np.abs(made[f"{role}_{ships}"] - scores.logits).max() < SAME:
            raise SystemExit(
                f"{run.path}: {role}: scores of another head than the one that ships; start over with another --keep"
            )
    return {
        head: {
            role: Scores(made[f"{role}_{head}"].astype(np.float64), scores.labels, groups=scores.groups, ids=scores.ids)
            for role, scores in kept.items()
        }
        for head in HEADS
    }


def logits(run: RunDir, store: Path) -> dict[str, np.ndarray]:
    """ "role_head" -> logits, on features made now."""
    config, table = run.config, SampleTable.read(run / "samples.parquet")
    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    if backbone.fingerprint != read_document(run / "features.json", FEATURES_KIND)["fingerprint"]:
        raise SystemExit(f"{run.path}: features.json is of another backbone")
    along = load_head(run / joint_head_file(config), TUNED_HEAD, backbone.dim, len(table.classes))
    again = build_head(TUNED_HEAD, backbone.dim, len(table.classes), config.seed).eval()
    stored = load_checkpoint(run / LAST)
    if stored is None:
        raise SystemExit(f"{run.path}: its checkpoint is gone; start over with another --work")
    again.load_state_dict(
        {key.removeprefix("best."): tensor for key, tensor in stored[0].items() if key.startswith("best.")}
    )
    features = FeatureStore(store)
    found = {}
    for role in JUDGED:
        rows = table.rows(role)
        ids = table.ids[rows].tolist()
        done = extract_features(
            ids, table.items(rows), backbone, run / "backbone.onnx", features, config.features, engine="onnx"
        )
        if done.failed:
            raise SystemExit(f"{run.path}: {done.failed[0]}")
        made = all_logits([again, along], features.read(ids, done.key))
        found |= {f"{role}_{head}": values for head, values in zip(HEADS, made, strict=True)}
    return found


def measured(scores: Mapping[str, Scores], target: str, redraws: int) -> Head:
    risks, assume_iid = TARGETS[target]
    select, calib, test = (scores[role] for role in JUDGED)

    def coverage(calib: Scores, test: Scores) -> float:
        policy = fit_policy("softmax", select=select, calib=calib, risks=risks, assume_iid=assume_iid)
        return float(policy.decide(test).coverage)

    pool = pooled(calib, test)
    names, place = np.unique(pool.groups, return_inverse=True)
    share = len(np.unique(calib.groups)) / len(names)
    redrawn = []
    for draw in range(0 if assume_iid else redraws):
        chosen = (np.random.default_rng(draw).permutation(len(names)) < round(share * len(names)))[place]
        redrawn.append(coverage(pool.take(chosen), pool.take(~chosen)))
    return Head(
        judged(select.logits.astype(np.float32), select.known_labels),
        select_metrics(test.logits, test.known_labels).augrc,
        coverage(calib, test),
        float(np.mean(redrawn)) if redrawn else float("nan"),
    )


def line(heads: Mapping[str, Head]) -> str:
    def pair(label: str, value: Callable[[Head], float], digits: int = 4) -> str:
        return f"{label} " + " / ".join(f"{value(heads[name]):.{digits}f}" for name in HEADS)

    return ", ".join(
        (
            pair("nll", lambda head: head.select.metrics.nll),
            pair("scaled", lambda head: head.select.scaled_nll),
            pair("accuracy", lambda head: head.select.metrics.accuracy),
            pair("AUGRC e-3", lambda head: 1e3 * head.select.metrics.augrc, 2),
            pair("val_test AUGRC e-3", lambda head: 1e3 * head.augrc, 2),
            pair("coverage", lambda head: head.coverage, 3),
            pair("redraws", lambda head: head.redrawn, 3),
        )
    )


def mean(heads: list[Head], name: str) -> float:
    return float(np.mean([getattr(head, name) for head in heads]))


if __name__ == "__main__":
    main()
