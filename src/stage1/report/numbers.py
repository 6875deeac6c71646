"""Numbers as text: the same rounding on the page and in the figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def percent(value: float | None) -> str:
    """A share as text: .4512 -> "45.1 %", .0173 -> "1.73 %", .05 -> "5 %", .00012 -> "0.012 %", None -> "–"."""
    if value is None:
        return "–"
    share = 100.0 * value
    text = f"{share:.{_decimals(share)}f}"
    if float(text) == 100.0 and share < 100.0:
        # 99.97 % is not all: as many digits as what is missing needs (.047 % missing: 99.953 %).
        text = f"{share:.{min(6, _decimals(100.0 - share))}f}"
    if "." in text:
        text = text.rstrip("0").rstrip(".")
    # A no-break space keeps number and unit on one line.
    return f"{text}\u00a0%"


def upper_percent(value: float | None) -> str:
    """An upper bound as text, rounded up in its last digit, so that what is printed is still a bound."""
    if value is None or value <= 0.0:
        return percent(value)
    scale = 10.0 ** _decimals(100.0 * value)
    # Up to float noise: .02 must not become 2.01 %.
    return percent(min(1.0, math.ceil(100.0 * value * scale - 1e-6) / scale / 100.0))


def _decimals(share: float) -> int:
    if abs(share) >= 10.0:
        return 1
    return 2 if abs(share) >= 0.1 or share == 0.0 else 1 - math.floor(math.log10(abs(share)))


def number(value: float | None) -> str:
    """Four significant digits, "–" for an undefined number."""
    if value is None:
        return "–"
    return f"{value:.4g}" if not isinstance(value, bool) else str(value).lower()


def whole(value: float | None) -> str:
    """A count with commas, "–" where there is none."""
    return "–" if value is None else f"{value:,.0f}"


def words(value: Any) -> str:
    """Anything that a document may hold in a loosely shaped field, in one readable line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {words(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(words(item) for item in value)
    if value is None or isinstance(value, float):
        return number(value)
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
