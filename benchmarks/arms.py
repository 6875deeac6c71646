"""Ways of training a head, side by side on the same cached features: does any of them certify more than a frozen linear probe?

    python benchmarks/arms.py [--data demo|potholes ...] [--only linear mlp ...] [--seeds 3] [--table LABELS.csv]
        [--demo-run runs/demo] [--work runs/arms] [--redraws 12] [--write]

An arm is a recipe of the package (ARMS says which, with what changed) on frozen features of the embedded CNN, from --seeds training
seeds on one split. Per run: the head is trained on train, its epoch chosen on val_select; thresholds are fitted and certified on
val_calib by `fit_policy` for the target of the data set; both are judged on val_test, where every arm is compared with `linear` by a
paired bootstrap of whole groups (evaluation/arms.py). A run that certifies nothing has coverage 0. The arm of least AUGRC on val_select is
named before val_test is looked at.

demo: the scenes, split and features of --demo-run where that run directory is there, else generated (recipe demo).
potholes: --table, with columns image, label, group; split `balanced` as recipe baseline does. 448 px instead of 224: the median pothole is
0.4 % of the pixels, 14 px of side at 224 and 28 at 448.

That bootstrap leaves the thresholds as val_calib made them. --redraws says what another val_calib would have made of the difference: val_calib and val_test
are pooled and cut again, whole groups, into parts of the same size, and thresholds are fitted and judged on these. Such draws overlap: their
2.5 % and 97.5 % points describe, they are no confidence interval.

Seconds are of the process's CPU time, one thread, the sweep's 64 heads included. A finished run is kept under --work and not done again.
--write puts each table into benchmarks/arms.md, in place of one with the same heading.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import platform
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig, load_config
from stage1.data.table import SampleTable
from stage1.documents import read_document
from stage1.evaluation.arms import ArmRun, best_arm, compare_arms
from stage1.evaluation.gate_gain import accept_gate
from stage1.features import FeatureKey, FeatureStore, extract_features
from stage1.files import digest_bytes, write_text
from stage1.model.backbone import load_backbone
from stage1.pipeline.progress import Progress
from stage1.pipeline.rundir import RunDir, opened
from stage1.pipeline.runner import execute_one
from stage1.policy import Policy, fit_policy
from stage1.policy.gate import GatePolicy
from stage1.policy.gate_model import cross_fitted_gate
from stage1.scores import ROLES, Scores
from stage1.training import train_head
from stage1.training.inputs import LabelledFeatures
from stage1.training.selection import all_outputs
from stage1.training.sweep import candidates, train_sweep

HERE = Path(__file__).parent
JUDGED = ("val_select", "val_calib", "val_test")
REFERENCE = "linear"


@dataclass(frozen=True)
class Arm:
    """A recipe and what is changed in it."""

    recipe: str
    changes: tuple[str, ...] = ()
    what: str = ""


ARMS = {
    "linear": Arm("baseline", what="frozen linear probe, the reference"),
    "mlp": Arm("baseline", ("head.kind=mlp",), "one hidden layer of 256"),
    "sweep": Arm("sweep", what="best of 64 linear heads by AUGRC on val_select, trained alone"),
    "ensemble": Arm("ensemble", ("head.members=3",), "3 MLP heads of 128, logits averaged"),
    "selectivenet": Arm("gate", ("head.gate=auto",), "SelectiveNet with its own gate, gate policy"),
    "deepgamblers": Arm("deepgamblers", what="Deep Gamblers, gate policy"),
    "sat": Arm("deepgamblers", ("head.kind=sat",), "self-adaptive training, gate policy"),
    "risk": Arm("risk-training", what="conformal risk training of a linear head at the levels of the target"),
}


@dataclass(frozen=True)
class Problem:
    """One data set with its target."""

    name: str
    risks: Mapping[str, float]
    assume_iid: bool
    size: int
    features: Mapping[str, NDArray[np.float32]]
    table: SampleTable

    def rows(self, role: str) -> NDArray[np.int64]:
        return self.table.rows(role)

    def groups(self, role: str) -> NDArray[np.str_]:
        return self.table.groups[self.rows(role)]

    def labels(self, role: str) -> NDArray[np.int64]:
        return self.table.labels[self.rows(role)]


TARGETS: dict[str, tuple[dict[str, float], bool]] = {
    "demo": ({"fnr": 0.02, "false_exit_rate": 0.05}, False),
    "potholes": ({"fnr": 0.20, "false_exit_rate": 0.20}, True),
}


# ---- features of all roles -----------------------------------------------------------------------------------------


def problem(name: str, work: Path, demo_run: Path, table_file: Path | None, scenes_seed: int = 0) -> Problem:
    """Split and features of a data set. Evaluation roles are made by the shipped engine, as everywhere."""
    folder = work / (f"{name}-{scenes_seed}" if name == "demo" and scenes_seed else name)
    if name == "demo" and scenes_seed == 0 and (demo_run / "features.json").is_file():
        config, source = load_config(demo_run / "config.yaml", environment={})[0], demo_run
        if not (folder / "features").is_dir() and (demo_run / "features").is_dir():
            shutil.copytree(demo_run / "features", folder / "features", ignore=shutil.ignore_patterns(".lock"))
    else:
        if name == "demo":
            changes = ["features.engine=onnx", f"data.roadscenes.seed={scenes_seed}"]
            config, _ = load_config(recipe="demo", overrides=changes, environment={})
        else:
            if table_file is None:
                raise SystemExit("--data potholes needs --table LABELS.csv (columns image, label, group)")
            changes = [
                f"data.table={table_file}",
                "backbone.input_size=448",
                "features.engine=onnx",
                "name=arms-potholes",
            ]
            config, _ = load_config(recipe="baseline", overrides=changes, environment={})
        with opened(folder, config) as run:
            for stage in ("split", "extract"):
                execute_one(run, stage, Progress(quiet=False))
        source = folder
    document = read_document(source / "features.json", "features")
    table = SampleTable.read(source / "samples.parquet")
    features = _features(RunDir(source, config), document, table, FeatureStore(folder / "features"))
    risks, assume_iid = TARGETS[name]
    return Problem(folder.name, risks, assume_iid, document["preprocessing"]["size"], features, table)


def _features(
    run: RunDir, document: Mapping[str, Any], table: SampleTable, store: FeatureStore
) -> dict[str, NDArray[np.float32]]:
    key = FeatureKey(**document["key"])
    found = {}
    for role in ROLES:
        rows = table.rows(role)
        ids = table.ids[rows].tolist()
        if not store.has(ids, key).all():
            backbone = load_backbone(run.config.backbone, run.config.seed)
            done = extract_features(
                ids, table.items(rows), backbone, run / "backbone.onnx", store, run.config.features, engine="onnx"
            )
            if done.failed or done.key != key:
                raise SystemExit(
                    f"{run.path}: features of {role} cannot be made as those of train were; start over with another --work"
                )
        found[role] = store.read(ids, key)
    return found


# ---- one run of one arm --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """Scores of the judged roles by one trained head, and what it cost."""

    scores: Mapping[str, Scores]
    seconds: float
    parameters: int
    note: str


def trained(data: Problem, name: str, seed: int, work: Path) -> Trained:
    arm = ARMS[name]
    config, _ = load_config(
        recipe=arm.recipe,
        overrides=[
            *arm.changes,
            f"seed={seed}",
            f"train.risk.miss_rate={data.risks['fnr']}",
            f"train.risk.false_exit_rate={data.risks['false_exit_rate']}",
        ],
        environment={},
    )
    sections = (config.head, config.train, config.sweep, seed)
    ids = [data.table.ids[data.rows(role)].tolist() for role in ROLES]
    place = work / data.name / "arms" / f"{name}-{seed}-{digest_bytes(repr((sections, data.size, ids)).encode())[:12]}"
    if not (place / "done.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        _train(data, config, seed, place)
    facts = json.loads((place / "done.json").read_text(encoding="utf-8"))
    stored = np.load(place / "outputs.npz")
    scores = {
        role: Scores(
            logits=stored[f"{role}_logits"].astype(np.float64), labels=data.labels(role), groups=data.groups(role),
            ids=data.table.ids[data.rows(role)],
            gate=stored[f"{role}_gate"].astype(np.float64) if f"{role}_gate" in stored else None,
        )
        for role in JUDGED
    }  # fmt: skip
    return Trained(scores, facts["seconds"], facts["parameters"], facts["note"])


def _train(data: Problem, config: RunConfig, seed: int, place: Path) -> None:
    train, select = (LabelledFeatures(data.features[role], data.labels(role)) for role in ("train", "val_select"))
    settings, head, own, note = config.train, config.head, seed, ""
    began = time.process_time()
    if config.sweep.enabled:
        entrants = candidates(config.sweep, settings, head, seed)
        best = train_sweep(
            train, select, entrants, n_classes=2, groups=data.groups("val_select"), resamples=20
        )[0].candidate  # fmt: skip
        settings, head, own = best.train, best.head, best.seed
        note = f"lr {settings.learning_rate:g}, wd {settings.weight_decay:g}, ls {settings.label_smoothing:g}"
    result = train_head(
        train.features, train.labels, select.features, select.labels,
        config=settings.model_copy(update={"checkpoint_every": settings.epochs}), head=head, n_classes=2, seed=own,
        folder=place, fresh=True, groups=data.groups("train"),
    )  # fmt: skip
    seconds = time.process_time() - began
    if result.gate is not None and result.gate.collapsed:
        note = f"gate collapsed: {result.gate.collapsed}"
    outputs: dict[str, NDArray[np.float32]] = {}
    for role in JUDGED:
        logits, gate = all_outputs([result.head], data.features[role])[0]
        outputs[f"{role}_logits"] = logits
        if gate is not None:
            outputs[f"{role}_gate"] = gate
    np.savez(place / "outputs.npz", **outputs)  # type: ignore[arg-type]
    parameters = sum(parameter.numel() for parameter in result.head.parameters())
    shutil.rmtree(place / "checkpoints", ignore_errors=True)
    write_text(
        place / "done.json", json.dumps({"seconds": seconds, "parameters": parameters, "note": note.splitlines()[0] if note else ""})
    )  # fmt: skip


# ---- policy and comparison -----------------------------------------------------------------------------------------


def fitted(data: Problem, select: Scores, calib: Scores, kept: str) -> Policy:
    """kept: "" = the softmax policy; else what the gate policy keeps, settled on val_select (`keeps`)."""
    return fit_policy(
        "gate" if kept else "softmax", select=select, calib=calib, risks=data.risks, assume_iid=data.assume_iid,
        kept="softmax" if kept == "softmax" else "gate",
    )  # fmt: skip


def keeps(select: Scores) -> str:
    """What the gate policy is to use: "gate" where it gains on val_select beyond chance, else "softmax"; "" without a gate."""
    if select.gate is None:
        return ""
    return "gate" if accept_gate(select, cross_fitted_gate(select, select.extra)).accepted else "softmax"


def decided(policy: Policy, scores: Scores) -> ArmRun:
    """The run as compare_arms takes it; AUGRC is of the confidence by which the policy exits."""
    decision = policy.decide(scores)
    ordered = scores
    if isinstance(policy, GatePolicy) and policy.kept == "gate":
        g = policy.model.apply(scores, scores.extra)
        # A margin of the same answers in the order of g. Its NLL means nothing, and is not shown.
        margin = np.where(scores.margin > 0, -np.log1p(-g), np.log1p(-g))
        ordered = Scores(
            logits=np.stack([np.zeros_like(margin), margin], axis=1), labels=scores.labels, groups=scores.groups, ids=scores.ids
        )  # fmt: skip
    return ArmRun(ordered, decision.exit, decision.label)


@dataclass
class Table:
    """Everything measured on one data set."""

    data: Problem
    runs: dict[str, list[Trained]]
    kept: dict[str, list[str]]
    certified: dict[str, int]
    select: dict[str, Any]
    test: dict[str, Any]
    redrawn: dict[str, list[float]]
    held: dict[str, dict[str, float]]
    by_groups: str


def measure(data: Problem, names: Sequence[str], seeds: int, work: Path, redraws: int) -> Table:
    runs: dict[str, list[Trained]] = {}
    kept: dict[str, list[str]] = {}
    certified: dict[str, int] = {}
    entered: dict[str, dict[str, list[ArmRun]]] = {role: {} for role in ("val_select", "val_test")}
    held: dict[str, dict[str, float]] = {}
    for name in names:
        runs[name] = [trained(data, name, seed, work) for seed in range(seeds)]
        kept[name] = [keeps(run.scores["val_select"]) for run in runs[name]]
        policies = [
            fitted(data, run.scores["val_select"], run.scores["val_calib"], choice)
            for run, choice in zip(runs[name], kept[name], strict=True)
        ]
        certified[name] = sum(policy.certified for policy in policies)
        for role, arms in entered.items():
            arms[name] = [
                decided(policy, run.scores[role]) for policy, run in zip(policies, runs[name], strict=True)
            ]  # fmt: skip
        found = [observed(run) for run in entered["val_test"][name]]
        held[name] = {risk: float(np.mean([one[risk] for one in found])) for risk in found[0]}
        print(
            f"  {data.name} {name}: {sum(run.seconds for run in runs[name]) / seeds:.1f} s, certified {certified[name]} of {seeds}, "
            f"coverage on val_test {np.mean([run.exit.mean() for run in entered['val_test'][name] if run.exit is not None]):.3f}",
            flush=True,
        )
    return Table(
        data, runs, kept, certified, compare_arms(entered["val_select"]), compare_arms(entered["val_test"]),
        redrawn(data, runs, kept, redraws), held, by_groups(data, runs[REFERENCE][0]),
    )  # fmt: skip


def observed(run: ArmRun) -> dict[str, float]:
    """fnr (wrong among positives that exit) and false_exit_rate (negatives that exit as positive) of one run; NaN without any."""
    assert run.exit is not None
    assert run.label is not None
    positive = run.scores.known_labels == 1
    out = run.exit & positive
    return {
        "fnr": float((run.label[out] == 0).mean()) if out.any() else float("nan"),
        "false_exit_rate": float((run.exit & (run.label == 1))[~positive].mean()),
    }


def by_groups(data: Problem, run: Trained) -> str:
    """Where images were counted as independent: what the same target gives when they are not."""
    if not data.assume_iid:
        return ""
    policy = fit_policy(
        "softmax", select=run.scores["val_select"], calib=run.scores["val_calib"], risks=data.risks, assume_iid=False
    )
    certificate = policy.certificate
    assert certificate is not None
    if certificate.certified:
        return "Without assume_iid linear certifies this target too."
    return f"Without assume_iid nothing is certified: {certificate.reason}"


def redrawn(
    data: Problem, runs: Mapping[str, Sequence[Trained]], kept: Mapping[str, Sequence[str]], redraws: int
) -> dict[str, list[float]]:
    """arm -> certified coverage, mean of its seeds, on each cut of val_calib + val_test."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    groups = np.concatenate([data.groups("val_calib"), data.groups("val_test")])
    names, place = np.unique(groups, return_inverse=True)
    share = len(np.unique(data.groups("val_calib"))) / len(names)
    for draw in range(redraws):
        chosen = np.random.default_rng(draw).permutation(len(names)) < round(share * len(names))
        calib = chosen[place]
        for name, seeds in runs.items():
            values = []
            for run, choice in zip(seeds, kept[name], strict=True):
                pool = pooled(run.scores["val_calib"], run.scores["val_test"])
                policy = fitted(data, run.scores["val_select"], pool.take(calib), choice)
                values.append(policy.decide(pool.take(~calib)).coverage)
            found[name].append(float(np.mean(values)))
    return found


def pooled(a: Scores, b: Scores) -> Scores:
    def both(name: str) -> Any:
        one, other = getattr(a, name), getattr(b, name)
        return None if one is None else np.concatenate([one, other])

    return Scores(**{name: both(name) for name in ("logits", "labels", "gate", "groups", "ids")})


# ---- Markdown ------------------------------------------------------------------------------------------------------


def markdown(table: Table, seeds: int) -> str:
    data = table.data
    chosen = best_arm(table.select, "augrc")
    counts = ", ".join(
        f"{role} {len(data.rows(role))} images in {len(np.unique(data.groups(role)))} groups" for role in ROLES
    )
    target = " and ".join(f"{name} <= {level:g}" for name, level in data.risks.items())
    unit = (
        "images counted as independent (assume_iid), which frames of one segment are not: the certificate is nominal"
        if data.assume_iid
        else "groups respected"
    )
    extra = f" redraws ({len(table.redrawn[REFERENCE])}): coverage | difference to linear (2.5 % to 97.5 %) |"
    redraws = bool(table.redrawn[REFERENCE])
    lines = [
        f"## {data.name}, {seeds} seed{'s' * (seeds > 1)}",
        "",
        f"Input {data.size} px. {counts}. Target {target}, each seed's certificate at 95 %, {unit}. Differences are to {REFERENCE}, with 95 % intervals.",
        "",
        "| arm | parameters | CPU s | AUGRC val_select, e-3 | AUGRC val_test, e-3 | difference | certified | coverage (sd of seeds) | difference "
        "| exit error | fnr, false exits on val_test |" + (extra if redraws else ""),
        "|---" * (13 if redraws else 11) + "|",
    ]
    on_select = {arm["name"]: arm["metrics"] for arm in table.select["arms"]}
    for arm in table.test["arms"]:
        name, values = arm["name"], arm["metrics"]
        runs, coverage, held = table.runs[name], values["coverage"], table.held[name]
        cells = [
            f"**{name}**" if name == chosen else name,
            f"{runs[0].parameters:,}",
            f"{np.mean([run.seconds for run in runs]):.1f}",
            f"{1000 * on_select[name]['augrc']['value']:.2f}",
            f"{1000 * values['augrc']['value']:.2f}",
            _difference(table.test, name, "augrc", 1000.0),
            f"{table.certified[name]} of {len(runs)}",
            f"{coverage['value']:.3f}" + ("" if coverage["sd"] is None else f" ({coverage['sd']:.3f})"),
            _difference(table.test, name, "coverage", 1.0),
            _number(values["exit_error"]["value"], 4),
            f"{held['fnr']:.3f}, {held['false_exit_rate']:.3f}",
            *(_redraws(table.redrawn, name) if redraws else ()),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", f"Least AUGRC on val_select: {chosen} (bold). {_verdict(table)}"]
    if (few := table.test["n_groups"]) < 20:
        lines.append(
            f"val_test has {few} groups: intervals from so few are rough, and no verdict here should be leaned on."
        )
    if table.by_groups:
        lines.append(table.by_groups)
    gates = [
        f"{name} {sum(choice == 'gate' for choice in choices)} of {len(choices)}"
        for name, choices in table.kept.items()
        if any(choices)
    ]
    if gates:
        lines.append(
            f"Gates that gained on val_select beyond chance, and were used: {', '.join(gates)}; else softmax was kept."
        )
    notes = [
        f"{name} seed {seed}: {run.note}"
        for name, runs in table.runs.items()
        for seed, run in enumerate(runs)
        if run.note
    ]
    if notes:
        lines.append(f"Chosen or noted in training: {'. '.join(notes)}.")
    return "\n".join([*lines, ""])


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _row(comparison: Mapping[str, Any], arm: str, metric: str) -> Mapping[str, Any] | None:
    return next((row for row in comparison["differences"] if row["arm"] == arm and row["metric"] == metric), None)


def _difference(comparison: Mapping[str, Any], arm: str, metric: str, scale: float) -> str:
    row = _row(comparison, arm, metric)
    if row is None or row["difference"] is None:
        return "-"
    digits = 2 if scale != 1.0 else 3
    text = f"{scale * row['difference']:+.{digits}f}"
    return (
        text if row["low"] is None else f"{text} [{scale * row['low']:+.{digits}f}, {scale * row['high']:+.{digits}f}]"
    )


def _redraws(redraws: Mapping[str, Sequence[float]], arm: str) -> tuple[str, str]:
    values = np.asarray(redraws[arm])
    if not len(values):
        return "-", "-"
    gap = values - np.asarray(redraws[REFERENCE])
    low, high = np.quantile(gap, [0.025, 0.975])
    return f"{values.mean():.3f}", "-" if arm == REFERENCE else f"{gap.mean():+.3f} ({low:+.3f} to {high:+.3f})"


def _verdict(table: Table) -> str:
    found = []
    for name in table.runs:
        row = _row(table.test, name, "coverage")
        if row is not None and row["low"] is not None and row["low"] > 0:
            found.append(f"{name} ({row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}])")
    if not found:
        return "No arm's certified coverage is above linear's with an interval that excludes zero."
    return f"Certified coverage above linear's, interval without zero: {', '.join(found)}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=tuple(TARGETS), default=["demo"])
    parser.add_argument("--only", nargs="+", choices=tuple(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--demo-run", type=Path, default=Path("runs/demo"))
    parser.add_argument(
        "--scenes-seed", type=int, default=0, help="demo: other scenes than the recipe's, generated anew"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/arms"))
    parser.add_argument("--redraws", type=int, default=12)
    parser.add_argument("--write", action="store_true", help="write the tables to benchmarks/arms.md")
    options = parser.parse_args()
    names = [REFERENCE, *(name for name in ARMS if name in options.only and name != REFERENCE)]
    for name in options.data:
        data = problem(name, options.work, options.demo_run, options.table, options.scenes_seed)
        section = markdown(measure(data, names, options.seeds, options.work, options.redraws), options.seeds)
        print(section, flush=True)
        if options.write:
            command = ["python benchmarks/arms.py --data", name, "--seeds", str(options.seeds)]
            command += ["--only", *options.only] if len(options.only) < len(ARMS) else []
            command += ["--table", "LABELS.csv"] if name == "potholes" else []
            command += ["--scenes-seed", str(options.scenes_seed)] if options.scenes_seed else []
            command += ["--redraws", str(options.redraws), "--write"]
            put(HERE / "arms.md", section, " ".join(command))


def put(path: Path, section: str, command: str) -> None:
    """Put a section into the file, in place of one with the same heading."""
    heading, _, body = section.partition("\n")
    machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {datetime.now(UTC):%Y-%m-%d}"
    what = "\n".join(
        f"- {name}: {arm.what} (recipe {', '.join((arm.recipe, *arm.changes))})." for name, arm in ARMS.items()
    )
    intro = (
        "# Arms on cached features\n\nWritten by `benchmarks/arms.py`, whose docstring says how each number is made. Every arm that was run "
        f"stands here, null results too.\n\n{what}\n"
    )
    sections: dict[str, str] = {}
    if path.is_file():
        for part in path.read_text(encoding="utf-8").split("\n## ")[1:]:
            sections["## " + part.partition("\n")[0]] = part.partition("\n")[2].strip()
    sections[heading] = f"`{command}`; {machine}.\n\n{body.strip()}"
    write_text(path, intro + "".join(f"\n{title}\n\n{text}\n" for title, text in sorted(sections.items())))


if __name__ == "__main__":
    main()
