"""The client's filter of real rows: only where label and scene_description agree."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError

DESCRIPTION = "scene_description"


def agreeing(labels: ArrayLike, descriptions: Sequence[str | None] | NDArray[np.str_]) -> NDArray[np.bool_]:
    """bool [N]: rows that the client would send: label 1 has a description, label 0 has none.

    labels: 0 or 1, [N]. descriptions: text, [N]; None and white space alone are no description.
    Raises DataError for another number of descriptions, or a label that is neither 0 nor 1.

    Example: agreeing([1, 1, 0, 0], ["cones", "", None, "barrier"]) -> [True, False, True, False]
    """
    given = np.asarray(labels)
    if given.shape != (len(descriptions),):
        raise DataError(
            f"{DESCRIPTION}: {len(descriptions)} values for labels of shape {given.shape}; one each is needed"
        )
    if len(given) and not np.isin(given, (0, 1)).all():
        bad = given[~np.isin(given, (0, 1))][0]
        raise DataError(f"labels: {bad} is neither 0 nor 1; the client's filter is for two classes")
    described = np.array([bool(text and str(text).strip()) for text in descriptions], dtype=np.bool_)
    return described == (given == 1)
