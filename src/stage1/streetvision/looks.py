"""Looking at one image with the views of its bundle, in numpy: one decode, one forward, or view by view until it is
safe.

`stage1.views` says the same with scipy, which the client does not have; a test compares the two.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError, IntegrityError
from stage1.runtime.crops import WHOLE, ViewPolicy, adds_nothing, cut
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores
from stage1.streetvision.bare_session import Outputs

Floats = NDArray[np.float64]
Run = Callable[[NDArray[np.float32]], Outputs]
Pool = Callable[[Floats], float]
SPREAD = "view_spread"
POOLED = "pooled"  # the aggregator where the head makes one answer of all views
_SMALL = -37.0  # below it log1p(e^m) is e^m to the last bit


@dataclass(frozen=True, slots=True)
class _Step:
    """After so many views: log-odds = slope * pool + shift; stops at <= low, >= high or within `hopeless`."""

    pool: Pool
    slope: float
    shift: float
    low: float | None
    high: float | None
    hopeless: tuple[float, float] | None

    def stops(self, score: float) -> bool:
        beyond = (self.low is not None and score <= self.low) or (self.high is not None and score >= self.high)
        return beyond or (self.hopeless is not None and self.hopeless[0] <= score <= self.hopeless[1])


@dataclass(frozen=True, slots=True)
class Views:
    """How an image is looked at. pool: None: the model's one row of logits as it is. first_only: the pool takes no
    other view; gated: all are run all the same, for their gates. steps: empty, or one for each prefix of `order`: then
    views are looked at one after the other. pooled: the model takes all views at once, and its logits are the image's.
    """

    policy: ViewPolicy
    pool: Pool | None
    first_only: bool = False
    gated: bool = False
    order: tuple[int, ...] = ()
    steps: tuple[_Step, ...] = ()
    pooled: bool = False

    def require_model(self, views: int | None, where: str) -> None:
        """Raises IntegrityError where a model of so many views (`Session.views`) is not the one that these views
        are for.
        """
        count = self.policy.count
        if self.pooled and views is None:
            raise IntegrityError(
                f"{where}: takes single views, views.json is for a model of all {count} at once; bundle it anew"
            )
        if not self.pooled and views is not None:
            said = "there is no views.json" if self is ALONE else "views.json is for a model of single views"
            raise IntegrityError(f"{where}: takes {views} views of an image at once, {said}; bundle it anew")
        if views is not None and views != count:
            raise IntegrityError(f"{where}: takes {views} views of an image, views.json has {count}; bundle it anew")

    def adds_nothing(self, height: int, width: int, spec: Preprocessing) -> bool:
        """Whether the whole view shows every pixel, so that tiles and crops only enlarge what it shows anyway."""
        return adds_nothing(height, width, spec, self.policy)

    def look(self, rgb: NDArray[np.uint8], spec: Preprocessing, run: Run) -> Scores:
        """The scores of one image, of one row. run: float32 [n, 3, S, S], views of it -> `Outputs`."""
        if self.steps:
            return self._one_by_one(rgb, spec, run)
        logits, gate, without = run(cut(rgb, self.policy, spec, [0] if self.first_only and not self.gated else None))
        if self.pooled:
            assert without is not None, "a model of single views"  # asked for where the detector was loaded
            return Scores(logits=logits, gate=gate, extra=_spread(without[:, 1] - without[:, 0]))
        if self.pool is None:
            return Scores(logits=logits, gate=gate)
        m = logits[:, 1] - logits[:, 0]
        # The gate has no pool of its own: the mean is what it says of the image as a whole.
        return _scores(
            self.pool(m), m[:1] if self.first_only else m, None if gate is None else gate.mean(keepdims=True)
        )

    def _one_by_one(self, rgb: NDArray[np.uint8], spec: Preprocessing, run: Run) -> Scores:
        seen: list[float] = []
        for view, step in zip(self.order, self.steps, strict=True):
            logits = run(cut(rgb, self.policy, spec, [view])).logits
            seen.append(float(logits[0, 1] - logits[0, 0]))
            score = step.slope * step.pool(np.array(seen)) + step.shift
            if step.stops(score):
                break
        return _scores(score, np.array(seen), None)


ALONE = Views(WHOLE, None)


def views_of(
    document: Mapping[str, Any] | None, certified: Mapping[str, Any] | None, digest: str | None, *, gated: bool = False
) -> Views:
    """The views of a bundle. document: views.json, digest: of its bytes; certified: what the certificate says of views;
    gated: the policy takes the gate logits.

    Raises IntegrityError where the two speak of different views, or the document is none that a run writes.
    """
    if (None if certified is None else certified.get("digest")) != digest:
        raise IntegrityError("views.json: is not what the certificate is of; restore the bundle")
    if document is None:
        return ALONE
    try:
        policy = ViewPolicy.from_json(document["policy"])
        sequence = document["sequence"]
        if document["aggregator"]["name"] == POOLED:
            if sequence is not None:
                raise ValueError("a sequence for a head that needs all views")
            return Views(policy, None, pooled=True)
        pool = _pool(document["aggregator"], policy.count)
        if sequence is None:
            return Views(policy, pool, document["aggregator"]["name"] == "whole", gated)
        order = tuple(int(view) for view in sequence["order"])
        if sorted(order) != list(range(policy.count)) or len(sequence["steps"]) != policy.count:
            raise ValueError(f"order {order} with {len(sequence['steps'])} steps for {policy.count} views")
        return Views(
            policy, pool, False, gated, order, tuple(_step(row, n) for n, row in enumerate(sequence["steps"], start=1))
        )
    except (KeyError, TypeError, ValueError) as error:
        raise IntegrityError(f"views.json: is not one that a run writes ({error!r}); bundle it anew") from error


def _step(row: Mapping[str, Any], views: int) -> _Step:
    hopeless = None if row["hopeless"] is None else (float(row["hopeless"][0]), float(row["hopeless"][1]))
    return _Step(
        _pool(row["aggregator"], views), float(row["slope"]), float(row["shift"]), row["low"], row["high"], hopeless
    )


def _scores(margin: float, seen: Floats, gate: Floats | None) -> Scores:
    """P(0) = 1 - P(1) of one margin."""
    return Scores(logits=np.array([[-margin / 2, margin / 2]]), gate=gate, extra=_spread(seen))


def _spread(margins: Floats) -> dict[str, Floats]:
    """The column of how the views looked at differ: the standard deviation of the log-odds of the answer over them."""
    return {SPREAD: np.array([np.sqrt(((margins - margins.mean()) ** 2).sum() / len(margins))])}


# ---- pools of the margins of one image -----------------------------------------------------------------------------


def _pool(document: Mapping[str, Any], views: int) -> Pool:
    name = document["name"]
    kind, _, number = name.partition(":")
    if kind == "whole":
        return lambda m: float(m[0])
    if kind == "mean":
        return lambda m: float(m.mean())
    if kind == "max":
        return lambda m: float(m.max())
    if kind == "topk":
        return lambda m: float(np.sort(m)[-int(number) :].mean())
    if kind == "lse":
        return lambda m: _log_mean_exp(m, float(number))
    if kind == "noisy_or":
        return _noisy_or
    if kind == "learned":
        return _learned(document, views)
    raise ConfigError(f"views.json: aggregator {name!r}: a detector does not know it; upgrade stage1-pro")


def _log_mean_exp(m: Floats, beta: float) -> float:
    top = m.max()
    return float(top + np.log(np.exp(beta * (m - top)).mean()) / beta)


def _noisy_or(m: Floats) -> float:
    """The logit of 1 - prod(1 - sigma(m)): with S = sum log(1 + e^m) its odds are e^S - 1; exact at both ends."""
    terms = np.logaddexp(0.0, m)
    total = float(terms.sum())
    if total >= 1e-8:
        return float(total + np.log(-np.expm1(-total)))
    log_terms = np.where(m < _SMALL, m, np.log(np.maximum(terms, np.finfo(np.float64).tiny)))
    return float(np.logaddexp.reduce(log_terms) + total / 2)


def _learned(document: Mapping[str, Any], views: int) -> Pool:
    slopes, shift, first = (
        np.array(document["slopes"], dtype=np.float64),
        float(document["shift"]),
        int(document["has_whole"]),
    )
    if slopes.shape != (views,) or not np.isfinite(slopes).all():
        raise ValueError(f"{len(slopes)} slopes for {views} views")
    return lambda m: float(np.concatenate([m[:first], np.sort(m[first:])[::-1]]) @ slopes + shift)
