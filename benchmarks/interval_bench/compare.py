"""`compare`: two exchangeable models, whose differences are all 0; a "better" is then false."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from interval_bench.populations import Grouped
from interval_bench.tally import Answer, Case, interval_answer
from stage1.evaluation import compare

METRICS = ("aurc", "augrc", "auroc_failure", "accuracy", "nll", "brier", "ece", "mcc")


def exchangeable(population: Grouped, rng: np.random.Generator) -> Mapping[str, Answer]:
    a, b = population.draw(rng, models=2)
    rows = compare(a, b, metrics=METRICS, n_resamples=200, seed=int(rng.integers(1 << 30)))["rows"]
    found = {
        f"difference in {row['metric']}": interval_answer(row["low"], row["high"], 0.0, row["better"] is not None)
        for row in rows
    }
    found |= {
        f"p-value of {row['metric']} <= .05": Answer(None, row["p_value"] <= 0.05)
        for row in rows
        if row["p_value"] is not None
    }
    return found


# Draws of those asked for: more where a bar of 3 standard errors would leave the answer open, fewer where it costs.
_SHARE = {"50 groups of 20": 2.0, "1000 independent images": 0.5}
SETTINGS = (
    Grouped(6, 20),
    Grouped(10, 20),
    Grouped(20, 20),
    Grouped(50, 20),
    Grouped(10, 20, pure=False),
    Grouped(100, 1),
    Grouped(300, 1),
    Grouped(1000, 1),
)
CASES = tuple(Case(setting.name, partial(exchangeable, setting), _SHARE.get(setting.name, 1.0)) for setting in SETTINGS)
