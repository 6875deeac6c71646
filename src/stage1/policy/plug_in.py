"""The control of an audit: the riskiest thresholds whose observed risks meet the targets, without any confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stage1.policy.closed_form import Thresholds
from stage1.policy.counts import count_exits
from stage1.policy.ordering import Goal, calibrated_path
from stage1.policy.threshold_choice import pair_at
from stage1.scores import Scores


def plug_in_thresholds(select: Scores, calib: Scores, targets: Mapping[str, float]) -> Thresholds | None:
    """Of two classes, on the raw margin; None where val_select gives no path."""
    path = calibrated_path(select.margin, select.known_labels, Goal(targets, len(calib), 0.5))
    if path is None:
        return None
    labels, margin = calib.known_labels, calib.margin
    exits = count_exits(margin[labels == 0], margin[labels == 1], path.lo, path.hi)
    return pair_at(path, last_that_meets([exits.counts(name) for name in targets], list(targets.values())))


def last_that_meets(counts: Sequence[tuple[Any, Any]], targets: Sequence[float]) -> int:
    """The last place of a path whose observed risks are all within the targets, 0 where there is none."""
    meets = np.logical_and.reduce(
        [errors <= target * trials for (errors, trials), target in zip(counts, targets, strict=True)]
    )
    return int(np.flatnonzero(meets)[-1]) if meets.any() else 0
