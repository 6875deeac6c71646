"""The choice between the confidence scores of `stage1.confidence`: the one that ranks right above wrong best on val_select."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stage1.confidence import CONFIDENCES, PNORM, PNORMS, confidence, energy, entropy, margin, maxlogit_pnorm, msp
from stage1.documents import finite_or_none
from stage1.errors import DataError
from stage1.evaluation.ranking import STATISTICS, Ranking
from stage1.scores import Scores

__all__ = [
    "CONFIDENCES",
    "PNORMS",
    "choose_confidence",
    "confidence",
    "energy",
    "entropy",
    "margin",
    "maxlogit_pnorm",
    "msp",
]


def choose_confidence(select: Scores, *, pnorms: Sequence[float] = PNORMS) -> tuple[str, list[dict[str, Any]]]:
    """The confidence with the smallest AUGRC on val_select, and the table that shows it.

    select: labelled scores, never those of the certificate. pnorms: the p that are tried where K > 2.
    Returns (name, rows of {confidence, augrc, auroc_f, note}), in the order tried; augrc is None and note says why where
    a score does not exist. MSP stays unless another is smaller by more than rounding; K = 2: always MSP.
    Raises DataError where there are no labels or no rows.
    """
    truth = select.known_labels
    if not len(select):
        raise DataError("val_select: no rows; a confidence score is chosen on labelled scores")
    wrong = (select.logits.argmax(axis=1) != truth).astype(np.float64)
    names = [*CONFIDENCES, *(f"{PNORM}({p:g})" for p in pnorms)]
    if select.n_classes == 2:
        names = [name for name in names if not name.startswith(PNORM)] + [PNORM]
    best, smallest = "msp", np.inf
    table: list[dict[str, Any]] = []
    for name in names:
        try:
            values = maxlogit_pnorm(select.logits, 1) if name == PNORM else confidence(name, select.logits)
        except DataError as error:
            table.append({"confidence": name, "augrc": None, "auroc_f": None, "note": str(error)})
            continue
        accepted = Ranking(values, wrong).accept(np.ones(len(select)))
        found = float(accepted.augrc)
        area = finite_or_none(float(STATISTICS["auroc_failure"](accepted)))
        table.append({"confidence": name, "augrc": found, "auroc_f": area, "note": None})
        # Two classes: the others repeat MSP's order, but for rounding, or (energy) hold the logits' common part.
        if found < smallest - 1e-12 and (name == "msp" or select.n_classes > 2):
            best, smallest = name, found
    return best, table
