"""The table of aggregators, by the name of their kind: making, fitting, and reading one back from views.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import ConfigError, DataError
from stage1.runtime.crops import ViewPolicy
from stage1.views.base import Aggregator, Floats, checked, margins
from stage1.views.learned import Learned, Pooled
from stage1.views.pooling import MULTICLASS, Pool, pool_name


@dataclass(frozen=True, slots=True)
class AggregatorKind:
    """A row of AGGREGATORS.

    example: as it is asked for in `views.aggregate`, and compared by default: the name, with a number where it takes
    one. meaning: in words, for the page; {number} is its number. read: the inverse of `to_document`. make: from
    the name as asked for; None where it is fitted. fit: from (margins of val_select float [N, V], labels int [N],
    whether the first view is the whole image); None where it has no parameters. Without `make` and `fit` no config can
    ask for it. spelled: the one spelling of a name with a number, raises ConfigError; None: it takes none. multiclass:
    to be had with more than two classes.
    """

    example: str
    meaning: str
    read: Callable[[Mapping[str, Any]], Aggregator]
    make: Callable[[str], Aggregator] | None = None
    fit: Callable[[Floats, NDArray[np.int64], bool], Aggregator] | None = None
    spelled: Callable[[str], str] | None = None
    multiclass: bool = False

    @property
    def name(self) -> str:
        return self.example.partition(":")[0]

    @property
    def asked(self) -> bool:
        """Whether a config may ask for it."""
        return self.make is not None or self.fit is not None


def _read_pool(document: Mapping[str, Any]) -> Pool:
    return Pool(document["name"])


def _pool(example: str, meaning: str) -> AggregatorKind:
    spelled = pool_name if ":" in example else None
    return AggregatorKind(example, meaning, _read_pool, make=Pool, spelled=spelled, multiclass=example in MULTICLASS)


AGGREGATORS: dict[str, AggregatorKind] = {
    kind.name: kind
    for kind in (
        _pool("whole", "the whole image alone"),
        _pool("mean", "the mean of the views' logits"),
        _pool("topk:3", "the mean of the {number} largest log-odds"),
        _pool("lse:8", "a soft maximum of the log-odds, of sharpness {number}"),
        _pool("noisy_or", "the chance that at least one view shows it, as if views were independent"),
        _pool("max", "the largest log-odds"),
        AggregatorKind(
            "learned",
            "a logistic regression on the whole image and the other views, sorted",
            Learned.from_document,
            fit=lambda view_margins, labels, has_whole: Learned.fit(view_margins, labels, has_whole=has_whole),
        ),
        AggregatorKind(
            "pooled",
            "a head on features pooled over the views: the whole image's, the largest of the others and their mean",
            lambda document: Pooled(),
        ),
    )
}
"""Every aggregator that views.json may name. A further one is its file and its row here."""


def default_names() -> tuple[str, ...]:
    """What `choose_aggregator` compares where nothing else is asked for."""
    return tuple(kind.example for kind in AGGREGATORS.values() if kind.asked)


def multiclass_names() -> tuple[str, ...]:
    """What can be had with more than two classes."""
    return tuple(kind.example for kind in AGGREGATORS.values() if kind.asked and kind.multiclass)


def aggregate_name(name: str) -> str:
    """What makes one answer of the views, as in views.json: "topk:3" for "topk:3.0". Raises ConfigError."""
    kind = AGGREGATORS.get(name.partition(":")[0])
    if kind is None or not kind.asked or (kind.spelled is None and name != kind.name):
        *names, last = default_names()
        raise ConfigError(f"views.aggregate: {name!r} is unknown; use {', '.join(names)} or {last}")
    return name if kind.spelled is None else kind.spelled(name)


def is_fitted(name: str) -> bool:
    """Whether the aggregator of this name has parameters that are fitted on val_select."""
    return _kind(name).fit is not None


def meaning(name: str) -> str:
    """How the views' answers become one, in words: "topk:3" -> "the mean of the 3 largest log-odds"."""
    return _kind(name).meaning.format(number=name.partition(":")[2])


def check_classes(name: str, n_classes: int) -> None:
    """Raises ConfigError where an aggregator cannot be had with so many classes."""
    if n_classes > 2 and not _kind(name).multiclass:
        raise ConfigError(
            f"views.aggregate: {name} is for two classes, there are {n_classes}; use {' or '.join(multiclass_names())}"
        )


def aggregator(
    name: str, policy: ViewPolicy, select_view_logits: ArrayLike | None = None, select_labels: ArrayLike | None = None
) -> Aggregator:
    """The aggregator of this name for views cut by `policy`; "learned" is fitted on logits and labels of val_select.

    Raises ConfigError (unknown name; "learned" without what it is fitted on; "whole" of a policy that has no whole
    view), DataError (logits that do not fit the policy).
    """
    if name == "whole" and not policy.whole:
        raise ConfigError(
            "views.aggregate: whole, but these views have no whole image; use mean, or set views.whole=true"
        )
    kind = _kind(aggregate_name(name))
    if kind.make is not None:
        return kind.make(name)
    assert kind.fit is not None, "what can be asked for is made or fitted"
    if select_view_logits is None or select_labels is None:
        raise ConfigError(f"views.aggregate: {name} is fitted on labelled view logits of val_select; give them")
    logits = checked(select_view_logits)
    check_classes(name, logits.shape[2])
    if logits.shape[1] != policy.count:
        raise DataError(f"view logits: {logits.shape[1]} views, the policy has {policy.count}; score with these views")
    return kind.fit(margins(logits), np.asarray(select_labels), policy.whole)


def from_document(document: Mapping[str, Any]) -> Aggregator:
    """The inverse of `to_document`. Raises ConfigError (unknown name), DataError (bad parameters)."""
    return _kind(document["name"]).read(document)


def _kind(name: str) -> AggregatorKind:
    kind = AGGREGATORS.get(name.partition(":")[0])
    if kind is None:
        raise ConfigError(f"views.aggregate: {name!r} is unknown; use {', '.join(AGGREGATORS)}")
    return kind
