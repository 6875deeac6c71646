"""The examples in the docstrings of the numpy half run, and every public name of its faces has one."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest

FACES = ("evaluation", "risk", "policy", "calibration")


def names(face):
    """(name, object) of the functions and classes that a face promises; constants have no docstring."""
    module = importlib.import_module(f"stage1.{face}")
    found = [(name, getattr(module, name)) for name in module.__all__]
    return [(name, value) for name, value in found if inspect.isfunction(value) or inspect.isclass(value)]


def without_example(promised):
    """Of (name, object): the names that have no example, in their docstring or, of a class, in one of its methods'."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    return [
        name for name, found in promised if not any(test.examples for test in finder.find(found, name, module=False))
    ]


@pytest.mark.parametrize("face", FACES)
def test_every_public_name_has_an_example(face):
    assert without_example(names(face)) == []


def test_a_name_without_one_is_found():
    def silent():
        """Does nothing."""

    def spoken():
        """One.

        >>> 1
        1
        """

    assert without_example([("silent", silent), ("spoken", spoken)]) == ["silent"]


def modules():
    found = []
    for face in FACES:
        package = importlib.import_module(f"stage1.{face}")
        found += [name for _, name, _ in pkgutil.iter_modules(package.__path__, f"stage1.{face}.")]
    return [*found, "stage1.scores.confidence"]


@pytest.mark.parametrize("name", modules())
def test_the_examples_run(name):
    module = importlib.import_module(name)
    outcome = doctest.testmod(module, optionflags=doctest.FAIL_FAST)
    assert outcome.failed == 0


def test_examples_of_names_that_a_face_takes_from_elsewhere_run_too():
    run = {f"stage1.{face}" for face in FACES}
    elsewhere = {
        inspect.getmodule(found).__name__
        for face in FACES
        for _, found in names(face)
        if not any(inspect.getmodule(found).__name__.startswith(room) for room in run)
    }
    assert elsewhere <= set(modules())
