"""benchmarks/along.py: which head each rule takes, and what is measured of a head."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import along

from stage1.scores import Scores


def scores(n: int, seed: int, slope: float, noise: float) -> Scores:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    margin = slope * (2.0 * labels - 1 + rng.normal(0, noise, n))
    ids = np.array([f"{seed}-{row}" for row in range(n)])
    return Scores(np.stack([-margin / 2, margin / 2], axis=1), labels, groups=ids, ids=ids)


def heads():
    """Trained again: blunt and well scaled. Trained along: keener, and much too sure."""
    roles = {"val_select": (400, 0), "val_calib": (1500, 1), "val_test": (600, 2)}
    return {
        "again": {role: scores(n, seed, 5.0, 0.6) for role, (n, seed) in roles.items()},
        "along": {role: scores(n, seed, 80.0, 0.4) for role, (n, seed) in roles.items()},
    }


def test_rules_take_the_head_that_their_metric_prefers():
    found = {name: along.measured(roles, "demo", 2) for name, roles in heads().items()}
    taken = {rule: takes(found) for rule, takes in along.RULES.items()}
    assert taken == {
        "nll": False,
        "scaled nll": True,
        "accuracy": True,
        "augrc": True,
        "nothing, always again": False,
        "nothing, always along": True,
    }
    assert found["along"].augrc < found["again"].augrc
    assert found["along"].coverage > found["again"].coverage > 0
    assert found["along"].redrawn > found["again"].redrawn > 0
    assert "scaled" in along.line(found)
