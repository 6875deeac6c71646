"""The numbers and texts that several kinds of documents hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

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

Pooling = Literal["cls", "mean", "cls+mean", "pool", "pool+inner"]
"""How the last feature map or tokens of a backbone become one feature vector."""
Nothing = Annotated[dict[str, Any], Field(max_length=0)]

ScoreScale = Literal["raw", "mapped"]
Unit = Literal["image", "group", "group_draws", "group_mean"]
PolicyName = Text
"""A key of POLICIES (policy/registry.py), which is open: what reads the policy file refuses a name that is none."""


def _distinct(items: list[Any]) -> list[Any]:
    if any(item in items[:index] for index, item in enumerate(items)):
        raise ValueError(f"{items!r} has non-unique elements")
    return items


Distinct = Annotated[list[Item], AfterValidator(_distinct), Field(json_schema_extra={"uniqueItems": True})]
"""A list in which nothing stands twice."""

Classes = Annotated[Distinct[Text], Field(min_length=2)]
"""The names of the classes, in the order of the columns of the logits."""


@dataclass(frozen=True)
class Holds:
    """Keys that a mapping of free keys must hold: `Annotated[dict[str, Count], Holds("asked", "failed")]`."""

    names: tuple[str, ...]

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def check(self, mapping: dict[str, Any]) -> dict[str, Any]:
        for name in self.names:
            if name not in mapping:
                raise ValueError(f"{name!r} is a required property")
        return mapping

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, made: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(made), "required": list(self.names)}
