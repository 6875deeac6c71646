"""The data sets of benchmarks/arms.py: split, target, and features of the frozen embedded CNN for every role."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.config import RunConfig, load_config
from stage1.data.table import SampleTable
from stage1.features import FeatureKey, FeatureStore, extract_features
from stage1.model.backbone import load_backbone
from stage1.runs.directory import RunDir, opened
from stage1.runs.progress import Progress
from stage1.runs.runner import execute_one
from stage1.runs.schema import FEATURES_KIND
from stage1.scores import ROLES
from stage1.stages import STAGES
from stage1.storage.documents import read_document


@dataclass(frozen=True)
class Problem:
    """One data set with its target. overrides: what gives a run directory of any recipe the same images, size and
    split.
    """

    name: str
    risks: Mapping[str, float]
    assume_iid: bool
    size: int
    overrides: tuple[str, ...]
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

# Of training on images: a core's time goes there. One epoch is 79 steps on the demo, 28 on the potholes.
EPOCHS = {"demo": 2, "potholes": 4}


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
                execute_one(run, STAGES, stage, Progress(quiet=False))
        source = folder
    document = read_document(source / "features.json", FEATURES_KIND)
    table = SampleTable.read(source / "samples.parquet")
    features = _features(RunDir(source, config), document, table, FeatureStore(folder / "features"))
    risks, assume_iid = TARGETS[name]
    return Problem(
        folder.name,
        risks,
        assume_iid,
        document["preprocessing"]["size"],
        _overrides(name, config, source),
        features,
        table,
    )


def _overrides(name: str, config: RunConfig, source: Path) -> tuple[str, ...]:
    generated = config.data.source == "roadscenes"
    shares = ", ".join(f"{role}: {share}" for role, share in config.split.fractions.model_dump().items())
    return (
        "data.source=table",
        f"data.table={source / 'roadscenes' / 'labels.csv' if generated else config.data.table}",
        *(["data.classes=[none, roadwork]"] if generated else []),
        f"split={{method: {config.split.method}, seed: {config.split.seed}, fractions: {{{shares}}}}}",
        *([f"backbone.input_size={config.backbone.input_size}"] if config.backbone.input_size else []),
        f"images.epochs={EPOCHS[name]}",
        "features.engine=onnx",
    )


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
                    f"{run.path}: features of {role} cannot be made as those of train were; start over with another"
                    " --work"
                )
        found[role] = store.read(ids, key)
    return found
