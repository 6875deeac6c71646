"""Answers from a bundle, without torch: from files, folders, tables or memory, to Python, CSV, Parquet or JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = [
    "FORMATS",
    "Bundle",
    "Input",
    "Predictor",
    "Row",
    "RowWriter",
    "iterate_inputs",
    "load_bundle",
    "open_writer",
    "predict_to",
]

if TYPE_CHECKING:
    from stage1.inference.inputs import Input, iterate_inputs
    from stage1.inference.predictor import Bundle, Predictor, Row, load_bundle
    from stage1.inference.tables import FORMATS, RowWriter, open_writer, predict_to

_HOME = {
    **dict.fromkeys(("Input", "iterate_inputs"), "inputs"),
    **dict.fromkeys(("FORMATS", "RowWriter", "open_writer", "predict_to"), "tables"),
    **dict.fromkeys(("Bundle", "Predictor", "Row", "load_bundle"), "predictor"),
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the client's detector asks the stages of a cascade, and has neither scipy nor pydantic.
    if name in _HOME:
        from importlib import import_module

        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
