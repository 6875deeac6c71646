"""How often acceptance gates were judged on the images of val_test, and what is left of their confidence.

A gate by `bound` passes a model that is worse than its limit with probability at most alpha = (1 - level) / 2, once.
Whoever tries models until one passes has as many chances as models. So look j at the same images is judged at

    alpha_1 = alpha,  alpha_j = alpha * 6 / (pi^2 (j - 1)^2)  for j >= 2,

whose sum over all j is 2 alpha = 1 - level: whatever is tried, and whatever made somebody stop, some model worse than
its limit passes one gate with probability at most 1 - level (union bound). The first look is as it would be alone. A
gate by `value` has no confidence at all; there the number of looks is told.

A look is another state of the run: its outputs on val_test, its policy, or its gates. Looks are counted in this run
directory and in those beside it whose val_test shares an image with this one. Deleting `val_test_looks.json` or moving
a run elsewhere hides looks; nothing here can prevent that.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import pi
from pathlib import Path
from typing import Any

from stage1.errors import Stage1Error
from stage1.evaluation.rates import clopper_pearson
from stage1.policy import policy_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import LOOKS_KIND
from stage1.scores import read_role
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_bytes, digest_file

LOOKS_FILE = "val_test_looks.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of a run: value, interval ends (None: undefined), and why something is undefined.

    counts: (errors, trials) where it is a share of independent images; on_test: measured on val_test.
    """

    value: float | None
    low: float | None
    high: float | None
    why: str = ""
    counts: tuple[int, int] | None = None
    on_test: bool = False


def share_of_alpha(look: int) -> float:
    """alpha_look / alpha.

    >>> [round(share_of_alpha(look), 3) for look in (1, 2, 3, 5)]
    [1.0, 0.608, 0.152, 0.038]
    """
    return 1.0 if look == 1 else 6.0 / (pi * (look - 1)) ** 2


def at_look(measured: Measured, look: int, level: float, units: int | None = None) -> Measured:
    """The interval at the level that is left for look number `look`; of independent images and groups alike.

    Shares of independent images get their exact interval. Other ends move away from the value by the ratio of the
    normal quantiles (of t with units - 1 degrees of freedom where `units` groups are given), which bootstrap replicates
    cannot show so far out.
    """
    if look == 1 or not measured.on_test or measured.value is None:
        return measured
    from scipy import stats

    alpha = (1.0 - level) / 2
    now = alpha * share_of_alpha(look)
    law = stats.norm if units is None else stats.t(max(units - 1, 1))
    factor = float(law.isf(now) / law.isf(alpha))
    value = measured.value
    low, high = (None if end is None else value + factor * (end - value) for end in (measured.low, measured.high))
    if measured.counts is not None:
        exact = clopper_pearson(*measured.counts, 1.0 - 2 * now)
        low = None if low is None else min(low, exact[0])
        high = None if high is None else max(high, exact[1])
    return replace(measured, low=low, high=high)


def this_look(run: RunDir, gates: list[Mapping[str, Any]]) -> int:
    """The number of this look at the images of val_test, noted beside the run before anybody sees what came of it.

    The same state again is the same look. Raises IntegrityError for a damaged file of this run.
    """
    ids = _ids(run.path)
    state = _state(run.path, gates)
    path = run / LOOKS_FILE
    own = read_document(path, LOOKS_KIND)["looks"] if path.is_file() else []
    for look in own:
        if look["state"] == state:
            return int(look["look"])
    earlier = {look["state"]: look["look"] for look in own}
    for other in sorted(run.path.resolve().parent.glob(f"*/{LOOKS_FILE}")):
        if other.parent != run.path.resolve() and _shares(other.parent, ids):
            earlier |= {look["state"]: look["look"] for look in read_document(other, LOOKS_KIND)["looks"]}
    if state in earlier:  # a copy of a run beside it
        number = int(earlier[state])
    else:
        number = 1 + max(len(earlier), *earlier.values(), 0)
    write_document(path, {"looks": [*own, {"state": state, "look": number}]}, LOOKS_KIND)
    return number


def looks_line(look: int, level: float) -> str | None:
    """What to say of it; None for the first look."""
    if look == 1:
        return None
    alpha = (1.0 - level) / 2 * share_of_alpha(look)
    return (
        f"look {look} at these val_test images: bounds on val_test are taken at {100 * (1 - alpha):.4g} % each, so that"
        f" all looks together let a worse model pass with probability at most {1 - level:.3g}; a gate by value has no"
        f" such limit (the best of {look} looks good by chance)"
    )


def _ids(folder: Path) -> set[str]:
    scores = read_role(folder, "val_test")
    return set() if scores.ids is None else set(scores.ids.tolist())


def _shares(folder: Path, ids: set[str]) -> bool:
    try:
        return bool(_ids(folder) & ids)
    except Stage1Error:
        # A run whose scores are gone or damaged was judged on images that nobody can name: it counts.
        return True


def _state(folder: Path, gates: list[Mapping[str, Any]]) -> str:
    files = [*sorted(folder.glob("val_test_*.pt")), *sorted(folder.glob("val_test_*.npy")), policy_file(folder)]
    parts = [digest_file(path) for path in files]
    return digest_bytes("\n".join([*parts, json.dumps(gates, sort_keys=True)]).encode())
