"""What `stage1 predict --json` writes, typed."""

from __future__ import annotations

from typing import Annotated, Any, NotRequired

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import TypedDict

from stage1.storage.documents import Document, DocumentKind
from stage1.storage.fields import Count, Digest, PolicyName, PositiveInt, Share, Text


class PredictionsBundle(TypedDict):
    """The bundle that answered."""

    name: NotRequired[Text]
    digest: NotRequired[Digest]
    policy: NotRequired[PolicyName]
    certified: NotRequired[bool]
    """False: every image defers."""
    classes: NotRequired[Annotated[list[Text], Field(min_length=2)]]
    views: NotRequired[Text]
    """The views of each image in words; absent: the whole image alone."""
    slices: NotRequired[Text]
    """The attribute by whose value thresholds differ; absent: one pair is for all images."""
    unclaimed: NotRequired[Annotated[list[Text], Field(min_length=1)]]
    """Classes that are shut: no image exits as one, and nothing is claimed of their images; absent: none."""


_PER_CLASS = {"type": ["number", "null"], "minimum": 0, "maximum": 1}


class PredictionRow(TypedDict):
    """One image. Beside the keys below p_<class>, the stated probability of that class, for each class of the
    bundle.
    """

    __pydantic_config__ = ConfigDict(  # type: ignore[misc]
        extra="allow",
        strict=True,
        use_attribute_docstrings=True,
        json_schema_extra={
            "additionalProperties": False,
            "patternProperties": {"^p_": _PER_CLASS},
            "dependentRequired": {"views": ["view", "box", "small"]},
        },
    )
    path: str
    label: str | None
    probability: Annotated[Share | None, Field(deprecated=True)]
    """P(class 1) for two classes, else that of the label. Its meaning stays; new code takes confidence or p_<class>,
    which mean the same for any number of classes.
    """
    confidence: NotRequired[Share | None]
    """The stated probability of the label of this row."""
    exit: bool
    decision: Annotated[str, Field(pattern="^(defer$|exit:)")]
    error: str | None
    """What is wrong with an image that could not be answered."""
    reason: NotRequired[str | None]
    """Why it defers whatever its score: no known or certified slice, or the class it looks like is shut. Only where the
    bundle has `slices` or `unclaimed`.
    """
    views: NotRequired[PositiveInt | None]
    """How many views were looked at."""
    view: NotRequired[str | None]
    """The view that decided."""
    box: NotRequired[Annotated[list[Count], Field(min_length=4, max_length=4)] | None]
    """Where that view lies: top, left, bottom, right, in pixels of the decoded image."""
    small: NotRequired[bool]
    """The image is no larger than the model's input: tiles and crops add nothing to the whole view."""


def _whole_row(row: dict[str, Any]) -> dict[str, Any]:
    for name, value in row.items():
        if name in PredictionRow.__annotations__:
            continue
        if not name.startswith("p_"):
            raise ValueError(f"Additional properties are not allowed ({name!r} was unexpected)")
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= 1):
            raise ValueError(f"{name}: {value!r} is neither null nor a number from 0 to 1")
    missing = [name for name in ("view", "box", "small") if "views" in row and name not in row]
    if missing:
        raise ValueError(f"{missing[0]!r} is a dependency of 'views'")
    return row


class PredictionsDocument(Document):
    """What `stage1 predict --json` writes: the bundle that answered, one row for each image in their order, counts."""

    bundle: PredictionsBundle
    rows: list[Annotated[PredictionRow, AfterValidator(_whole_row)]]
    images: Count
    """Number of rows."""
    exits: Count
    failures: Count
    """Images that could not be answered; they defer."""
    small: NotRequired[Count]
    """Images that count as small in their row; only where the bundle has views."""


PREDICTIONS_KIND = DocumentKind("predictions", PredictionsDocument)
