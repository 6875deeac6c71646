"""The reward of a folder is what the detector of its bundle earns on the same files, also where the band lies off
one half.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from stage1.commands.challenge_report import levels_of
from stage1.commands.reward import kept_sides, reward, reward_lines
from stage1.inference import Predictor
from stage1.policy import load_policy, reported
from stage1.scores import Scores, write_scores
from stage1.streetvision import Stage1Detector
from stage1.streetvision.reward import OPEN, LevelRates

from ..bundle.conftest import CLASSES, SPEC
from .bundles import make_bundle

# False exits are cheap here: the band in which the policy defers lies below one half, and images at P < .5 exit as
# roadwork, which they may where it is asked for.
CHEAP = {"risks": {"fnr": 0.005, "false_exit_rate": 0.1}, "against_argmax": True}
KINDS = {
    "softmax": CHEAP,
    "softmax, platt": {"map_name": "platt", **CHEAP},
    "softmax, isotonic": {"map_name": "isotonic", **CHEAP},
    "gate": {"policy": "gate"},
    "scrc": {"policy": "scrc", "risks": {"miss_rate": 0.02, "false_exit_rate": 0.2}},
}
LEVELS = np.array(["L0", "L1", "L2", "L3"])


def write_pictures(folder, n=240, seed=0):
    """Pictures that the tiny model finds from clear to doubtful; label, level, group of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    paths = []
    folder.mkdir()
    for index, label in enumerate(labels.tolist()):
        lean = rng.normal(15 if label else -10, 18)
        pixels = np.array([120 + lean, 120, 120 - lean]) + rng.normal(0, 6, (24, 24, 3))
        paths.append(folder / f"{index}.png")
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(paths[-1])
    return paths, labels, LEVELS[rng.integers(0, 4, n)], np.arange(n) // 3


def scored_folder(tmp_path, **kind):
    """(folder with scores and policy, bundle of the same policy, pictures and scores of val_test)."""
    bundle = make_bundle(tmp_path / "made", **kind)
    paths, labels, levels, groups = write_pictures(tmp_path / "images")
    _, logits, gate, failures = Predictor(bundle / "model.onnx", SPEC, CLASSES).outputs([p.read_bytes for p in paths])
    assert not failures
    assert gate is None
    scores = Scores(logits=logits.astype(np.float64), labels=labels, groups=groups, slices={"level": levels})
    roles = np.where(groups % 3 == 0, "val_select", "val_test")
    folder = tmp_path / "scored"
    folder.mkdir()
    write_scores(folder / "scores.parquet", scores, roles)
    for name in ("thresholds.json", "gateparams.json", "scrcparams.json", "certificate.json", "calibration.json"):
        if (bundle / name).is_file():
            shutil.copy(bundle / name, folder)
    test = roles == "val_test"
    return folder, bundle, [path for path, wanted in zip(paths, test, strict=True) if wanted], scores.take(test)


def detected(tmp_path, bundle, paths, scores, threshold):
    """The table of what the detector says of the files."""
    config = tmp_path / "detector.json"
    config.write_text(json.dumps({"bundle": str(bundle), "decision_threshold": threshold}))
    detector = Stage1Detector(config_name=str(config))
    answers = []
    for path in paths:
        with Image.open(path) as picture:
            answers.append(detector(picture))
    assert detector.counts["fallback"] == 0
    return (
        LevelRates(answers, scores.labels, scores.slices["level"], scores.groups, resamples=100).table(0.5),
        detector.counts,
    )


@pytest.mark.parametrize("kind", KINDS)
def test_reward_of_a_folder_is_what_the_detector_earns_on_the_same_files(kind, tmp_path):
    folder, bundle, paths, scores = scored_folder(tmp_path, **KINDS[kind])
    document = reward(folder, resamples=100)
    tables = document["tables"]
    for table in tables:
        rows, counts = detected(tmp_path, bundle, paths, scores, table["threshold"])
        assert (counts["exit"], document["rows"]) == (document["exits"], len(paths))
        assert 0 < counts["exit"] < len(paths)
        for row, found in zip(rows, table["rows"], strict=True):
            assert (found["tpr"], found["fpr"], found["reward"]) == pytest.approx((row.tpr, row.fpr, row.reward))
            assert (found["low"], found["high"]) == pytest.approx((row.low, row.high))
    if kind in ("softmax", "softmax, platt"):
        # The case is the one in question: by P > 0.5 alone it is another answer.
        policy = load_policy(folder)
        sides, above = kept_sides(policy, scores), reported(policy, scores).probabilities[:, 1] > 0.5
        assert ((sides == 1) & ~above).sum() > 5
        assert not above[sides == OPEN].any()
        plain = reward(folder, resamples=2, exits=False)
        assert plain["exits"] is None
        assert plain["tables"][0]["rows"][-1]["fpr"] < tables[0]["rows"][-1]["fpr"] - 0.04
        # Nothing in the band is above one half, so moving the threshold to there and on moves nothing.
        assert document["decision_threshold"] <= 0.5
    assert any("keep their side whatever the threshold" in line for line in reward_lines(document))


@pytest.mark.parametrize("kind", ["softmax", "softmax, platt", "scrc"])
def test_the_challenge_report_has_the_accuracy_and_mcc_that_the_reward_is_made_of(kind, tmp_path):
    folder, _, _, scores = scored_folder(tmp_path, **KINDS[kind])
    wanted = reward(folder, resamples=2)["tables"][0]["rows"]
    found = levels_of(scores, load_policy(folder), resamples=2)
    assert [row["level"] for row in found] == [row["level"] for row in wanted] == [*LEVELS, "mixture"]
    for mine, theirs in zip(found, wanted, strict=True):
        metrics = mine["metrics"]
        assert metrics["accuracy"]["value"] == pytest.approx(theirs["accuracy"])
        assert metrics["mcc"]["value"] == pytest.approx(theirs["mcc"])
