"""Answers from a bundle, without torch: from files, folders, tables or memory, to Python, CSV, Parquet or JSON."""

from stage1.inference.inputs import Input, iterate_inputs
from stage1.inference.predictor import Bundle, Predictor, Row, load_bundle
from stage1.inference.tables import FORMATS, RowWriter, open_writer, predict_to

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
