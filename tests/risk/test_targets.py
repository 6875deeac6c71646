"""A target that nobody gave: by the number of classes, in the config and in Python."""

from __future__ import annotations

import numpy as np
import pytest

from stage1 import Scores, fit_policy
from stage1.config import load_config
from stage1.risk.targets import default_risks


def loaded(*overrides: str):
    return load_config(overrides=overrides, environment={})[0]


def test_two_classes_have_two_sides_and_more_have_the_error():
    config = loaded()
    assert config.risks is None
    assert config.risks_for(2) == {"fnr": 0.02, "false_exit_rate": 0.05}
    assert config.risks_for(4) == {"error": 0.05}
    assert config.for_classes(4).risks == {"error": 0.05}


def test_a_given_target_is_kept_whatever_the_number_of_classes():
    config = loaded("risks={error: 0.1}")
    assert config.risks_for(2) == config.risks_for(5) == {"error": 0.1}


@pytest.mark.parametrize(
    "overrides, expected",
    [
        (("risks.fnr=0.01",), {"fnr": 0.01, "false_exit_rate": 0.05}),
        (("risks.fnr=null",), {"false_exit_rate": 0.05}),
        (("risks.fnr.cat=0.1",), {"error": 0.05, "fnr.cat": 0.1}),
        (("data.classes=[a, b, c]", "risks.error=0.1"), {"error": 0.1}),
    ],
)
def test_one_risk_given_alone_changes_the_default_of_its_classes(overrides, expected):
    assert loaded(*overrides).risks == expected


def test_python_has_the_same_default():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 2000)
    scores = Scores(logits=6.0 * np.eye(3)[labels] + rng.normal(size=(2000, 3)), labels=labels)
    policy = fit_policy("softmax", select=scores.take(range(300)), calib=scores.take(range(300, 2000)))
    assert {name: risk.target for name, risk in policy.certificate.risks.items()} == default_risks(3)
    assert policy.certified
