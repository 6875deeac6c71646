"""Run directories as `stage1 run` leaves them, from simulated scores: no images, no training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from stage1 import Scores
from stage1.config import load_config, to_yaml
from stage1.data.table import SampleTable
from stage1.runs.schema import STAGES_KIND
from stage1.scores import write_role
from stage1.stages.calibrate import save_policy
from stage1.stages.fitting import fit_configured
from stage1.storage.documents import write_document
from stage1.storage.files import write_text

SIZES = {"train": 60, "val_select": 500, "val_calib": 1600, "val_test": 900}
CLASSES = ("none", "roadwork")


def table(seed: int = 0, sizes: dict[str, int] | None = None) -> SampleTable:
    """Images in groups of two."""
    sizes = sizes or SIZES
    rng = np.random.default_rng(seed)
    roles = np.repeat(list(sizes), list(sizes.values()))
    n = len(roles)
    ids = np.array([hashlib.sha256(f"{seed}/{row}".encode()).hexdigest() for row in range(n)])
    blank = np.full(n, "")
    return SampleTable(
        ids=ids,
        paths=np.array([f"/photos/{row}.jpg" for row in range(n)]),
        labels=np.repeat(rng.integers(0, 2, n // 2), 2),
        groups=np.array([f"g{row // 2:05d}" for row in range(n)]),
        sources=blank,
        timestamps=blank,
        roles=roles,
        classes=CLASSES,
    )


def make_run(
    folder: Path,
    samples: SampleTable,
    *,
    strength: float,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    noise: float = 0.15,
) -> Path:
    """A run whose score separates the classes by `strength`; what is hard about an image is the same for every run."""
    config, _ = load_config(
        overrides=[f"seed={seed}", "risks={fnr: 0.05, fpr: 0.05}", "unit=image", "assume_iid=true", *overrides],
        environment={},
    )
    hard = np.random.default_rng(99).normal(size=len(samples))
    own = np.random.default_rng(1000 + seed).normal(size=len(samples))
    margin = strength * (2 * samples.labels - 1) + hard + noise * own
    folder.mkdir(parents=True)
    write_text(folder / "config.yaml", to_yaml(config))
    samples.write(folder / "samples.parquet")
    scores = {}
    for role in ("val_select", "val_calib", "val_test"):
        rows = samples.rows(role)
        scores[role] = Scores(
            np.stack([-margin[rows], margin[rows]], axis=1),
            labels=samples.labels[rows],
            groups=samples.groups[rows],
            ids=samples.ids[rows],
        )
        write_role(folder, role, scores[role])
    policy = fit_configured(
        config,
        select=scores["val_select"],
        calib=scores["val_calib"],
        classes=list(samples.classes),
        say=lambda text: None,
    )
    save_policy(folder, policy)
    stages = {
        name: {"inputs": "0" * 64, "outputs": {}, "seconds": seconds, "peak_mib": 100.0 * seconds}
        for name, seconds in (("train", 2.0 + seed), ("score", 10.0))
    }
    write_document(folder / "stages.json", {"stage1_version": "0", "stages": stages}, STAGES_KIND)
    return folder
