"""export: model.onnx, and the parity gate between it and the trained model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from stage1.errors import IntegrityError
from stage1.runs.artifacts import always, backbone_file
from stage1.runs.directory import RunDir
from stage1.runs.schema import FEATURES_KIND, PARITY_KIND
from stage1.runs.stage import Context, Stage
from stage1.runtime.crops import WHOLE, ViewPolicy, cut
from stage1.stages.own_backbone import MODULES, backbone_config
from stage1.stages.train import trained_head
from stage1.stages.views import (
    cut_state,
    pooled_views,
    require_all,
)
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file

if TYPE_CHECKING:
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor


def export(run: RunDir, context: Context) -> list[Path]:
    """model.onnx, and the parity gate: trained and exported model on the same real images, through the full path."""
    from stage1.data.table import SampleTable
    from stage1.inference import Predictor
    from stage1.model.backbone import load_backbone
    from stage1.model.export import export_model
    from stage1.model.view_pooling import pooled_width
    from stage1.training import load_head

    config, document = run.config, read_document(run / "features.json", FEATURES_KIND)
    table = SampleTable.read(run / "samples.parquet")
    backbone = load_backbone(backbone_config(run, backbone_file(config)), config.seed)
    if backbone.fingerprint != document["fingerprint"]:
        raise IntegrityError(
            f"{run / 'features.json'}: made by another backbone than the one loaded now; run `stage1 extract` again"
        )
    together, policy = pooled_views(run), config.views.policy
    width = backbone.dim if together is None else pooled_width(backbone.dim, together.policy)
    head = load_head(run / "model_best.pth", trained_head(run), width, len(table.classes))
    export_model(run / "backbone.onnx", head, run / "model.onnx", views=None if together is None else together.policy)
    rows = table.rows("val_select")
    tensors_each = 1 if policy is None else policy.count
    images = min(len(rows), -(-config.export.parity_images // tensors_each))
    # Spread over the role: neighbouring rows may be frames of one video.
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, images).astype(int))]
    items = table.items(rows)
    predictor = Predictor(run / "model.onnx", backbone.preprocessing, table.classes, views=together)
    exported, gates = _exported_outputs(predictor, table, rows, policy if together is None else None)
    trained, trained_gates = _trained_outputs(backbone, head, items, policy, together=together is not None)
    difference = float(np.abs(exported - trained).max())
    if gates is not None and trained_gates is not None:
        difference = max(difference, float(np.abs(gates - trained_gates).max()))
    passed = bool(difference <= config.export.parity_tolerance and (exported.argmax(1) == trained.argmax(1)).all())
    write_document(
        run / "parity.json",
        {
            "images": len(rows),
            "tolerance": config.export.parity_tolerance,
            "largest_difference": difference,
            "same_class": int((exported.argmax(1) == trained.argmax(1)).sum()),
            "passed": passed,
            "model": digest_file(run / "model.onnx"),
            "weights": digest_file(run / "model_best.pth"),
        },
        PARITY_KIND,
    )
    if not passed:
        raise IntegrityError(
            f"{run / 'model.onnx'}: logits differ from the trained model's by up to {difference:.3g} on {len(rows)}"
            f" images (allowed: {config.export.parity_tolerance:g}); see parity.json"
        )
    context.progress.say(
        f"  parity: largest difference {difference:.2g} on {len(rows)} images (allowed"
        f" {config.export.parity_tolerance:g})"
    )
    return [run / "model.onnx", run / "parity.json"]


def _exported_outputs(
    predictor: Predictor, table: SampleTable, rows: NDArray[np.int64], policy: ViewPolicy | None
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """Logits [n, K] and gate logits of the exported model; with a policy, of each view as a row of its own."""
    if policy is None:
        answered, logits, gates, failures = predictor.outputs(table.items(rows))
        require_all(table, rows, answered, failures)
        return logits, gates
    answered, outputs, failures = predictor.view_outputs(table.items(rows), policy)
    require_all(table, rows, answered, failures)
    return outputs.logits.reshape(-1, len(table.classes)), None if outputs.gate is None else outputs.gate.reshape(-1)


def _trained_outputs(
    backbone: Any, head: Any, items: list[Any], policy: ViewPolicy | None, *, together: bool
) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
    """The same of the trained model."""
    import torch

    from stage1.model.head import split
    from stage1.model.view_pooling import pool_features
    from stage1.runtime.images import decode

    spec = backbone.preprocessing
    logits, gates = [], []
    with torch.inference_mode():
        for start in range(0, len(items), 16):
            images = [decode(item(), max_pixels=spec.max_pixels) for item in items[start : start + 16]]
            batch = np.concatenate([cut(image, policy or WHOLE, spec) for image in images])
            features = backbone.features(batch)
            if together and policy is not None:
                features = pool_features(features.reshape(len(images), policy.count, -1), policy)
            made, gate = split(head(torch.from_numpy(features)))
            logits.append(made.numpy())
            if gate is not None:
                gates.append(gate.numpy())
    return np.concatenate(logits), np.concatenate(gates) if gates else None


STAGE = Stage(
    name="export",
    sections=("export", "head"),
    reads=always("model_best.pth", "backbone.onnx", "features.json"),
    work=export,
    external=cut_state,
    modules=(*MODULES, "onnx", "onnxscript"),
)
