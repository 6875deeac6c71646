"""The solvers of the parametric maps: L-BFGS with analytic gradients, and logistic regression by it.

scipy's L-BFGS-B with one BLAS thread (threadpoolctl) is as fast and repeats to the bit, but stops elsewhere in flat
directions: parameters of vector and Dirichlet maps moved by up to 3e-4 of their value where `verify --recompute` allows
1e-6, so bundles made with this solver would be refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

import numpy as np

from stage1.calibration.maps import FloatArray

Objective = Callable[[FloatArray], tuple[float, FloatArray]]


def minimise(
    objective: Objective, start: FloatArray, floors: FloatArray | None = None, *, tolerance: float = 1e-9
) -> FloatArray:
    """argmin of a smooth convex function over theta >= floors (-inf or None: free), float64, [P].

    objective: theta -> (value, gradient). Stops where no gradient entry exceeds `tolerance`, or rounding ends progress.
    The free problem goes first: where its optimum keeps to the floors, it is the answer. That is the usual case, and
    scipy's L-BFGS-B calls threaded LAPACK on its tiny matrices: 20 times the time on a busy machine.
    """
    free = _lbfgs(objective, start, tolerance)
    if floors is None or (free >= floors).all():
        return free
    from scipy.optimize import minimize

    bounds = [(None if np.isneginf(floor) else floor, None) for floor in floors]
    found = minimize(
        objective,
        np.maximum(start, floors),
        jac=True,
        method="L-BFGS-B",
        bounds=bounds,
        options={"maxiter": 2000, "maxfun": 4000, "maxcor": 10, "ftol": 1e-15, "gtol": tolerance},
    )
    return np.asarray(found.x, dtype=np.float64)


def _lbfgs(objective: Objective, start: FloatArray, tolerance: float, memory: int = 10) -> FloatArray:
    """Liu and Nocedal 1989, two-loop recursion, with a bisecting search for a weak Wolfe step."""
    theta = np.array(start, dtype=np.float64)
    value, gradient = objective(theta)
    history: deque[tuple[FloatArray, FloatArray, float]] = deque(maxlen=memory)
    for _ in range(2000):
        if np.abs(gradient).max() <= tolerance:
            break
        direction = _direction(gradient, history)
        step = _wolfe_step(objective, theta, value, gradient, direction)
        if step is None:
            if not history:
                break
            history.clear()  # the history is spoiled by rounding: restart with steepest descent
            continue
        moved, value, new_gradient = step
        shift, change = moved - theta, new_gradient - gradient
        if (curvature := float(shift @ change)) > 0.0:
            history.append((shift, change, curvature))
        theta, gradient = moved, new_gradient
    return theta


def _direction(gradient: FloatArray, history: deque[tuple[FloatArray, FloatArray, float]]) -> FloatArray:
    direction = -gradient
    shares = []
    for shift, change, curvature in reversed(history):
        shares.append(float(shift @ direction) / curvature)
        direction = direction - shares[-1] * change
    if history:
        _, change, curvature = history[-1]
        direction = direction * (curvature / float(change @ change))
    else:
        direction = direction / max(1.0, float(np.abs(gradient).max()))
    for shift, change, curvature in history:
        direction = direction + (shares.pop() - float(change @ direction) / curvature) * shift
    return np.asarray(direction)


def _wolfe_step(
    objective: Objective, theta: FloatArray, value: float, gradient: FloatArray, direction: FloatArray
) -> tuple[FloatArray, float, FloatArray] | None:
    """(theta, value, gradient) after a step with enough decrease and a flatter slope; None: no such step."""
    slope = float(gradient @ direction)
    if not slope < 0.0:
        return None
    low, high, length = 0.0, np.inf, 1.0
    for _ in range(40):
        moved = theta + length * direction
        new_value, new_gradient = objective(moved)
        if not new_value <= value + 1e-4 * length * slope:
            high = length
        elif float(new_gradient @ direction) < 0.9 * slope:
            low = length
        else:
            return moved, new_value, new_gradient
        length = (low + high) / 2 if np.isfinite(high) else 2.0 * length
    return None


def logistic(features: FloatArray, targets: FloatArray, floors: Sequence[float]) -> tuple[FloatArray, float]:
    """(slopes [P], intercept) of least mean cross-entropy of sigma(features @ slopes + intercept) against targets.

    features: [N, P]; targets: [N] in [0, 1]; floors: the least value of each slope (-inf: free). A feature without
    spread gets slope max(0, floor). Columns are scaled and centred inside, which changes the path, not the optimum.
    """
    spread, middle = features.std(axis=0), features.mean(axis=0)
    used = spread > 1e-12 * np.maximum(np.abs(middle), 1.0)
    scale = np.where(used, spread, 1.0)
    columns = np.column_stack([(features - middle) / scale * used, np.ones(len(features))])

    def objective(theta: FloatArray) -> tuple[float, FloatArray]:
        logit = columns @ theta
        loss = np.logaddexp(0.0, logit) - targets * logit
        return float(loss.mean()), np.asarray((_sigmoid(logit) - targets) @ columns / len(targets))

    limits = np.append(np.asarray(floors) * scale, -np.inf)
    rate = np.clip(targets.mean(), 1e-12, 1 - 1e-12)
    start = np.append(np.zeros(len(scale)), np.log(rate / (1 - rate)))
    theta = minimise(objective, np.maximum(start, limits), limits, tolerance=1e-10)
    slopes = theta[:-1] / scale
    return slopes, float(theta[-1] - slopes @ (middle * used))


def _sigmoid(logit: FloatArray) -> FloatArray:
    return np.asarray(np.exp(-np.logaddexp(0.0, -logit)))
