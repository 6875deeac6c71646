"""`verify --recompute`: the certificate follows from calibration.parquet, or the number that does not is named."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stage1.bundle import read_calibration, recompute, verify_bundle
from stage1.errors import IntegrityError
from stage1.policy import Certificate, load_policy
from stage1.scores import write_scores

CASES = {
    "walk": {},
    "mirror": {"risks": {"fpr": 0.02, "miss_rate": 0.02}},
    "both sides": {"risks": {"miss_rate": 0.02, "false_exit_rate": 0.03}, "confidence": 0.9},
    "one-sided": {"risks": {"miss_rate": 0.02}, "allow_one_sided": True},
    "groups": {"per_group": 3, "risks": {"fnr": 0.05, "false_exit_rate": 0.05}, "seed": 11},
    "assume_iid": {"per_group": 3, "assume_iid": True},
    "second attempt": {"attempt": 2},
    "too few": {"n": 60},
    "leaked": {"uncertified_because": "12 images stand in train and in val_calib."},
}


@pytest.mark.parametrize("case", CASES)
def test_certificate_follows_from_the_calibration_data(make_parts, tmp_path, case):
    folder = make_parts(**CASES[case]).write(tmp_path / "bundle")
    report = verify_bundle(folder, recompute=True)
    assert report.ok, report.problems
    assert report.recomputed
    certificate = Certificate.load(folder / "certificate.json")
    assert certificate.certified == (case not in ("too few", "leaked"))
    assert certificate.unit == ("group" if case == "groups" else "image")
    assert certificate.assume_iid == (case == "assume_iid")


def test_calibration_holds_what_the_certificate_counted(bundle, parts):
    scores = read_calibration(bundle)
    assert np.array_equal(scores.logits, parts.calibration.logits)
    assert np.array_equal(scores.labels, parts.calibration.labels)
    assert scores.ids.tolist() == parts.calibration.ids.tolist()
    policy = load_policy(bundle)
    wrong = policy.decide(scores).exit & (policy.decide(scores).label == 0) & (scores.labels == 1)
    assert policy.certificate.risks["fnr"].errors == wrong.sum()


@pytest.mark.parametrize(
    "name, change, said",
    [
        (
            "certificate.json",
            lambda d: d["risks"]["fnr"].update(bound=d["risks"]["fnr"]["bound"] * 0.999),
            "risks.fnr.bound is",
        ),
        (
            "certificate.json",
            lambda d: d["risks"]["false_exit_rate"].update(errors=0),
            "risks.false_exit_rate.errors is 0,",
        ),
        ("certificate.json", lambda d: d["coverage"].update(exits=2000), "coverage.exits is 2000,"),
        ("certificate.json", lambda d: d.update(n_units=1), "n_units is 1,"),
        ("certificate.json", lambda d: d.update(statement="Everything is certain."), "statement is 'Everything"),
        ("certificate.json", lambda d: d.update(confidence=0.99), "delta is"),
        ("certificate.json", lambda d: d["risks"]["fnr"].update(target=0.01), "statement is"),
        ("thresholds.json", lambda d: d.update(hi=math.nextafter(d["hi"], -1) - 1e-6), "thresholds.json: hi is"),
        ("thresholds.json", lambda d: d.update(lo=None), "thresholds.json: lo is None"),
    ],
)
def test_a_changed_number_is_found_though_every_digest_is_right(bundle, reseal, edit, name, change, said):
    edit(bundle / name, change)
    reseal(bundle)
    assert verify_bundle(bundle).ok  # the control: without the recomputation nobody would know
    problems = verify_bundle(bundle, recompute=True).problems
    assert any(said in problem for problem in problems), problems
    assert all(problem.endswith("do not rely on this bundle") for problem in problems)


def test_a_changed_label_is_found(bundle, reseal):
    scores = read_calibration(bundle)
    decision = load_policy(bundle).decide(scores)
    missed = np.flatnonzero(decision.exit & (decision.label == 0) & (scores.labels == 1))
    scores.labels[missed] = 0  # the misses are declared to be right
    write_scores(bundle / "calibration.parquet", scores)
    reseal(bundle)
    assert verify_bundle(bundle).ok
    problems = verify_bundle(bundle, recompute=True).problems
    assert any(problem.startswith("thresholds.json: lo is") for problem in problems), problems


def test_a_refusal_cannot_be_turned_into_a_certificate(make_parts, tmp_path, reseal, edit):
    folder = make_parts(uncertified_because="leakage").write(tmp_path / "bundle")
    edit(folder / "certificate.json", lambda d: d.update(certified=True, reason=None))
    edit(folder / "thresholds.json", lambda d: d.update(certified=True))
    reseal(folder, certified=True)
    assert not verify_bundle(folder, recompute=True).ok


def test_wording_may_change_between_versions_numbers_may_not(bundle, reseal, edit):
    edit(bundle / "certificate.json", lambda d: d.update(statement="An older sentence."))
    reseal(bundle, stage1_version="0.0.1")
    assert verify_bundle(bundle, recompute=True).ok
    edit(bundle / "certificate.json", lambda d: d.update(seed=5, n_images=7))
    reseal(bundle, stage1_version="0.0.1")
    assert [problem.split(" is ")[0] for problem in verify_bundle(bundle, recompute=True).problems] == [
        "certificate.json: n_images"
    ]


def test_calibration_without_labels_is_refused(bundle, parts):
    from dataclasses import replace

    write_scores(bundle / "calibration.parquet", replace(parts.calibration, labels=None))
    with pytest.raises(IntegrityError, match="no column 'label'"):
        recompute(bundle)
