"""views.json: the view policy of a bundle, its aggregator, the sequence of adaptive views; frozen on val_select."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.runtime.crops import ViewPolicy
from stage1.storage.documents import SCHEMA_VERSION, read_document, write_document
from stage1.storage.files import digest_bytes
from stage1.views.adaptive import Sequence
from stage1.views.base import Aggregator, Floats, as_logits, checked, margins
from stage1.views.learned import Pooled
from stage1.views.registry import from_document
from stage1.views.schema import VIEWS_KIND

Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class ViewsDocument:
    """What views.json holds.

    aggregator: of all views. sequence: adaptive views, which then make the score; None: every image is seen with every
    view.
    comparison: how the aggregator was chosen (`Choice.to_document`), for the reader; None where it was not compared.
    select_folds: where aggregator or sequence were fitted on val_select, into how many folds it was dealt so that each
    image's score there is by a fit on the others (cross_fit.py); 0: its scores are by what ships, all the same. None:
    nothing was fitted on it.
    Raises DataError where policy, aggregator and sequence are about different numbers of views.
    """

    policy: ViewPolicy
    aggregator: Aggregator
    sequence: Sequence | None = None
    comparison: Mapping[str, Any] | None = None
    select_folds: int | None = None

    def __post_init__(self) -> None:
        count, name = self.policy.count, self.aggregator.name
        fitted = count if self.aggregator.views is None else self.aggregator.views
        ordered = count if self.sequence is None else len(self.sequence.order)
        for what, views in (("aggregator", fitted), ("sequence", ordered)):
            if views != count:
                raise DataError(
                    f"views: the {what} is for {views} views, the policy has {count}; fit it on these views"
                )
        if name == "whole" and not self.policy.whole:
            raise DataError("views: the aggregator is whole and the policy has no whole view; use another")
        if self.pooled and self.sequence is not None:
            raise DataError("views: a head on pooled features needs all views; it has no sequence")

    @property
    def pooled(self) -> bool:
        """Whether the head makes one answer of all views, so that the model's logits are the image's."""
        return isinstance(self.aggregator, Pooled)

    @property
    def description(self) -> str:
        """In words, e.g. "10 views (whole + 3x3 tiles, 12 % overlap), aggregated by topk:3"."""
        if self.pooled:
            return f"{self.policy.description}, by their pooled features"
        text = f"{self.policy.description}, aggregated by {self.aggregator.name}"
        return text if self.sequence is None else f"{text}, as many of them in turn as an image needs"

    @property
    def digest(self) -> str:
        """sha256 of the file, as `save` writes it."""
        content = {"schema_version": SCHEMA_VERSION, **self.to_document()}
        return digest_bytes((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())

    def aggregate(self, view_logits: ArrayLike) -> tuple[Floats, Ints, Ints]:
        """(logits float64 [N, K], views evaluated int64 [N], deciding view int64 [N]) of view logits [N, V, K].

        The deciding view has the largest contribution to the answer (the class of the larger aggregated logit).
        With a sequence the logits are of its calibrated log-odds; views past the stop are not evaluated. Raises
        DataError.
        """
        logits = checked(view_logits)
        if logits.shape[1] != self.policy.count:
            raise DataError(
                f"view logits: {logits.shape[1]} views, the policy has {self.policy.count}; score with these views"
            )
        if self.sequence is not None:
            m = margins(logits)
            score, used = self.sequence.run(m)
            return as_logits(score), used, _deciding(self.sequence.contributions(m, used), score > 0)
        made = self.aggregator(logits)
        used = np.full(len(logits), 1 if self.aggregator.name == "whole" else self.policy.count, dtype=np.int64)
        if logits.shape[2] == 2:
            return made, used, _deciding(self.aggregator.contributions(logits), made[:, 1] > made[:, 0])
        answer = made.argmax(axis=1)[:, None, None]
        own = np.take_along_axis(logits, answer, axis=2)[..., 0]
        others = np.where(np.arange(logits.shape[2]) == answer, -np.inf, logits).max(axis=2)
        deciding = np.argmax(own - others, axis=1) if self.aggregator.name == "mean" else np.zeros(len(logits))
        return made, used, np.asarray(deciding, dtype=np.int64)

    def to_document(self) -> dict[str, Any]:
        """Plain values for views.json."""
        # Left out where there is none: older files have the digest that their certificates name.
        folds = {} if self.select_folds is None else {"select_folds": self.select_folds}
        return {
            "policy": self.policy.to_json(),
            "views": list(self.policy.names),
            "aggregator": self.aggregator.to_document(),
            "sequence": None if self.sequence is None else self.sequence.to_document(),
            "comparison": None if self.comparison is None else dict(self.comparison),
            **folds,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write views.json, whole or not at all."""
        write_document(path, self.to_document(), VIEWS_KIND)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ViewsDocument:
        """Read views.json. Raises MissingError, IntegrityError (damaged, or parts that do not belong together)."""
        document = read_document(path, VIEWS_KIND)
        try:
            sequence = document["sequence"]
            found = cls(
                ViewPolicy.from_json(document["policy"]),
                from_document(document["aggregator"]),
                None if sequence is None else Sequence.from_document(sequence),
                document["comparison"],
                document.get("select_folds"),
            )
        except (ConfigError, DataError) as error:
            raise IntegrityError(f"{path}: {error}; restore it or run `stage1 score` again") from error
        if list(found.policy.names) != document["views"]:
            raise IntegrityError(f"{path}: views are not those of its policy; restore it or run `stage1 score` again")
        return found


def _deciding(contributions: Floats, positive: NDArray[np.bool_]) -> Ints:
    """The view of largest contribution to the answer; NaN: no say. The first one at a tie."""
    towards = np.where(positive[:, None], contributions, -contributions)
    return np.asarray(np.argmax(np.where(np.isnan(towards), -np.inf, towards), axis=1), dtype=np.int64)
