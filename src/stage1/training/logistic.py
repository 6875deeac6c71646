"""Exact logistic regression with an L2 penalty on features, one fit or many folds at once; no random number anywhere.

Minimised, over weights W [m, D] of standardised features z and biases b [m] (m = 1 for two classes, else m = K):

    sum_i s_i loss(y_i, W z_i + b)  +  strength / 2 |W|^2  +  BIAS_RIDGE / 2 |b|^2

loss is the log loss of one logit for two classes, else that of the softmax: with C = 1 / strength the objective of
scikit-learn's LogisticRegression, but for the ridge on b, which moves b by about one part in 1e7 and keeps the minimum
finite where a fold has no image of a class. z = (x - mean) / scale has mean squared norm 1 for either scale, so one
grid of strengths fits every backbone: 1 / sqrt(strength) is the prior's standard deviation of a logit.

The penalty does not change under rotation, so the fit is done on the principal axes of the rows (at most min(N, D) of
them), where a diagonal preconditions Newton's conjugate gradients well; folds are masks on the rows of one matrix and
are solved side by side. Float64, one thread: the same numbers on every run; another order of the rows changes them by
rounding alone (1e-5 of a logit in the tests: mean and scale are those of float32 sums).
Source: Lin, Weng and Keerthi 2008 (trust-region Newton for logistic regression; here with step halving).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stage1.errors import DataError
from stage1.model.head import feature_statistics
from stage1.training.optim import own_torch_state
from stage1.training.selection import checked_features

Floats = NDArray[np.float64]
Scale = Literal["common", "column"]

BIAS_RIDGE = 1e-6
_NEWTON_STEPS = 60
_CG_STEPS = 250
_HALVINGS = 40
# Newton's decrement squared is about twice the distance to the minimum of the objective, a sum over rows.
_EXACT = 1e-16
_CHOOSING = 1e-6
# Axes with less than this share of the largest axis' sum of squares are rounding.
_RANK = 1e-13


@dataclass(frozen=True, slots=True)
class Logistic:
    """A linear classifier: logits = weight ((x - mean) / scale) + bias. float64; weight [K, D], bias [K], mean, scale
    [D].
    """

    weight: Floats
    bias: Floats
    mean: Floats
    scale: Floats

    def logits(self, features: NDArray[Any]) -> Floats:
        """Of features [N, D] as the backbone gives them: float64 [N, K]."""
        return ((np.asarray(features, dtype=np.float64) - self.mean) / self.scale) @ self.weight.T + self.bias


def standardisation(features: NDArray[np.float32], scale: Scale) -> tuple[Floats, Floats]:
    """Mean and scale, float64 [D] each, after which rows of [N, D] have mean squared norm 1.

    common: one number for all columns, which keeps their geometry; column: half-way to a scale of its own for each
    (`model.head.feature_statistics`). Labels play no part. Raises DataError for another name.
    """
    if scale not in get_args(Scale):
        raise DataError(f"scale: {scale!r}; use {' or '.join(get_args(Scale))}")
    mean, half_way = (values.astype(np.float64) for values in feature_statistics(features))
    scales = half_way if scale == "column" else np.ones_like(half_way)
    total = sum(
        float(np.square((features[start : start + 4096] - mean) / scales).sum())
        for start in range(0, len(features), 4096)
    )
    return mean, scales * (np.sqrt(total / len(features)) or 1.0)


def fit_logistic(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    n_classes: int,
    *,
    strength: float,
    scale: Scale = "common",
    sample_weight: NDArray[Any] | None = None,
) -> Logistic:
    """The minimum of the objective above. features: float32 [N, D]; labels: int [N] in 0..K-1, every class present.

    strength: > 0, weight of the penalty. sample_weight: s [N], >= 0; None: 1 each.
    Raises DataError (shapes, NaN, labels, a class without images, a strength that is not positive and finite).
    """
    data = checked_features(features, labels, n_classes, "logistic")
    weights = _checked_weights(sample_weight, len(data.labels))
    counts = np.bincount(data.labels, weights=weights, minlength=n_classes)
    if (counts == 0).any():
        raise DataError(f"logistic: class {int(counts.argmin())} has no image; every class needs one")
    with own_torch_state(), torch.no_grad():
        axes = _Axes(data.features, scale)
        problem = _Problem(axes.rows, data.labels, weights[:, None], n_classes)
        solution = problem.solve(_checked_strength(strength), problem.start(), _EXACT)
        weight, bias = axes.unrotated(solution[:-1]), solution[-1].numpy()
    if n_classes == 2:  # one logit becomes the two of a linear head; their difference is the logit
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.array([-bias[0] / 2, bias[0] / 2])
    return Logistic(weight, bias, axes.mean, axes.scale)


def out_of_fold_path(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    fold: NDArray[np.int64],
    n_classes: int,
    *,
    strengths: Sequence[float],
    scale: Scale = "common",
    sample_weight: NDArray[Any] | None = None,
) -> Iterator[tuple[float, Floats]]:
    """Each strength, from strong to weak, with the logits [N, K] of every row by a fit on the rows of the other folds.

    Each fit starts from the one before; a caller that has seen enough stops asking. fold: int [N], at least two
    different numbers. What a row's own fold gives away is its features' share in mean, scale and axes, no label. A
    class without rows outside a fold gets a very low logit there.
    Raises DataError as `fit_logistic`, but a fold may lack a class.
    """
    data = checked_features(features, labels, n_classes, "logistic")
    fold = np.asarray(fold)
    names = np.unique(fold)
    if fold.shape != data.labels.shape or len(names) < 2:
        raise DataError(
            f"folds: {len(names)} of {fold.shape}; at least two, a number for each of {len(data.labels)} rows"
        )
    weights = _checked_weights(sample_weight, len(data.labels))
    place, m = np.searchsorted(names, fold), 1 if n_classes == 2 else n_classes
    with own_torch_state(), torch.no_grad():
        axes = _Axes(data.features, scale)
        problem = _Problem(axes.rows, data.labels, weights[:, None] * (fold[:, None] != names), n_classes)
    solution = problem.start()
    for strength in sorted(map(_checked_strength, strengths), reverse=True):
        with own_torch_state(), torch.no_grad():
            solution = problem.solve(strength, solution, _CHOOSING)
            every = problem.logits(solution).reshape(len(fold), len(names), m).numpy()
        own = every[np.arange(len(fold)), place]
        yield strength, np.concatenate([-own / 2, own / 2], axis=1) if m == 1 else own


def _checked_strength(strength: float) -> float:
    if not (np.isfinite(strength) and strength > 0):
        raise DataError(f"strength: {strength}; a positive number is expected")
    return float(strength)


def _checked_weights(sample_weight: NDArray[Any] | None, n: int) -> Floats:
    weights = np.ones(n) if sample_weight is None else np.asarray(sample_weight, dtype=np.float64)
    if weights.shape != (n,) or not np.isfinite(weights).all() or (weights < 0).any():
        raise DataError(f"sample_weight: {weights.shape}, {n} finite numbers >= 0 are expected")
    return weights


class _Axes:
    """Standardised rows on their principal axes. rows: float64 [N, r + 1], the last column 1 for the bias."""

    def __init__(self, features: NDArray[np.float32], scale: Scale) -> None:
        self.mean, self.scale = standardisation(features, scale)
        x = torch.tensor((features - self.mean) / self.scale, dtype=torch.float64)
        n, dim = x.shape
        if n < dim:
            squares, left = torch.linalg.eigh(x @ x.T)
            kept = squares > _RANK * squares[-1].clamp_min(torch.finfo(torch.float64).tiny)
            roots = squares[kept].sqrt()
            rows = left[:, kept] * roots
            self._basis = x.T @ (left[:, kept] / roots)  # [D, r], orthonormal columns
        else:
            _, self._basis = torch.linalg.eigh(x.T @ x)
            rows = x @ self._basis
        self.rows = torch.cat([rows, torch.ones(n, 1, dtype=torch.float64)], dim=1)

    def unrotated(self, weights: Tensor) -> Floats:
        """[m, D] of weights [r, m] on the axes."""
        return np.ascontiguousarray((self._basis @ weights).T.numpy())


class _Problem:
    """P weightings of the same rows side by side. A solution is [r + 1, P m]: columns of a weighting lie together."""

    def __init__(self, rows: Tensor, labels: NDArray[np.int64], weights: Floats, n_classes: int) -> None:
        self.z, self.k, self.n = rows, n_classes, len(rows)
        self.m = 1 if n_classes == 2 else n_classes
        self.problems = weights.shape[1]
        self.s = torch.tensor(weights, dtype=torch.float64)[:, :, None]  # [N, P, 1]
        target = torch.tensor(labels)
        hot = torch.nn.functional.one_hot(target, n_classes).to(torch.float64)
        self.y = (hot[:, 1:] if self.m == 1 else hot)[:, None, :]  # [N, 1, m]
        self.squares = rows.square().sum(dim=0)  # [r + 1]

    def start(self) -> Tensor:
        return torch.zeros(self.z.shape[1], self.problems * self.m, dtype=torch.float64)

    def logits(self, solution: Tensor) -> Tensor:
        return self.z @ solution

    def solve(self, strength: float, solution: Tensor, tolerance: float) -> Tensor:
        """Newton's method on all P problems from `solution`; each stops where its squared decrement is <= tolerance."""
        ridge = torch.full((self.z.shape[1], 1, 1), strength, dtype=torch.float64)
        ridge[-1] = BIAS_RIDGE
        w, u = self._split(solution), self._split(self.logits(solution))
        value = self._value(u, w, ridge)
        for _ in range(_NEWTON_STEPS):
            p = torch.sigmoid(u) if self.m == 1 else torch.softmax(u, dim=2)
            gradient = self._split(self.z.T @ (self.s * (p - self.y)).flatten(1)) + ridge * w
            step, decrement = self._newton_step(p, gradient, ridge, tolerance)
            if bool((decrement <= tolerance).all()):
                break
            moved = self._split(self.logits(step.flatten(1)))
            length = torch.ones(self.problems, 1, dtype=torch.float64)
            for _ in range(_HALVINGS):
                candidate = self._value(u + length * moved, w + length * step, ridge)
                # Armijo, with room for rounding of the sum where the step is already tiny.
                room = 1e-12 * (1.0 + value.abs())
                failed = candidate > value - 1e-4 * length[:, 0] * decrement + room
                if not bool(failed.any()):
                    break
                length[failed] /= 2
            else:
                length[failed] = 0.0
                candidate = self._value(u + length * moved, w + length * step, ridge)
            w, u, value = w + length * step, u + length * moved, candidate
            if bool((length == 0).all()):
                break
        return w.flatten(1)

    def _split(self, columns: Tensor) -> Tensor:
        return columns.reshape(len(columns), self.problems, self.m)

    def _value(self, u: Tensor, w: Tensor, ridge: Tensor) -> Tensor:
        """The objective of each problem, [P]."""
        if self.m == 1:
            loss = (torch.nn.functional.softplus(u) - self.y * u)[:, :, 0]
        else:
            loss = torch.logsumexp(u, dim=2) - (self.y * u).sum(dim=2)
        return (self.s[:, :, 0] * loss).sum(dim=0) + 0.5 * (ridge * w.square()).sum(dim=(0, 2))

    def _newton_step(self, p: Tensor, gradient: Tensor, ridge: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
        """-H^-1 gradient [r + 1, P, m] by preconditioned conjugate gradients, and gradient H^-1 gradient [P]."""
        curvature = self.s * p * (1 - p)  # the diagonal over rows, [N, P, m]
        preconditioner = self.squares[:, None, None] * curvature.mean(dim=0) + ridge
        step = torch.zeros_like(gradient)
        residual = -gradient
        scaled = residual / preconditioner
        direction, power = scaled.clone(), (residual * scaled).sum(dim=(0, 2))
        first = power.clone()
        # Superlinear: the nearer the minimum, the more exactly the step is solved, as far as the tolerance asks for it.
        goal = (first * torch.clamp(first, max=0.01).clamp_min(1e-10)).clamp_min(0.1 * tolerance)
        for _ in range(_CG_STEPS):
            active = power > goal
            if not bool(active.any()):
                break
            v = self._split(self.z @ direction.flatten(1))
            if self.m == 1:
                bent = curvature * v
            else:
                bent = self.s * p * (v - (p * v).sum(dim=2, keepdim=True))
            product = self._split(self.z.T @ bent.flatten(1)) + ridge * direction
            along = (direction * product).sum(dim=(0, 2))
            alpha = torch.where(active, power / along.clamp_min(torch.finfo(torch.float64).tiny), 0.0)[:, None]
            step = step + alpha * direction
            residual = residual - alpha * product
            scaled = residual / preconditioner
            after = (residual * scaled).sum(dim=(0, 2))
            beta = torch.where(active, after / power.clamp_min(torch.finfo(torch.float64).tiny), 0.0)[:, None]
            direction, power = scaled + beta * direction, torch.where(active, after, power)
        return step, -(gradient * step).sum(dim=(0, 2))
