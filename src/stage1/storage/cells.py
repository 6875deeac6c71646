"""Text in a CSV file that people open: a spreadsheet runs a cell that starts like a formula, whatever wrote it."""

from __future__ import annotations

import re

# OWASP, "CSV injection"; the wide forms are read as the narrow ones where the language has them.
_FORMULA = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def text_cell(text: str) -> str:
    """`text`, with ' before it where it would start a formula; numbers stay. `plain_cell` takes it off again, exactly.

    >>> text_cell("=1+1"), text_cell("-0.5"), text_cell("street.jpg")
    ("'=1+1", '-0.5', 'street.jpg')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def plain_cell(text: str) -> str:
    """The text that `text_cell` was given."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
