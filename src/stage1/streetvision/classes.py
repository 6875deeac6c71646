"""Which of two classes the StreetVision client asks for: class 1; for the detector, the stock folder and the reward."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stage1.errors import ConfigError

CLIENT_LABELS = ("None", "Roadwork")  # the client takes the score of the label called exactly so
_MEANS = (re.compile(r"none|(no|non|not|without)roadworks?"), re.compile(r"roadworks?"))


def reads_as(name: str) -> int | None:
    """0 (none) or 1 (roadwork), as which a name reads whatever its case, spaces, dashes and underscores; None: neither.

    >>> [reads_as(name) for name in ("None", "no-roadwork", "Road works", "day")]
    [0, 0, 1, None]
    """
    letters = re.sub(r"[\W_]+", "", name).lower()
    return next((index for index, pattern in enumerate(_MEANS) if pattern.fullmatch(letters)), None)


def require_order(classes: Sequence[str], where: str) -> None:
    """Raises ConfigError where the names of two classes say that class 0 is roadwork, or class 1 none: the client
    would get 1 - P.
    """
    if len(classes) == 2 and (reads_as(classes[0]) == 1 or reads_as(classes[1]) == 0):
        raise ConfigError(
            f"{where}: its class 0 is {classes[0]}, class 1 {classes[1]}; the client asks for P(roadwork), let roadwork"
            f" be class 1: data.classes=[{classes[1]},{classes[0]}] in a new run"
        )


def client_labels(classes: Sequence[str], where: str, positive: str | None = None) -> tuple[str, str]:
    """The client's labels of two classes in their order. positive: the class that is roadwork, given by the caller.

    Raises ConfigError for the other order, for names that do not tell the order where `positive` is None, and for a
    `positive` that is not class 1.
    """
    require_order(classes, where)
    if positive is None:
        if reads_as(classes[0]) is None and reads_as(classes[1]) is None:
            raise ConfigError(
                f"{where}: neither {classes[0]!r} nor {classes[1]!r} says which is roadwork; --positive {classes[1]}"
                " says that it is that one, --keep-names keeps the names"
            )
    elif positive not in classes:
        raise ConfigError(f"--positive {positive}: is no class of {where}; these are {', '.join(classes)}")
    elif positive != classes[1]:
        raise ConfigError(
            f"--positive {positive}: is class 0 of {where}, the client's Roadwork is class 1: "
            f"data.classes=[{classes[1]},{classes[0]}] in a new run"
        )
    return CLIENT_LABELS
