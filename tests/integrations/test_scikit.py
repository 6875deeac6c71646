"""Stage1Policy: scikit-learn's own estimator checks, the same answers as fit_policy, and deferral that cannot be
missed.
"""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

sklearn = pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.base import clone  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import StandardScaler  # noqa: E402
from sklearn.svm import LinearSVC  # noqa: E402
from sklearn.utils.estimator_checks import parametrize_with_checks  # noqa: E402

from stage1 import Stage1Policy, fit_policy  # noqa: E402
from stage1.errors import ConfigError, DataError  # noqa: E402
from stage1.scores import Scores  # noqa: E402

EASY = {"fnr": 0.05, "false_exit_rate": 0.05}


class FirstColumn(Stage1Policy):
    """Stage1Policy on scores, as scikit-learn's checks can drive it: they give any number of columns, a score has
    one.
    """

    def _scores(self, X, **fields):
        return super()._scores(X[:, :1], **fields)


def expected_failures(estimator: Stage1Policy) -> dict[str, str]:
    """Checks whose demand Stage1Policy refuses on purpose, with the reason."""
    refused: dict[str, str] = {}
    if estimator.defer is not None:
        refused["check_classifiers_train"] = (
            "predict says `defer` where no certificate allows an answer; so does 'score'"
        )
        refused["check_classifiers_classes"] = "the same: the value for a deferred row is not one of classes_"
    if estimator.estimator is None:
        refused["check_fit1d"] = "scores of two classes may come as [N]: one number per row, not one row"
        refused["check_fit2d_predict1d"] = "the same, in predict"
        refused["check_classifiers_train"] = "needs more than one column to separate its classes; a score is one column"
    return refused


@parametrize_with_checks(
    [
        Stage1Policy(estimator=LogisticRegression(), defer=None),
        Stage1Policy(estimator=LogisticRegression()),
        FirstColumn(values="logits", defer=None),
    ],
    expected_failed_checks=expected_failures,
)
def test_the_checks_of_scikit_learn(estimator, check):
    check(estimator)


def margins(n: int = 3000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return rng.normal(6.0 * y - 3.0, 1.6), y


def test_it_is_fit_policy_with_the_same_split():
    s, y = margins()
    roles = np.where(np.arange(len(y)) % 5 == 0, "val_select", "val_calib")
    wrapper = Stage1Policy(values="logits", risks=EASY).fit(s, y, roles=roles)
    scores = Scores(logits=np.stack([np.zeros_like(s), s], axis=1), labels=y)
    plain = fit_policy(
        "softmax", select=scores.take(roles == "val_select"), calib=scores.take(roles == "val_calib"), risks=EASY
    )
    assert wrapper.certificate_.certified
    assert wrapper.policy_.margin_thresholds == plain.margin_thresholds
    assert (wrapper.exits(s) == plain.decide(scores).exit).all()
    answered = wrapper.exits(s)
    assert (wrapper.predict(s)[answered] == plain.decide(scores).label[answered]).all()
    assert set(wrapper.predict(s)[~answered]) == {-1}


def test_logits_probabilities_and_two_columns_are_one_model():
    s, y = margins()
    p = 1 / (1 + np.exp(-s))
    two = np.stack([np.ones_like(s), s + 1], axis=1)
    exits = Stage1Policy(values="logits", risks=EASY).fit(s, y).exits(s)
    assert 0.5 < exits.mean() < 1
    assert (Stage1Policy(values="logits", risks=EASY).fit(two, y).exits(two) == exits).all()
    for probabilities in (p, np.stack([1 - p, p], axis=1)):
        policy = Stage1Policy(values="probabilities", risks=EASY).fit(probabilities, y)
        assert (policy.exits(probabilities) == exits).all()
        assert np.allclose(policy.predict_proba(probabilities)[:, 1], p)
        assert np.allclose(policy.decision_function(probabilities), s)


@pytest.mark.parametrize("estimator", [LogisticRegression(), LinearSVC()], ids=["predict_proba", "decision_function"])
def test_text_labels_and_a_given_class_order_with_an_estimator(estimator):
    rng = np.random.default_rng(3)
    y = np.where(rng.random(6000) < 0.5, "ok", "defect")
    X = rng.normal(size=(6000, 3)) + 3.0 * (y == "defect")[:, None]
    policy = Stage1Policy(
        risks=EASY, classes=["ok", "defect"], estimator=make_pipeline(StandardScaler(), estimator), against_argmax=True
    ).fit(X, y)
    assert policy.certificate_.certified
    assert policy.certificate_.classes == ("ok", "defect")
    assert policy.classes_.tolist() == ["ok", "defect"]
    answers = policy.predict(X)
    assert set(answers) == {"ok", "defect", "defer"}
    right = answers[policy.exits(X)] == y[policy.exits(X)]
    assert right.mean() > 0.97
    # The positive class is the last of the order given, and its column, whatever the estimator's own order.
    assert (policy.decision_function(X)[y == "defect"] > 0).mean() > 0.95
    assert (policy.predict_proba(X).argmax(axis=1) == (policy.decision_function(X) > 0)).all()
    assert set(policy.roles_) == {"train", "val_select", "val_calib"}


def test_what_cannot_be_certified_defers_every_row():
    s, y = margins(60)
    policy = Stage1Policy(values="logits").fit(s, y)
    assert not policy.certificate_.certified
    assert policy.certificate_.reason
    assert policy.certificate_.needed
    assert (policy.predict(s) == -1).all()
    assert not policy.exits(s).any()
    assert (Stage1Policy(values="logits", defer=None).fit(s, y).predict(s) == (s > 0)).all()


def test_groups_stay_whole_and_are_what_counts():
    s, y = margins()
    groups = np.repeat(np.arange(600), 5).astype(str)
    policy = Stage1Policy(values="logits", risks={"miss_rate": 0.1, "false_exit_rate": 0.1}).fit(s, y, groups=groups)
    assert policy.certificate_.unit in ("group", "group_draws", "group_mean")
    assert all(len(set(policy.roles_[groups == name])) == 1 for name in np.unique(groups))
    assert policy.certificate_.n_units == len(np.unique(groups[policy.roles_ == "val_calib"]))


def test_the_gate_is_refused_where_it_is_no_help():
    s, y = margins()
    policy = Stage1Policy(values="logits", risks=EASY, policy="gate").fit(s, y)
    assert policy.policy_.name == "gate"
    assert policy.policy_.decided_by == "softmax"
    assert policy.certificate_.certified


def test_clone_pickle_and_params_keep_everything():
    s, y = margins()
    policy = Stage1Policy(values="logits", risks=EASY, seed=5).fit(s, y)
    again = clone(policy).fit(s, y)
    assert again.certificate_ == policy.certificate_
    assert (pickle.loads(pickle.dumps(policy)).predict(s) == policy.predict(s)).all()


@pytest.mark.parametrize(
    "parameters, fit, error, words",
    [
        ({"values": None}, {}, ConfigError, "these look like logits"),
        ({"values": "guess"}, {}, ConfigError, "never guessed"),
        ({"values": "probabilities"}, {}, DataError, "in [0, 1]"),
        ({"shares": (0.5, 0.5)}, {}, ConfigError, "shares"),
        ({"classes": [0, 0]}, {}, ConfigError, "twice"),
        ({"classes": [0, 2]}, {}, DataError, "not among classes"),
        ({"defer": 1}, {}, DataError, "also a class"),
        ({"risks": {"fnr": 0.1}}, {}, ConfigError, "one side"),
        ({"policy": "hope"}, {}, ConfigError, "unknown"),
        ({}, {"roles": ["val_tset"] * 3000}, DataError, "val_tset"),
        ({}, {"roles": ["val_select"] * 3000}, DataError, "val_calib"),
        ({}, {"ids": ["same"] * 3000}, DataError, "'same' occurs 3000 times"),
        ({}, {"groups": ["a"]}, DataError, "groups: 1 values for 3000"),
    ],
)
def test_bad_parameters_are_named(parameters, fit, error, words):
    s, y = margins()
    with pytest.raises(error) as raised:
        Stage1Policy(**{"values": "logits", **parameters}).fit(s, y, **fit)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_too_many_columns_or_classes_are_named():
    s, y = margins()
    with pytest.raises(DataError, match="3 columns for 2 classes"):
        Stage1Policy(values="logits").fit(np.stack([s, s, s], axis=1), y)
    with pytest.raises(DataError, match="Only binary"):
        Stage1Policy(values="logits").fit(s, np.arange(len(s)) % 3)
    with pytest.raises(DataError, match="one class"):
        Stage1Policy(values="logits").fit(s, np.zeros(len(s), dtype=int))


def test_without_scikit_learn_the_way_out_is_named():
    code = (
        "import sys\nsys.modules['sklearn'] = None\nimport stage1\ntry:\n    stage1.Stage1Policy\nexcept"
        " stage1.errors.MissingError as error:\n    print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code.replace("import stage1\n", "import stage1, stage1.errors\n")],
        capture_output=True,
        text=True,
    )
    assert result.stdout.startswith("scikit-learn: needed for Stage1Policy"), result.stderr


def test_the_example_of_the_docstring_runs():
    import doctest

    from stage1.integrations import scikit

    assert doctest.testmod(scikit, extraglobs={"np": np}).failed == 0


# ---- looks -------------------------------------------------------------------------------------------------------


def rows(n: int = 3000):
    rng = np.random.default_rng(4)
    y = np.tile([0, 1], n // 2)
    return rng.normal(2 * y - 1, 0.6)[:, None], y


def headline(policy: Stage1Policy) -> float:
    certificate = policy.certificate_
    assert certificate.statement.startswith(f"With confidence {100 * certificate.headline_confidence:.4g} %")
    return certificate.headline_confidence


def test_a_refit_on_the_same_rows_costs_confidence_and_the_same_again_does_not():
    X, y = rows()
    policy = Stage1Policy(values="logits", risks=EASY)
    assert headline(policy.fit(X, y)) == 0.95
    assert headline(policy.fit(X, y)) == 0.95
    assert headline(policy.set_params(risks=EASY | {"fnr": 0.04}).fit(X, y)) == 0.9
    assert headline(policy.set_params(seed=1).fit(X, y)) == 0.85  # another split: other rows, in part
    assert headline(clone(policy).fit(X, y)) == 0.95  # a clone has no ledger of this object


def test_clones_share_a_ledger_that_is_given_and_so_do_models(tmp_path):
    from stage1.policy.ledger import Ledger

    X, y = rows()
    for number, ledger in enumerate((Ledger(), tmp_path / "attempts.json")):
        policy = Stage1Policy(values="logits", risks=EASY, ledger=ledger)
        assert headline(clone(policy).fit(X, y)) == 0.95, number
        assert headline(clone(policy).set_params(confidence=0.9).fit(X, y)) == pytest.approx(0.85), number
    names = [f"row {place}" for place in range(len(y))]
    ledger = Ledger()
    found = [
        headline(Stage1Policy(values="logits", risks=EASY, ledger=ledger).fit(scale * X, y, ids=names))
        for scale in (1.0, 2.0)
    ]
    assert found == [0.95, 0.9]
    around = Stage1Policy(estimator=LogisticRegression(), risks=EASY, ledger=Ledger())
    assert headline(clone(around).fit(X, y)) == 0.95
    assert headline(clone(around).set_params(estimator=LogisticRegression(C=0.1)).fit(X, y)) == 0.9


def test_planned_fits_hold_together():
    X, y = rows()
    policy = Stage1Policy(values="logits", risks=EASY, planned=2)
    for fnr in (0.05, 0.04):
        assert headline(policy.set_params(risks=EASY | {"fnr": fnr}).fit(X, y)) == 0.95
    with pytest.raises(ConfigError, match="attempts.planned"):
        policy.set_params(risks=EASY | {"fnr": 0.03}).fit(X, y)
