"""Which parts of EfficientNet-Lite0 a probe should see, and of which picture: held-out AUROC over six re-splits.

`python benchmarks/side_by_side/depths.py --cache DIR [--data roadsigns ...] [--videos 200]`: one pass over each data
set and fit (features are kept in DIR), then logistic regressions on the train + val_select groups of the splits of
run.py, at one penalty, so that no choice adds its noise. The parts: mean and largest value over positions of the
last feature map, means of the stages before it. Differences are paired over the splits. One core: OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stage1.config import BackboneConfig
from stage1.evaluation import augrc, auroc_failure
from stage1.model.backbone import load_backbone
from stage1.model.embedded import INNER_SCALE
from stage1.runtime.preprocessing import load_tensor
from stage1.training.logistic import fit_logistic

sys.path.insert(0, str(Path(__file__).parents[1]))
from side_by_side import run

FITS = ("squash", "center_crop")
STRENGTH = 0.1
_STAGES = {2: 40, 4: 112, 5: 192, 6: 320}  # widths of lite0's stages that are looked at
Floats = NDArray[np.float64]


def all_parts(model: torch.nn.Module, image: torch.Tensor) -> torch.Tensor:
    """[N, 1280 (mean) + 1280 (largest) + 40 + 112 + 192 + 320] of images [N, 3, S, S]."""
    now, inner = model.bn1(model.conv_stem(image)), []
    for index, stage in enumerate(model.blocks):
        now = stage(now)
        inner += [now.mean(dim=(2, 3))] if index in _STAGES else []
    last = model.bn2(model.conv_head(now))
    return torch.cat([last.mean(dim=(2, 3)), last.amax(dim=(2, 3)), *inner], dim=1)


def parts(paths: list[Path], fit: str, kept: Path) -> dict[str, Floats]:
    """Name of a part -> float64 [N, width]."""
    if not kept.is_file():
        backbone = load_backbone(BackboneConfig(fit=fit))
        made = []
        with torch.inference_mode():
            for start in range(0, len(paths), 32):
                tensors = [load_tensor(path.read_bytes(), backbone.preprocessing) for path in paths[start : start + 32]]
                made.append(all_parts(backbone.module.model, torch.from_numpy(np.stack(tensors))).numpy())
        np.save(kept, np.concatenate(made))
    widths = {"pool": 1280, "largest": 1280, **{f"stage {index}": width for index, width in _STAGES.items()}}
    ends = np.cumsum(list(widths.values()))[:-1]
    return dict(zip(widths, np.split(np.load(kept).astype(np.float64), ends, axis=1), strict=True))


def candidates(found: dict[str, dict[str, Floats]]) -> dict[str, Floats]:
    """Name -> features; the first is what was the default."""
    made = {}
    for fit, of in found.items():
        root, inner = 2 * np.sqrt(of["pool"] + 1e-4), of["stage 5"]
        made[f"{fit}: pool"] = of["pool"]
        made[f"{fit}: pool + inner"] = np.hstack([root, INNER_SCALE * inner])
        if fit == "center_crop":
            made[f"{fit}: square root"] = root
            made[f"{fit}: pool, inner"] = np.hstack([of["pool"], INNER_SCALE * inner])
            made[f"{fit}: pool, inner unscaled"] = np.hstack([of["pool"], inner])
            made[f"{fit}: largest"] = of["largest"]
            made[f"{fit}: inner"] = inner
    return made


def judged(features: Floats, labels: NDArray[np.int64], own: NDArray[np.bool_]) -> tuple[float, float]:
    """AUROC and AUGRC of the held-out images."""
    values = features.astype(np.float32)
    logits = fit_logistic(values[own], labels[own], 2, strength=STRENGTH).logits(values[~own])
    margin, truth = logits[:, 1] - logits[:, 0], labels[~own]
    wrong = ((margin > 0) != truth).astype(float)
    return float(auroc_failure(margin, truth == 0)), float(augrc(np.abs(margin), wrong))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True, help="folder for tables and features")
    parser.add_argument("--data", nargs="*", default=list(run.TARGETS), choices=list(run.TARGETS))
    parser.add_argument("--splits", type=int, default=6)
    parser.add_argument("--videos", type=int, default=200, help="of generated scenes")
    options = parser.parse_args()
    run.SCENES["videos"] = options.videos
    for data in options.data:
        tables = [run.table(data, split, options.cache) for split in range(options.splits)]
        rows = [list(csv.DictReader(table.open())) for table in tables]
        paths, folder = [Path(row["image"]) for row in rows[0]], options.cache / data
        labels = np.array([int(row["label"]) for row in rows[0]])
        own = [np.array([row["role"] in ("train", "val_select") for row in split]) for split in rows]
        made = candidates({fit: parts(paths, fit, folder / f"parts-{fit}.npy") for fit in FITS})
        print(f"\n| {data} | AUROC | minus the first | AUGRC | minus the first |\n|---|---|---|---|---|")
        first: Floats | None = None
        for name, features in made.items():
            found = np.array([judged(features, labels, split) for split in own])
            first = found if first is None else first
            gap, error = (found - first).mean(axis=0), (found - first).std(axis=0, ddof=1) / np.sqrt(len(found))
            cells = [f"{mean:.4f} | {gap[one]:+.4f} ± {error[one]:.4f}" for one, mean in enumerate(found.mean(axis=0))]
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
