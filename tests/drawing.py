"""Whole runs without the drawing of their figures: matplotlib takes 2 s of CPU for the seven of a page.

What is drawn is the subject of `tests/report`; the shared run `finished` and every run in a process of its own have
real figures.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
from PIL import Image


@contextlib.contextmanager
def figures_undrawn() -> Iterator[None]:
    """While open, a figure is made (every artist, from every number) and then saved as one pixel."""
    from stage1.report.figures import drawing

    stream = io.BytesIO()
    Image.new("RGB", (1, 1)).save(stream, "PNG")
    pixel = drawing.Drawing(stream.getvalue(), b'<svg xmlns="http://www.w3.org/2000/svg"/>')

    def saved(_: Any) -> drawing.Drawing:
        return pixel

    with mock.patch.object(drawing, "_saved", saved):
        yield


@contextlib.contextmanager
def figures_drawn() -> Iterator[None]:
    """While open, figures are drawn, even inside `figures_undrawn`."""
    from stage1.report.figures import drawing

    with mock.patch.object(drawing, "_saved", _REAL):
        yield


@pytest.fixture(scope="module", autouse=True)
def no_figures_drawn(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each module that imports it, each test of runs and cascades, but where FIGURES = True stands in the module."""
    with figures_drawn() if getattr(request.module, "FIGURES", False) else figures_undrawn():
        yield


def _real() -> Any:
    from stage1.report.figures import drawing

    return drawing._saved


_REAL = _real()
