"""Labels: one rule for what a label means, in every file format (table: docs/BRING_YOUR_OWN_SCORES.md).

Every format is brought to text first: True in Parquet and "true" in a CSV, 1, 1.0 and "1.0" are then the same label.
What a text means is decided for the whole column, never cell by cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from stage1.errors import DataError
from stage1.storage.texts import read_json

_BOOLEANS = {"true": "1", "false": "0"}
# Class names that answer yes or no: beside them 1 and 0 could mean the answer as well as the position.
_ANSWERS = {"true": "1", "yes": "1", "on": "1", "false": "0", "no": "0", "off": "0"}
# No leading zeros: 007 is a name, and no other one than 7.
_NUMBER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})(\.[0-9]{0,30})?([eE][+-]?[0-9]{1,2})?")
_WHOLE = re.compile(r"-?[0-9]+")


def label_text(value: Any) -> str:
    """A cell of any format as text: None and NaN are "" (no label), numbers and booleans by `normal_form`."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")  # two odd labels stay two
    if isinstance(value, str):
        return value.strip()
    return normal_form(str(value).strip())


def normal_form(text: str) -> str:
    """The form in which labels and class names are compared.

    true and false in any case are "true" and "false"; numbers lose sign, zeros and exponent that change nothing: 1,
    1.0, +1 and 1e0 are "1", 0.50 is "0.5". Any other text is its own form, also 01 and texts that differ in case.
    """
    if text.lower() in _BOOLEANS:
        return text.lower()
    if _NUMBER.fullmatch(text):
        number = Decimal(text)
        return str(int(number)) if number == number.to_integral_value() else format(number.normalize(), "f")
    return text


def named_by_digits(name: str) -> bool:
    """Whether a class is called by a number (1, 01, 2.5): whole numbers are then names, never positions."""
    return bool(_WHOLE.fullmatch(name) or _NUMBER.fullmatch(name))


def checked_names(names: Sequence[str], where: str) -> tuple[str, ...]:
    """Class names, two or more, distinct by their normal form. Raises DataError naming two that are one label."""
    if len(names) < 2 or any(not name.strip() for name in names):
        raise DataError(f"{where}: {', '.join(names) or 'empty'}; give two or more different names")
    _places(names, where)
    return tuple(names)


def _places(names: Sequence[str], where: str) -> dict[str, int]:
    """Normal form -> place of the class. Raises DataError for two that are alike."""
    places: dict[str, int] = {}
    for place, name in enumerate(names):
        other = places.setdefault(normal_form(name.strip()), place)
        if other != place:
            raise DataError(f"{where}: {names[other]!r} and {name!r} are the same label; names must differ")
    return places


def found_classes(texts: Iterable[str], *, as_they_stand: bool = False) -> tuple[str, ...]:
    """The classes of labels for which no order was given: numbers in numeric order, names in alphabetical order.

    as_they_stand: the texts are names already (folders), not cells; they keep their spelling.
    """
    distinct = set(texts) - {""}
    if not as_they_stand:
        distinct = {normal_form(text) for text in distinct if not _missing(text, ())}
        if any(form not in _BOOLEANS for form in distinct) and all(_number(form) is not None for form in distinct):
            distinct = {_number(form) or form for form in distinct}  # True beside 0: written as numbers too
    if all(named_by_digits(text) for text in distinct):
        return tuple(sorted(distinct, key=lambda text: (Decimal(text), text)))
    return tuple(sorted(distinct))


def place_labels(texts: Iterable[str], classes: Sequence[str], *, positions: bool = True) -> dict[str, int]:
    """Distinct label -> index of its class; a label that is in no class, or is none, is left out.

    By name: where the normal forms agree. A column of which nothing agrees holds positions 0..K-1 where its labels are
    whole numbers (true and false are 1 and 0 where no class is called so). Where a class is named by digits, or
    `positions` is false (names that are stored with the data), numbers are names and nothing else.
    Raises DataError where 1 and 0 could mean the position as well as the answer (classes true, false), and for classes
    that are one label.
    """
    index = _places(classes, "classes")
    found = [text for text in dict.fromkeys(texts) if not _missing(text, classes)]
    # A folder may be called " cat ": the names of classes are compared without white space around them, so are labels.
    forms = {text: normal_form(text.strip()) for text in found}
    named = {text: index[form] for text, form in forms.items() if form in index}
    if len(named) == len(found) or not positions:
        return named
    answers = any(form in _BOOLEANS for form in index)
    numbers = {
        text: number
        for text in found
        if (number := _number(normal_form(text))) is not None and not (answers and normal_form(text) in _BOOLEANS)
    }
    if any(named_by_digits(name) for name in classes):
        return named | {text: index[number] for text, number in numbers.items() if number in index}
    if any(normal_form(text) not in _BOOLEANS for text in named):
        return named  # a column of names: a number in it is no position
    placed = {text: int(number) for text, number in numbers.items() if 0 <= int(number) < len(classes)}
    if set(numbers.values()) <= {"0", "1"}:
        _refuse_two_meanings(placed, numbers, classes)
    return named | placed


def _refuse_two_meanings(placed: Mapping[str, int], numbers: Mapping[str, str], classes: Sequence[str]) -> None:
    for text, place in placed.items():
        meant = [name for name in classes if _ANSWERS.get(name.strip().lower()) == numbers[text]]
        if len(meant) == 1 and meant[0] != classes[place]:
            turned = (
                f", or data.classes=[{', '.join(reversed(classes))}] (and scores in that order)"
                if len(classes) == 2
                else ""
            )
            raise DataError(
                f"label {text!r} with the classes {', '.join(classes)}: as a position it is {classes[place]!r}, as a"
                f" word {meant[0]!r}; write the names as labels{turned}"
            )


def column_numbers(texts: Iterable[str]) -> dict[str, int]:
    """Distinct label -> number of its score column, where no class has a name: whole numbers; true is 1, false 0.

    A label that is neither is left out.
    """
    numbers = {text: _number(normal_form(text)) for text in dict.fromkeys(texts)}
    return {text: int(number) for text, number in numbers.items() if number is not None}


def outside(text: str, classes: Sequence[str]) -> str:
    """What to say of a label that `place_labels` left out."""
    if _missing(text, classes):
        return "no label"
    shown = ", ".join(classes)
    if _WHOLE.fullmatch(normal_form(text)) and not any(named_by_digits(name) for name in classes):
        return (
            f"label {text!r} is outside the classes {shown} (positions are 0..{len(classes) - 1}, in a column without"
            " names)"
        )
    return f"label {text!r} is outside the classes {shown}"


def _missing(text: str, classes: Sequence[str]) -> bool:
    """No label: an empty cell, or the word that programs write for one, unless a class is called so."""
    return text == "" or (text.lower() == "nan" and text not in classes)


def _number(form: str) -> str | None:
    """The whole number of a normal form, as text; booleans are 1 and 0."""
    number = _BOOLEANS.get(form, form)
    return number if _WHOLE.fullmatch(number) and normal_form(number) == number and _NUMBER.fullmatch(number) else None


# ---- names that are stored with the data -------------------------------------------------------------------------


def stored_names(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...] | None:
    """Names of a ClassLabel column that the `datasets` library left in the metadata of a Parquet file; None without."""
    try:
        feature = read_json((metadata or {})[b"huggingface"])["info"]["features"][column]
        return tuple(str(name) for name in feature["names"])
    except (KeyError, TypeError, ValueError):
        return None


def decoded(values: Sequence[Any], names: Sequence[str], where: str, numbers: Sequence[str]) -> list[Any]:
    """The names of the integers of a ClassLabel column; -1 and None are no label, a text stays.

    numbers: how each row is called in messages. Raises DataError for an integer without a name.
    """
    result: list[Any] = []
    for row, value in enumerate(values):
        if value is None or value != value or value == -1:
            result.append(None)
        elif isinstance(value, (str, bytes)):
            result.append(value)
        elif isinstance(value, (int, float)) and 0 <= value < len(names) and value == int(value):
            result.append(names[int(value)])
        else:
            raise DataError(
                f"{where}: {numbers[row]}: {value!r} is no index into the {len(names)} names stored with it"
            )
    return result


def are_plain_numbers(names: Sequence[str]) -> bool:
    """Whether stored names are 0, 1, .. in order, as `datasets` fills in where the classes have no names."""
    return list(names) == [str(place) for place in range(len(names))]
