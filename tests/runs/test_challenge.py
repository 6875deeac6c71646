"""Challenges inside a run: which rows, which files, which words in the certificate; and the report by level."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stage1 import Scores, fit_policy
from stage1.commands.challenge_report import level_lines, levels_of, report_levels
from stage1.commands.reward import reward
from stage1.config import load_config
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError
from stage1.policy.provenance import population
from stage1.runs import opened
from stage1.runs.progress import Progress
from stage1.runs.stage import Context, Stop
from stage1.scores import read_role, write_role
from stage1.stages.split import source_state, split
from stage1.storage.files import digest_file

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error, write_photos

MIXTURE = "data.challenge.roles={train: mixture, val_select: mixture, val_calib: mixture, val_test: mixture}"


def after_split(photos: Path, folder: Path, *overrides: str):
    config, _ = load_config(
        recipe="baseline", overrides=[*SETTINGS, f"data.table={photos}", *overrides], environment={}
    )
    with opened(folder, config) as run:
        split(run, Context(Progress(quiet=True), Stop()))
    return SampleTable.read(folder / "samples.parquet"), folder


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return write_photos(tmp_path_factory.mktemp("small"), n=80)


def test_named_roles_become_challenges_and_the_others_stay(small, tmp_path):
    plain, _ = after_split(small, tmp_path / "plain")
    made, folder = after_split(
        small,
        tmp_path / "made",
        "data.challenge.roles={train: mixture, val_calib: L2}",
        "data.challenge.copies={train: 2}",
        "data.slices=[level]",
    )
    levels = made.slices["level"]
    for role, copies in (("train", 2), ("val_calib", 1)):
        before, after = plain.take(plain.rows(role)), made.take(made.rows(role))
        assert len(after) == copies * len(before)
        # The image's own group: copies never cross roles, and an image stays one unit.
        assert set(after.groups.tolist()) == set(before.groups.tolist())
        labels = dict(zip(before.groups.tolist(), before.labels.tolist(), strict=True))
        assert [labels[group] for group in after.groups.tolist()] == after.labels.tolist()
        assert all(Path(path).is_relative_to(folder / "challenge") for path in after.paths.tolist())
        assert all(
            digest_file(path) == name for path, name in zip(after.paths.tolist(), after.ids.tolist(), strict=True)
        )
    assert set(levels[made.rows("train")].tolist()) == {"L0", "L1", "L2", "L3"}
    assert set(levels[made.rows("val_calib")].tolist()) == {"L2"}
    for role in ("val_select", "val_test"):
        np.testing.assert_array_equal(made.ids[made.rows(role)], plain.ids[plain.rows(role)])
        assert set(levels[made.rows(role)].tolist()) == {"as given"}
    counts = json.loads((folder / "splits.json").read_text())["counts"]
    assert counts["train"] == {
        "day": int((made.labels[made.rows("train")] == 0).sum()),
        "night": int((made.labels[made.rows("train")] == 1).sum()),
    }
    assert len(np.unique(made.ids)) == len(made)


def test_equal_challenges_of_a_role_stand_there_once(small, tmp_path):
    made, folder = after_split(
        small, tmp_path, "data.challenge.roles={val_select: L0}", "data.challenge.copies={val_select: 3}"
    )
    with open(folder / "quarantine.csv", newline="") as stream:
        reasons = [row["reason"] for row in csv.DictReader(stream)]
    assert reasons == ["exact duplicate"] * 2 * len(made.rows("val_select"))


def test_files_are_made_once_and_the_source_is_watched(small, tmp_path):
    _, folder = after_split(small, tmp_path, "data.challenge.roles={val_test: L3}")
    times = {path: path.stat().st_mtime_ns for path in (folder / "challenge").rglob("*.jpg")}
    first = (folder / "samples.parquet").read_bytes()
    after_split(small, tmp_path, "data.challenge.roles={val_test: L3}")
    assert times == {path: path.stat().st_mtime_ns for path in (folder / "challenge").rglob("*.jpg")}
    assert (folder / "samples.parquet").read_bytes() == first
    config, _ = load_config(
        recipe="baseline",
        overrides=[*SETTINGS, f"data.table={small}", "data.challenge.roles={val_test: L3}"],
        environment={},
    )
    with opened(folder, config) as run:
        assert len(source_state(run)) == 64  # `level` is no column of the source, and is not asked of it


def test_what_does_not_go_together_is_one_line(small, tmp_path):
    with pytest.raises(ConfigError, match=r"copies\.train: no level is given"):
        load_config(recipe="baseline", overrides=["data.challenge.copies={train: 2}"], environment={})
    with pytest.raises(ConfigError, match="train"):
        load_config(recipe="baseline", overrides=["data.challenge.roles={train: L7}"], environment={})
    with pytest.raises(ConfigError, match=r"pretrain\.folder and data\.challenge\.roles exclude"):
        after_split(small, tmp_path / "a", MIXTURE, f"pretrain.folder={small.parent}")
    with pytest.raises(DataError, match="no column 'scene_description', by which"):
        after_split(small, tmp_path / "b", "data.challenge.filter=true")


def test_the_filter_works_before_the_split(small, tmp_path):
    with open(small, newline="") as stream:
        rows = list(csv.DictReader(stream))
    described = small.parent / "described.csv"
    with open(described, "w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["image", "label", "scene_description"])
        # night is class 1 (alphabetical): every fifth of each class disagrees
        writer.writerows(
            [row["image"], row["label"], "dark" if (row["label"] == "night") != (i // 2 % 5 == 0) else ""]
            for i, row in enumerate(rows)
        )
    made, folder = after_split(described, tmp_path, "data.challenge.filter=true")
    assert len(made) == 64
    assert not made.slices
    with open(folder / "quarantine.csv", newline="") as stream:
        assert sum(row["reason"] == "filtered" for row in csv.DictReader(stream)) == 16


# ---- the certificate says of what it is


def test_population_is_said_in_words():
    def of(levels):
        return population(
            Scores(
                logits=np.zeros((len(levels), 2)), labels=np.zeros(len(levels), int), slices={"level": np.array(levels)}
            )
        )

    assert "L0 25 %, L1 25 %, L2 25 %, L3 25 %): the claim for all images is for this mixture" in of(
        ["L0", "L1", "L2", "L3"]
    )
    assert of(["L2", "L2"]).startswith("An image here is a frame as the StreetVision client distorts it at level L2")
    assert "(L1 50 %, L3 50 %): the claim is for these." in of(["L1", "L3"])
    assert of(["L1", "as given"]) == ""
    assert of(["low", "high"]) == ""
    assert population(Scores(logits=np.zeros((2, 2)))) == ""


@pytest.mark.parametrize(
    "policy, risks",
    [("softmax", {"fnr": 0.3, "false_exit_rate": 0.3}), ("scrc", {"miss_rate": 0.3, "false_exit_rate": 0.3})],
)
def test_every_policy_says_it(policy, risks):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 900)
    logits = np.stack([np.zeros(900), rng.normal(0, 1, 900) + 4 * labels - 2], 1)
    rows = Scores(
        logits=logits,
        labels=labels,
        ids=np.arange(900).astype(str),
        slices={"level": rng.choice(["L0", "L1", "L2", "L3"], 900)},
    )
    made = fit_policy(policy, calib=rows.take(np.arange(300, 900)), select=rows.take(np.arange(300)), risks=risks)
    assert made.certificate.statement.endswith("the claim for all images is for this mixture.")


@pytest.fixture(scope="module")
def streetview(photos, tmp_path_factory):
    """A complete run on challenges: certified for the mixture, each level claimed besides."""
    pytest.importorskip("timm", reason="the extra train is not installed")
    from stage1 import run

    return run(
        recipe="baseline",
        overrides=[
            *SETTINGS,
            f"data.table={photos}",
            MIXTURE,
            "data.challenge.copies={train: 2}",
            "data.slices=[level]",
            "risks={miss_rate: 0.6, false_exit_rate: 0.6}",
        ],
        output=tmp_path_factory.mktemp("runs") / "streetview",
    )


def test_a_run_certifies_the_mixture_and_its_levels_and_the_bundle_repeats_it(streetview):
    statement = streetview.certificate.statement
    assert "level=L" in statement
    assert "the claim for all images is for this mixture" in statement
    verified = stage1("verify", streetview.bundle, "--recompute", "--json")
    assert json.loads(verified.stdout)["ok"], verified.stdout + verified.stderr
    assert "the claim for all images is for this mixture" in (streetview.bundle / "README.md").read_text()
    slices = {row["value"] for row in json.loads((streetview.folder / "evaluation.json").read_text())["slices"]}
    assert slices == {"L0", "L1", "L2", "L3"}


def test_the_report_has_a_row_for_each_level_at_balanced_labels(streetview, tmp_path):
    document = report_levels(streetview.folder, resamples=50)
    assert [row["level"] for row in document["levels"]] == ["L0", "L1", "L2", "L3", "mixture"]
    assert sum(row["n"] for row in document["levels"][:4]) == document["levels"][4]["n"]
    text = "\n".join(level_lines(document))
    assert "at 50 % positives" in text
    assert "certified: mixture yes, L0 " in text
    assert "accuracy and mcc of the answers" in text
    # The two commands speak of the same answers at the same shares of the levels.
    paid = reward(streetview.folder, resamples=2)["tables"][0]["rows"]
    for mine, theirs in zip(document["levels"], paid, strict=True):
        assert mine["level"] == theirs["level"]
        assert mine["metrics"]["accuracy"]["value"] == pytest.approx(theirs["accuracy"])
        assert mine["metrics"]["mcc"]["value"] == pytest.approx(theirs["mcc"])
    printed = stage1("challenge", "report", streetview.folder, "--resamples", "50", "--json")
    assert json.loads(printed.stdout) == document
    one_line_error(stage1("challenge", "report", tmp_path), 3, "val_test")
    with pytest.raises(ConfigError, match="--prior 1: a share between 0 and 1"):
        report_levels(streetview.folder, prior=1.0)
    write_role(tmp_path, "val_test", replace(read_role(streetview.folder, "val_test"), slices={}))
    for name in ("thresholds.json", "certificate.json"):
        shutil.copy(streetview.folder / name, tmp_path)
    with pytest.raises(DataError, match="its images are no challenges; set data.challenge.roles"):
        report_levels(tmp_path)


def test_balanced_means_that_the_share_of_a_class_does_not_matter():
    rng = np.random.default_rng(1)
    labels = np.repeat([0, 1], [900, 100])
    logits = np.stack([np.zeros(1000), rng.normal(0, 1, 1000) + 3 * labels - 1.5], 1)
    rows = Scores(logits=logits, labels=labels, slices={"level": np.where(np.arange(1000) % 2, "L0", "L3")})
    policy = fit_policy("softmax", calib=rows, risks={"miss_rate": 0.2, "false_exit_rate": 0.2})
    found = levels_of(rows, policy, resamples=20)[-1]["metrics"]
    decision = policy.decide(rows)
    right = np.where(decision.exit, decision.label, decision.probability > 0.5) == labels
    assert found["accuracy"]["value"] == pytest.approx((right[labels == 0].mean() + right[labels == 1].mean()) / 2)
    assert found["accuracy"]["low"] <= found["accuracy"]["value"] <= found["accuracy"]["high"]
    other = levels_of(rows, policy, prior=0.1, resamples=20)[-1]["metrics"]
    assert other["accuracy"]["value"] == pytest.approx(right.mean())


def test_the_mixture_has_every_level_equally_often_whatever_there_is_of_each():
    rng = np.random.default_rng(2)
    n = 1200
    labels, level = rng.integers(0, 2, n), np.where(np.arange(n) < 900, "L0", "L3")
    spread = np.where(level == "L0", 1.0, 3.0)  # L3 is rarer here, and worse
    logits = np.stack([np.zeros(n), rng.normal(0, 1, n) * spread + 3 * labels - 1.5], 1)
    rows = Scores(logits=logits, labels=labels, slices={"level": level}, groups=np.arange(n) // 2)
    policy = fit_policy("softmax", calib=rows, risks={"miss_rate": 0.06, "false_exit_rate": 0.06}, assume_iid=True)
    first, second, both = (row["metrics"] for row in levels_of(rows, policy, resamples=40))
    for name in ("accuracy", "coverage"):
        mean = (first[name]["value"] + second[name]["value"]) / 2
        assert both[name]["value"] == pytest.approx(mean)
        assert both[name]["low"] < mean < both[name]["high"]
    assert both["accuracy"]["value"] < first["accuracy"]["value"] - 0.05
    # One level alone is no mixture; one without a row of one class leaves it undefined.
    assert [row["level"] for row in levels_of(rows.take(level == "L0"), policy, resamples=2)] == ["L0"]
    found = levels_of(rows.take((level == "L0") | (labels == 1)), policy, resamples=2)
    assert [row["metrics"] is None for row in found] == [False, True, True]
