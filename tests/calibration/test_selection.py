"""Which map, if any: chosen on rows it was not fitted on, groups whole, and only where it helps."""

from __future__ import annotations

import numpy as np
import pytest

from stage1.calibration import Temperature, choose_map, fit_map
from stage1.calibration.folds import fold_of_rows
from stage1.calibration.schema import CALIBRATION_KIND
from stage1.errors import ConfigError, DataError
from stage1.scores import Scores
from stage1.storage.documents import read_document, write_document


def sample(n=600, k=2, seed=0, slope=1.0, shift=0.0, **fields):
    """slope 1 and shift 0: the softmax of the logits is the truth."""
    rng = np.random.default_rng((seed, k))
    true = rng.normal(size=(n, k)) * 1.2
    labels = (true + rng.gumbel(size=(n, k))).argmax(axis=1)
    logits = slope * true
    logits[:, -1] += shift
    return Scores(logits=logits, labels=labels, **fields)


def loss(log_p, labels):
    return -log_p[np.arange(len(labels)), labels].mean()


def row(choice, name):
    return next(candidate for candidate in choice.table if candidate.name == name)


def test_an_overconfident_model_gets_a_map_and_fresh_rows_confirm_it():
    choice = choose_map(sample(slope=3.0, shift=1.0))
    fresh = sample(5000, seed=1, slope=3.0, shift=1.0)
    after = loss(choice.map.log_probabilities(fresh.logits), fresh.labels)
    before = loss(np.log(fresh.probabilities), fresh.labels)
    chosen = row(choice, choice.name)
    assert choice.name in ("platt", "beta")  # the shift is more than a temperature can mend
    assert before - after == pytest.approx(-chosen.change, abs=4 * chosen.change_standard_error)
    assert after < before - 0.1
    assert chosen.nll == min(c.nll for c in choice.table if c.nll is not None)
    assert choice.reason.startswith(f"{choice.name}: cross-validated NLL")


def test_identity_is_the_plain_loss_and_the_losses_are_of_held_out_rows():
    scores = sample(slope=2.0)
    choice = choose_map(scores, candidates=["platt"], folds=4, seed=3)
    identity = -np.log(scores.probabilities[np.arange(600), scores.labels])
    assert row(choice, "identity").nll == pytest.approx(identity.mean())
    assert row(choice, "identity").standard_error == pytest.approx(identity.std(ddof=1) / np.sqrt(600))
    fold = fold_of_rows(scores, 4, 3)
    plain = np.empty(600)
    for index in range(4):
        rows = np.flatnonzero(fold == index)
        log_p = fit_map("platt", scores.take(fold != index)).log_probabilities(scores.logits[rows])
        plain[rows] = -log_p[np.arange(len(rows)), scores.labels[rows]]
    assert row(choice, "platt").nll == pytest.approx(plain.mean(), abs=1e-12)
    assert row(choice, "platt").change_standard_error == pytest.approx((plain - identity).std(ddof=1) / np.sqrt(600))


def test_a_calibrated_model_keeps_its_probabilities_or_loses_next_to_nothing():
    kept, cost = 0, []
    for seed in range(40):
        scores = sample(400, seed=seed)
        choice = choose_map(scores)
        kept += choice.map is None
        fresh = sample(4000, seed=1000 + seed)
        if choice.map is not None:
            cost.append(
                loss(choice.map.log_probabilities(fresh.logits), fresh.labels)
                - loss(np.log(fresh.probabilities), fresh.labels)
            )
    assert kept >= 15
    assert max(cost) < 0.02
    # the control: what choosing by the loss on its own rows keeps
    scores = sample(400)
    in_sample = [
        loss(fit_map(name, scores).log_probabilities(scores.logits), scores.labels) for name in ("temperature", "beta")
    ]
    assert min(in_sample) < loss(np.log(scores.probabilities), scores.labels)


def test_identity_is_kept_with_a_reason():
    scores = sample(400, seed=next(s for s in range(40) if choose_map(sample(400, seed=s)).map is None))
    choice = choose_map(scores)
    assert choice.name == "identity"
    assert "no map lowers" in choice.reason
    assert min(c.change for c in choice.table if c.nll is not None and c.name != "identity") >= 0


@pytest.mark.parametrize("k", [2, 3])
def test_too_few_rows_of_a_class_is_the_identity_with_the_count(k):
    scores = sample(300, k, slope=3.0)
    few = scores.take(
        np.sort(np.concatenate([np.flatnonzero(scores.labels != 1), np.flatnonzero(scores.labels == 1)[:9]]))
    )
    choice = choose_map(few)
    assert choice.map is None
    assert choice.reason == "identity: class 1 has 9 rows, 10 are needed to compare maps"
    assert all(c.nll is None and "class 1" in c.note for c in choice.table[1:])


def test_groups_are_what_counts():
    scores = sample(300, slope=3.0, groups=np.repeat(np.arange(15), 20).astype(str))
    # every group has both classes
    assert choose_map(scores).map is not None
    few = sample(300, slope=3.0, groups=np.repeat(np.arange(6), 50).astype(str))
    assert choose_map(few).reason == "identity: class 0 has 6 groups, 10 are needed to compare maps"


def test_identical_frames_do_not_leak_into_their_own_test_fold():
    """Five copies of each row: with groups, isotonic is as bad as on the rows once; without, copies of a row stand on
    both sides and it looks better than it is."""
    once = sample(250, slope=1.0, seed=5)
    rows = np.repeat(np.arange(250), 5)
    copies = Scores(logits=once.logits[rows], labels=once.labels[rows])
    grouped = Scores(logits=once.logits[rows], labels=once.labels[rows], groups=rows.astype(str))
    honest = row(choose_map(once, candidates=["isotonic"]), "isotonic")
    with_groups = row(choose_map(grouped, candidates=["isotonic"]), "isotonic")
    leaking = row(choose_map(copies, candidates=["isotonic"]), "isotonic")
    assert with_groups.nll == pytest.approx(honest.nll, abs=0.04)
    assert leaking.nll < honest.nll - 0.05
    # and five copies are not five times the evidence
    assert with_groups.standard_error == pytest.approx(honest.standard_error, rel=0.3)
    assert leaking.standard_error < 0.6 * honest.standard_error


def test_candidates_by_number_of_classes_and_rows():
    assert [c.name for c in choose_map(sample(400)).table] == ["identity", "temperature", "platt", "beta", "isotonic"]
    many = choose_map(sample(400, 3))
    assert [c.name for c in many.table] == ["identity", "temperature", "vector", "dirichlet", "isotonic"]
    assert row(many, "isotonic").note == "left out: 400 rows, it needs about 1000"
    assert row(choose_map(sample(1000)), "isotonic").nll is not None
    assert [c.name for c in choose_map(sample(400), candidates=["platt", "platt"]).table] == ["identity", "platt"]


def test_a_candidate_that_cannot_be_fitted_is_out_with_its_reason():
    labels = np.arange(100) % 2
    perfect = Scores(logits=np.stack([np.zeros(100), 2.0 * labels - 1], axis=1), labels=labels)
    choice = choose_map(perfect)
    assert choice.name == "platt"
    assert "no row of 80 is wrong" in row(choice, "temperature").note
    assert "3 classes" in row(choose_map(sample(400, 3), candidates=["beta"]), "beta").note


def test_same_seed_same_choice_whatever_the_order_of_rows():
    ids = [f"id{index}" for index in range(600)]
    scores = sample(slope=1.5, ids=ids)
    mixed = scores.take(np.random.default_rng(0).permutation(600))
    one, other = choose_map(scores), choose_map(mixed)
    for a, b in zip(one.table, other.table, strict=True):
        assert a.name == b.name
        assert a.nll == pytest.approx(b.nll, abs=1e-7) if a.nll is not None else b.nll is None
    assert row(choose_map(scores, seed=1), "beta").nll != pytest.approx(row(one, "beta").nll, abs=1e-7)


def test_scores_that_point_the_wrong_way_are_said_to_be_held_at_0():
    scores = sample(slope=-1.0)
    choice = choose_map(scores, candidates=["temperature"])
    assert choice.map == Temperature(slope=0.0, n=600, n_classes=2)
    assert choice.reason.endswith("held at 0: slope")


def test_choice_as_plain_values(tmp_path):
    choice = choose_map(sample(slope=2.0))
    document = choice.to_document()
    assert document["chosen"] == choice.name
    assert [line["name"] for line in document["table"]] == [c.name for c in choice.table]
    write_document(tmp_path / "calibration.json", choice.map.to_document(), CALIBRATION_KIND)
    assert read_document(tmp_path / "calibration.json", CALIBRATION_KIND)["name"] == choice.name


def test_bad_options_are_named():
    with pytest.raises(ConfigError, match="'spline' is unknown"):
        choose_map(sample(), candidates=["spline"])
    with pytest.raises(ConfigError, match="folds: 1"):
        choose_map(sample(), folds=1)
    with pytest.raises(DataError, match="labels"):
        choose_map(Scores(logits=np.zeros((5, 2))))
    assert choose_map(Scores(logits=np.zeros((0, 2)), labels=np.zeros(0))).map is None


# ---- folds -------------------------------------------------------------------------------------------------------


def test_folds_keep_groups_whole_and_classes_even():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 80, 1000).astype(str)
    scores = sample(1000, groups=groups)
    fold = fold_of_rows(scores, 5, 0)
    assert all(len(set(fold[groups == name])) == 1 for name in set(groups))
    sizes = np.bincount(fold, minlength=5)
    assert sizes.min() > 150
    shares = [scores.labels[fold == index].mean() for index in range(5)]
    assert max(shares) - min(shares) < 0.15


def test_folds_of_rows_differ_by_one_per_class_at_most():
    scores = sample(503, 3)
    fold = fold_of_rows(scores, 5, 0)
    for index in range(3):
        counts = np.bincount(fold[scores.labels == index], minlength=5)
        assert counts.max() - counts.min() <= 1


def test_fewer_groups_than_folds_and_one_giant_group():
    two = sample(100, groups=np.repeat(["a", "b"], 50))
    assert set(fold_of_rows(two, 5, 0).tolist()) == {0, 1}
    giant = sample(100, groups=np.array(["g"] * 90 + list("0123456789")))
    fold = fold_of_rows(giant, 5, 0)
    assert len(set(fold[:90].tolist())) == 1
    assert len(set(fold.tolist())) == 5
