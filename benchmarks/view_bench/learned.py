"""Heads of the package, by its own trainer: on the whole view, and on pooled features of all views
(`views.train=pooled`).

Unlike the linear heads beside them they are trained as a run trains them: AdamW, epoch and EMA chosen on val_select.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stage1.config import HeadConfig, TrainConfig
from stage1.model.view_pooling import pool_features
from stage1.runtime.crops import ViewPolicy
from stage1.training import train_head
from stage1.training.selection import all_logits

HEADS = {
    "linear": HeadConfig(),
    "mlp": HeadConfig(kind="mlp", hidden=512, dropout=0.5),
    "5 mlps": HeadConfig(kind="mlp", hidden=512, dropout=0.5, members=5),
}
_ROWS = 1024


def inputs(features: NDArray[np.float32], policy: ViewPolicy) -> dict[str, NDArray[np.float32]]:
    """What each kind of head looks at: [N, D] of the whole view, [N, 3D] of all views."""
    return {"whole": np.ascontiguousarray(features[:, 0]), "pooled": pool_features(features, policy)}


def trained_logits(
    rows: NDArray[np.float32],
    labels: NDArray[np.int64],
    train: NDArray[np.int64],
    select: NDArray[np.int64],
    head: HeadConfig,
) -> NDArray[np.float64]:
    """Logits [N, 2] of all rows by a head trained on those of `train`, its epoch chosen on those of `select`."""
    with tempfile.TemporaryDirectory() as folder:
        result = train_head(
            rows[train],
            labels[train],
            rows[select],
            labels[select],
            config=TrainConfig(),
            head=head,
            n_classes=2,
            seed=0,
            folder=Path(folder),
        )
    pieces = [all_logits([result.head], rows[start : start + _ROWS])[0] for start in range(0, len(rows), _ROWS)]
    return np.concatenate(pieces).astype(np.float64)
