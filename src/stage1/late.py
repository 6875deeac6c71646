"""Imports that wait until they are used, so that a command loads no more than it needs: libraries, names of a room."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any


class _LazyModule(ModuleType):
    """A module that is imported when something of it is asked for."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(import_module(self.__name__), name)
        setattr(self, name, value)  # the next look-up is a plain one
        return value


def library(name: str) -> Any:
    """Stands for a module of another package at the head of a file: `special = library("scipy.special")`.

    >>> library("math").sqrt(4.0)
    2.0
    """
    return _LazyModule(name)


def names(room: str, **homes: str) -> Callable[[str], Any]:
    """`__getattr__` (PEP 562) of a room whose public names wait. homes: file of the room -> its names, spaces between.

    Type checkers take no notice of it: they read the imports under TYPE_CHECKING beside it.

    >>> names("stage1.risk", testing="max_errors minimum_samples")("minimum_samples").__module__
    'stage1.risk.testing'
    """
    home = {name: f"{room}.{file}" for file, of_it in homes.items() for name in of_it.split()}

    def found(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {room!r} has no attribute {name!r}")
        value = getattr(import_module(home[name]), name)
        setattr(sys.modules[room], name, value)
        return value

    found.homes = home  # type: ignore[attr-defined]  # for the test that holds it to the imports beside it
    return found
