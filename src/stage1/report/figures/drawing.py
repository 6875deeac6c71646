"""What all figures share: white panel, colours, type, and PNG and SVG bytes that depend on nothing but the input.

The white panel reads on a light and on a dark page. Colours are Okabe and Ito's, distinct for the colour blind as
well; what matters is also shown by position, dash or label, never by colour alone.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stage1.extras import load

Document = Mapping[str, Any]
Floats = NDArray[np.float64]

INK, GREY, PALE = "#1c2430", "#667085", "#e4e7ec"
CLASS_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8c564b", "#999999")
CERTIFIED = "#00795a"
WIDTH = 6.4
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 11, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": GREY, "axes.labelcolor": INK, "text.color": INK, "xtick.color": GREY, "ytick.color": GREY,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.color": PALE, "grid.linewidth": 0.8,
    "axes.axisbelow": True, "legend.frameon": False, "legend.fontsize": 10, "lines.linewidth": 1.9,
    "figure.facecolor": "white",
    "savefig.facecolor": "white", "figure.constrained_layout.use": True,
    "figure.constrained_layout.h_pad": 0.1, "figure.constrained_layout.w_pad": 0.1,
    # Letters as outlines: the same picture where the font is missing. A salt of our own: the same ids on every run.
    "svg.fonttype": "path", "svg.hashsalt": "stage1",
    # Names of classes, slices and files are shown unchanged: text between two dollars is no formula.
    "text.parse_math": False,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Drawing:
    """One figure in both forms: PNG bytes for the page and the screen, SVG bytes for print and slides."""

    png: bytes
    svg: bytes


@contextmanager
def style() -> Iterator[None]:
    matplotlib = load("matplotlib", "figures")
    # From the defaults, not from the reader's matplotlibrc: the same run gives the same bytes on the same versions.
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def new_figure(height: float) -> Any:
    # Figure itself, not pyplot: no global state, no window, no choice of backend.
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height))


def fitting(name: str, most: int = 28) -> str:
    """A name as a figure has room for it: one line, the middle of a long one left out (whole on the page)."""
    line = "".join(char if char.isprintable() else " " for char in name)
    return line if len(line) <= most else f"{line[: most - 10]}..{line[-8:]}"


def finished(figure: Any) -> Drawing:
    """The figure as PNG (170 dots per inch) and SVG, without date, version or path in either."""
    with warnings.catch_warnings():
        # A name in letters that the font lacks is drawn as boxes; the page has it in letters.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        return _saved(figure)


def _saved(figure: Any) -> Drawing:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    # The solver of the layout is exact only up to float noise, which the names inside an SVG would show: once, then
    # rounded.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for axis in figure.axes:
        axis.set_position([round(value, 6) for value in axis.get_position(original=True).bounds])
    # The two backends themselves: `savefig` draws everything once more before each, for a layout that is fixed by now.
    png, svg = io.BytesIO(), io.BytesIO()
    dpi, figure.dpi = figure.dpi, 170
    FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
    figure.dpi = dpi
    FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None, "Creator": None})
    return Drawing(png.getvalue(), svg.getvalue())


def numbers(values: list[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
