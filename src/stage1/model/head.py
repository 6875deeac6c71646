"""Heads on frozen features, from their config: first weights, statistics of the features, saving and loading."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.config import HeadConfig
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.model.head_modules import (
    Classifier,
    Ensemble,
    Gate,
    GatedHead,
    Head,
    SelectiveHead,
    gate_inputs,
    members_of,
    new_member,
    split,
)
from stage1.storage.files import write_bytes
from stage1.storage.texts import require_stored

__all__ = [
    "BEST_WEIGHTS",
    "Classifier",
    "Ensemble",
    "Gate",
    "GatedHead",
    "Head",
    "SelectiveHead",
    "build_gate",
    "build_head",
    "classifier_config",
    "feature_statistics",
    "gate_config",
    "gate_inputs",
    "load_head",
    "members_of",
    "save_weights",
    "split",
]

BEST_WEIGHTS = "model_best.pth"
_ROWS = 4096
# A feature whose spread is this small beside its size is constant but for rounding; dividing by it would amplify noise.
_DEAD = 1e-5


def classifier_config(config: HeadConfig) -> HeadConfig:
    """The config of the classifier alone, where a gate is fitted after it."""
    return config.model_copy(update={"gate": "none"}) if config.gate in ("linear", "mlp") else config


def gate_config(config: HeadConfig) -> HeadConfig:
    """The config of the gate that is fitted after the classifier."""
    return HeadConfig(kind="mlp" if config.gate == "mlp" else "linear", hidden=config.hidden, dropout=config.dropout)


def build_head(config: HeadConfig, dim: int, n_classes: int, seed: int) -> Classifier:
    """A new head for D = `dim` features and K = `n_classes`, weights drawn from `seed` alone, no global generator.

    The last layer starts near zero (normal, 0.01), so the first loss is log K; hidden layers: He et al. 2015. Members
    of an ensemble start from seed, seed + 1, ...: the first one is the head that `members=1` gives. A gate that is
    fitted after the classifier is not in it.
    Raises DataError where dim < 1 or n_classes < 2.
    """
    if dim < 1:
        raise DataError(f"features: {dim} columns; a head needs at least one")
    if n_classes < 2:
        raise DataError(f"classes: {n_classes}; a head needs at least two")
    head = _empty(classifier_config(config), dim, n_classes)
    for index, member in enumerate(members_of(head)):
        assert isinstance(member, (Head, SelectiveHead))
        _draw(member, seed + index)
    return head


def build_gate(config: HeadConfig, dim: int, slope: float, offset: float, seed: int) -> Gate:
    """The gate of `config.gate` for D + K + 1 = `dim` inputs, at its start: weights from `seed` alone."""
    gate = Gate(gate_config(config), dim)
    _draw(gate.head, seed)
    gate.slope.fill_(slope)
    gate.offset.fill_(offset)
    return gate


@torch.no_grad()
def _draw(head: Head | SelectiveHead, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    last = [id(layer) for layer in head._last()]
    for layer in head._layers():
        scale = 0.01 if id(layer) in last else math.sqrt(2.0 / layer.in_features)
        layer.weight.normal_(0.0, scale, generator=generator)
        layer.bias.zero_()


def _empty(config: HeadConfig, dim: int, n_classes: int) -> Classifier:
    return new_member(config, dim, n_classes) if config.members == 1 else Ensemble(config, dim, n_classes)


def feature_statistics(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale per column of finite [N, D] features, N >= 1 (memory maps too: read in pieces); float32 [D] each.

    scale_j = sqrt(std_j * r), r = root mean square of all std_j: half-way between one common scale and a scale per
    column.
    Columns that hardly vary are mostly noise, and dividing each by its own spread blows them up to the size of the
    others (potholes, frozen CNN features, logistic regression: AUROC .816 so, .842 half-way, .841 with a common scale);
    a common scale alone learns slowly where spreads differ by orders of magnitude. A column that does not vary gets r.
    Summed in float64.
    """
    n, dim = features.shape
    # Deviations from the first row: a large common offset would otherwise swallow the spread in the sum of squares.
    origin = np.asarray(features[0], dtype=np.float64)
    total, squares = np.zeros(dim), np.zeros(dim)
    for start in range(0, n, _ROWS):
        piece = np.asarray(features[start : start + _ROWS], dtype=np.float64) - origin
        total += piece.sum(axis=0)
        squares += np.square(piece).sum(axis=0)
    shift = total / n
    mean = origin + shift
    std = np.sqrt(np.maximum(squares / n - np.square(shift), 0.0))
    std[std <= _DEAD * np.maximum(np.abs(mean), _DEAD)] = 0.0
    common = float(np.sqrt(np.mean(np.square(std)))) or 1.0
    scale = np.where(std > 0, np.sqrt(std * common), common)
    return mean.astype(np.float32), scale.astype(np.float32)


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor]) -> None:
    """Write a state dict of plain tensors, whole or not at all; equal weights give equal bytes."""
    # Through memory: torch.save puts the file's name inside the archive, and the temporary name is random.
    stream = io.BytesIO()
    torch.save({name: weights[name].detach().contiguous().clone() for name in sorted(weights)}, stream)
    write_bytes(path, stream.getvalue())


def load_head(path: str | os.PathLike[str], config: HeadConfig, dim: int, n_classes: int) -> Classifier | GatedHead:
    """The trained head from `model_best.pth` (the file, or the folder that holds it), in eval mode.

    Raises MissingError (no such file) and IntegrityError (damaged, or made with another head config, dim or classes).
    """
    path = Path(path)
    if path.is_dir():
        path = path / BEST_WEIGHTS
    try:
        require_stored(path)
        weights = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; train the head first (stage1 train)") from error
    except Exception as error:  # for a damaged file torch.load raises whatever its zip and unpickler happened to meet
        raise IntegrityError(f"{path}: damaged weights file ({type(error).__name__}); train again") from error
    head: Classifier | GatedHead = _empty(classifier_config(config), dim, n_classes)
    if config.gate in ("linear", "mlp"):
        head = GatedHead(head, Gate(gate_config(config), dim + n_classes + 1))
    expected = head.state_dict()
    if not isinstance(weights, dict) or set(weights) != set(expected):
        raise IntegrityError(f"{path}: not a {config.kind} head; use the head config it was trained with")
    for name, tensor in expected.items():
        if not isinstance(weights[name], Tensor):
            raise IntegrityError(f"{path}: {name} is no tensor; train again")
        if weights[name].shape != tensor.shape:
            raise IntegrityError(
                f"{path}: {name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)} "
                f"(dim {dim}, classes {n_classes}); use the config and backbone it was trained with"
            )
    head.load_state_dict(weights, strict=True)
    return head.eval()
