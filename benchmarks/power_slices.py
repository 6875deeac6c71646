"""Slices: how many images exit under a guarantee that is shown for their slice, own thresholds beside one pair for all.

    python benchmarks/power_slices.py [--draws 200] [--seed 8]     (also a section of benchmarks/power.py)

Six slices, scores Gaussian within each class (separation by slice, 40 % positives), 4,000 labels in all, 15 % of them
for selection, fnr and fpr <= .08 in every slice, together at 95 %. An image counts where it exits and its slice is
certified. The truth is that of the Gaussians, so exact. "false": draws with any false claim (allowed .05); "certified":
slices of the six.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from scipy.stats import norm

from stage1 import Scores, fit_policy

LABELS, SELECT, PRIOR, TARGET = 4_000, 600, 0.4, 0.08
NAMES = tuple("abcdef")
CASES: dict[str, tuple[Sequence[float], Sequence[float]]] = {
    # separation and share of each slice
    "one hard slice": ((4.0, 3.6, 3.4, 3.2, 3.0, 2.2), (0.30, 0.20, 0.15, 0.15, 0.10, 0.10)),
    "even, easy to hard": ((4.4, 4.0, 3.6, 3.2, 2.8, 2.4), (1 / 6,) * 6),
    "even, all hard": ((3.5, 3.2, 3.0, 2.8, 2.5, 2.0), (1 / 6,) * 6),
}


def draw(rng: np.random.Generator, n: int, separations: Sequence[float], shares: Sequence[float]) -> Scores:
    which = rng.choice(len(NAMES), n, p=shares)
    labels = (rng.random(n) < PRIOR).astype(np.int64)
    margin = (labels - 0.5) * np.array(separations)[which] + rng.normal(size=n)
    return Scores(np.stack([np.zeros(n), margin], axis=1), labels=labels, slices={"slice": np.array(NAMES)[which]})


def truth(lo: float | None, hi: float | None, separation: float) -> tuple[float, float]:
    """(share of images that exit, largest of fnr and fpr) of a pair in one slice."""
    low, high = -np.inf if lo is None else lo, np.inf if hi is None else hi
    wrong1, right1 = norm.cdf(low - separation / 2), norm.sf(high - separation / 2)
    right0, wrong0 = norm.cdf(low + separation / 2), norm.sf(high + separation / 2)
    exits = PRIOR * (wrong1 + right1) + (1 - PRIOR) * (wrong0 + right0)
    return float(exits), float(max(wrong1 / max(wrong1 + right1, 1e-12), wrong0 / max(wrong0 + right0, 1e-12)))


def beside(separations: Sequence[float], shares: Sequence[float], draws: int, seed: int) -> dict[str, np.ndarray]:
    """kind of thresholds -> float [draws, 3]: images that exit under a shown guarantee, any false claim, certified."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[tuple[float, float, float]]] = {"one": [], "own": []}
    for _ in range(draws):
        select, calib = draw(rng, SELECT, separations, shares), draw(rng, LABELS - SELECT, separations, shares)
        for kind, rows in found.items():
            policy = fit_policy(
                "softmax",
                select=select,
                calib=calib,
                risks={"fnr": TARGET, "fpr": TARGET},
                slices=("slice",),
                slice_thresholds=kind,
            )
            shown, false, held = 0.0, False, 0
            for claim in policy.certificate.slices:
                if not claim.certified:
                    continue
                place = NAMES.index(claim.value)
                pair = (claim.lo, claim.hi) if claim.own else policy.margin_thresholds
                exits, risk = truth(*pair, separations[place])
                shown, false, held = shown + shares[place] * exits, false or risk > TARGET, held + 1
            rows.append((shown, float(false), held))
    return {kind: np.array(rows) for kind, rows in found.items()}


def section(draws: int, seed: int) -> None:
    """Print the table."""
    print(f"\nslices: images that exit under a shown guarantee (se), {LABELS} labels, fnr and fpr <= {TARGET:g}, 95 %")
    print(f"{'six slices':<22}" + "".join(f"{kind:>16}{'certified':>11}{'false':>8}" for kind in ("one pair", "own")))
    for name, (separations, shares) in CASES.items():
        cells = ""
        for rows in beside(separations, shares, draws, seed).values():
            mean, error = rows.mean(axis=0), rows[:, 0].std() / np.sqrt(len(rows))
            cells += f"{f'{mean[0]:.3f} ({error:.3f})':>16}{mean[2]:>11.2f}{mean[1]:>8.3f}"
        print(f"{name:<22}{cells}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=200)
    parser.add_argument("--seed", type=int, default=8)
    given = parser.parse_args()
    section(given.draws, given.seed)
