"""Fitting by the config: what is said where a gate is refused."""

from __future__ import annotations

import numpy as np

from stage1.config import RunConfig
from stage1.scores import Scores
from stage1.stages.fitting import fit_configured


def _scores(n: int, wrong: int, seed: int) -> Scores:
    """A sure classifier with `wrong` wrong answers, and a gate logit that is different for each image and knows
    them.
    """
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    margin = np.where(labels == 1, 1.0, -1.0) * rng.uniform(2, 6, n)
    margin[:wrong] *= -1
    gate = rng.normal(3, 1, n) - 4.0 * (np.arange(n) < wrong)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, gate=gate)


def test_a_gate_refused_for_few_wrong_answers_says_so_and_not_that_it_is_constant():
    select = _scores(60, 1, 0)
    assert select.gate is not None
    assert len(np.unique(select.gate)) == 60
    said: list[str] = []
    config = RunConfig(policy={"name": "gate"}, risks={"miss_rate": 0.2, "false_exit_rate": 0.2})
    policy = fit_configured(
        config, select=select, calib=_scores(400, 4, 1), classes=("none", "roadwork"), say=said.append
    )
    assert policy.certificate is not None
    assert policy.certificate.certified
    assert "  gate: softmax is kept: 1 wrong answer in val_select, a gate needs at least 10." in said
    assert not any("orders nothing" in line for line in said)
