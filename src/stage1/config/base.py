"""What every section of the config is: its rules, the types of its numbers, and the nearest known name for messages."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

Rate = Annotated[float, Field(gt=0.0, lt=1.0)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]
PositiveInt = Annotated[int, Field(ge=1, le=2**31 - 1)]
Seed = Annotated[int, Field(ge=0, le=2**63 - 1)]
"""What numpy and torch both take."""


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values cannot change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


@dataclass(frozen=True, slots=True)
class OneOf:
    """Marks a text that is one of the names of a registry: `Annotated[str, OneOf(names)]`.

    names: asked when a value is checked, not when the config is imported, so that a row added to the registry is known
    and `import stage1` stays light. Errors and JSON Schema read as those of a Literal of these names.
    """

    names: Callable[[], Sequence[str]]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self._checked, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "enum": list(self.names())}

    def _checked(self, value: Any) -> Any:
        names = list(self.names())
        if value not in names:
            *others, last = [repr(name) for name in names]
            raise ValueError(f"Input should be {', '.join(others)} or {last}")
        return value


# What others call a key, where no spelling comes near it.
_OTHER_WORDS = {"views.global": "views.whole"}
_LONGEST = 100


def nearest(name: str, known: Sequence[str]) -> str:
    """The question "; did you mean 'NAME'?" with the known name that comes nearest, or nothing where none does."""
    if len(name) > _LONGEST:  # what is no slip of the pen would take minutes to compare
        return ""
    meant = _OTHER_WORDS.get(name)
    close = [meant] if meant in known else difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    if not close:
        tail = name.rsplit(".", 1)[-1]
        close = [key for key in known if key.rsplit(".", 1)[-1] == tail][:1] or [
            key for key in known if difflib.get_close_matches(tail, [key.rsplit(".", 1)[-1]], n=1, cutoff=0.7)
        ][:1]
    return f"; did you mean {close[0]!r}?" if close else ""
