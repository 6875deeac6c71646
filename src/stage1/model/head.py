"""Heads on frozen features: fixed standardisation, then a linear map or a small MLP; [N, D] to logits [N, K]."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stage1.config import HeadConfig
from stage1.errors import DataError, IntegrityError, MissingError
from stage1.files import write_bytes

BEST_WEIGHTS = "model_best.pth"
_ROWS = 4096
# A feature whose spread is this small beside its size is constant but for rounding; dividing by it would amplify noise.
_DEAD = 1e-5


class Head(nn.Module):
    """Logits = layers((features - mean) / scale).

    mean, scale: float32 [D] buffers, the statistics of the train features: they travel with the weights and into
    the exported graph, so raw backbone features go in everywhere.
    """

    def __init__(self, config: HeadConfig, dim: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float32))
        self.register_buffer("scale", torch.ones(dim, dtype=torch.float32))
        # skip_init: nn.Linear would draw from the global generator; `build_head` fills the weights from its own.
        if config.kind == "linear":
            self.layers = nn.Sequential(_linear(dim, n_classes))
        else:
            self.layers = nn.Sequential(
                _linear(dim, config.hidden), nn.GELU(), nn.Dropout(config.dropout), _linear(config.hidden, n_classes)
            )

    def forward(self, features: Tensor) -> Tensor:
        """features: float32 [N, D] as the backbone gives them. Returns logits, float32 [N, K]."""
        return self.layers((features - self.mean) / self.scale)

    @torch.no_grad()
    def standardise(self, mean: NDArray[np.float32], scale: NDArray[np.float32]) -> None:
        """Set the fixed normalisation, float32 [D] each; `scale` must be positive."""
        self.mean.copy_(torch.tensor(mean, dtype=torch.float32))
        self.scale.copy_(torch.tensor(scale, dtype=torch.float32))

    @torch.no_grad()
    def start_at(self, frequencies: NDArray[np.float64]) -> None:
        """Set the bias of the last layer to the log of these class frequencies [K], all > 0.

        From zero, a bias moves by about the learning rate a step: a rare class then costs the first epochs, and early
        stopping ends before the probabilities are those of the data.
        """
        bias = np.log(frequencies / frequencies.sum())
        last = [layer for layer in self.layers if isinstance(layer, nn.Linear)][-1]
        last.bias.copy_(torch.tensor(bias - bias.mean(), dtype=torch.float32))


def build_head(config: HeadConfig, dim: int, n_classes: int, seed: int) -> Head:
    """A new head for D = `dim` features and K = `n_classes`, weights drawn from `seed` alone, no global generator.

    The last layer starts near zero (normal, 0.01), so the first loss is log K; hidden layers: He et al. 2015.
    Raises DataError where dim < 1 or n_classes < 2.
    """
    if dim < 1:
        raise DataError(f"features: {dim} columns; a head needs at least one")
    if n_classes < 2:
        raise DataError(f"classes: {n_classes}; a head needs at least two")
    head = Head(config, dim, n_classes)
    generator = torch.Generator().manual_seed(seed)
    linears = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for layer in linears:
            scale = 0.01 if layer is linears[-1] else math.sqrt(2.0 / layer.in_features)
            layer.weight.normal_(0.0, scale, generator=generator)
            layer.bias.zero_()
    return head


def feature_statistics(features: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale per column of finite [N, D] features, N >= 1 (memory maps too: read in pieces); float32 [D] each.

    scale_j = sqrt(std_j * r), r = root mean square of all std_j: half-way between one common scale and a scale per column.
    Columns that hardly vary are mostly noise, and dividing each by its own spread blows them up to the size of the others
    (potholes, frozen CNN features, logistic regression: AUROC .816 so, .842 half-way, .841 with a common scale); a common
    scale alone learns slowly where spreads differ by orders of magnitude. A column that does not vary gets r.
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


def load_head(path: str | os.PathLike[str], config: HeadConfig, dim: int, n_classes: int) -> Head:
    """The trained head from `model_best.pth` (the file, or the folder that holds it), in eval mode.

    Raises MissingError (no such file) and IntegrityError (damaged, or made with another head config, dim or classes).
    """
    path = Path(path)
    if path.is_dir():
        path = path / BEST_WEIGHTS
    try:
        weights = torch.load(io.BytesIO(path.read_bytes()), map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise MissingError(f"{path}: no such file; train the head first (stage1 train)") from error
    except Exception as error:  # for a damaged file torch.load raises whatever its zip and unpickler happened to meet
        raise IntegrityError(f"{path}: damaged weights file ({type(error).__name__}); train again") from error
    head = Head(config, dim, n_classes)
    expected = head.state_dict()
    if not isinstance(weights, dict) or set(weights) != set(expected):
        raise IntegrityError(f"{path}: not a {config.kind} head; use the head config it was trained with")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise IntegrityError(
                f"{path}: {name} is {tuple(weights[name].shape)}, expected {tuple(tensor.shape)} "
                f"(dim {dim}, classes {n_classes}); use the config and backbone it was trained with"
            )
    head.load_state_dict(weights, strict=True)
    return head.eval()


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
