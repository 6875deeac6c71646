"""What a document violates of its type, as a field and a few words with the value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails


def violation(error: ValidationError, document: Any) -> tuple[str, str]:
    """(field, words) of the violation that lies least deep in `document`; field: "a.0.b", "" for the document itself.

    The words name the value that was found and what was expected, e.g. ("n", "-1 is less than the minimum of 0").
    """
    found = [(_place(each, document), each) for each in error.errors(include_url=False)]
    # Of several at one depth the first, but a key too many before one that is missing: one may be the other, misspelt.
    place, first = min(found, key=lambda pair: (len(pair[0]), pair[1]["type"] == "missing"))
    return ".".join(str(part) for part in place), _words(first)


def _place(error: ErrorDetails, document: Any) -> list[str | int]:
    """The keys and indices that lead to the violation: of a key that is missing or too many, to what should hold it.

    pydantic names the branches of a union and "[key]" among them; what is no key of the document is left out.
    """
    place: list[str | int] = []
    held = document
    for part in error["loc"][: -1 if error["type"] in _OF_THE_HOLDER or "[key]" in error["loc"] else None]:
        try:
            held = held[part]
        except (TypeError, KeyError, IndexError):
            continue
        place.append(part)
    if "[key]" in error["loc"] and place:
        place.pop()
    if error["type"] == "union_tag_invalid":
        place.append(error["ctx"]["discriminator"].strip("'"))
    return place


_OF_THE_HOLDER = {"missing", "extra_forbidden"}


def _words(error: ErrorDetails) -> str:
    made = _WORDS.get(error["type"])
    return made(error) if made else f"{error['input']!r}: {error['msg']}"


def _type(name: str) -> Callable[[ErrorDetails], str]:
    return lambda error: f"{error['input']!r} is not of type {name!r}"


def _beyond(words: str, bound: str) -> Callable[[ErrorDetails], str]:
    def say(error: ErrorDetails) -> str:
        limit = error["ctx"][bound]
        return f"{error['input']!r} is {words} of {int(limit) if limit == int(limit) else limit}"

    return say


def _too_short(error: ErrorDetails) -> str:
    return f"{error['input']!r} {'should be non-empty' if error['ctx']['min_length'] == 1 else 'is too short'}"


def _too_long(error: ErrorDetails) -> str:
    return f"{error['input']!r} is too long"


def _not_among(error: ErrorDetails) -> str:
    expected: str = error["ctx"]["expected"]  # "1", or "'a', 'b' or 'c'"
    if " or " not in expected:
        return f"{expected} was expected"
    return f"{error['input']!r} is not one of [{expected.replace(' or ', ', ')}]"


_WORDS: dict[str, Callable[[ErrorDetails], str]] = {
    "missing": lambda error: f"{error['loc'][-1]!r} is a required property",
    "extra_forbidden": lambda error: f"Additional properties are not allowed ({error['loc'][-1]!r} was unexpected)",
    "int_type": _type("integer"),
    "int_from_float": _type("integer"),
    "float_type": _type("number"),
    "string_type": _type("string"),
    "bool_type": _type("boolean"),
    "list_type": _type("array"),
    "tuple_type": _type("array"),
    "dict_type": _type("object"),
    "none_required": _type("null"),
    "literal_error": _not_among,
    "union_tag_invalid": lambda error: f"{error['ctx']['tag']!r} is not one of [{error['ctx']['expected_tags']}]",
    "union_tag_not_found": lambda error: f"{error['ctx']['discriminator']} is a required property",
    "model_attributes_type": _type("object"),
    "greater_than": _beyond("less than or equal to the minimum", "gt"),
    "greater_than_equal": _beyond("less than the minimum", "ge"),
    "less_than": _beyond("greater than or equal to the maximum", "lt"),
    "less_than_equal": _beyond("greater than the maximum", "le"),
    "string_too_short": _too_short,
    "too_short": _too_short,
    "string_too_long": _too_long,
    "too_long": _too_long,
    "string_pattern_mismatch": lambda error: f"{error['input']!r} does not match {error['ctx']['pattern']!r}",
    "value_error": lambda error: str(error["ctx"]["error"]),
}
