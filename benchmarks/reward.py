"""Show 5: what the client would pay per level, before and after training for its images, before and after the threshold
moves.

Two runs on the same images, with challenges in val_select and val_test (recipe streetview): a head trained on clean
images, one trained on challenges. Raw scores, without a policy: no image exits, the threshold decides all (the reward
of the detector, whose exits keep their side, is that of `stage1 streetvision reward RUN`). The threshold of each is
fitted on val_select, all rewards are of val_test, differences are paired. Without runs it says so and ends.

    python benchmarks/reward.py runs/clean runs/challenge
"""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from stage1.scores import Scores, read_role
from stage1.streetvision.reward import DEFAULT, LevelRates, reward_threshold


def positive(scores: Scores):
    return scores.probabilities[:, 1]


def read(folder: str) -> tuple[LevelRates, float]:
    """The rates of val_test, and the threshold fitted on val_select."""
    select, test = (read_role(folder, role) for role in ("val_select", "val_test"))
    threshold, _ = reward_threshold(positive(select), select.known_labels, select.slices["level"])
    return LevelRates(positive(test), test.known_labels, test.slices["level"], test.groups), threshold


def main(paths: list[str]) -> None:
    if len(paths) != 2:
        print(f"{Path(__file__).name}: give two runs of the recipe streetview; nothing measured")
        return
    (first, moved), (second, moved_second) = map(read, paths)
    names = [Path(path).name for path in paths]
    arms = [
        (names[0], first, DEFAULT),
        (f"{names[0]}, moved", first, moved),
        (names[1], second, DEFAULT),
        (f"{names[1]}, moved", second, moved_second),
    ]
    print("| scores | threshold | " + " | ".join([*first.levels, "mixture"]) + " | TPR | FPR |")
    print("|---" * (len(first.levels) + 5) + "|")
    for name, rates, threshold in arms:
        rows = rates.table(threshold)
        cells = [f"{row.reward:.3f} [{row.low:.3f}, {row.high:.3f}]" for row in rows]
        print(f"| {name} | {threshold:.3f} | {' | '.join(cells)} | {rows[-1].tpr:.3f} | {rows[-1].fpr:.3f} |")
    print("\n| difference of the mixture | value | verdict |\n|---|---|---|")
    for name, one, other in (
        (f"{names[0]}: threshold moved", arms[1], arms[0]),
        (f"{names[1]}: threshold moved", arms[3], arms[2]),
        (f"{names[1]} - {names[0]}, both at 0.5", arms[2], arms[0]),
        (f"{names[1]} - {names[0]}, both moved", arms[3], arms[1]),
    ):
        gain = one[1].against(other[1], one[2], other[2])
        print(f"| {name} | {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] | {gain.verdict} |")
    print(f"\n{platform.machine()}, Python {platform.python_version()}; 1,000 bootstrap replicates over groups, seed 0")


if __name__ == "__main__":
    main(sys.argv[1:])
