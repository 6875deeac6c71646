"""`stage1 evaluate --target`: what is estimated, restated, kept and said; on score files, groups, three classes and
a run.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from stage1 import fit_policy
from stage1.commands.scores import calibrate_scores, evaluate_scores
from stage1.config import load_config
from stage1.errors import ConfigError, DataError, MissingError
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.scores import Scores, write_scores
from stage1.stages.label_shift import Shift, adopt_target, label_shift, shift_lines
from stage1.storage.documents import read_document

from ..command_line import stage1
from .conftest import one_line_error

CONFIG = load_config(
    overrides=["risks={fnr: 0.1, error: 0.1}", "evaluation.resamples=60", "data.classes=[down, up]"], environment={}
)[0]


def draw(n, prior, seed, wide=1.0, groups=None):
    """Positives are spread more than negatives, so that error moves with the balance."""
    rng = np.random.default_rng(seed)
    labels = (rng.random(n) < prior).astype(int)
    margin = 4.0 * (labels - 0.5) + rng.normal(size=n) * np.where(labels == 1, 1.5 * wide, 0.8)
    return Scores(logits=np.stack([np.zeros(n), margin], axis=1), labels=labels, groups=groups)


def restated(document, method):
    return next(row for row in document["estimates"] if row["method"] == method)


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """mine.parquet at 30 % positives, runs/mine calibrated on it, target.parquet at 80 % (labels in a file of their
    own).
    """
    folder = tmp_path_factory.mktemp("shift")
    write_scores(folder / "mine.parquet", draw(6000, 0.3, 0))
    target = draw(2500, 0.8, 1)
    write_scores(folder / "target.parquet", Scores(logits=target.logits))
    policy, _ = calibrate_scores(
        folder / "mine.parquet",
        folder / "runs" / "mine",
        config=CONFIG,
        values="logits",
        columns={},
        shares="0.1,0.5,0.4",
    )
    assert policy.certified
    return folder, policy, target


@pytest.fixture(scope="module")
def document(desk):
    folder, _, _ = desk
    return evaluate_scores(
        folder / "runs/mine/scores.parquet",
        folder / "runs/mine",
        folder / "runs/mine",
        config=CONFIG.model_copy(update={"target_prior": 0.8}),
        values="logits",
        columns={},
        target=folder / "target.parquet",
    )


# ---- numbers -----------------------------------------------------------------------------------------------------


def test_the_estimates_and_what_is_restated_hold_on_the_target(desk, document):
    """The target has labels after all: nobody but this test looks at them."""
    _, policy, target = desk
    shift = document["label_shift"]
    assert [row["method"] for row in shift["estimates"]] == ["mlls", "bbse", "stated"]
    decision = policy.decide(target)
    wrong = decision.exit & (decision.label != target.labels)
    truth = {"coverage": decision.exit.mean(), "error": wrong.sum() / decision.exit.sum()}
    accuracy = ((target.margin > 0) == target.labels).mean()
    for row in shift["estimates"]:
        assert row["prior"]["up"] == pytest.approx(target.labels.mean(), abs=0.04)
        if row["method"] != "stated":
            assert row["low"]["up"] <= target.labels.mean() <= row["high"]["up"]
        for name, value in truth.items():
            assert row[name]["low"] <= value <= row[name]["high"]
            assert row[name]["value"] == pytest.approx(value, abs=0.02)
        assert row["metrics"]["accuracy"]["low"] - 0.01 <= accuracy <= row["metrics"]["accuracy"]["high"] + 0.01
    # the control: what val_test itself says is not true there
    own = document["risks"]["error"]
    assert own["high"] < truth["error"]
    assert abs(document["metrics"]["accuracy"]["value"] - accuracy) > 0.01


def test_at_its_own_balance_nothing_moves(desk, document):
    _folder, policy, _ = desk
    test = draw(800, 0.3, 5)
    share = float(test.labels.mean())
    section = label_shift(test, policy, Shift(None, share, test, "val_test", None), resamples=30)
    from stage1.evaluation.summary import evaluate

    decision = policy.decide(test)
    plain = evaluate(
        test,
        decision.exit,
        decision.label,
        lo=None,
        hi=None,
        classes=policy.classes,
        targets={},
        policy="softmax",
        certified=True,
        resamples=10,
        calibration=None,
    )
    (row,) = section["estimates"]
    assert row["coverage"]["value"] == pytest.approx(plain["coverage"]["overall"]["value"])
    assert row["error"]["value"] == pytest.approx(plain["risks"]["error"]["observed"])
    for name in ("accuracy", "aurc", "augrc", "auroc", "mcc"):
        assert row["metrics"][name]["value"] == pytest.approx(plain["metrics"][name]["value"]), name
    assert section["agree"] is None
    assert section["target"] is None
    assert section["map"] is None


def test_an_estimated_share_makes_intervals_longer(document):
    shift = document["label_shift"]
    reported, bbse = restated(shift, "stated"), restated(shift, "bbse")
    for name in ("coverage", "error"):
        assert bbse[name]["high"] - bbse[name]["low"] > reported[name]["high"] - reported[name]["low"]


def test_groups_and_three_classes():
    groups = np.repeat(np.arange(200), 5).astype(str)
    calib, test = draw(1000, 0.4, 2, groups=groups), draw(1000, 0.4, 3, groups=groups)
    policy = fit_policy(
        "softmax", calib=draw(1500, 0.4, 4), risks={"fnr": 0.1, "false_exit_rate": 0.1}, classes=("down", "up")
    )
    section = label_shift(test, policy, Shift(draw(500, 0.7, 6), None, calib, "val_calib", None), resamples=40)
    assert section["intervals"] == "over groups"
    assert all(
        row["coverage"]["low"] <= row["coverage"]["value"] <= row["coverage"]["high"] for row in section["estimates"]
    )
    rng = np.random.default_rng(0)

    def three(n, shares):
        labels = rng.choice(3, n, p=shares)
        return Scores(logits=3.5 * np.eye(3)[labels] + rng.normal(size=(n, 3)), labels=labels)

    policy = fit_policy(
        "softmax",
        select=three(600, [0.3, 0.3, 0.4]),
        calib=three(2000, [0.3, 0.3, 0.4]),
        risks={"error": 0.1},
        classes=("a", "b", "c"),
    )
    test, target = three(1500, [0.3, 0.3, 0.4]), three(1500, [0.7, 0.2, 0.1])
    section = label_shift(
        test, policy, Shift(target, None, three(1500, [0.3, 0.3, 0.4]), "val_calib", None), resamples=40
    )
    for row in section["estimates"]:
        assert row["prior"]["a"] == pytest.approx(0.7, abs=0.05)
    assert section["moves"] == ["error"]
    assert section["stays"] == []
    assert len(shift_lines(section)) == 1 + 3 * len(section["estimates"]) + len(section["notes"])
    with pytest.raises(ConfigError, match="target_prior.*--target"):
        label_shift(test, policy, Shift(None, 0.5, test, "val_test", None))


# ---- words -------------------------------------------------------------------------------------------------------


def test_it_says_what_stays_and_what_is_assumed(document):
    shift = document["label_shift"]
    assert (shift["stays"], shift["moves"]) == (["fnr"], ["error"])
    said = " ".join(shift["notes"])
    assert "unchanged at every balance" in said
    assert "fnr <= 0.1" in said
    assert "balance of val_calib only: error <= 0.1" in said
    assert "Nothing here can test it" in said
    assert shift["agree"] is True
    assert "disagree" not in said


def test_a_target_whose_scores_changed_is_warned_of(desk):
    """Scores within a class are another's: then the two methods see different things."""
    _, policy, _ = desk
    source = draw(3000, 0.3, 7)
    target = draw(3000, 0.3, 8)
    drifted = Scores(logits=np.stack([np.zeros(3000), 0.25 * target.margin + 0.4], axis=1))
    section = label_shift(draw(500, 0.3, 9), policy, Shift(drifted, None, source, "val_calib", None), resamples=60)
    assert section["agree"] is False
    assert "disagree by more than chance" in " ".join(section["notes"])


def test_which_labelled_rows_are_the_source(desk, document, tmp_path):
    folder, _, _ = desk
    assert document["label_shift"]["source"]["role"] == "val_calib"
    # a file without roles: the scores.parquet beside the policy has them
    write_scores(tmp_path / "fresh.parquet", draw(500, 0.3, 10))
    options = {"config": CONFIG, "values": "logits", "columns": {}, "target": folder / "target.parquet"}
    found = evaluate_scores(tmp_path / "fresh.parquet", folder / "runs/mine", tmp_path / "out", **options)
    assert found["label_shift"]["source"] == document["label_shift"]["source"]
    # a policy alone: the rows evaluated, and the document says so
    (tmp_path / "bare").mkdir()
    for name in ("thresholds.json", "certificate.json", "calibration.json"):
        if (folder / "runs/mine" / name).is_file():
            shutil.copy(folder / "runs/mine" / name, tmp_path / "bare")
    found = evaluate_scores(tmp_path / "fresh.parquet", tmp_path / "bare", tmp_path / "out", **options)
    assert found["label_shift"]["source"]["role"] == "val_test"
    assert found["label_shift"]["source"]["n"] == 500
    # without a target: no section, as in older documents
    found = evaluate_scores(
        tmp_path / "fresh.parquet", tmp_path / "bare", tmp_path / "out", config=CONFIG, values="logits", columns={}
    )
    assert "label_shift" not in found
    assert "label_shift" not in read_document(tmp_path / "out/evaluation.json", EVALUATION_KIND)


def test_bad_input_is_named(desk, tmp_path):
    folder, policy, _ = desk
    test = draw(300, 0.3, 11)
    with pytest.raises(ConfigError, match="--target FILE"):
        label_shift(test, policy, Shift(None, None, test, "val_test", None))
    with pytest.raises(DataError, match="2 classes are needed"):
        label_shift(test, policy, Shift(Scores(logits=np.zeros((5, 3))), None, test, "val_test", None))
    with pytest.raises(MissingError, match="not a calibrated run"):
        adopt_target(tmp_path, folder / "target.parquet", values="logits", columns={})


# ---- the command, the report and a run ---------------------------------------------------------------------------


def test_the_command_on_scores(desk):
    folder, _, target = desk
    np.savez(folder / "there.npz", prob=target.probabilities[:, 1])
    result = stage1(
        "evaluate",
        "--scores",
        "runs/mine/scores.parquet",
        "--policy",
        "runs/mine",
        "--target",
        "there.npz",
        "--target-values",
        "probabilities",
        "--target-columns",
        "scores=prob",
        "evaluation.resamples=30",
        "target_prior=0.5",
        cwd=folder,
    )
    assert result.returncode == 0, result.stderr
    for words in ("mlls", "bbse", "stated", "P(up)", "unchanged at every balance"):
        assert words in result.stdout
    one_line_error(
        stage1(
            "evaluate",
            "--scores",
            "runs/mine/scores.parquet",
            "--policy",
            "runs/mine",
            "--target",
            "no.npz",
            cwd=folder,
        ),
        3,
        "no.npz",
    )
    from stage1.stages.reporting import rewrite_report

    page = rewrite_report(folder / "runs/mine")[0].read_text()
    assert "At another class balance" in page
    assert "Nothing here can test it" in page
    assert (folder / "runs/mine/figures/label_shift.svg").is_file()


def test_a_run_keeps_its_target(finished, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run)
    ids = json.loads((run / "val_calib_ids.json").read_text())["ids"]
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 4, 200)
    write_scores(
        tmp_path / "target.csv",
        Scores(logits=np.stack([np.zeros(200), margin], axis=1), labels=(margin > 0).astype(int)),
    )
    result = stage1("evaluate", run, "--target", tmp_path / "target.csv", "-q")
    assert result.returncode == 0, result.stderr
    assert "bbse" in result.stdout
    shift = read_document(run / "evaluation.json", EVALUATION_KIND)["label_shift"]
    assert shift["source"]["n"] == len(ids)
    assert shift["target"]["n"] == 200
    assert "At another class balance" in (run / "report.html").read_text()
    # the labels of the target were left behind
    from stage1.scores import read_scores

    assert read_scores(run / "target_scores.parquet")[0].labels is None
    # unchanged: skipped; another target: done again
    from stage1.runs import execute_one, opened
    from stage1.runs.progress import Progress
    from stage1.stages import STAGES

    def again():
        with opened(run, None) as directory:
            return execute_one(directory, STAGES, "evaluate", Progress(quiet=True))

    assert not again()
    write_scores(tmp_path / "target.csv", Scores(logits=np.stack([np.zeros(200), margin + 1.0], axis=1)))
    adopt_target(run, tmp_path / "target.csv", values="logits", columns={})
    assert again()
    assert read_document(run / "evaluation.json", EVALUATION_KIND)["label_shift"]["estimates"] != shift["estimates"]
