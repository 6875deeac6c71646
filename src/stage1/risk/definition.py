"""What a risk is: a share of wrong answers among trials, counted row by row, and the words for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from stage1.errors import ConfigError

Bools = NDArray[np.bool_]
Ints = NDArray[np.int64]
Side = Literal["positive", "negative", "both", "class"]
Counting = Callable[..., tuple[Bools, Bools]]

OF_CLASS = ".<class>"
# The order in which a target names its risks: the sides of two classes, then what is about all, then class by class.
ORDER: tuple[Side, ...] = ("positive", "negative", "both", "class")


def on_average(method: str) -> bool:
    """Whether a method of a certificate bounds means over calibration sets, not this set's risks with a confidence.

    >>> on_average("SCRC-T, in expectation: conformal risk control")
    True
    """
    return method.startswith("SCRC-T")


@dataclass(frozen=True, slots=True)
class Risk:
    """One row of the table.

    side: the class whose images are answered wrongly in an error ("positive", "negative": two classes; "both": any
    class); "class": said of one class of more than two, asked as NAME.<class>.
    among: the trials: "exits" (images that exit) or "members" (all images of its class, or of all).
    monotone: never rises where a threshold moves outwards; so only where the trials do not depend on the thresholds.
    words: the limit as a clause of the certificate, with {at_most} and, of two classes, {positive}, {negative} (names)
    and {positives}, {negatives} ("roadwork images"), of one class {of}. meaning: the same as a share, for pages.
    counts(exits, answer, truth, k): (errors, trials), bool of the shape that the arguments broadcast to, row by row.
    exits: bool; answer, truth: int classes, answer without meaning where the row defers; k: the class of "class", else
    None. Raises ConfigError where side, among or monotone is not what `counts` does.

    >>> from stage1.risk import RISKS
    >>> risk = RISKS["fnr"]
    >>> errors, trials = risk.counts(np.array([True, True, False]), np.array([0, 1, 0]), np.array([1, 1, 1]))
    >>> errors.tolist(), trials.tolist()
    ([True, False, False], [True, True, False])
    >>> risk.share(["none", "roadwork"])
    'of roadwork images that exit, the share answered none'
    """

    name: str
    side: Side
    among: Literal["exits", "members"]
    monotone: bool
    words: str
    counts: Counting
    meaning: str = ""

    def __post_init__(self) -> None:
        if not self.name.isidentifier():
            raise ConfigError(f"risk {self.name!r}: a name is letters, digits and _, not starting with a digit")
        if self.side not in ORDER or self.among not in ("exits", "members"):
            raise ConfigError(f"risk {self.name!r}: side is one of {', '.join(ORDER)}, among exits or members")
        errors, trials = cells(self)
        wrong = ~np.eye(*errors.shape, dtype=np.bool_)
        wrong[:, -1] = False  # who defers gives no answer
        if not errors.any() or (errors & ~(trials & wrong)).any():
            raise ConfigError(f"risk {self.name!r}: its errors must be wrong answers that are given, among its trials")
        members = bool((trials.all(axis=1) == trials.any(axis=1)).all())
        if members != (self.among == "members") or (not members and trials[:, -1].any()):
            raise ConfigError(f"risk {self.name!r}: its trials are not what among={self.among!r} says")
        if self.monotone and not members:
            raise ConfigError(f"risk {self.name!r}: monotone, but its trials move with the thresholds")
        if self.side != "class":
            negative, positive = (bool(row.any()) for row in errors)
            side = "both" if negative and positive else "positive" if positive else "negative"
            if side != self.side:
                raise ConfigError(f"risk {self.name!r}: side is {self.side!r}, but its errors are of {side!r}")

    @property
    def key(self) -> str:
        """Its place in the table: its name, with ".<class>" where it is said of one class of many."""
        return self.name + OF_CLASS if self.side == "class" else self.name

    @property
    def of_one_class(self) -> bool:
        """Whether its trials are images of one class: then it does not change with the shares of the classes."""
        trials = cells(self)[1]
        return int(trials.any(axis=1).sum()) == 1

    @property
    def by_answer(self) -> bool:
        """Of side "class": whether it limits the images answered as the class, not the images of the class."""
        errors, _ = cells(self)
        return self.side == "class" and not bool(errors[0].any())

    def text(self, at_most: str, classes: Sequence[str], k: int = -1, images: Callable[[str], str] = str) -> str:
        """The limit in words, of classes (negative, positive) or of classes[k]. images: "roadwork" -> its images."""
        return self.words.format(at_most=at_most, **_named(classes, k, images))

    def share(self, classes: Sequence[str], k: int = -1) -> str:
        """What the share is, in words."""
        if not self.meaning:
            return self.text("the share that", classes, k)
        return self.meaning.format(**_named(classes, k, str))


def _named(classes: Sequence[str], k: int, images: Callable[[str], str]) -> dict[str, str]:
    negative, positive = str(classes[0]), str(classes[-1])
    return {
        "negative": negative,
        "positive": positive,
        "negatives": images(negative),
        "positives": images(positive),
        "of": str(classes[k]),
    }


# ---- a risk as sums of cells -------------------------------------------------------------------------------------


def cells(risk: Risk, *, of_many: bool = False) -> tuple[Bools, Bools]:
    """Which cells of the table of exits are errors, which are trials: bool [classes, classes + 1] each.

    Rows: true class; columns: answer, the last one: defers. Two classes: (negative, positive). of_many (and side
    "class" in any case): three, which represent all: the class that the risk is said of, and two others.

    >>> from stage1.risk import RISKS
    >>> errors, trials = cells(RISKS["fnr"])
    >>> errors.astype(int).tolist(), trials.astype(int).tolist()
    ([[0, 0, 0], [1, 0, 0]], [[0, 0, 0], [1, 1, 0]])
    """
    if risk.side == "class":
        return _probed(risk.counts, 3, 0)
    return _probed(risk.counts, 3 if of_many else 2, None)


@cache
def _probed(counts: Counting, n_classes: int, k: int | None) -> tuple[Bools, Bools]:
    truth, answer = np.indices((n_classes, n_classes + 1)).astype(np.int64)
    errors, trials = counts(answer < n_classes, answer, truth, k)
    return np.broadcast_to(errors, truth.shape), np.broadcast_to(trials, truth.shape)
