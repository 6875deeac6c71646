"""Objects of someone else's modules, by the name that a configuration gives: "module:attribute"."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from stage1.errors import ConfigError


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
