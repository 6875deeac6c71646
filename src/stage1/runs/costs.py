"""What a run costs, from what it recorded: parameters, size, seconds, memory, images per second."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from stage1.runs.directory import STATE_FILE
from stage1.runs.schema import STAGES_KIND
from stage1.storage.documents import read_document

_FLOATS = (1, 10, 11, 16)  # onnx.TensorProto FLOAT, FLOAT16, DOUBLE, BFLOAT16


def recorded_stages(folder: Path) -> dict[str, Any]:
    """The stages of stages.json, {} where there is none. Whatever version wrote it: seconds stay seconds."""
    path = folder / STATE_FILE
    return dict(read_document(path, STAGES_KIND)["stages"]) if path.is_file() else {}


def run_facts(folder: Path, seed: int, scored: int, certified: bool | None) -> dict[str, Any]:
    """One run in a comparison (schema comparison_arms, arms.runs). scored: images that the stage `score` answered.

    Numbers that the run did not record are None.
    """
    stages = recorded_stages(folder)
    seconds = {name: float(entry["seconds"]) for name, entry in stages.items()}
    model = folder / "model.onnx"
    files = [path for path in (model, model.with_name("model.onnx.data")) if path.is_file()]
    return {
        # The name alone: the place of a run on this machine says nothing about it.
        "run": folder.resolve().name,
        "seed": seed,
        "certified": certified,
        "parameters": parameters_of(model),
        "model_bytes": sum(path.stat().st_size for path in files) or None,
        "train_seconds": seconds.get("train"),
        "seconds": round(sum(seconds.values()), 3) if seconds else None,
        "images_per_second": round(scored / seconds["score"], 2) if seconds.get("score") else None,
        "score_peak_mib": stages.get("score", {}).get("peak_mib"),
    }


def parameters_of(model: Path) -> int | None:
    """Numbers in the float weights of an ONNX file (external weights are not read); None: no such file."""
    if not model.is_file():
        return None
    try:
        import onnx
    except ImportError:
        return None  # the extra train is not installed: the count is left out, and is "-" in the table
    graph = onnx.load(str(model), load_external_data=False).graph
    return int(sum(np.prod(item.dims, dtype=np.int64) for item in graph.initializer if item.data_type in _FLOATS))
