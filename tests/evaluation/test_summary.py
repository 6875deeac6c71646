"""evaluation.json: fits its schema, agrees with the functions it is made of, is honest about groups and gaps."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.errors import ConfigError, DataError, IntegrityError
from stage1.evaluation import (
    augrc,
    auroc_failure,
    brier,
    clopper_pearson,
    ece,
    evaluate,
    mcc,
    metrics_rows,
    nll,
    risk_coverage,
)
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.evaluation.summary import confidence_of
from stage1.scores import Scores, read_scores
from stage1.storage.documents import read_document, validate, write_document


def binary_scores(n=300, seed=0, groups=None):
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < 0.3).astype(int)
    margin = rng.normal(size=n) * 1.5 + 3 * labels - 1.5
    logits = np.stack([-margin / 2, margin / 2], axis=1)
    return Scores(logits, labels=labels, groups=groups, ids=[f"id{row:04d}" for row in range(n)])


def document(scores, lo=-1.0, hi=1.5, **changes):
    exits = np.zeros(len(scores), dtype=bool)
    if lo is not None:
        exits |= scores.margin < lo
    if hi is not None:
        exits |= scores.margin > hi
    options = {
        "lo": lo,
        "hi": hi,
        "classes": ["none", "roadwork"],
        "targets": {"fnr": 0.02, "false_exit_rate": 0.05},
        "policy": "softmax",
        "certified": True,
        "resamples": 100,
    } | changes
    return evaluate(scores, exits, (scores.margin > 0).astype(int), **options)


def test_document_fits_its_schema_and_survives_the_file(tmp_path):
    made = document(binary_scores(), paths=[f"/photos/{row}.jpg" for row in range(300)])
    write_document(tmp_path / "evaluation.json", made, EVALUATION_KIND)
    read = read_document(tmp_path / "evaluation.json", EVALUATION_KIND)
    assert {name: value for name, value in read.items() if name != "schema_version"} == made


def test_schema_refuses_what_is_missing_or_unknown():
    made = {"schema_version": 1} | document(binary_scores())
    validate(made, EVALUATION_KIND, "test")
    for name in set(made) - {"argmax"}:  # documents from before it was there are read too
        with pytest.raises(IntegrityError):
            validate({key: value for key, value in made.items() if key != name}, EVALUATION_KIND, "test")
    with pytest.raises(IntegrityError, match="extra"):
        validate(made | {"extra": 1}, EVALUATION_KIND, "test")


def test_numbers_are_those_of_the_functions():
    scores = binary_scores()
    made = document(scores)
    margin, truth = scores.margin, scores.labels
    guess = (margin > 0).astype(int)
    probabilities = scores.probabilities[:, 1]
    expected = {
        "augrc": augrc(abs(margin), guess != truth),
        "auroc_f": auroc_failure(abs(margin), guess != truth),
        "accuracy": (guess == truth).mean(),
        "mcc": mcc(guess, truth),
        "nll": nll(probabilities, truth),
        "brier": brier(probabilities, truth),
        "ece": ece(probabilities, truth),
        "coverage": ((margin < -1) | (margin > 1.5)).mean(),
    }
    for name, value in expected.items():
        assert made["metrics"][name]["value"] == pytest.approx(value, abs=1e-12), name
        assert made["metrics"][name]["low"] <= made["metrics"][name]["high"]
    missed = int(((margin < -1) & (truth == 1)).sum())
    fnr = made["risks"]["fnr"]
    exited = int((((margin < -1) | (margin > 1.5)) & (truth == 1)).sum())
    assert (fnr["errors"], fnr["n"], fnr["target"]) == (missed, exited, 0.02)
    assert (fnr["low"], fnr["high"]) == clopper_pearson(missed, exited)
    assert made["risks"]["miss_rate"]["target"] is None
    assert made["operating_point"] == {
        "coverage": made["coverage"]["overall"]["value"],
        "selective_risk": made["risks"]["error"]["observed"],
    }


def test_counts_add_up():
    made = document(binary_scores())
    confusion = made["exit_confusion"]
    assert confusion["columns"] == ["exit as none", "defer", "exit as roadwork"]
    counts = np.array(confusion["counts"])
    assert counts.sum() == made["n"] == 300
    assert counts[1, 0] == made["risks"]["miss_rate"]["errors"]
    assert counts[0, 2] == made["risks"]["false_exit_rate"]["errors"]
    assert counts[:, [0, 2]].sum() == made["coverage"]["overall"]["exits"]
    assert sum(row["count"] for row in made["reliability"]) == 300
    histogram = made["histogram"]
    assert [sum(histogram["counts"][name]) for name in ("none", "roadwork")] == counts.sum(axis=1).tolist()
    assert len(histogram["edges"]) == len(histogram["counts"]["none"]) + 1


def test_long_curve_is_thinned_and_keeps_its_ends():
    scores = binary_scores(n=3000)
    made = document(scores, resamples=1)
    whole = risk_coverage(abs(scores.margin), (scores.margin > 0) != scores.labels)
    curve = made["curve"]
    assert len(curve["coverage"]) == len(curve["selective_risk"]) == len(curve["generalised_risk"]) == 400
    assert (curve["coverage"][0], curve["coverage"][-1]) == (1.0, 0.0)
    assert set(curve["generalised_risk"]) <= set(whole.generalised_risk.tolist())
    assert curve["selective_risk"][0] == whole.selective_risk[0]


def test_worst_are_wrong_exits_first_by_how_wrong():
    scores = binary_scores(n=600)
    made = document(scores, paths=[f"/photos/{row}.jpg" for row in range(600)])
    row_of = {name: row for row, name in enumerate(scores.ids.tolist())}
    rows = [row_of[entry["id"]] for entry in made["worst"]]
    exited = [entry["decision"] != "defer" for entry in made["worst"]]
    assert len(rows) == 24
    assert exited == sorted(exited, reverse=True)
    for row, entry in zip(rows, made["worst"], strict=True):
        guess = int(scores.margin[row] > 0)
        assert guess != scores.labels[row]
        assert entry["label"] == ["none", "roadwork"][scores.labels[row]]
        assert entry["path"] == f"/photos/{row}.jpg"
        assert entry["probability"] == pytest.approx(scores.probabilities[row, 1])
        assert entry["decision"] in ("defer", f"exit as {['none', 'roadwork'][guess]}")
    sizes = np.abs(scores.margin[rows])
    border = sum(exited)
    assert (np.diff(sizes[:border]) <= 0).all()
    assert (np.diff(sizes[border:]) <= 0).all()


# ---- groups ------------------------------------------------------------------------------------------------------


def test_groups_of_one_image_are_images():
    made = document(binary_scores(groups=[f"g{row}" for row in range(300)]))
    assert (made["unit"], made["intervals"], made["n_groups"]) == ("image", "groups = images", 300)
    assert made == document(binary_scores(), resamples=100)
    assert made["risks"]["error"]["group_low"] is None


def clustered(groups=60, size=5):
    """Groups of identical frames: what looks like 300 images is worth 60."""
    few = binary_scores(n=groups, seed=3)
    rows = np.repeat(np.arange(groups), size)
    return Scores(few.logits[rows], labels=few.labels[rows], groups=[f"v{row}" for row in rows])


def test_repeated_groups_are_said_and_widen_the_intervals():
    scores = clustered()
    made = document(scores, lo=0.0, hi=0.0, resamples=400)
    assert (made["unit"], made["intervals"], made["n_groups"]) == ("group", "image-level, groups ignored", 60)
    ignoring = document(Scores(scores.logits, labels=scores.labels), lo=0.0, hi=0.0, resamples=400)
    for name in ("augrc", "accuracy", "nll"):
        width, narrow = (doc["metrics"][name]["high"] - doc["metrics"][name]["low"] for doc in (made, ignoring))
        assert width > 1.6 * narrow, name  # sqrt(5) = 2.24 in expectation
    error = made["risks"]["error"]
    assert error["group_high"] - error["group_low"] > 1.4 * (error["high"] - error["low"])
    row = next(row for row in metrics_rows(made) if row["metric"] == "error")
    assert (row["low"], row["high"]) == (error["group_low"], error["group_high"])


def test_group_interval_of_no_error_is_the_exact_one_of_as_many_images_as_groups():
    scores = clustered()
    made = document(scores, lo=None, hi=50.0)
    missed = made["risks"]["miss_rate"]
    groups = len(np.unique(scores.groups[scores.known_labels == 1]))
    assert (missed["errors"], missed["group_low"]) == (0, 0.0)
    assert missed["group_high"] == pytest.approx(1 - 0.025 ** (1 / groups))
    assert missed["group_high"] > missed["high"] > 0


# ---- undefined and degenerate ------------------------------------------------------------------------------------


def test_nothing_exits_and_nothing_is_nan():
    made = document(binary_scores(), lo=None, hi=None, certified=False)
    assert made["operating_point"] == {"coverage": 0.0, "selective_risk": None}
    assert made["risks"]["fnr"]["observed"] is None
    assert (made["lo"], made["hi"], made["certified"]) == (None, None, False)
    assert "NaN" not in json.dumps(made)
    validate({"schema_version": 1} | made, EVALUATION_KIND, "test")


def test_one_class_leaves_mcc_null():
    scores = Scores(np.array([[0.0, 1.0], [0.0, 2.0], [0.5, 0.0]]), labels=[1, 1, 1])
    made = document(scores)
    assert made["metrics"]["mcc"] == {"value": None, "low": None, "high": None}
    assert made["coverage"]["per_class"]["none"]["value"] is None
    validate({"schema_version": 1} | made, EVALUATION_KIND, "test")


@settings(deadline=None, max_examples=25)
@given(
    st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1), st.integers(0, 3)), min_size=1, max_size=12),
    st.one_of(st.none(), st.integers(-2, 0)),
    st.one_of(st.none(), st.integers(0, 2)),
)
def test_any_small_input_gives_a_valid_document(rows, lo, hi):
    margin, labels, groups = (np.array(column) for column in zip(*rows, strict=True))
    scores = Scores(np.stack([np.zeros(len(rows)), margin], axis=1), labels=labels, groups=groups.astype(str))
    made = document(scores, lo=lo, hi=hi, resamples=5)
    validate({"schema_version": 1} | made, EVALUATION_KIND, "test")
    json.dumps(made, allow_nan=False)
    assert len(metrics_rows(made)) == 11 + 5 + 3


def test_order_of_rows_does_not_matter():
    scores = binary_scores()
    rows = np.random.default_rng(1).permutation(300)
    first, second = document(scores), document(scores.take(rows))
    for name in ("curve", "exit_confusion", "risks", "coverage", "histogram", "worst"):
        assert first[name] == second[name], name
    for name, numbers in first["metrics"].items():
        assert numbers["value"] == pytest.approx(second["metrics"][name]["value"], abs=1e-12)


# ---- more than two classes ---------------------------------------------------------------------------------------


def test_three_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 200)
    logits = rng.normal(size=(200, 3)) + 2 * np.eye(3)[labels]
    scores = Scores(logits, labels=labels)
    exits = scores.probabilities.max(axis=1) > 0.7
    made = evaluate(
        scores,
        exits,
        logits.argmax(axis=1),
        lo=None,
        hi=None,
        classes=["a", "b", "c"],
        targets={"fnr.b": 0.1},
        policy="softmax",
        certified=False,
        resamples=20,
    )
    validate({"schema_version": 1} | made, EVALUATION_KIND, "test")
    kinds = ("fnr", "wrong", "miss_rate")
    assert list(made["risks"]) == [*(f"{kind}.{name}" for kind in kinds for name in ("a", "b", "c")), "error"]
    assert made["risks"]["fnr.b"]["target"] == 0.1
    assert made["exit_confusion"]["columns"] == ["exit as a", "exit as b", "exit as c", "defer"]
    assert made["metrics"]["nll"]["value"] == pytest.approx(nll(scores.probabilities, labels))
    assert made["metrics"]["augrc"]["value"] == pytest.approx(
        augrc(scores.probabilities.max(axis=1), logits.argmax(axis=1) != labels)
    )


def test_confidence_is_the_margin_and_does_not_saturate():
    margin = np.array([-800.0, -1.0, 0.0, 40.0, 41.0])
    scores = Scores(np.stack([np.zeros(5), margin], axis=1))
    np.testing.assert_array_equal(confidence_of(scores), np.abs(margin))
    assert scores.probabilities[3, 1] == scores.probabilities[4, 1]  # what ranking by probability would tie
    three = Scores(np.array([[1.0, 0.5, -2.0], [100.0, 0.0, -3.0], [0.0, 0.0, 0.0]]))
    top = three.probabilities.max(axis=1)[[0, 2]]
    assert confidence_of(three)[[0, 2]] == pytest.approx(np.log(top / (1 - top)))
    assert confidence_of(three)[1] == pytest.approx(100.0 - math.log1p(math.exp(-3)))


# ---- the table and bad input -------------------------------------------------------------------------------------


def test_rows_of_the_table_repeat_the_document():
    made = document(binary_scores())
    rows = metrics_rows(made)
    names = [row["metric"] for row in rows]
    assert len(names) == len(set(names))
    assert all(set(row) == {"metric", "value", "low", "high", "n", "errors"} for row in rows)
    by_name = {row["metric"]: row for row in rows}
    assert by_name["augrc"]["value"] == made["metrics"]["augrc"]["value"]
    assert by_name["fnr"]["errors"] == made["risks"]["fnr"]["errors"]
    assert by_name["coverage.roadwork"]["n"] == made["coverage"]["per_class"]["roadwork"]["n"]
    assert by_name["coverage"]["low"] == made["coverage"]["overall"]["low"]


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"targets": {"recall": 0.1}}, ConfigError, "'recall' is not evaluated"),
        ({"classes": ["a", "b", "c"]}, DataError, "classes"),
        ({"classes": ["a", "a"]}, DataError, "distinct"),
        ({"paths": ["x"]}, DataError, "paths: 1 for 300"),
        ({"resamples": 0}, ConfigError, "n_resamples: 0"),
        ({"level": 0.0}, ConfigError, "level"),
    ],
)
def test_bad_arguments_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        document(binary_scores(), **changes)


def test_labels_are_needed():
    with pytest.raises(DataError, match="labels"):
        document(Scores(np.zeros((3, 2))))


def test_real_saturated_scores(coco_scores):
    scores, _ = read_scores(coco_scores, values="probabilities", columns={"scores": "prob"})
    made = document(scores, lo=-6.0, hi=6.0, classes=["none", "person"], resamples=100)
    validate({"schema_version": 1} | made, EVALUATION_KIND, "test")
    assert made["n"] == 4952
    assert made["metrics"]["augrc"]["value"] == pytest.approx(
        augrc(abs(scores.margin), scores.logits.argmax(axis=1) != scores.labels)
    )
