"""Which calibration map a run or a file of scores gets: chosen on val_select, before the calibration images are looked at."""

from __future__ import annotations

from collections.abc import Callable

from stage1.calibration import (
    BINARY,
    BINARY_KEEPING_ORDER,
    MULTICLASS,
    REORDERING,
    FrozenMap,
    choose_map,
    frozen,
    frozen_identity,
)
from stage1.config import RunConfig
from stage1.errors import ConfigError
from stage1.scores import Scores


def automatic(n_classes: int) -> tuple[str, ...]:
    """The candidates of `calibration.map=auto`: under these, thresholds on the raw score stay as they are."""
    return BINARY_KEEPING_ORDER if n_classes == 2 else ("temperature",)


def frozen_map(config: RunConfig, select: Scores, *, gate: bool, say: Callable[[str], None]) -> FrozenMap:
    """The map of least cross-validated NLL on val_select among those that the config allows; the identity, if none is better.

    gate: a gate is in use; it states a probability of its own, so no map of the scores is fitted. say: gets one line with
    the numbers. Raises ConfigError where the map asked for by name is not for so many classes.
    """
    wanted = config.calibration.map
    suited = BINARY if select.n_classes == 2 else MULTICLASS
    if wanted not in ("auto", "none", *suited):
        raise ConfigError(
            f"calibration.map: {wanted} is not for {select.n_classes} classes; use auto, none, {', '.join(suited)}"
        )
    if gate:
        found = frozen_identity(select, "the gate states a probability of its own, fitted on val_select too")
    elif wanted == "none":
        found = frozen_identity(select, "calibration.map=none")
    elif select.labels is None or len(select) == 0:
        found = frozen_identity(select, "val_select has no labelled rows to fit a map on")
    else:
        candidates = automatic(select.n_classes) if wanted == "auto" else (wanted,)
        choice = choose_map(select, candidates=candidates, keep_order=wanted not in REORDERING, seed=config.seed)
        found = frozen(choice, select)
    on = "" if found.score == "raw" else "; it moves the order, so thresholds and certificate are of the mapped score"
    say(f"  calibration map: {found.reason}{on}")
    return found
