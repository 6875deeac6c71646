"""The policy beside the plain argmax: what the likelier class gets wrong, on the same images and on all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.scores import Scores

RULES = {
    "policy": "policy, images that exit",
    "same_images": "argmax, the same images",
    "all_images": "argmax, all images",
}
"""Keys of the section `argmax` of evaluation.json, in words."""


def largest(n_classes: int) -> str:
    """Which logit decides of so many classes: "larger" of two, "largest" of more."""
    return "larger" if n_classes == 2 else "largest"


def beside_argmax(
    scores: Scores, exit: NDArray[np.bool_], label: NDArray[np.int64], classes: Sequence[str]
) -> dict[str, Any]:
    """The section `argmax`: of each rule the images it answers, its errors among them, and both for each true class.

    scores: N labelled rows; argmax is the class of the larger logit, the one whose share of right answers is
    `accuracy`.
    exit: bool [N], label: int [N]: the policy's decision.
    """
    truth, likeliest = scores.known_labels, scores.logits.argmax(axis=1)
    everywhere = np.ones(len(truth), dtype=np.bool_)

    def counted(answered: NDArray[np.bool_], answer: NDArray[np.int64]) -> dict[str, Any]:
        wrong = answered & (answer != truth)
        return {
            "n": int(answered.sum()),
            "errors": int(wrong.sum()),
            "per_class": {
                name: {"n": int((answered & (truth == k)).sum()), "errors": int((wrong & (truth == k)).sum())}
                for k, name in enumerate(classes)
            },
        }

    return {
        "policy": counted(exit, label),
        "same_images": counted(exit, likeliest),
        "all_images": counted(everywhere, likeliest),
    }


@dataclass(frozen=True, slots=True)
class Beside:
    """One line of the comparison. coverage: share of all images that are answered; error: None where there are none."""

    rule: str
    n: int
    coverage: float
    errors: int
    error: float | None
    per_class: Mapping[str, tuple[int, int]]  # class -> (errors, answered)


def argmax_lines(document: Mapping[str, Any]) -> list[Beside]:
    """The rows to show of an evaluation document, policy first; none where it was written before it had the section."""
    section, total = document.get("argmax"), document["n"]
    if section is None:
        return []
    return [
        Beside(
            words,
            row["n"],
            row["n"] / total if total else 0.0,
            row["errors"],
            row["errors"] / row["n"] if row["n"] else None,
            {name: (part["errors"], part["n"]) for name, part in row["per_class"].items()},
        )
        for row, words in ((section[key], words) for key, words in RULES.items())
    ]
