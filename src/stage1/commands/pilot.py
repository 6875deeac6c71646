"""How many labels it takes, from pilot scores: draw from them with replacement, certify by the real method, count.

The pilot is taken as the population, as the scores are in `audit`; `low` and `high` of a size are the error of that
simulation alone. They hold what is true of the population in few of many pilots (.56 to .78 where the level is .95), so
they are not called an interval, and `plan` says that there is none. Far beyond its own size the pilot's rows repeat,
and tied scores exit or defer as a block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from stage1.calibration import FittedMap, non_monotone
from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError
from stage1.evaluation.label_shift import prior_weights
from stage1.policy import policy_kind
from stage1.policy.boundary import boundary_of_map
from stage1.policy.power import Attempt, Pool, Trial, at_size, search
from stage1.policy.target import Request
from stage1.policy.threshold_choice import PATH_METHOD, Choice, choose
from stage1.policy.units import choose_unit
from stage1.scores import Scores
from stage1.stages.fitting import fit_configured, frozen_map

NO_INTERVAL = (
    "no interval: the pilot is itself a sample, taken here for the population; what it leaves open is in none of these"
    " numbers"
)
"""Of P(certified) and of the number of labels. Intervals over the draws hold what is true in .56 to .78 of pilots."""
_MOST_UNITS = 1 << 17


@dataclass(frozen=True, slots=True)
class PilotPlan:
    """n: smallest size tried from which on every size tried reached `wanted`, None where none did.

    below: largest size tried whose interval lies below `wanted` (None: none); above: smallest size tried from which on
    all lie above it by more than simulation error (None: none). Between them simulation error leaves it open.
    """

    wanted: float
    n: int | None
    below: int | None
    above: int | None
    unit: str
    prior: float
    trials: tuple[Trial, ...]

    def to_document(self) -> dict[str, Any]:
        """Plain values for --json and the figure; "interval" says why there is none."""
        return asdict(self) | {"trials": [asdict(trial) for trial in self.trials], "interval": NO_INTERVAL}


def pilot_plan(
    pilot: Scores,
    config: RunConfig,
    *,
    success: float = 0.9,
    draws: int = 200,
    select_share: float = 0.15,
    prior: float | None = None,
    sizes: Sequence[int] | None = None,
    precision: float = 0.05,
    seed: int = 0,
    say: Callable[[Trial], None] = lambda trial: None,
) -> PilotPlan:
    """P(certified) and coverage against the number of labels, and the smallest number that reaches `success`.

    pilot: labelled scores of any model, [N, K]. config: risks, confidence, floors, policy, unit ... as for `calibrate`.
    Of n units, select_share goes to val_select. Units are groups where the pilot has groups that repeat (drawn whole),
    else images. "Certified": the whole target, no side left closed. prior: P(class 1) of the draws; None: the pilot's.
    sizes: to try instead of the search, which doubles from the least that could do until `success` is reached and then
    bisects to `precision` (relative); a size that 20 draws show to be futile is drawn no further. Each size has
    draws of its own, so a size does not depend on which others are tried. say: gets each size as it is done.
    Raises ConfigError (options; a prior for groups), DataError (no labels, a class missing).
    """
    if not 0 < success < 1 or draws < 1 or not 0 < select_share < 1 or precision <= 0:
        raise ConfigError(
            f"success={success}, draws={draws}, select share {select_share}: shares in (0, 1), at least 1 draw"
        )
    source = _Source.of(pilot, prior, config)
    attempt = _attempt(source, _fitter(config, pilot))
    wanted = success if sizes is None else None
    found: dict[int, Trial] = {}

    def at(n: int) -> Trial:
        if n not in found:
            found[n] = at_size(n, attempt, draws=draws, select_share=select_share, seed=seed, wanted=wanted)
            say(found[n])
        return found[n]

    if sizes is None:
        least = _least(select_share)
        # One size more beyond the answer shows that it stays.
        search(lambda n: at(n).success >= success, least, max(2 * least, 64), _MOST_UNITS, precision, (1.25, 1.6))
    else:
        for n in sizes:
            if n < _least(select_share):
                raise ConfigError(f"size {n}: at least {_least(select_share)} units are needed for both roles")
            at(n)
    trials = tuple(found[n] for n in sorted(found))
    return PilotPlan(
        wanted=success,
        n=_from_which_on(trials, lambda trial: trial.success >= success),
        below=max((trial.n for trial in trials if trial.high < success), default=None),
        above=_from_which_on(trials, lambda trial: trial.low >= success),
        unit=source.unit,
        prior=source.share,
        trials=trials,
    )


# ---- the pilot as the population ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Source:
    """The pilot, ready to be drawn from. share: of class 1 in the draws."""

    pilot: Scores
    pool: Pool
    share: float

    @classmethod
    def of(cls, pilot: Scores, prior: float | None, config: RunConfig) -> _Source:
        labels = pilot.known_labels
        counts = np.bincount(labels, minlength=pilot.n_classes)
        if not len(labels) or (counts == 0).any():
            raise DataError(f"pilot: rows per class {counts.tolist()}; every class needs labelled rows")
        share = float(counts[1] / counts.sum())
        grouped = choose_unit(pilot, config.unit, config.assume_iid) != "image"
        if prior is None:
            whole = grouped and pilot.groups is not None
            return cls(pilot, Pool.of_groups(pilot.groups) if whole else Pool(len(labels)), share)  # type: ignore[arg-type]
        if pilot.n_classes != 2 or grouped:
            raise ConfigError(
                f"--prior {prior:g}: a pilot of {'groups' if grouped else f'{pilot.n_classes} classes'} is drawn at its"
                " own balance; leave it out"
            )
        if not 0 < prior < 1:
            raise ConfigError(f"--prior {prior:g}: must lie strictly between 0 and 1")
        weights = prior_weights(labels, prior)
        return cls(pilot, Pool(len(labels), weights=weights / weights.sum()), prior)

    @property
    def unit(self) -> str:
        return "image" if self.pool.members is None else "group"

    def draw(self, n: int, rng: np.random.Generator, role: str) -> Scores:
        """n units; a row or group that is drawn twice is two."""
        rows, sizes = self.pool.draw(n, rng)
        groups = None if sizes is None else np.repeat([f"{role}{index}" for index in range(n)], sizes)
        drawn = self.pilot.take(rows) if self.pilot.ids is None else _without_ids(self.pilot).take(rows)
        ids = np.array([f"{role}{index}" for index in range(len(rows))])
        return Scores(
            logits=drawn.logits,
            labels=drawn.labels,
            gate=drawn.gate,
            groups=groups,
            ids=ids,
            slices=drawn.slices,
            extra=drawn.extra,
        )


def _without_ids(scores: Scores) -> Scores:
    # A resample repeats rows, ids may not repeat.
    return Scores(
        logits=scores.logits,
        labels=scores.labels,
        gate=scores.gate,
        slices=scores.slices,
        extra=scores.extra,
    )


# ---- the real method ---------------------------------------------------------------------------------------------


Fit = Callable[[Scores, Scores], float | None]
"""(val_select, val_calib) -> share of the pilot that exits, None where the whole target is not certified."""


def _fitter(config: RunConfig, pilot: Scores) -> Fit:
    classes = tuple(config.data.classes or ())
    if len(classes) != pilot.n_classes:
        classes = tuple(str(index) for index in range(pilot.n_classes))
    frozen = None
    if not non_monotone(config.calibration.map):
        # Such a map only says which exits are favoured: that of the whole pilot will do, one in every draw would cost
        # time.
        frozen = frozen_map(config, pilot, gate=False, say=lambda text: None)
        if _plain(config, pilot):
            return _quick(config, pilot, classes, frozen)

    def fit(select: Scores, calib: Scores) -> float | None:
        policy = fit_configured(
            config, select=select, calib=calib, classes=classes, say=lambda text: None, frozen=frozen
        )
        certificate = policy.certificate
        return (
            policy.decide(pilot).coverage
            if certificate is not None and certificate.certified and certificate.reason is None
            else None
        )

    return fit


def _plain(config: RunConfig, pilot: Scores) -> bool:
    images = choose_unit(pilot, config.unit, config.assume_iid) == "image"
    return policy_kind(config.policy.name).on_margin and pilot.n_classes == 2 and images and not config.data.slices


def _quick(config: RunConfig, pilot: Scores, classes: tuple[str, ...], frozen: FittedMap) -> Fit:
    """The same thresholds without certificate and without a refusal's simulation (a hundred times slower)."""
    request = Request(
        config.risks_for(2),
        config.confidence,
        config.coverage,
        dict(config.class_coverage),
        config.target_prior,
        config.allow_one_sided,
        classes,
        config.policy.against_argmax,
    )
    if not config.policy.against_argmax:
        request = replace(request, boundary=boundary_of_map(frozen.map, pilot, None))
    margin = pilot.margin

    def fit(select: Scores, calib: Scores) -> float | None:
        score, labels = calib.margin, calib.known_labels
        asked = request
        if request.boundary is not None and config.target_prior is not None:
            # The balance from which the map is restated is that of the draw.
            asked = replace(request, boundary=boundary_of_map(frozen.map, select, config.target_prior))
        choice = choose(score, labels, asked, select.margin, select.known_labels)
        if not _whole(choice, request) or not np.logical_or(*choice.thresholds.exits(score)).any():
            return None
        return float(np.logical_or(*choice.thresholds.exits(margin)).mean())

    return fit


def _whole(choice: Choice, request: Request) -> bool:
    """No side of the target left closed; along the path a closed side is no failure."""
    sides = (choice.thresholds.lo is not None) + (choice.thresholds.hi is not None)
    return sides == 2 or (sides == 1 and (request.one_sided or choice.method == PATH_METHOD))


# ---- sizes -------------------------------------------------------------------------------------------------------


def _attempt(source: _Source, fit: Fit) -> Attempt:
    """val_select and val_calib drawn anew, and the share of the pilot that exits."""

    def attempt(n_select: int, n_calib: int, rng: np.random.Generator) -> float | None:
        select, calib = source.draw(n_select, rng, "s"), source.draw(n_calib, rng, "c")
        try:
            return fit(select, calib)
        except (ConfigError, DataError) as error:
            if not str(error).startswith("select:"):
                raise
            return None  # too few of a class in this draw of val_select to order the thresholds

    return attempt


def _least(select_share: float) -> int:
    return max(2, int(np.ceil(1.0 / select_share)), int(np.ceil(1.0 / (1.0 - select_share))))


def _from_which_on(trials: Sequence[Trial], holds: Callable[[Trial], bool]) -> int | None:
    n = None
    for trial in reversed(trials):
        if not holds(trial):
            break
        n = trial.n
    return n
