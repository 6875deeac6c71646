"""Draws where a second signal helps: some images are hard, the margin does not say which, another column nearly
does.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from stage1.scores import Scores


def hard_images(
    rng: np.random.Generator, n: int, *, helps: bool = True, **fields: Any
) -> tuple[Scores, dict[str, np.ndarray]]:
    """n binary scores, 40 % positives, margin 2 (+-1 + sigma noise) with sigma .7, or 2.2 for the 30 % hard ones.

    The column `hardness` is the truth (+-1) with noise .6, or, where it does not help, noise alone.
    """
    labels = (rng.random(n) < 0.4).astype(np.int64)
    hard = rng.random(n) < 0.3
    margin = 2 * (2 * labels - 1 + np.where(hard, 2.2, 0.7) * rng.normal(size=n))
    seen = np.where(hard, 1.0, -1.0) + 0.6 * rng.normal(size=n) if helps else rng.normal(size=n)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, **fields), {"hardness": seen}
