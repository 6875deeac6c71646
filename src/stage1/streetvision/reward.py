"""What the street-photo client pays for answers: the rule played answer by answer, and its expected value exactly.

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

The expectation needs no simulation. Answers are independent given TPR and FPR, so the counts of a window are binomial,
and given the counts the last 10 of the 100 are a random 10: the number of right ones is hypergeometric. Summed over all
176,851 tables of counts that is one number per (TPR, FPR, prior), to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import comb

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


# ---- expected ----------------------------------------------------------------------------------------------------


def expected_reward(tpr: ArrayLike, fpr: ArrayLike, prior: float = 0.5, answers: int = WINDOW) -> FloatArray:
    """E[r] of an answerer that says 1 with probability `tpr` on class 1 and `fpr` on class 0; exact.

    tpr, fpr: in [0, 1], broadcast together; the result has their shape. prior: P(class 1). answers: how many were
    given, from 1; from 100 on nothing changes, and the expectation of the moving average is this number.
    Raises DataError naming what is outside its range.

    >>> round(float(expected_reward(0.98, 0.02)), 3)
    0.915
    """
    rates = [np.asarray(values, dtype=np.float64) for values in (tpr, fpr)]
    for name, values in (("tpr", rates[0]), ("fpr", rates[1]), ("prior", np.asarray(prior))):
        if not ((values >= 0) & (values <= 1)).all():
            raise DataError(
                f"{name}: {np.ravel(values)[np.ravel(~((values >= 0) & (values <= 1)))][0]}; a rate in [0, 1]"
            )
    if answers < 1:
        raise DataError(f"answers: {answers}; the reward is defined from the first answer on")
    first, second = np.broadcast_arrays(*rates)
    n = min(answers, WINDOW)
    right, wrong = _powers(first.ravel(), n), _powers(1.0 - first.ravel(), n)
    false, true = _powers(second.ravel(), n), _powers(1.0 - second.ravel(), n)
    found = np.zeros(first.size)
    for positives, (values, ways) in enumerate(_tables(n)):
        negatives = n - positives
        hits = right[:, : positives + 1] * wrong[:, positives::-1]
        alarms = false[:, : negatives + 1] * true[:, negatives::-1]
        share = ways * prior**positives * (1.0 - prior) ** negatives
        found += share * ((hits @ values) * alarms).sum(axis=1)
    return np.asarray(found.reshape(first.shape))


def _powers(base: FloatArray, n: int) -> FloatArray:
    return base[:, None] ** np.arange(n + 1)


@lru_cache(maxsize=4)
def _tables(n: int) -> tuple[tuple[FloatArray, float], ...]:
    """For each number of positives among n answers: E[r | tp, fp] x ways to get it, [tp, fp]; and C(n, positives)."""
    moments = _recent_moments(n)
    tables = []
    for positives in range(n + 1):
        negatives = n - positives
        tp, fp = np.arange(positives + 1)[:, None], np.arange(negatives + 1)[None, :]
        mcc = np.maximum(mcc_of_table(tp, fp, positives, negatives), 0.0)
        one, two, three = (moment[tp + negatives - fp] for moment in moments)
        # The cube of a sum, with the moments of the recent accuracy for its powers.
        value = (mcc**3 + 3 * mcc**2 * one + 3 * mcc * two + three) / 8
        ways = np.outer(
            [float(comb(positives, k)) for k in range(positives + 1)],
            [float(comb(negatives, k)) for k in range(negatives + 1)],
        )
        tables.append((value * ways, float(comb(n, positives))))
    return tuple(tables)


def _recent_moments(n: int) -> list[FloatArray]:
    """E[a], E[a^2], E[a^3] of the accuracy among the last answers, given 0..n right ones among all n: [n + 1] each."""
    size = min(n, RECENT)
    right = np.arange(size + 1)
    mass = np.array(
        [[comb(total, k) * comb(n - total, size - k) / comb(n, size) for k in right] for total in range(n + 1)]
    )
    return [np.asarray(mass @ (right / size) ** power) for power in (1, 2, 3)]


def mcc_of_table(tp: ArrayLike, fp: ArrayLike, positives: ArrayLike, negatives: ArrayLike) -> FloatArray:
    """MCC of two-class counts (or shares), broadcast; 0 where labels or answers are all of one class.

    >>> float(mcc_of_table(9, 1, 10, 10))
    0.8
    """
    true_positive, false_positive, ones, zeros = (
        np.asarray(values, dtype=np.float64) for values in (tp, fp, positives, negatives)
    )
    said = true_positive + false_positive
    spread = said * (ones + zeros - said) * ones * zeros
    cross = true_positive * zeros - false_positive * ones
    return np.asarray(np.where(spread > 0, cross / np.sqrt(np.where(spread > 0, spread, 1.0)), 0.0))


# ---- played ------------------------------------------------------------------------------------------------------


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
    """The rule on one sequence. answers: float [N], any values (see above for no reply and out of range); labels: 0/1
    [N].

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
            # Not a whole number of 64 bits (NaN, infinity among them): no class for it, whatever stands beside it.
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
    """Moving averages after `answers` answers of `runs` independent sequences, float [runs]: the spread of what is
    paid.
    """
    rng = np.random.default_rng(seed)
    ends = np.empty(runs)
    for run in range(runs):
        labels = (rng.random(answers) < prior).astype(np.int64)
        said = rng.random(answers) < np.where(labels == 1, tpr, fpr)
        ends[run] = play(said.astype(np.float64), labels).scores[-1]
    return ends
