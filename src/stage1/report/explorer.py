"""The threshold explorer of the page: counts, risks and exact bounds of the calibration units at any thresholds.

`collect` says whether the units may be shown, `count` gives the numbers at one pair, `explorer` what the script reads,
with the numbers at the policy's own thresholds for a page without script.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from itertools import pairwise
from typing import Any

import numpy as np

from stage1.policy.counts import Exits, count_exits
from stage1.report.figures.drawing import Document, Floats
from stage1.risk import binomial_upper
from stage1.risk.risks import RISKS
from stage1.scores import Scores

# The threshold that gives the wrong answers to images of each side: without it the risk is 0 by construction.
_THRESHOLDS = {"positive": ("lo",), "negative": ("hi",), "both": ("lo", "hi")}
# Those that explorer.js counts.
EXPLORED = ("fnr", "miss_rate", "fpr", "false_exit_rate", "error")


@dataclass(frozen=True, slots=True)
class Evidence:
    """The units that the certificate counted, and the risks that can be recounted from them.

    negatives, positives: raw scores of each class, float, rising. lo, hi: the policy's thresholds, None = never exits.
    targets, deltas: of each risk shown. left_out: risks of the certificate that 0/1 counts at two thresholds do not
    give.
    """

    negatives: Floats
    positives: Floats
    lo: float | None
    hi: float | None
    certified: bool
    targets: dict[str, float]
    deltas: dict[str, float]
    left_out: tuple[str, ...]

    @property
    def n(self) -> int:
        return len(self.negatives) + len(self.positives)

    def exits(self, lo: Floats, hi: Floats) -> Exits:
        """Counts at thresholds float [T] each; -inf and +inf: that side never exits."""
        return count_exits(self.negatives, self.positives, lo, hi)


@dataclass(frozen=True, slots=True)
class RiskCount:
    """errors among n counted units, exact one-sided upper bound; by_construction: that error is never made."""

    name: str
    target: float
    delta: float
    errors: int
    n: int
    bound: float
    by_construction: bool


def collect(certificate: Document, policy: Document, calibration: Scores | None) -> Evidence | str:
    """The evidence, or one sentence that says why thresholds cannot be explored on it.

    calibration: the labelled units that the certificate counted (one image of each group where the unit is the group).
    Nothing is shown that does not give back the counts of the certificate at its own thresholds, within its joint
    bounds (those here are each of one risk alone): a certificate on group means, on other units or of
    another run is not explained by 0/1 counts of these.
    """
    if calibration is None:
        return "The calibration scores were not given to this report."
    if calibration.n_classes != 2 or calibration.labels is None or not len(calibration):
        return "It takes labelled calibration scores of two classes with one threshold for each."
    if policy.get("by_slice") is not None:
        return "Each slice has thresholds of its own (listed below); no single pair explains this certificate."
    if certificate["unit"] in ("group_draws", "group_mean"):
        return "This certificate weighs groups, by all their images; counts of images do not explain it."
    score, positive = calibration.margin, calibration.labels == 1
    certified = bool(certificate["certified"])
    evidence = Evidence(
        np.sort(score[~positive]), np.sort(score[positive]), policy["lo"], policy["hi"], certified, {}, {}, ()
    )
    if certificate["n_units"] != evidence.n:
        return f"The certificate counted {certificate['n_units']:,} units, the scores at hand are {evidence.n:,}."
    risks = certificate["risks"]
    shown = [name for name in risks if name in EXPLORED and (not certified or _gives_back(evidence, name, risks[name]))]
    if not shown:
        return (
            f"The bounds of this certificate ({certificate['method']}) are not those of wrong answers counted at two"
            " thresholds."
        )
    return replace(
        evidence,
        targets={name: risks[name]["target"] for name in shown},
        deltas={name: risks[name]["delta"] for name in shown},
        left_out=tuple(name for name in risks if name not in shown),
    )


def _gives_back(evidence: Evidence, name: str, row: Document) -> bool:
    found = count(evidence, name, row["target"], row["delta"], evidence.lo, evidence.hi)
    return (found.errors, found.n) == (row["errors"], row["n"]) and found.bound <= row["bound"] + 1e-9


def count(evidence: Evidence, name: str, target: float, delta: float, lo: float | None, hi: float | None) -> RiskCount:
    """One risk at one pair of thresholds; None: that side never exits."""
    exits = evidence.exits(np.array([-np.inf if lo is None else lo]), np.array([np.inf if hi is None else hi]))
    errors, n = (int(values[0]) for values in exits.counts(name))
    never = all({"lo": lo, "hi": hi}[side] is None for side in _THRESHOLDS[RISKS[name].side])
    bound = 0.0 if never else float(binomial_upper(errors, n, delta))
    return RiskCount(name, target, delta, errors, n, bound, never)


# The page holds the scores themselves, 11 characters each; beyond this the page would be slow to open.
MOST_UNITS = 50_000
_STRIP_BARS = 120


def explorer(evidence: Evidence | str) -> dict[str, Any] | str:
    """What the template and the script of the explorer read, or one sentence that says why there is none.

    data: for the script: sorted scores of each class (base64 of little-endian float64), thresholds, targets, deltas.
    counts [2][3], risks, coverage: at the policy's own thresholds, computed here. strip: which classes are where, by
    rank.
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
            "scores": [_packed(evidence.negatives), _packed(evidence.positives)],
            "lo": lo,
            "hi": hi,
            "certified": evidence.certified,
            "risks": [
                {
                    "name": risk.name,
                    "target": risk.target,
                    "delta": risk.delta,
                    "sides": list(_THRESHOLDS[RISKS[risk.name].side]),
                }
                for risk in risks
            ],
        },
        "counts": [[left, n0 - left - wrong, wrong], [missed, n1 - missed - right, right]],
        "totals": [n0, n1],
        "coverage": {"exits": int(exits.exits[0]), "n": evidence.n},
        "risks": risks,
        "left_out": evidence.left_out,
        "strip": _strip(evidence),
    }


@cache
def script() -> tuple[str, str]:
    """The explorer's script, and the source expression ('sha256-...') by which a page runs no other."""
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
