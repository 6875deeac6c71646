"""Stage 2: a callable image -> probability, named "module:function", that answers what stage 1 defers."""

from __future__ import annotations

import importlib
import math
import sys
from collections.abc import Callable
from typing import Any

from PIL import Image

from stage1.errors import ConfigError, DataError

Stage2 = Callable[[Image.Image], float]


def load_attribute(name: str, what: str) -> Any:
    """The object that "module:attribute" names; dots in the attribute go deeper. Raises ConfigError, one line."""
    module, colon, attribute = name.partition(":")
    if not colon or not module or not attribute:
        raise ConfigError(f"{what}: {name!r}; write it as module:attribute")
    try:
        found = importlib.import_module(module)
    except (Exception, SystemExit) as error:  # a module of someone else's may raise anything while it is imported
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise ConfigError(
            f"{what}: cannot import {module!r} ({why}); install it or put its folder on PYTHONPATH"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise ConfigError(f"{what}: {module!r} has no {attribute!r}")
        found = getattr(found, part)
    return found


def load_function(name: str, what: str, folder: str | None = None) -> Callable[..., Any]:
    """The callable that `name` names; its module is also looked for in `folder`. Raises ConfigError."""
    places = [] if folder is None else [folder]
    sys.path[:0] = places
    try:
        function = load_attribute(name, what)
    finally:
        for place in places:
            sys.path.remove(place)
    if not callable(function):
        raise ConfigError(f"{what}: {name!r} is {type(function).__name__}; a callable image -> probability is needed")
    return function


def load_stage2(name: str) -> Stage2:
    """The callable that `name` names, behind a check of what it answers. Raises ConfigError."""
    function = load_function(name, "stage2")
    return lambda image: checked_probability(function(image))


def checked_probability(answer: Any) -> float:
    """The answer as a float in [0, 1]. Raises DataError for text, True, NaN, 1.7 and whatever else is no probability."""
    # One number of numpy's or torch's, as Python's: their True is none of Python's, and none is a probability.
    plain = answer.item() if hasattr(answer, "item") and getattr(answer, "ndim", 1) == 0 else answer
    if isinstance(plain, (str, bytes, bool)):
        shown = plain if isinstance(plain, bool) else plain[:40]
        raise DataError(f"answered {shown!r}; a number in [0, 1] is needed")
    try:
        value = float(answer)
    except (TypeError, ValueError) as error:
        raise DataError(f"answered {type(answer).__name__}; a number in [0, 1] is needed") from error
    if not (math.isfinite(value) and 0.0 <= value <= 1.0):
        raise DataError(f"answered {value}; a number in [0, 1] is needed")
    return value
