"""export --to hf: the model of a run as a stock Hugging Face folder, compared with model.onnx on val_select."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stage1.calibration import CALIBRATION_FILE, FittedMap
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.extras import require
from stage1.policy import has_policy_file, load_policy
from stage1.runs.artifacts import backbone_file
from stage1.runs.directory import RunDir, read_state, stored_config
from stage1.runs.schema import PARITY_KIND
from stage1.stages import score
from stage1.stages.own_backbone import backbone_config
from stage1.stages.train import trained_head
from stage1.stages.views import shipped_views
from stage1.storage.documents import read_document
from stage1.storage.files import digest_file
from stage1.streetvision.classes import client_labels


def export_hf(
    folder: Path, target: Path, *, keep_names: bool = False, positive: str | None = None, threshold: float | None = None
) -> dict[str, Any]:
    """Write `target` from the run directory `folder`; returns the facts of stage1_export.json.

    keep_names: the run's own class names instead of the client's None and Roadwork. positive: the name of the class
    that is Roadwork, where the names of the two do not tell. threshold: the stated P(class 1) that becomes the stock
    0.5 (two classes). Raises as write_stock_folder does, MissingError where the run is not exported yet, ConfigError
    where class 1 is not, or not known to be, roadwork.
    """
    from stage1.data.table import SampleTable

    config = stored_config(folder)
    if config is None:
        inside = " (it holds the ONNX graph, not the weights)" if (folder / "bundle.json").is_file() else ""
        raise MissingError(f"{folder}: not a run directory{inside}; give the run that made it")
    run = RunDir(folder, config, read_state(folder))
    _check_run(run)
    table = SampleTable.read(run / "samples.parquet")
    labels = _labels(table.classes, keep_names, positive, str(folder))
    cut = 0.5 if threshold is None else threshold
    shift = 0.0 if threshold is None else margin_at(folder, threshold, len(table.classes))
    require(("torch", "torchvision", "timm", "transformers"), "export --to hf")
    # Not above: torch and transformers take seconds, a wrong option is said at once.
    from stage1.inference import Predictor
    from stage1.integrations.huggingface import Answers, Reference, write_stock_folder
    from stage1.model.backbone import load_backbone
    from stage1.runtime.images import decode
    from stage1.training import load_head

    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    head = load_head(run / "model_best.pth", trained_head(run), backbone.dim, len(table.classes))
    rows = table.rows("val_select")
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), config.export.parity_images)).astype(int))]
    items = table.items(rows)
    _, logits, _, failures = Predictor(run / "model.onnx", backbone.preprocessing, table.classes).outputs(items)
    if failures:
        raise MissingError(
            f"{table.paths[rows[failures[0][0]]]}: cannot be read any more ({failures[0][1]}); restore it"
        )
    reference = Reference([decode(item()) for item in items], logits, digest_file(run / "model.onnx"))
    return write_stock_folder(target, backbone, head, table.classes, Answers(labels, shift, cut), reference)


def hf_lines(facts: dict[str, Any], target: Path) -> list[str]:
    """The facts for people."""
    parity, client = facts["parity"], facts["client_processor"]
    lines = [
        f"{target}: {facts['architecture']}, labels {', '.join(facts['labels'])}",
        (
            f"logits within {parity['largest_difference']:.2g} of model.onnx on {parity['images']} images (allowed"
            f" {parity['tolerance']:g})"
        ),
    ]
    if client is not None and client["largest_difference"] > parity["tolerance"]:
        lines.append(
            f"the client resizes with torchvision: on {client['side']} px images that moves a logit by up to "
            f"{client['largest_difference']:.2g}; backbone.input_size={client['side']} needs no resizing"
        )
    if facts["margin_shift"] != 0:
        lines.append(f"0.5 there is {facts['decision_threshold']:.6g} here")
    return [*lines, "it answers every image: thresholds, deferral and certificate stay with the bundle"]


def margin_at(folder: Path, threshold: float, n_classes: int) -> float:
    """The raw margin at which the run states P(class 1) = `threshold`: the inverse of its calibration map.

    Raises ConfigError: not two classes, a threshold outside (0, 1), a map that does not rise, or one that never gets
    there.
    """
    if n_classes != 2:
        raise ConfigError(f"--threshold {threshold:g}: is for two classes, these are {n_classes}")
    if not 0.0 < threshold < 1.0:
        raise ConfigError(f"--threshold {threshold:g}: a probability between 0 and 1 is needed")
    if has_policy_file(folder) and load_policy(folder).own_probability:
        raise ConfigError(
            f"--threshold {threshold:g}: the gate of this run states a probability of its own, which stays here"
        )
    if not (folder / CALIBRATION_FILE).is_file():
        return math.log(threshold) - math.log1p(-threshold)
    found = FittedMap.load(folder / CALIBRATION_FILE).map
    if not found.keeps_order:
        raise ConfigError(
            f"--threshold {threshold:g}: the {found.name} map of this run is not strictly rising; use 0.5"
        )
    low, high = -1e4, 1e4

    def reported(margin: float) -> float:
        return float(found.apply(np.array([[0.0, margin]]))[0, 1])

    if not reported(low) < threshold < reported(high):
        raise ConfigError(
            f"--threshold {threshold:g}: this run never states it ({reported(low):.3g} to {reported(high):.3g})"
        )
    while high - low > 1e-9 * max(1.0, abs(low)):
        middle = (low + high) / 2
        low, high = (middle, high) if reported(middle) < threshold else (low, middle)
    return (low + high) / 2


def _check_run(run: RunDir) -> None:
    parity = read_document(run / "parity.json", PARITY_KIND)
    if not parity["passed"] or parity["model"] != digest_file(run / "model.onnx"):
        raise IntegrityError(f"{run / 'parity.json'}: is not of this model.onnx; run `stage1 export` again")
    if len(run.config.backbone.names) > 1:
        raise ConfigError(f"export --to hf: the stock model is one backbone, this run has {run.config.backbone.name}")
    _check_views(run)


def _check_views(run: RunDir) -> None:
    """By the config, not by views.json: a run that is not scored has none yet, and one view may be a crop."""
    views = run.config.views
    if views.policy is None:
        return
    scored = run.is_current(score.STAGE.name, score.STAGE.inputs(run))
    if scored and shipped_views(run) is None:
        return  # the whole image alone, by the choice on val_select
    open_yet = not scored and views.train != "pooled"
    way_out = "ship its ONNX bundle with the detector of stage1.streetvision instead"
    raise ConfigError(
        f"{run.path}: this run looks at {views.policy.description} of an image, a stock folder at the whole image"
        f" alone; {way_out}"
        + (f" (whether it ships the whole image alone is open until `stage1 score {run.path}`)" if open_yet else "")
    )


def _labels(classes: Sequence[str], keep_names: bool, positive: str | None, where: str) -> tuple[str, ...]:
    """Never by position alone: a run with its classes the other way round would have the client take 1 - P."""
    if positive is not None and (keep_names or len(classes) != 2):
        why = "--keep-names is given" if keep_names else f"{where} has {len(classes)} classes"
        raise ConfigError(
            f"--positive {positive}: names the client's Roadwork of two classes, and {why}; leave one out"
        )
    return tuple(classes) if keep_names or len(classes) != 2 else client_labels(classes, where, positive)
