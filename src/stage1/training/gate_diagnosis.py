"""Whether a gate still tells images apart, or has collapsed, and into what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import DataError

# A gate has collapsed where this share of its answers lies beyond _SURE (or below 1 - _SURE), or at one value.
_SHARE, _SURE, _FLAT = 0.95, 0.99, 1e-3


@dataclass(frozen=True, slots=True)
class GateHealth:
    """Of gate logits on labelled images. low, high: 2.5 and 97.5 % quantiles of g = sigmoid(logit); passed: P(g > 0.5).

    auroc: of g as a score of "the answer is right"; None where all answers are right or all wrong.
    collapsed: None, or what is wrong in one sentence that begins with its name: "all in", "all out", "no spread"; or
        "not fitted", where there were too few answers to fit a gate on (`gate.too_few_answers`; not judged here).
    """

    collapsed: str | None
    passed: float
    low: float
    high: float
    auroc: float | None

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def gate_health(gate_logits: NDArray[np.floating[Any]], right: NDArray[np.bool_]) -> GateHealth:
    """Whether a gate still tells images apart. gate_logits: finite float [N], N >= 1; right: bool [N].

    all in: 95 % of g above 0.99 although less than 99 % of the answers are right; all out: 95 % of g below 0.01
    although more than 1 % are right; no spread: 95 % of the gate logits within 0.001 of each other. Raises DataError
    for NaN or no rows.
    """
    raw = np.asarray(gate_logits, dtype=np.float64)
    if len(raw) == 0 or raw.shape != right.shape or not np.isfinite(raw).all():
        raise DataError(f"gate logits: shape {raw.shape} for {len(right)} answers, all finite and at least one needed")
    g = _sigmoid(raw)
    accuracy = float(right.mean())
    low, high = np.quantile(raw, [(1 - _SHARE) / 2, (1 + _SHARE) / 2])
    sure, doubtful = float((g > _SURE).mean()), float((g < 1 - _SURE).mean())
    collapsed = None
    if high - low < _FLAT:
        collapsed = f"no spread: {_SHARE:.0%} of the gate logits lie within {high - low:.2g} of {np.median(raw):.4g}"
    elif sure >= _SHARE and accuracy < _SURE:
        collapsed = f"all in: g > {_SURE:g} for {sure:.1%} of the images, of which {accuracy:.1%} are answered rightly"
    elif doubtful >= _SHARE and accuracy > 1 - _SURE:
        collapsed = (
            f"all out: g < {1 - _SURE:.2g} for {doubtful:.1%} of the images, of which {accuracy:.1%} are answered"
            " rightly"
        )
    return GateHealth(
        collapsed, float((g > 0.5).mean()), float(_sigmoid(low)), float(_sigmoid(high)), _auroc(raw, right)
    )


def _sigmoid(values: Any) -> Any:
    return 0.5 * (1.0 + np.tanh(0.5 * values))


def _auroc(raw: NDArray[np.float64], right: NDArray[np.bool_]) -> float | None:
    if right.all() or not right.any():
        return None
    from stage1.evaluation import auroc_failure  # lazily: it brings scipy

    return float(auroc_failure(raw, (~right).astype(np.float64)))
