"""streetvision reward: of a file, of a folder with a policy, by the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest

from stage1.commands.reward import REWARD_KIND, reward, reward_lines, write_reward
from stage1.commands.scores import calibrate_scores
from stage1.config import RunConfig
from stage1.errors import ConfigError, DataError, MissingError
from stage1.policy import load_policy
from stage1.scores import Scores, read_scores, write_scores
from stage1.storage.documents import read_document

from ..command_line import stage1
from ..runs.conftest import one_line_error

LEVELS = np.array(["L0", "L1", "L2", "L3"])


def scores(n=1600, bias=0.0, k=2):
    """Scores with levels and groups of four; val_select, val_calib, val_test by turns of groups."""
    rng = np.random.default_rng(0)
    labels, level = rng.integers(0, 2, n), rng.integers(0, 4, n)
    margin = (4.0 - 0.6 * level) * (labels - 0.5) * 2 + rng.normal(0, 2, n) + bias
    groups = np.arange(n) // 4
    roles = np.array(["val_select", "val_calib", "val_test"])[groups % 3]
    logits = np.stack([np.zeros(n), margin, *[np.full(n, -9.0)] * (k - 2)], axis=1)
    return Scores(logits=logits, labels=labels, groups=groups, slices={"level": LEVELS[level]}), roles


@pytest.fixture
def file(tmp_path):
    write_scores(tmp_path / "scores.npz", *scores(bias=2.5))
    return tmp_path / "scores.npz"


def test_a_file_with_roles_and_levels(file, tmp_path):
    document = reward(file, resamples=200)
    assert (document["role"], document["prior"]) == ("val_test", 0.5)
    before, after = document["tables"]
    assert [row["level"] for row in before["rows"]] == [*LEVELS, "mixture"]
    assert before["threshold"] == 0.5
    assert after["threshold"] == document["decision_threshold"] > 0.7  # the scores are 2.5 too high
    assert document["gain"]["verdict"] == "better"
    assert document["gain"]["value"] == pytest.approx(after["rows"][-1]["reward"] - before["rows"][-1]["reward"])
    for table in document["tables"]:
        low, high = table["score_spread"]
        assert low < table["rows"][-1]["reward"] < high
    write_reward(document, tmp_path / "reward.json")
    assert read_document(tmp_path / "reward.json", REWARD_KIND)["decision_threshold"] == document["decision_threshold"]
    assert any("decision_threshold:" in line for line in reward_lines(document))


def test_the_threshold_never_sees_val_test(file, tmp_path):
    chosen = reward(file, resamples=2)["decision_threshold"]
    changed, roles = scores(bias=2.5)
    test = roles == "val_test"
    logits = changed.logits.copy()
    logits[test] = -logits[test]
    write_scores(
        tmp_path / "other.npz",
        Scores(logits=logits, labels=changed.labels, groups=changed.groups, slices=changed.slices),
        roles,
    )
    assert reward(tmp_path / "other.npz", resamples=2)["decision_threshold"] == chosen


def test_a_level_column_by_its_own_name(file, tmp_path):
    mine, roles = scores()
    np.savez(tmp_path / "plain.npz", logits=mine.logits, label=mine.labels, role=roles, strength=mine.slices["level"])
    document = reward(tmp_path / "plain.npz", level_column="strength", resamples=20)
    assert [row["level"] for row in document["tables"][0]["rows"]] == [*LEVELS, "mixture"]
    assert [row["level"] for row in reward(tmp_path / "plain.npz", resamples=20)["tables"][0]["rows"]] == ["all"]
    with pytest.raises(DataError, match="sort"):
        reward(tmp_path / "plain.npz", level_column="sort")
    np.savez(tmp_path / "level.npz", logits=mine.logits, label=mine.labels, level=mine.slices["level"])
    assert len(reward(tmp_path / "level.npz", resamples=20)["tables"][0]["rows"]) == 5


def test_without_roles_everything_is_judged_and_nothing_fitted(tmp_path):
    write_scores(tmp_path / "all.parquet", scores()[0])
    document = reward(tmp_path / "all.parquet", resamples=20)
    assert (document["role"], document["decision_threshold"], document["gain"]) == ("all rows", None, None)
    assert len(document["tables"]) == 1
    assert "no threshold was fitted" in reward_lines(document)[-1]


def test_of_a_folder_the_probabilities_are_those_that_its_policy_states(file, tmp_path):
    config = RunConfig.model_validate({"risks": {"miss_rate": 0.3, "false_exit_rate": 0.3}, "assume_iid": True})
    calibrate_scores(file, tmp_path / "mine", config=config, values="logits", columns={}, shares="0.1,0.6,0.3")
    document = reward(tmp_path / "mine", resamples=200)
    assert "as the policy states" in document["scale"]
    # The calibration map has taken the 2.5 off already.
    assert document["decision_threshold"] == pytest.approx(0.5, abs=0.12)
    assert (
        document["tables"][0]["rows"][-1]["reward"] > reward(file, resamples=2)["tables"][0]["rows"][-1]["reward"] + 0.1
    )


def test_a_folder_of_classes_in_the_other_order_is_refused(file, tmp_path):
    config = RunConfig.model_validate(
        {
            "risks": {"miss_rate": 0.3, "false_exit_rate": 0.3},
            "assume_iid": True,
            "data": {"classes": ["roadwork", "none"]},
        }
    )
    calibrate_scores(file, tmp_path / "turned", config=config, values="logits", columns={}, shares="0.1,0.6,0.3")
    with pytest.raises(ConfigError, match=r"turned: its class 0 is roadwork.*data.classes=\[none,roadwork\]"):
        reward(tmp_path / "turned")


def test_exits_keep_their_side_and_no_exits_is_the_bare_threshold(file, tmp_path):
    """A folder that exits above P = .1 or so as class 1: at 0.5 the detector still says class 1 of these."""
    # Such exits are against the probability, and asked for.
    asked = {"risks": {"fnr": 0.05, "false_exit_rate": 0.45}, "assume_iid": True, "policy": {"against_argmax": True}}
    config = RunConfig.model_validate(asked)
    calibrate_scores(file, tmp_path / "mine", config=config, values="logits", columns={}, shares="0.1,0.6,0.3")
    policy, (mine, roles) = load_policy(tmp_path / "mine"), read_scores(tmp_path / "mine" / "scores.parquet")
    test = mine.take(roles == "val_test")
    decision = policy.decide(test)
    above = decision.probability > 0.5
    assert (decision.exit & (decision.label == 1) & ~above).sum() > 10
    for exits, said in ((True, np.where(decision.exit, decision.label == 1, above)), (False, above)):
        document = reward(tmp_path / "mine", resamples=20, exits=exits)
        assert document["exits"] == (decision.exit.sum() if exits else None)
        for row in document["tables"][0]["rows"][:-1]:
            at = test.slices["level"] == row["level"]
            assert row["tpr"] == said[at & (test.labels == 1)].mean()
            assert row["fpr"] == said[at & (test.labels == 0)].mean()
    stock = stage1("streetvision", "reward", tmp_path / "mine", "--no-exits", "--resamples", "20")
    assert stock.returncode == 0, stock.stderr
    assert "exit" not in stock.stdout
    # RUN/reward.json is for the detector: it never holds a threshold for another way to answer.
    assert not (tmp_path / "mine" / "reward.json").exists()
    ours = stage1("streetvision", "reward", tmp_path / "mine", "--resamples", "20")
    assert f"{decision.exit.sum()} of {len(test)} rows exit: they keep their side" in ours.stdout
    assert read_document(tmp_path / "mine" / "reward.json", REWARD_KIND)["exits"] == decision.exit.sum()


def test_bad_input_is_named(file, tmp_path):
    write_scores(tmp_path / "three.npz", *scores(k=3))
    with pytest.raises(DataError, match="3 classes"):
        reward(tmp_path / "three.npz")
    plain = scores()[0]
    write_scores(tmp_path / "unlabelled.npz", Scores(logits=plain.logits))
    with pytest.raises(DataError, match="labels"):
        reward(tmp_path / "unlabelled.npz")
    with pytest.raises(ConfigError, match="prior"):
        reward(file, prior=1.0)
    with pytest.raises(ConfigError, match="resamples"):
        reward(file, resamples=0)
    with pytest.raises(MissingError):
        reward(tmp_path / "none.npz")
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "bundle.json").write_text("{}")
    with pytest.raises(MissingError, match="run directory"):
        reward(tmp_path / "bundle")
    write_scores(tmp_path / "calib.npz", plain, np.full(len(plain), "val_calib"))
    with pytest.raises(DataError, match="val_test"):
        reward(tmp_path / "calib.npz")


def test_command_line(file, tmp_path):
    result = stage1("streetvision", "reward", file, "--json", "--resamples", "50", "-o", tmp_path / "reward.json")
    assert result.returncode == 0, result.stderr
    assert read_document(tmp_path / "reward.json", REWARD_KIND) == {"schema_version": 1, **json.loads(result.stdout)}
    one_line_error(stage1("streetvision", "reward", tmp_path / "none.npz"), 3, "none.npz")


def test_card_command_line(tmp_path):
    key = "5GrwvaEF5zXb26Fz9rcQpDWS57CtERHpNehXCPcNoHGKutQY"
    given = ["streetvision", "card", "--name", "m", "--description", "d", "--version", "1.2.3", "--output", tmp_path]
    result = stage1(*given, "--hotkey", key, "--json")
    assert result.returncode == 0, result.stderr
    assert json.loads((tmp_path / "model_card.json").read_text()) == json.loads(result.stdout)
    one_line_error(stage1(*given, "--hotkey", key[:-1] + "a"), 2, "submitted_by", "checksum")
