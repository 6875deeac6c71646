"""Other libraries as oracles where definitions agree, and where they do not, by how much: the lines of
docs/DEFINITIONS.md.
"""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose

from stage1.evaluation import aurc
from stage1.evaluation.rates import exit_rates
from stage1.risk import binomial_pvalue, crc_threshold, hoeffding_bentkus_pvalue, order_statistic_rank
from stage1.risk.conformal import allowed_losses

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "DEFINITIONS.md"


def sample(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.4).astype(int)
    return np.clip(rng.normal(0.25 + 0.5 * y, 0.2), 0.01, 0.99), y


CUTS, LEVEL = np.array([0.5, 0.6, 0.7, 0.8]), 0.05


def controller_pvalues(risk: str, p: np.ndarray, y: np.ndarray) -> np.ndarray:
    """P-value of each threshold of CUTS by MAPIE, for "risk <= LEVEL"."""
    control = pytest.importorskip("mapie.risk_control", reason="mapie is not installed")
    controller = control.BinaryClassificationController(
        lambda rows: np.stack([1 - p[np.ravel(rows)], p[np.ravel(rows)]], axis=1),
        getattr(control, risk),
        target_level=LEVEL if risk == "false_positive_rate" else 1 - LEVEL,
        list_predict_params=CUTS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "no parameter was found" is no matter here
        controller.calibrate(np.arange(len(y)).reshape(-1, 1), y)
    return np.asarray(controller.p_values)[:, 0]


@pytest.mark.parametrize("seed", range(5))
def test_mapie_controller_has_our_exact_pvalues(seed):
    p, y = sample(700, seed)
    errors = ((p[None, :] >= CUTS[:, None]) & (y == 0)).sum(axis=1)
    ours = binomial_pvalue(errors, int((y == 0).sum()), LEVEL)
    assert_allclose(controller_pvalues("false_positive_rate", p, y), ours, rtol=1e-6, atol=1e-12)


def test_mapie_counts_an_error_more_where_the_rate_carries_float_noise():
    """1 - precision: ceil(n x rate) makes k or k + 1 of k errors. Conservative, so it is valid and certifies less."""
    one_more = 0
    for seed in range(5):
        p, y = sample(700, seed)
        called = p[None, :] >= CUTS[:, None]
        errors, trials = (called & (y == 0)).sum(axis=1), called.sum(axis=1)
        theirs = controller_pvalues("precision", p, y)
        exact, shifted = binomial_pvalue(errors, trials, LEVEL), binomial_pvalue(errors + 1, trials, LEVEL)
        # Theirs is the smaller of the shifted tail and Hoeffding's bound: between our value and that of one error more.
        assert (theirs >= exact * (1 - 1e-6)).all()
        assert (theirs <= shifted * (1 + 1e-6)).all()
        one_more += int((np.isclose(theirs, shifted, rtol=1e-6) & (shifted > 1.01 * exact)).sum())
    assert one_more > 0


def test_hoeffding_bentkus_is_never_sharper_than_the_exact_tail():
    errors, n = np.arange(30), 400
    exact = binomial_pvalue(errors, n, 0.05)
    bentkus = np.array([float(hoeffding_bentkus_pvalue(k / n, n, 0.05)) for k in errors])
    assert (exact <= bentkus + 1e-12).all()
    assert (exact[5:15] < 0.9 * bentkus[5:15]).all(), "and where it matters it is clearly sharper"


@pytest.mark.parametrize("n, alpha", [(20, 0.1), (99, 0.05), (250, 0.02), (101, 0.3)])
def test_the_conformal_quantile_of_mapie_is_conformal_risk_control(n, alpha):
    utils = pytest.importorskip("mapie.utils", reason="mapie is not installed")
    scores = np.sort(np.random.default_rng(n).random(n))
    theirs = float(utils._compute_classification_quantile(scores.reshape(-1, 1), np.array([alpha]))[0])
    # Loss of lambda: the true class is left out, because its nonconformity lies above lambda.
    assert crc_threshold((scores[:, None] > scores[None, :]).astype(float), scores, alpha) == theirs
    assert n - 1 - int(np.flatnonzero(scores == theirs)[0]) == allowed_losses(n, alpha)


@pytest.mark.parametrize("n, alpha", [(20, 0.1), (99, 0.05), (250, 0.02), (101, 0.3)])
def test_the_prediction_set_of_crepes_is_conformal_risk_control(n, alpha):
    crepes = pytest.importorskip("crepes", reason="crepes is not installed")
    rng = np.random.default_rng(n)
    scores, fresh = np.sort(rng.random(n)), rng.random((500, 1))
    fitted = crepes.ConformalClassifier().fit(scores)
    inside = fitted.predict_set(fresh, confidence=1 - alpha, smoothing=False).astype(bool)[:, 0]
    threshold = crc_threshold((scores[:, None] > scores[None, :]).astype(float), scores, alpha)
    assert (inside == (fresh[:, 0] <= threshold)).all()


def test_a_conformal_quantile_holds_on_average_and_ours_with_confidence():
    """Why the walks do not use it: at the quantile that MAPIE and crepes take, the share lost exceeds alpha half of
    the time.
    """
    n, alpha, draws = 400, 0.05, 4000
    losses = np.sort(np.random.default_rng(0).random((draws, n)), axis=1)  # true share below t is t
    conformal = int(np.floor(alpha * (n + 1)))
    certified = order_statistic_rank(n, alpha, 0.05)
    above = (losses[:, conformal - 1] > alpha).mean()
    kept = (losses[:, certified - 1] > alpha).mean()
    assert 0.4 < above < 0.6
    assert kept <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


def test_scikit_learns_rates_are_ours_where_everything_exits():
    metrics = pytest.importorskip("sklearn.metrics", reason="scikit-learn is not installed")
    p, y = sample(500, 1)
    answer = (p > 0.5).astype(int)
    rates = exit_rates(np.ones(500, dtype=bool), answer, y, classes=["no", "yes"], level=0.95)
    recall, specificity = metrics.recall_score(y, answer), metrics.recall_score(y, answer, pos_label=0)
    assert_allclose(rates["fnr"]["observed"], 1 - recall)
    assert_allclose(rates["fpr"]["observed"], 1 - specificity)
    assert_allclose(rates["error"]["observed"], 1 - metrics.accuracy_score(y, answer))
    # With deferral the same names part: scikit-learn's recall of the answered rows is 1 - fnr, never 1 - miss_rate.
    exits = np.abs(p - 0.5) > 0.1
    rates = exit_rates(exits, answer, y, classes=["no", "yes"], level=0.95)
    assert_allclose(rates["fnr"]["observed"], 1 - metrics.recall_score(y[exits], answer[exits]))
    assert rates["miss_rate"]["observed"] < rates["fnr"]["observed"]


def test_the_mean_of_selective_risks_is_not_the_area_under_the_curve():
    """Geifman's AURC (mean over the n prefixes) against the trapezoid of fd-shifts, case A of ALGORITHMS 4.2."""
    wrong = np.array([0, 0, 1, 0, 1])
    mean = (np.cumsum(wrong) / np.arange(1, 6)).mean()
    assert_allclose(mean, 0.196666667, atol=1e-9)
    assert_allclose(aurc([0.9, 0.8, 0.7, 0.6, 0.5], wrong), 0.156666667, atol=1e-9)


def test_every_test_named_on_the_page_exists():
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    for path, name in named:
        tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, f"{path}::{name}"
