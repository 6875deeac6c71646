"""Power of the three ways to count grouped images, and how much hangs on the hash: one risk, target .05, delta .05.

    python benchmarks/units.py [--draws 400] [--hashes 8]

Groups are clusters whose own rate of wrong images is Beta with the given intra-group correlation; the true risk is a
share of the target. "one": one image of each group, exact binomial; "draws": many draws, half of which must show it
(risk/group_draws.py); "betting": group means. "lottery": standard deviation of the verdict over hashes, the images
given, for one and for draws. The last block is at the boundary (true risk = target): the share of false certificates,
with the control that takes all images as independent.
"""

from __future__ import annotations

import argparse
import platform

import numpy as np

from stage1.risk.bounds import betting_pvalue, binomial_pvalue
from stage1.risk.group_draws import DRAWS, merged_pvalue

TARGET = DELTA = 0.05
GROUPS, SIZES, CORRELATIONS = (150, 300, 600), (2, 10, 60), (0.02, 0.2, 0.5, 0.9)


def cell(rng: np.random.Generator, groups: int, size: int, icc: float, risk: float, draws: int, hashes: int) -> dict:
    """Share certified by each way over `draws` data sets, and the lottery over `hashes` hashes each."""
    spread = (1 - icc) / icc
    rate = rng.beta(risk * spread, (1 - risk) * spread, (groups, draws))
    wrong = rng.binomial(size, rate)
    means = wrong / size
    trials = np.full((DRAWS, draws), groups)
    verdicts: dict[str, list[np.ndarray]] = {"one": [], "draws": []}
    for _ in range(hashes):
        errors = np.array([(rng.random((groups, draws)) < means).sum(axis=0) for _ in range(DRAWS)])
        verdicts["one"].append(binomial_pvalue(errors[0], trials[0], TARGET) <= DELTA)
        verdicts["draws"].append(merged_pvalue(errors, trials, TARGET) <= DELTA)
    share = {name: np.mean(rows, axis=0) for name, rows in verdicts.items()}
    found = {name: float(values.mean()) for name, values in share.items()}
    found |= {f"{name} lottery": float(np.sqrt((p * (1 - p)).mean())) for name, p in share.items()}
    found["betting"] = float((betting_pvalue(means, TARGET) <= DELTA).mean())
    found["images"] = float((binomial_pvalue(wrong.sum(axis=0), np.full(draws, groups * size), TARGET) <= DELTA).mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=400)
    parser.add_argument("--hashes", type=int, default=8)
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {arguments.draws} data sets, {arguments.hashes} hashes each, seed 1")
    for share, title in ((0.4, "power: true risk .02"), (1.0, "boundary: true risk .05")):
        rng = np.random.default_rng(1)
        print(
            f"\n{title}\n{'groups':>6}{'size':>6}{'icc':>6}{'one':>8}{'draws':>8}{'betting':>9}{'images':>8}"
            f"{'lottery: one, draws':>21}"
        )
        for groups in GROUPS:
            for size in SIZES:
                for icc in CORRELATIONS:
                    row = cell(rng, groups, size, icc, share * TARGET, arguments.draws, arguments.hashes)
                    print(
                        f"{groups:>6}{size:>6}{icc:>6g}{row['one']:>8.3f}{row['draws']:>8.3f}{row['betting']:>9.3f}"
                        f"{row['images']:>8.3f}{row['one lottery']:>13.2f}{row['draws lottery']:>8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
