"""Scores of val_select by views that have not seen them: whose labels they hold, and what a map fitted on them says."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration.binary import Platt
from stage1.errors import DataError
from stage1.scores import Scores
from stage1.views import Refit, ViewsDocument, aggregator, as_logits, cross_fitted, fit_sequence
from stage1.views.selection import FOLDS

RISKS = {"fnr": 0.1, "false_exit_rate": 0.1}


def fitting(logits, labels, policy, name, *, adaptive):
    def fit(rows):
        sequence = None
        if adaptive:
            sequence = fit_sequence(
                logits[rows], labels[rows], None, policy, name, risks=RISKS, calibration_units=len(labels)
            )
        return ViewsDocument(policy, aggregator(name, policy, logits[rows], labels[rows]), sequence)

    return fit


def margin(views, logits):
    made = views.aggregate(logits)[0]
    return made[:, 1] - made[:, 0]


def held_out(refits, logits):
    made = np.full(len(logits), np.nan)
    for refit in refits:
        made[refit.rows] = margin(refit.views, logits[refit.rows])
    return made


def test_every_image_once_and_groups_whole(draw_small, ten):
    logits, labels = draw_small(120, seed=1)
    groups = np.array([f"g{index // 3}" for index in range(120)])
    seen = []

    def fit(rows):
        seen.append(rows)
        return ViewsDocument(ten, aggregator("learned", ten, logits[rows], labels[rows]))

    refits, why = cross_fitted(labels, groups, fit, seed=0)
    assert why == ""
    assert len(refits) == FOLDS
    assert sorted(np.concatenate([refit.rows for refit in refits]).tolist()) == list(range(120))
    for refit, rows in zip(refits, seen, strict=True):
        assert isinstance(refit, Refit)
        assert not set(groups[refit.rows]) & set(groups[rows])
        assert len(refit.rows) + len(rows) == 120


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_label_of_an_image_is_not_in_its_score(draw_small, ten, adaptive):
    logits, labels = draw_small(120, seed=2)
    name = "topk:3" if adaptive else "learned"
    refits, _ = cross_fitted(labels, None, fitting(logits, labels, ten, name, adaptive=adaptive), seed=0)
    first = refits[0]
    turned = labels.copy()
    turned[first.rows] = 1 - turned[first.rows]
    again = fitting(logits, turned, ten, name, adaptive=adaptive)(np.setdiff1d(np.arange(120), first.rows))
    assert (margin(again, logits[first.rows]) == margin(first.views, logits[first.rows])).all()
    in_sample = fitting(logits, turned, ten, name, adaptive=adaptive)(np.arange(120))
    assert (margin(in_sample, logits[first.rows]) != margin(first.views, logits[first.rows])).any()


def test_too_few_or_unfit_is_said():
    labels = np.array([1] * 9 + [0] * 40)
    refits, why = cross_fitted(labels, None, lambda rows: pytest.fail("nothing is fitted"), seed=0)
    assert (refits, why) == ((), "class 1 has 9 images in val_select, folds need 10")
    groups = np.array([f"g{index % 4}" for index in range(49)])
    assert (
        cross_fitted(np.arange(49) % 2, groups, lambda rows: pytest.fail("nothing is fitted"), seed=0)[1]
        == "class 0 has 2 groups in val_select, folds need 10"
    )

    def fails(rows):
        raise DataError("labels: one class only")

    refits, why = cross_fitted(np.arange(49) % 2, None, fails, seed=0)
    assert refits == ()
    assert why == "views cannot be fitted on part of val_select (labels: one class only)"


# ---- what a map fitted on these scores states, of fresh images


def noisy_scene(n, seed):
    """Ten views of which two tiles show the class a little; a common shift of the scene in all of them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    m = rng.normal(0, 1.2, (n, 10)) + 0.7 * rng.normal(0, 1, n)[:, None] - 1
    for _ in range(2):
        m[np.arange(n), rng.integers(1, 10, n)] += labels * 2.0
    m[:, 0] += labels
    return np.stack([-m / 2, m / 2], axis=2), labels


def too_sure(name, policy, *, adaptive, n, draws):
    """(in-sample, out of fold, on a fresh sample as large): of each draw the log of the fitted Platt slope over the
    right one, and the mean stated probability of the answer minus the share of right answers, float [draws, 2] each."""
    fresh, truth = noisy_scene(6000, 999)
    found = {"in-sample": [], "out of fold": [], "fresh": []}
    for draw in range(draws):
        logits, labels = noisy_scene(n, (7, draw))
        other, of_other = noisy_scene(n, (8, draw))
        fit = fitting(logits, labels, policy, name, adaptive=adaptive)
        views = fit(np.arange(n))
        refits, _ = cross_fitted(labels, None, fit, seed=0)
        tested = margin(views, fresh)
        right = platt(tested, truth).slope
        for kind, score, of_score in (
            ("in-sample", margin(views, logits), labels),
            ("out of fold", held_out(refits, logits), labels),
            ("fresh", margin(views, other), of_other),
        ):
            fitted = platt(score, of_score)
            stated = 1 / (1 + np.exp(-np.abs(fitted.slope * tested + fitted.shift)))
            answered = fitted.slope * tested + fitted.shift > 0
            found[kind].append((np.log(fitted.slope / right), stated.mean() - (answered == truth).mean()))
    return [np.array(rows) for rows in found.values()]


def platt(score, labels):
    return Platt.fit(Scores(logits=as_logits(score), labels=labels))


def excess(kind, fresh):
    """(mean, standard error) of the paired difference to a map that was fitted on fresh images, of slope and
    sureness.
    """
    difference = kind - fresh
    return difference.mean(axis=0), difference.std(axis=0, ddof=1) / np.sqrt(len(difference))


def check_sureness(name, policy, *, adaptive, n, draws):
    in_sample, out_of_fold, fresh = too_sure(name, policy, adaptive=adaptive, n=n, draws=draws)
    before, error = excess(in_sample, fresh)
    assert (before > 3 * error).all()  # the control: fitted on the scores of the fit itself it is too sure
    after, error = excess(out_of_fold, fresh)
    assert (after < 3 * error).all()  # not too sure
    assert (np.abs(after) < np.maximum(0.5 * before, 3 * error)).all()
    assert np.abs(out_of_fold[:, 1].mean()) < 0.5 * in_sample[:, 1].mean()


def test_a_map_of_held_out_scores_is_not_too_sure(ten):
    check_sureness("learned", ten, adaptive=False, n=100, draws=40)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "adaptive", "n"),
    [("learned", False, 200), ("learned", True, 100), ("learned", True, 200), ("topk:3", True, 100)],
)
def test_a_map_of_held_out_scores_is_not_too_sure_with_other_views(ten, name, adaptive, n):
    check_sureness(name, ten, adaptive=adaptive, n=n, draws=40)
