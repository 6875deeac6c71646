"""The threshold explorer: what its script reads, and the same numbers at the policy's own thresholds for a page without script."""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np

from stage1.report.drawing import Floats
from stage1.report.evidence import RISKS, Evidence, count

# Scores travel in the page as they are, 11 characters each; beyond this the page would be slow to open.
MOST_UNITS = 50_000
_STRIP_BARS = 120


def explorer(evidence: Evidence | str) -> dict[str, Any] | str:
    """What the template and the script of the explorer read, or one sentence that says why there is none.

    data: for the script: sorted scores of each class (base64 of little-endian float64), thresholds, targets, deltas.
    counts [2][3], risks, coverage: at the policy's own thresholds, computed here. strip: who stands where, by rank.
    """
    if isinstance(evidence, str):
        return evidence
    if evidence.n > MOST_UNITS:
        return f"{evidence.n:,} units are too many to carry in this page (at most {MOST_UNITS:,})."
    lo, hi = evidence.lo, evidence.hi
    exits = evidence.exits(np.array([-np.inf if lo is None else lo]), np.array([np.inf if hi is None else hi]))
    wrong, missed = int(exits.false_exit[0]), int(exits.miss[0])
    left, right = int(exits.right_negative[0]), int(exits.right_positive[0])
    n0, n1 = len(evidence.negatives), len(evidence.positives)
    risks = [count(evidence, name, target, evidence.deltas[name], lo, hi) for name, target in evidence.targets.items()]
    return {
        "data": {
            "scores": [_packed(evidence.negatives), _packed(evidence.positives)], "lo": lo, "hi": hi, "certified": evidence.certified,
            "risks": [{"name": risk.name, "target": risk.target, "delta": risk.delta, "sides": list(RISKS[risk.name])} for risk in risks],
        },
        "counts": [[left, n0 - left - wrong, wrong], [missed, n1 - missed - right, right]],
        "totals": [n0, n1],
        "coverage": {"exits": int(exits.exits[0]), "n": evidence.n},
        "risks": risks,
        "left_out": evidence.left_out,
        "strip": _strip(evidence),
    }  # fmt: skip


@cache
def script() -> tuple[str, str]:
    """The script of the explorer and the source expression ('sha256-...') that lets a page run this script and no other."""
    text = resources.files("stage1.report").joinpath("templates/explorer.js").read_text(encoding="utf-8")
    assert "</script" not in text
    return text, "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")


def _packed(values: Floats) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f8").tobytes()).decode("ascii")


def _strip(evidence: Evidence) -> list[tuple[float, float, float]]:
    """(left, width, share of positives) of bars over the ranks of the distinct scores, left and width in per cent."""
    values = np.unique(np.concatenate([evidence.negatives, evidence.positives]))
    # The sliders step from gap to gap between distinct scores, so the strip has the same scale: len(values) + 1 steps.
    edges = np.unique(np.linspace(0, len(values), min(_STRIP_BARS, len(values)) + 1).round().astype(int))
    bars = []
    for start, end in pairwise(edges):
        first, last = values[start], values[end - 1]
        inside = [
            np.searchsorted(scores, last, "right") - np.searchsorted(scores, first, "left")
            for scores in (evidence.negatives, evidence.positives)
        ]
        share = inside[1] / (inside[0] + inside[1])
        scale = 100.0 / len(values)
        bars.append((round(float(start * scale), 3), round(float((end - start) * scale), 3), round(float(share), 4)))
    return bars
