"""The detector's configuration file, and the stage 2 that it names."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from stage1.errors import ConfigError, MissingError
from stage1.storage.texts import read_yaml
from stage1.streetvision.settings import CONFIG_VARIABLE, Settings, load_settings, load_stage2


@pytest.mark.parametrize("name", ["detector.yaml", "detector.json"])
def test_a_file_is_read_and_its_bundle_lies_beside_it(tmp_path, name, monkeypatch):
    (tmp_path / name).write_text(json.dumps({"bundle": "the bundle", "threads": 3}))
    found = load_settings(tmp_path / name)
    assert found == Settings(bundle=str(tmp_path / "the bundle"), threads=3)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / name))
    assert load_settings(None) == found


def test_a_name_without_ending_and_a_bundle_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "detector.yaml").write_text("bundle: here")
    monkeypatch.chdir(tmp_path)
    assert load_settings("detector").bundle == "here"
    assert load_settings(str(tmp_path)) == Settings(bundle=str(tmp_path))


def test_decision_threshold_may_be_the_file_of_the_reward_command(tmp_path):
    (tmp_path / "reward.json").write_text(json.dumps({"decision_threshold": 0.625}))
    (tmp_path / "d.yaml").write_text("bundle: b\ndecision_threshold: reward.json\n")
    assert load_settings(tmp_path / "d.yaml").decision_threshold == 0.625


BAD = {
    "twice": ("bundle: b\nbundle: c", ConfigError, "'bundle' stands twice"),
    "a misspelt word of two keys": (
        "bundle: b\ntreshold: 1",
        ConfigError,
        "'treshold'; did you mean 'decision_threshold' or 'stage2_threshold'",
    ),
    "a misspelt key": (
        "bundle: b\ndecision_treshold: 1",
        ConfigError,
        r"'decision_treshold'; did you mean 'decision_threshold'\?",
    ),
    "cascade and stage2": ("bundle: b\ncascade: c\nstage2: m:f", ConfigError, "stage2: 'm:f' beside `cascade`"),
    "cascade and threshold": (
        "bundle: b\ncascade: c\ndecision_threshold: 0.5",
        ConfigError,
        "decision_threshold: 0.5 beside `cascade`",
    ),
    "cascade true": ("bundle: b\ncascade: true", ConfigError, "cascade: True"),
    "unknown key": ("bundle: b\ndeadline: 3", ConfigError, "'deadline'; did you mean 'deadline_s'"),
    "the client's key": ("bundle: b\nweights: w", ConfigError, "unknown key 'weights'; did you mean"),
    "no bundle": ("threads: 1", ConfigError, "`bundle` is missing"),
    "threshold 1": (
        "bundle: b\ndecision_threshold: 1.0",
        ConfigError,
        r"decision_threshold: 1.0; a number in \(0, 1\)",
    ),
    "threshold NaN": ("bundle: b\ndecision_threshold: .nan", ConfigError, "decision_threshold: nan"),
    "threshold file": ("bundle: b\ndecision_threshold: none.json", MissingError, "none.json: no such file"),
    "stage 2 threshold": ("bundle: b\nstage2_threshold: -1", ConfigError, "stage2_threshold: -1"),
    "fallback -1": ("bundle: b\nfallback_answer: -1", ConfigError, "fallback_answer: -1"),
    "deadline 9": ("bundle: b\ndeadline_s: 9", ConfigError, r"deadline_s: 9; a number in \[0.01, 8\]"),
    "threads 0": ("bundle: b\nthreads: 0", ConfigError, "threads: 0"),
    "threads true": ("bundle: b\nthreads: true", ConfigError, "threads: True"),
    "bundle 3": ("bundle: 3", ConfigError, "bundle: 3"),
    "stage2 7": ("bundle: b\nstage2: 7", ConfigError, "stage2: 7"),
    "a list": ("- bundle", ConfigError, "a mapping of keys"),
    "no YAML": ("bundle: [", ConfigError, "cannot be read"),
    "an object": ("bundle: !!python/object/apply:os.getcwd []", ConfigError, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_one_line_that_names_the_key(tmp_path, case):
    text, kind, words = BAD[case]
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(kind, match=words) as caught:
        load_settings(tmp_path / "d.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["d.yaml", "d.json"])
@pytest.mark.parametrize("data", [b"\x00\xff", b"bundle: caf\xe9", b"\xff\xfe{\x00", b"\x00"], ids=repr)
def test_what_is_no_text_is_one_line(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_settings(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_json_with_a_key_twice_is_refused_as_yaml_is(tmp_path):
    (tmp_path / "d.json").write_text('{"bundle": "b", "threads": 1, "threads": 4}')
    with pytest.raises(ConfigError, match="key 'threads' stands twice"):
        load_settings(tmp_path / "d.json")
    (tmp_path / "reward.json").write_text('{"decision_threshold": 0.4, "decision_threshold": 0.6}')
    (tmp_path / "e.json").write_text('{"bundle": "b", "decision_threshold": "reward.json"}')
    with pytest.raises(ConfigError, match="reward.json holds none"):
        load_settings(tmp_path / "e.json")


def test_the_pages_configuration_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "CLIENT.md").read_text(encoding="utf-8")
    keys = set().union(*(read_yaml(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.S)))
    assert keys == {field.name for field in fields(Settings)}


def test_no_configuration_and_no_such_file(tmp_path, monkeypatch):
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="config_name: none"):
        load_settings(None)
    with pytest.raises(MissingError, match="no such file"):
        load_settings(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    "name, words",
    [
        ("nocolon", "module:attribute"),
        (":f", "module:attribute"),
        ("math:", "module:attribute"),
        ("no_such_module_x:f", "cannot import 'no_such_module_x'"),
        ("math:no.such", "has no 'no.such'"),
        ("math:pi", "is float"),
    ],
)
def test_a_stage_2_that_is_not_there_is_one_line_at_the_start(name, words):
    with pytest.raises(ConfigError, match=words):
        load_stage2(name)
