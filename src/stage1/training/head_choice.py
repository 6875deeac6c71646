"""The choice between the joint head, trained with the backbone, and a head refit on the tuned backbone's features.

A joint head is trained on distorted images and a backbone that still changes; a refit head on features of images that
the backbone has overfit. The one that is better on val_select ships, as with the choice of an epoch. In train.json the
joint head is "along" and the refit one "again".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from stage1.config import HeadConfig, RunConfig
from stage1.model.head import BEST_WEIGHTS, load_head, save_weights
from stage1.training.head_run import TrainResult
from stage1.training.optim import own_torch_state
from stage1.training.selection import SelectBy, SelectMetrics, all_logits, checked_features, select_metrics

# What `tune` trains, whatever head comes afterwards: on images there are no others.
TUNED_HEAD = HeadConfig(kind="linear")


# Bounds of the slope of a temperature; on separable answers the best one is infinite.
_SLOPES = (0.02, 50.0)


@dataclass(frozen=True, slots=True)
class Judged:
    """One head on val_select. scaled_nll: its NLL at the temperature that is best for it, used as its NLL.

    The scale of the logits is no merit of a head: `calibrate` sets it afterwards, and thresholds follow the order of
    the scores alone. A head from few epochs and one from many differ in it by more than in anything else.
    """

    metrics: SelectMetrics
    scaled_nll: float

    def value(self, by: SelectBy) -> float:
        """The metric `by`, nll scaled."""
        return self.scaled_nll if by == "nll" else float(getattr(self.metrics, by))

    def key(self, by: SelectBy) -> tuple[float, float]:
        """Smaller is better, as `SelectMetrics.key`."""
        return replace(self.metrics, nll=self.scaled_nll).key(by)

    def to_json(self) -> dict[str, float]:
        return {**self.metrics.to_json(), "scaled_nll": self.scaled_nll}


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Both heads on the cached features of val_select. ships: "along" (joint) only where it is strictly better."""

    ships: Literal["along", "again"]
    joint: Judged
    refit: Judged

    def to_json(self) -> dict[str, Any]:
        return {"ships": self.ships, "along": self.joint.to_json(), "again": self.refit.to_json()}


def judged(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> Judged:
    """Of logits [N, K] and labels int [N] in 0..K-1."""
    return Judged(select_metrics(logits, labels), scaled_nll(logits, labels))


def scaled_nll(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """Least mean NLL (nats) of slope * logits, slopes of 0.02 to 50. Convex in the slope: one minimum."""
    from scipy.optimize import minimize_scalar  # lazily, as in selection.py

    values = logits.astype(np.float64)
    values -= values[np.arange(len(labels)), labels][:, None]

    def nll(log_slope: float) -> float:
        scaled = np.exp(log_slope) * values
        top = scaled.max(axis=1)
        return float((top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))).mean())

    found = minimize_scalar(nll, bounds=tuple(np.log(_SLOPES)), method="bounded", options={"xatol": 1e-6})
    return min(float(found.fun), nll(0.0))


def why_not_compared(config: RunConfig) -> str | None:
    """Why the joint head is none that this config could ship; None where it is one."""
    head, train = config.head, config.train
    if config.sweep.enabled:
        return "sweep.enabled=true chooses among its own heads"
    if not head.one_layer or head.members > 1 or head.gate in ("linear", "mlp"):
        return (
            f"head.kind={head.kind}, head.members={head.members}, head.gate={head.gate}; it is one linear head without"
            " a gate"
        )
    if train.objective != "ce" or train.entropy > 0:
        return f"train.objective={train.objective}, train.entropy={train.entropy:g}; it was trained with cross-entropy"
    if config.views.train != "whole":
        return f"views.train={config.views.train}; it was trained on whole images"
    return None


def better_head(
    result: TrainResult,
    joint: Path,
    facts: Mapping[str, Any],
    select_features: NDArray[np.float32],
    select_labels: NDArray[np.int64],
    *,
    by: SelectBy,
    n_classes: int,
    folder: Path,
) -> tuple[TrainResult, HeadChoice]:
    """The better of `result`, the refit head, and the joint head in the file `joint`, by metric `by` on val_select.

    joint: the weights file of the stage that trained the backbone; facts: its tune.json. select_features: float32 [M,
    D] of that backbone; select_labels: int64 [M]. Where the joint head is strictly better
    `folder`/model_best.pth holds it afterwards, and the result tells its epoch; its metrics are those on the cached
    features, at no temperature. `train_head` has written the other one there before, each time that it is called: a
    kill in between leaves nothing that the same call does not put right.
    Raises DataError (shapes, NaN, labels), MissingError, IntegrityError (weights that are not there, damaged, of
    another shape).
    """
    select = checked_features(select_features, select_labels, n_classes, "val_select")
    head = load_head(joint, TUNED_HEAD, select.features.shape[1], n_classes).requires_grad_(False)
    with own_torch_state():
        new, old = (judged(logits, select.labels) for logits in all_logits([result.head, head], select.features))
    if not old.key(by) < new.key(by):
        return result, HeadChoice("again", old, new)
    save_weights(folder / BEST_WEIGHTS, head.state_dict())
    metrics = {**old.metrics.to_json(), "train_loss": float(facts["metrics"]["train_loss"])}
    shipped = replace(
        result,
        head=head,
        best_epoch=facts["best_epoch"],
        used_ema=facts["used_ema"],
        epochs_run=facts["epochs_run"],
        metrics=metrics,
        best_metric=metrics[by],
    )
    return shipped, HeadChoice("along", old, new)
