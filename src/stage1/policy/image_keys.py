"""A number of 64 bits for each calibration image, by which two sets of images are compared.

Of its id; where there are no ids, of its logits and label. The number of a row of words w_1, w_2, .. (characters of the
id, or the bits of the logits and the label) is mix(sum of w_j c_j mod 2^64), with fixed odd c_j and the finaliser of
splitmix64: words of zero change nothing, so an id has one number in whatever array it stands. Two given images have the
same number with probability about 2^-64; two sets of a million, anywhere, with 5e-8.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stage1.policy.attempts import ImageSet, Keys
from stage1.policy.certify import calibration_digest
from stage1.scores import Scores

_STEP, _FIRST, _SECOND = (np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def image_set(calib: Scores) -> ImageSet:
    """The calibration images of a look.

    By content, rows that stand more than once (saturated scores) say nothing of which image they are: left out.

    >>> calib = Scores([[0.0, 1.0], [0.0, 2.0]], labels=[0, 1], ids=["a", "b"])
    >>> image_set(calib).shared(image_set(calib.take([1])))
    1
    """
    digest = calibration_digest(calib)
    if calib.ids is not None:
        return ImageSet(digest, _once(np.sort(keys_of_texts(calib.ids)), most=len(calib)), len(calib), "id")
    words = np.column_stack([calib.logits.view(np.uint64), calib.known_labels.astype(np.uint64)])
    return ImageSet(digest, _once(np.sort(_keys(words)), most=1), len(calib), "content")


def _once(ordered: Keys, most: int) -> Keys:
    """Each key once, of those that occur at most so often. By sorting: numpy's unique takes sixteen times as long."""
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    return ordered[starts[np.diff(np.append(starts, len(ordered))) <= most]]


def keys_of_texts(texts: NDArray[np.str_]) -> Keys:
    """uint64 [N] of texts [N].

    >>> bool(keys_of_texts(np.array(["a", "bcd"]))[0] == keys_of_texts(np.array(["a"]))[0])
    True
    """
    flat = np.ascontiguousarray(texts)
    return _keys(flat.view(np.uint32).reshape(len(flat), -1))


def _keys(words: NDArray[np.uint32] | NDArray[np.uint64]) -> Keys:
    """Column by column, so that a million ids of 64 characters take no more than two columns of memory."""
    total = np.zeros(len(words), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for column in range(words.shape[1]):
            odd = _mixed(_STEP * np.uint64(column + 1)) | np.uint64(1)
            total += words[:, column].astype(np.uint64) * odd
        return np.asarray(_mixed(total + _STEP))


def _mixed(value: np.uint64 | Keys) -> np.uint64 | Keys:
    value = (value ^ (value >> np.uint64(30))) * _FIRST
    value = (value ^ (value >> np.uint64(27))) * _SECOND
    return value ^ (value >> np.uint64(31))
