"""Three Gaussian classes whose posterior is known, for simulations with K > 2."""

from __future__ import annotations

import numpy as np

from stage1 import Scores

NAMES = ("cat", "dog", "owl")
# cat and dog lie close, owl apart: errors are not spread evenly over the classes.
CENTRES = np.array([[0.0, 0.0], [2.2, 0.0], [1.1, 4.0]])


def draw(rng: np.random.Generator, n: int, shares: tuple[float, ...] = (0.4, 0.35, 0.25)) -> Scores:
    """n points of unit Gaussians with logits that overstate: the true log-likelihoods times 1.5."""
    labels = rng.choice(3, n, p=shares)
    points = CENTRES[labels] + rng.normal(0, 1, (n, 2))
    distance = ((points[:, None, :] - CENTRES[None]) ** 2).sum(axis=2)
    return Scores(logits=1.5 * (-distance / 2 + np.log(shares)), labels=labels)
