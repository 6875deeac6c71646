"""The report of a run: one self-contained page and its figures, made from the documents of the run alone."""

from stage1.report.figures.registry import draw_figures
from stage1.report.page import Thumb, write_report

__all__ = ["Thumb", "draw_figures", "write_report"]
