"""The scores that benchmarks/power.py and benchmarks/validity.py take as populations: Gaussian, and real ones of
published models.

The real ones lie in ../shared/data/scores beside the checkout: COCO person (TResNet-XL) and CIFAR-10 (WideResNet-16-4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import special

from stage1 import Scores
from stage1.scores import from_probabilities

SHARED = Path(__file__).parents[2] / "shared" / "data" / "scores"
GAUSSIAN = 400_000  # large enough that drawing from it is drawing from the distribution
CAT, DOG = [3], [5]
VEHICLES, ANIMALS = [0, 1, 8, 9], [2, 3, 4, 5, 6, 7]


def gaussian(separation: float = 2.5, prior: float = 0.3) -> Scores:
    """Separation 2.5, 30 % positives (ALGORITHMS 2.4)."""
    rng = np.random.default_rng(0)
    labels = (rng.random(GAUSSIAN) < prior).astype(np.int64)
    margin = rng.normal(size=GAUSSIAN) + separation * labels
    return Scores(logits=np.stack([np.zeros(GAUSSIAN), margin], axis=1), labels=labels)


def log_odds(separation: float, share: float) -> Scores:
    """Two normal classes with spread 1, as the log odds of a model that knows them; `share` positives."""
    rng = np.random.default_rng(0)
    labels = (rng.random(GAUSSIAN) < share).astype(np.int64)
    score = rng.normal(size=GAUSSIAN) + separation * labels
    margin = separation * (score - separation / 2) + special.logit(share)
    return Scores(logits=np.stack([np.zeros(GAUSSIAN), margin], axis=1), labels=labels)


def coco() -> Scores:
    """4,952 images, person or not, 54 % positives, a third of them at probability 1."""
    with np.load(SHARED / "coco_person_tresnetxl.npz") as archive:
        return from_probabilities(archive["prob"], labels=archive["label"])


def cifar(negative: list[int], positive: list[int]) -> Scores:
    """The images of these classes; each side's probability is the sum over its classes, and they are renormalised."""
    logits, truth = _cifar_logits()
    rows = np.isin(truth, negative + positive)
    sides = np.stack([special.logsumexp(logits[rows][:, side], axis=1) for side in (negative, positive)], axis=1)
    return Scores(logits=sides, labels=np.isin(truth[rows], positive).astype(np.int64))


def clipped(make: Callable[[], Scores], least: float = 1e-7) -> Scores:
    """The same scores as probabilities that were clipped to [least, 1 - least], as float32 pipelines do."""
    scores = make()
    most = np.log1p(-least) - np.log(least)
    margin = np.clip(scores.margin, -most, most)
    return Scores(logits=np.stack([np.zeros(len(scores)), margin], axis=1), labels=scores.labels)


def cifar_classes() -> Scores:
    """10,000 images of 10 classes."""
    logits, truth = _cifar_logits()
    return Scores(logits=logits, labels=truth)


def second_score(make: Callable[[], Scores]) -> Scores:
    """The same scores with a gate logit: noise, and 2 more where the answer is right."""
    scores = make()
    right = scores.logits.argmax(axis=1) == scores.known_labels
    return replace(scores, gate=2.0 * right + np.random.default_rng(0).normal(size=len(scores)))


def _cifar_logits() -> tuple[np.ndarray, np.ndarray]:
    with np.load(SHARED / "cifar10_wideresnet16_4.npz") as archive:
        probabilities, truth = archive["predictions"].astype(np.float64), archive["ground_truth"].ravel()
    return np.log(np.maximum(probabilities, 1e-300)), truth.astype(np.int64)
