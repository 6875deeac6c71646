"""The rule of the client, played answer by answer.

After each answer r = (0.5 MCC over the last 100 + 0.5 accuracy over the last 10)^3. MCC is clipped at 0, and is 0 where
the window holds one label or one answer only; r is 0 where the answer is outside [0, 1]. An answer above 0.5 says class
1, exactly 0.5 says class 0. The score that is kept is a moving average, 0.05 r + 0.95 of the last one, starting at 0.

- **Warm-up**: with fewer than 100 (10) answers the window is what there is, so one right answer alone earns 0.5^3.
- **No reply** (-1): earns 0; it takes a place in the windows, and what is measured there leaves it out.
- **Outside [0, 1]**: earns 0. Where it still rounds to 0 or 1 (1.2, -0.1) it counts in the windows as that answer. Any
  other value, and NaN or infinity, makes the client's scikit-learn call raise: MCC and accuracy are 0 in each window
  that holds it, so one such answer costs the next nine rewards whole, and leaves of each of the ninety after them at
  most 1/8. (scikit-learn does not raise where 1 and that value are all that labels and answers in the window hold; it
  is then a wrong answer.)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from stage1.errors import DataError
from stage1.evaluation.ranking import FloatArray

WINDOW, RECENT, ALPHA = 100, 10, 0.05
NO_REPLY = -1.0
_WHOLE = 2.0**63
_THIRD = 2  # an answer that rounds to neither class: wrong whatever the label


def reward_formula(mcc: ArrayLike, recent: ArrayLike) -> FloatArray:
    """(0.5 mcc + 0.5 recent)^3, broadcast; a negative mcc counts as 0."""
    return np.asarray((0.5 * np.maximum(mcc, 0.0) + 0.5 * np.asarray(recent, dtype=np.float64)) ** 3)


@dataclass(frozen=True, slots=True)
class Played:
    """A sequence of answers as the client sees it. rewards, scores: float [N], r and its moving average after each."""

    rewards: FloatArray
    scores: FloatArray

    @property
    def mean(self) -> float:
        """Mean reward once both windows are full; of all answers where there are fewer."""
        return float(self.rewards[WINDOW - 1 :].mean() if len(self.rewards) >= WINDOW else self.rewards.mean())


def play(answers: ArrayLike, labels: ArrayLike) -> Played:
    """The rule on one sequence. answers: float [N], any values (no reply, out of range: see above); labels: 0/1 [N].

    Raises DataError for unequal lengths, none at all, or other labels.
    """
    given, truth = np.asarray(answers, dtype=np.float64), np.asarray(labels)
    if given.ndim != 1 or truth.shape != given.shape or not len(given):
        raise DataError(f"answers: shape {given.shape} for labels {truth.shape}; one of each per image, at least one")
    if not np.isin(truth, (0, 1)).all():
        raise DataError("labels: 0 and 1 only; the reward is for two classes")
    truth = truth.astype(np.int64)
    replied = given != NO_REPLY
    rounded = np.round(given)  # numpy rounds 0.5 to 0: exactly 0.5 says class 0
    said = np.where(np.isin(rounded, (0, 1)), rounded, _THIRD).astype(np.int64)
    cells = np.zeros((len(given), 2, 3))
    cells[np.flatnonzero(replied), truth[replied], said[replied]] = 1.0
    mcc = np.where(_refused(rounded, truth, replied, WINDOW), 0.0, _mcc_of_windows(_windowed(cells, WINDOW)))
    recent = _windowed(cells, RECENT)
    counted = recent.sum(axis=(1, 2))
    accuracy = (recent[:, 0, 0] + recent[:, 1, 1]) / np.maximum(counted, 1.0)
    accuracy = np.where(_refused(rounded, truth, replied, RECENT), 0.0, accuracy)
    in_range = replied & (given >= 0) & (given <= 1)
    rewards = np.where(in_range, reward_formula(mcc, accuracy), 0.0)
    return Played(rewards, moving_average(rewards))


def _refused(rounded: FloatArray, truth: NDArray[np.int64], replied: NDArray[np.bool_], size: int) -> NDArray[np.bool_]:
    """bool [N]: windows of which scikit-learn's binary metrics raise, so that the client takes each of them for 0."""
    odd = np.flatnonzero(replied & ~np.isin(rounded, (0, 1)))
    refused = np.zeros(len(rounded), dtype=np.bool_)
    for place in odd.tolist():
        for end in range(place, min(place + size, len(rounded))):
            window = slice(max(0, end + 1 - size), end + 1)
            kept = rounded[window][replied[window]]
            values = {*kept.tolist(), *truth[window][replied[window]].tolist()}
            # Not a whole number of 64 bits (NaN, infinity among them): no class for it, whatever the other answers are.
            refused[end] |= not (np.abs(kept) < _WHOLE).all() or len(values) > 2 or 1 not in values
    return refused


def moving_average(rewards: FloatArray) -> FloatArray:
    """0.05 r + 0.95 of the last value, from 0."""
    scores, score = np.empty(len(rewards)), 0.0
    for place, reward in enumerate(rewards.tolist()):
        score = ALPHA * reward + (1.0 - ALPHA) * score
        scores[place] = score
    return scores


def _windowed(cells: FloatArray, size: int) -> FloatArray:
    """Sums over the last `size` rows (all, where there are fewer), for each row."""
    sums = np.cumsum(cells, axis=0)
    sums[size:] -= sums[:-size].copy()
    return sums


def _mcc_of_windows(counts: FloatArray) -> FloatArray:
    """MCC (Gorodkin 2004) of [N, label, answer]; 0 where labels or answers are all of one kind."""
    truth, said = counts.sum(axis=2), counts.sum(axis=1)
    total = truth.sum(axis=1)
    right = counts[:, 0, 0] + counts[:, 1, 1]
    spread = (total**2 - (truth**2).sum(axis=1)) * (total**2 - (said**2).sum(axis=1))
    cross = right * total - (truth * said[:, :2]).sum(axis=1)
    return np.asarray(np.where(spread > 0, cross / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0))


def simulated(
    tpr: float, fpr: float, *, prior: float = 0.5, answers: int = 1000, runs: int = 200, seed: int = 0
) -> NDArray[np.float64]:
    """Moving averages after `answers` answers of `runs` independent sequences, float [runs]: the payout's spread."""
    rng = np.random.default_rng(seed)
    ends = np.empty(runs)
    for run in range(runs):
        labels = (rng.random(answers) < prior).astype(np.int64)
        said = rng.random(answers) < np.where(labels == 1, tpr, fpr)
        ends[run] = play(said.astype(np.float64), labels).scores[-1]
    return ends
