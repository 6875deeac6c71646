"""The numbers and texts that several kinds of documents hold."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field

Item = TypeVar("Item")

Count = Annotated[int, Field(ge=0)]
PositiveInt = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
NotNegative = Annotated[float, Field(ge=0)]
Text = Annotated[str, Field(min_length=1)]
Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
"""A sha256 in hexadecimal."""

JpegQuality = Annotated[int, Field(ge=1, le=100, description="JPEG quality of the files")]

Pooling = Literal["cls", "mean", "cls+mean", "pool"]
"""How the tokens of a backbone become one feature vector."""
PolicyName = Literal["softmax", "gate", "scrc"]


def _distinct(items: list[Any]) -> list[Any]:
    if any(item in items[:index] for index, item in enumerate(items)):
        raise ValueError(f"{items!r} has non-unique elements")
    return items


Distinct = Annotated[list[Item], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
"""A list in which nothing stands twice."""

Classes = Annotated[Distinct[Text], Field(min_length=2)]
"""The names of the classes, in the order of the columns of the logits."""
