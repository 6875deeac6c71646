"""Conformal risk control: the threshold whose expected loss on the next sample is bounded."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

_SLACK = 1e-9


def crc_threshold(losses: ArrayLike, lambdas: ArrayLike, alpha: float, loss_bound: float = 1.0) -> float | None:
    """Smallest lambda with (sum of the n losses + loss_bound) / (n + 1) <= alpha, or None where there is none.

    losses: float [n, L] in [0, loss_bound], column l at lambdas[l], non-increasing along the row. lambdas: float [L],
    rising (larger = more conservative). Then E[loss of sample n + 1 at that lambda] <= alpha, over calibration set and
    sample together, where they are exchangeable: a mean over calibration sets, not a promise about the one at hand.
    A sum that equals the limit counts as feasible. "None is feasible" and "the first is feasible" are told apart.
    Raises DataError naming the argument: shapes, NaN, a loss outside its range or rising, alpha outside (0, loss_bound).
    Source: Angelopoulos et al. 2022 (conformal risk control), theorem 1.
    """
    table = np.asarray(losses, dtype=np.float64)
    grid: NDArray[np.float64] = np.asarray(lambdas, dtype=np.float64)
    if table.ndim != 2 or not table.size or grid.shape != table.shape[1:]:
        raise DataError(f"losses {table.shape}, lambdas {grid.shape}: [n, L] and [L] with n, L >= 1 are expected")
    if not np.isfinite(table).all() or (table < 0).any() or (table > loss_bound).any():
        raise DataError(f"losses: must be finite and in [0, {loss_bound:g}] (loss_bound)")
    if not np.isfinite(grid).all() or (np.diff(grid) <= 0).any():
        raise DataError("lambdas: must be finite and rising")
    if (np.diff(table, axis=1) > _SLACK).any():
        raise DataError("losses: must not rise along a row; order lambdas from the riskiest to the most conservative")
    if not 0 < alpha < loss_bound:
        raise DataError(f"alpha: must lie strictly between 0 and loss_bound={loss_bound:g}, got {alpha}")
    n = len(table)
    # Float sums of exact fractions (0.1 * 10) must not turn "equal" into "above".
    feasible = table.sum(axis=0) + loss_bound <= alpha * (n + 1) * (1 + _SLACK)
    return float(grid[int(np.argmax(feasible))]) if feasible.any() else None
