"""The populations of the contest, by the names that contract.json gives them; every draw is with replacement from one.

Real scores of published models and frozen features lie beside the checkout (../shared/data); where they are not there
the rows are left out, and the run says so.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import special

from stage1 import Scores
from stage1.scores.role_files import read_role

sys.path.insert(0, str(Path(__file__).parents[1]))
from populations import ANIMALS, CAT, DOG, SHARED, VEHICLES, cifar, cifar_classes, coco

SIZE = 300_000  # large enough that drawing from it is drawing from the distribution
PHOTOS = SHARED.parent
Floats = np.ndarray


def two_columns(margin: Floats, labels: Floats) -> Scores:
    return Scores(logits=np.stack([np.zeros(len(margin)), margin], axis=1), labels=labels.astype(np.int64))


def equal_spread() -> Scores:
    """Separation 2.5, 30 % positives; the logit is that of an overconfident model without a threshold of its own."""
    rng = np.random.default_rng(11)
    labels = rng.random(SIZE) < 0.3
    return two_columns(2.5 * (rng.normal(size=SIZE) + 2.5 * labels - 1.25), labels)


def unequal_spread() -> Scores:
    """Separation 3, standard deviations 1 (negatives) and 1.8 (positives), 40 % positives."""
    rng = np.random.default_rng(12)
    labels = rng.random(SIZE) < 0.4
    return two_columns((1 + 0.8 * labels) * rng.normal(size=SIZE) + 3.0 * labels - 1.5, labels)


def skewed() -> Scores:
    """Negatives with a long tail towards the positives (Gumbel), positives normal, half and half."""
    rng = np.random.default_rng(13)
    labels = rng.random(SIZE) < 0.5
    return two_columns(np.where(labels, rng.normal(3.5, 1.0, SIZE), rng.gumbel(-1.0, 0.9, SIZE)), labels)


def hidden(seed: int, place: int) -> Scores:
    """Two classes, each a mixture of two to four normal parts, through a monotone warp: only the seed knows them."""
    rng = np.random.default_rng([seed, place])
    labels = rng.random(SIZE) < rng.uniform(0.2, 0.8)
    margin = np.empty(SIZE)
    for label in (False, True):
        rows = np.flatnonzero(labels == label)
        parts = rng.integers(2, 5)
        part = rng.choice(parts, size=len(rows), p=rng.dirichlet(np.full(parts, 2.0)))
        sign = 1.0 if label else -1.0
        centre, width = sign * rng.uniform(0.8, 3.5, parts), rng.uniform(0.4, 1.3, parts)
        margin[rows] = rng.normal(centre[part], width[part])
    power, scale = rng.uniform(0.6, 1.6), rng.uniform(0.7, 3.0)
    return two_columns(scale * np.sign(margin) * np.abs(margin) ** power, labels)


def frozen(data: str, table: str, positive: str, cache: Path) -> Scores:
    """Scores of `stage1 run --recipe baseline` on ../shared/data, of the images that trained nothing, as a population.

    Groups are left out: a draw takes images of this population at random, which is what each method assumes.
    """
    folder = cache / data
    if not (folder / "val_calib_logits.pt").is_file():
        negative = "other" if positive == "roadwork" else "0"
        run = [sys.executable, "-m", "stage1.cli", "run", "--recipe", "baseline", "--quiet", "--output", str(folder)]
        run += [f"data.table={PHOTOS / data / table}", f"data.classes=['{negative}','{positive}']"]
        run += ["risks={fnr: 0.3, fpr: 0.3}"]
        # Exit status 1 where its own few calibration groups certify nothing: the scores are there all the same.
        subprocess.run(run, check=False, stdout=subprocess.DEVNULL)
    parts = [read_role(folder, role) for role in ("val_select", "val_calib", "val_test")]
    margin, labels = (np.concatenate([getattr(part, name) for part in parts]) for name in ("margin", "known_labels"))
    return two_columns(margin, labels)


def known(cache: Path, hidden_seed: int) -> dict[str, Callable[[], Scores]]:
    """Population -> how it is made; those whose data are not here are left out."""
    found: dict[str, Callable[[], Scores]] = {
        "Gaussian, equal spread": equal_spread,
        "Gaussian, unequal spread": unequal_spread,
        "Gaussian, skewed": skewed,
        "hidden A": partial(hidden, hidden_seed, 0),
        "hidden B": partial(hidden, hidden_seed, 1),
    }
    if SHARED.is_dir():
        found |= {
            "COCO person": coco,
            "CIFAR-10 cat / dog": partial(cifar, CAT, DOG),
            "CIFAR-10 animal / vehicle": partial(cifar, VEHICLES, ANIMALS),
            "CIFAR-10 ten classes": cifar_classes,
            "road signs, frozen features": partial(frozen, "roadsigns", "labels.csv", "roadwork", cache),
            "potholes, frozen features": partial(frozen, "potholes", "labels.csv", "1", cache),
        }
    return found


def probabilities(scores: Scores) -> Floats:
    return np.asarray(special.softmax(scores.logits.astype(np.float64), axis=1))
