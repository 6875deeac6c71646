"""How images are fitted to the model's square, chosen by what a head makes of the features, out of fold.

Of each candidate the features of the same images are judged by the best logistic regression, each image by a fit that
has seen neither it nor its group. What is chosen is the first candidate of the list whose NLL is within one standard
error of the difference (paired, over groups) of the least: a gain within the noise of the sample does not leave the
first of the list, what the weights were made for. Nor does a gain of one that is worse than no features at all: groups
that are unlike each other (segments of road) can order such candidates by chance, and surely so. NLL and not AUGRC,
which few errors decide: on three splits of the road signs the same gain was 2.2 to 3.5 standard errors in NLL and 1.2
to 3.5 in AUGRC.

Only images of train and val_select are judged here. The certificate is made of val_calib under the model that follows,
and any choice that is made without val_calib leaves its proof as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stage1.evaluation import auroc_failure
from stage1.runtime.preprocessing import Preprocessing
from stage1.training.cross_validation import PairedDifference, nll_difference, quick_judgement
from stage1.training.selection import SelectMetrics


@dataclass(frozen=True, slots=True)
class Judged:
    """One candidate. logits: float64 [N, K], out of fold; auroc: for two classes, else None."""

    spec: Preprocessing
    logits: NDArray[np.float64]
    metrics: SelectMetrics
    auroc: float | None


def judge(
    spec: Preprocessing,
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_],
    n_classes: int,
    *,
    seed: int,
) -> Judged:
    """What features [N, D] under `spec` are worth. Raises DataError (NaN; a class in fewer than two groups)."""
    found = quick_judgement(features, labels, groups, n_classes, seed=seed)
    margin = found.logits[:, 1] - found.logits[:, 0]
    # The area under the ROC curve is the chance that a positive's score is higher, ties counting half: a failure's too.
    auroc = auroc_failure(margin, labels == 0) if n_classes == 2 else None
    return Judged(spec, found.logits, found.metrics, auroc)


def chosen_of(
    judged: Sequence[Judged], labels: NDArray[np.int64], groups: NDArray[np.str_]
) -> tuple[int, list[PairedDifference]]:
    """Which of `judged`, and of each the difference of its NLL to the least."""
    best = min(judged, key=lambda one: one.metrics.nll)
    apart = [nll_difference(one.logits, best.logits, labels, groups) for one in judged]
    if tell_nothing(judged, labels):
        return 0, apart
    return next(index for index, gap in enumerate(apart) if gap.difference <= gap.error), apart


def tell_nothing(judged: Sequence[Judged], labels: NDArray[np.int64]) -> bool:
    """Whether none has a lower AUGRC, or none a lower NLL, than always the commonest class at its share: half of its
    error, and the entropy of the shares.
    """
    shares = np.bincount(labels) / len(labels)
    entropy = -float(np.sum(shares * np.log(np.where(shares > 0, shares, 1.0))))
    blind = min(one.metrics.augrc for one in judged) >= 0.5 * (1.0 - shares.max())
    return bool(blind or min(one.metrics.nll for one in judged) >= entropy)
