"""The target where none is given: which risks, and how much of each, by the number of classes."""

from __future__ import annotations

TWO_CLASSES = {"fnr": 0.02, "false_exit_rate": 0.05}
MORE_CLASSES = {"error": 0.05}
"""fnr and false_exit_rate are about a positive and a negative class; wrong among the answers that are given is
about any.
"""


def default_risks(n_classes: int) -> dict[str, float]:
    """Risk -> target for so many classes, where the user names none.

    >>> default_risks(2), default_risks(10)
    ({'fnr': 0.02, 'false_exit_rate': 0.05}, {'error': 0.05})
    """
    return dict(TWO_CLASSES if n_classes == 2 else MORE_CLASSES)
