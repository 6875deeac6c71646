"""views.json, typed: views, how their logits become one, and how many an image needs."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Discriminator, Field, Tag
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Distinct, PositiveInt, Rate, Share

Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class ViewPolicyDocument(TypedDict):
    """Which views there are."""

    whole: bool
    grid: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)] | None
    overlap: Share
    flips: bool
    scales: list[Rate]


_NAMED = "^(whole|mean|max|noisy_or|pooled|topk:.*|lse:.*)$"


class NamedAggregator(TypedDict):
    """An aggregator that its name, with its number, describes."""

    name: Annotated[str, Field(pattern=_NAMED)]


class LearnedAggregator(TypedDict):
    """The aggregator that was fitted on val_select."""

    name: Literal["learned"]
    has_whole: bool
    slopes: Annotated[list[float], Field(min_length=1)]
    shift: float


class OtherAggregator(TypedDict):
    """An aggregator that was added to the registry, which checks its parameters itself."""

    __pydantic_config__ = ConfigDict(extra="allow", strict=True)  # type: ignore[misc]
    name: Annotated[str, Field(min_length=1, json_schema_extra={"not": {"pattern": _NAMED[:-2] + "|learned)$"}})]


def _by_name(document: Any) -> str:
    name = document.get("name") if isinstance(document, dict) else None
    if isinstance(name, str) and re.match(_NAMED, name):
        return "named"
    return "learned" if name == "learned" else "other"


AggregatorDocument = Annotated[
    Annotated[LearnedAggregator, Tag("learned")]
    | Annotated[NamedAggregator, Tag("named")]
    | Annotated[OtherAggregator, Tag("other")],
    Discriminator(_by_name),
]


class StepDocument(TypedDict):
    """One step of the sequence: when to stop after it."""

    aggregator: AggregatorDocument
    slope: float
    shift: float
    low: float | None
    high: float | None
    hopeless: Pair | None


class ExpectedViews(TypedDict):
    """What the sequence promised on val_select."""

    views: Annotated[float, Field(ge=1)]
    coverage: Share
    coverage_all: Share
    tolerance: Share
    none_early: NotRequired[str]


class SequenceDocument(TypedDict):
    """Adaptive views: their order, and the steps."""

    order: Annotated[Distinct[Count], Field(min_length=1)]
    steps: Annotated[list[StepDocument], Field(min_length=1)]
    expected: ExpectedViews


class ComparedAggregator(TypedDict):
    """One aggregator against the reference."""

    name: str
    augrc: float
    raw_augrc: float
    difference: float | None
    low: float | None
    high: float | None
    ece_before: float
    ece_after: float


class AggregatorComparison(TypedDict):
    """How the aggregator was chosen on val_select."""

    chosen: str
    reference: str
    reason: str
    n: Count
    n_groups: Count
    resamples: Count
    seed: int
    table: list[ComparedAggregator]


class ViewsFile(Document):
    """Views of an image, how their logits become one, and how many an image needs; frozen on val_select."""

    policy: ViewPolicyDocument
    views: Annotated[Distinct[str], Field(min_length=1)]
    aggregator: AggregatorDocument
    sequence: SequenceDocument | None
    comparison: AggregatorComparison | None
    select_folds: NotRequired[Count]


VIEWS_KIND = DocumentKind("views", ViewsFile)
