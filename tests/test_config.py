"""Config: sources and their order, unknown keys, one-line errors."""

from __future__ import annotations

import re

import pytest
import yaml

from stage1.config import (
    PHASES,
    DataConfig,
    differences,
    known_keys,
    load_config,
    phase_recipe,
    recipes,
    to_yaml,
    validated,
)
from stage1.errors import ConfigError, MissingError


def test_later_sources_win_and_say_where_they_came_from(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("seed: 1\ntrain: {epochs: 11, batch_size: 8}\n")
    config, origin = load_config(
        file,
        recipe="baseline",
        overrides=["train.batch_size=16"],
        environment={"STAGE1_SEED": "2", "STAGE1_TRAIN__PATIENCE": "3", "OTHER": "x"},
    )
    assert (config.seed, config.train.epochs, config.train.batch_size, config.train.patience) == (2, 11, 16, 3)
    assert origin["seed"] == "env STAGE1_SEED"
    assert origin["train.epochs"] == f"file {file}"
    assert origin["train.batch_size"] == "command line"
    assert origin["backbone.name"] == "recipe baseline"
    assert origin["split.seed"] == "default"


@pytest.mark.parametrize(
    "override, message",
    [
        ("trian.epochs=3", "did you mean 'train.epochs'"),
        ("data.tabel=x", "did you mean 'data.table'"),
        ("risks.fnrr=0.1", "did you mean 'fnr'"),
        ("epochs=3", "did you mean 'train.epochs'"),
        ("train.epochs=three", "train.epochs: .*three"),
        ("train.epochs=0", "train.epochs"),
        ("confidence=1", "confidence: .*less than 1"),
        ("risks.fnr=0", "risks.fnr: .*greater than 0"),
        ("risks.fnr=1", "risks.fnr: .*less than 1"),
        ("risks.fnr=-0.1", "risks.fnr"),
        ("risks={}", "at least one risk"),
        ("split.fractions.train=0.9", "sum to 1.5"),
        ("policy.name=sofmax", "policy.name"),
        ("backbone.dtype=float16", "backbone.dtype"),
        ("backbone.fit=stretch", "backbone.fit: input should be 'auto', 'squash', 'center_crop' or 'letterbox'"),
        ("backbone.input_size=7", r"backbone.input_size: a whole number 32 to 1024, auto or null is needed \(given: 7"),
        ("backbone.input_size=big", "backbone.input_size: a whole number 32 to 1024"),
        ("backbone.input_size=224.5", "backbone.input_size: a whole number 32 to 1024"),
        ("backbone={fit: center_crop, crop_pct: 0}", "backbone.crop_pct: input should be greater than or equal to 0.1"),
        ("backbone={fit: letterbox, crop_pct: 0.9}", "backbone: crop_pct with fit=letterbox; it is for center_crop"),
        ("train.epochs", "look like a.b=value"),
        ("seed.x=3", "unknown key"),
        ("data.table={", "not a valid value"),
    ],
)
def test_bad_values_are_one_line_naming_the_key(override, message):
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides=[override], environment={})
    assert "\n" not in str(caught.value)


def test_unknown_keys_in_files_name_the_nearest(tmp_path):
    (tmp_path / "run.yaml").write_text("train: {epoch: 3}\n")
    with pytest.raises(ConfigError, match=r"train\.epoch: unknown key; did you mean 'train.epochs'"):
        load_config(tmp_path / "run.yaml", environment={})


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words", "seed: 1\nname: x\nseed: 2\n"])
def test_files_that_are_no_config(tmp_path, text):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError, match="run.yaml"):
        load_config(tmp_path / "run.yaml", environment={})


def test_missing_file_and_recipe(tmp_path):
    with pytest.raises(MissingError, match="no such config file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(ConfigError, match="did you mean 'baseline'"):
        load_config(recipe="basline")


def test_one_risk_alone_changes_the_target_and_a_mapping_replaces_it():
    assert load_config(overrides=["risks.fnr=0.1"], environment={})[0].risks == {"fnr": 0.1, "false_exit_rate": 0.05}
    assert load_config(overrides=["risks.fnr=null"], environment={})[0].risks == {"false_exit_rate": 0.05}
    replaced = load_config(overrides=["risks={miss_rate: 0.1, false_exit_rate: 0.2}"], environment={})[0]
    assert replaced.risks == {"miss_rate": 0.1, "false_exit_rate": 0.2}


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_valid_and_round_trips(name):
    config, _ = load_config(recipe=name, environment={})
    assert validated(yaml.safe_load(to_yaml(config))) == config
    assert differences(config, config) == []


def test_phases_without_a_recipe_say_so():
    assert phase_recipe(1) == "baseline"
    for phase in PHASES:
        if PHASES[phase] not in recipes():
            with pytest.raises(ConfigError, match="not built yet"):
                phase_recipe(phase)
    with pytest.raises(ConfigError, match="0 to 6"):
        phase_recipe(7)


def test_preprocessing_is_chosen_where_it_is_left_open_and_images_are_seen_whole():
    def chooses(*overrides: str) -> bool:
        return load_config(overrides=overrides, environment={})[0].chooses_preprocessing

    assert chooses(), "by default"
    assert chooses("backbone.fit=squash", "backbone.input_size=auto")
    assert not chooses("backbone.fit=letterbox")
    assert not chooses("views.grid=2x2"), "tiles are squashed"
    assert not chooses("backbone.random_weights=true")
    assert load_config(overrides=["backbone.input_size=64"], environment={})[0].backbone.first_size == 64
    for recipe in ("smoke", "streetview"):
        assert not load_config(recipe=recipe, environment={})[0].chooses_preprocessing


def test_known_keys_reach_into_sections():
    assert {"risks", "train.ema_decay", "data.roadscenes.videos", "split.fractions.val_calib"} <= set(known_keys())


def test_differences_name_key_and_values():
    old, new = load_config(environment={})[0], load_config(overrides=["seed=4"], environment={})[0]
    assert differences(old, new) == ["seed: 0 -> 4"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["views.grid=3"], "views.grid"),
        (["views.grid=3by3"], "views.grid: a grid looks like ROWSxCOLUMNS"),
        (["views.grid=9x9"], "views: 82 views"),
        (["views.whole=false"], "views: 0 views"),
        (["views.train=mil"], "views: train needs views beside the whole image"),
        (["views.adaptive=true"], "views: adaptive needs views"),
        (["views.train=pooled"], "views: train needs views beside the whole image"),
        (["views.grid=2x2", "views.pool=max"], "views.pool: unknown pooling"),
        (["views.grid=2x2", "views.train=mil", "head.kind=sat"], "views.train=mil with head.kind=sat"),
        (["views.grid=2x2", "views.train=views", "head.gate=mlp"], "views.train=views with head.gate=mlp"),
        (["views.grid=2x2", "views.train=mil", "sweep.enabled=true"], "views.train=mil with sweep.enabled"),
        (["views.gird=2x2"], "did you mean 'views.grid'"),
        (["views.global=true"], "views.global: unknown key; did you mean 'views.whole'?"),
        (["views.grid=2x2", "views.aggregate=bogus"], "views.aggregate: 'bogus' is unknown; use whole, mean"),
        (["views.aggregate=bogus"], "views.aggregate: 'bogus' is unknown"),
        (["views.grid=2x2", "views.aggregate=[mean, topk:0]"], "views.aggregate: 'topk:0'; give how many views"),
        (["views.grid=2x2", "views.aggregate='lse: 8'"], "views.aggregate: 'lse: 8'; give a number above 0"),
        (["views.grid=2x2", "views.aggregate=[]"], "views.aggregate: no names"),
        (["views.grid=2x2", "views.aggregate=[auto, mean]"], "views.aggregate: 'auto' is unknown"),
        (
            ["views.grid=2x2", "views.whole=false", "views.aggregate=[mean, whole]"],
            "views: aggregate=whole with whole=",
        ),
        (["views.grid=2x2", "views.adaptive=true", "views.aggregate=whole"], "views: adaptive with aggregate=whole"),
        (["views.scales=[0.7]", "views.whole=false", "views.adaptive=true"], "views: adaptive with whole=false"),
        (["views.grid=2x2", "views.adaptive=true", "head.gate=linear"], "views.adaptive with head.gate=linear"),
        (["views.grid=2x2", "views.adaptive=true", "head.kind=sat"], "views.adaptive with head.kind=sat"),
    ],
)
def test_views_that_make_no_sense_are_named(overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(overrides=overrides)


def test_views_global_in_a_file_is_told_to_be_whole(tmp_path):
    (tmp_path / "run.yaml").write_text("views: {global: true, grid: 3x3, overlap: 0.12}\n")
    with pytest.raises(ConfigError, match=re.escape("views.global: unknown key; did you mean 'views.whole'?")):
        load_config(tmp_path / "run.yaml")


def test_aggregates_are_spelled_as_views_json_spells_them():
    def found(text):
        return load_config(overrides=["views.grid=2x2", f"views.aggregate={text}"])[0].views.aggregate

    assert found("topk:3.0") == "topk:3"
    assert found("[topk:1e1, lse:8.0, learned]") == ["topk:10", "lse:8.0", "learned"]
    assert load_config(overrides=["views.grid=2x2", "views.pool=topk:2.0"])[0].views.pool == "topk:2"


def test_views_that_go_together_are_taken():
    for more in (["head.kind=sat", "head.gate=none"], ["views.aggregate=[whole, mean]"], ["views.aggregate=max"]):
        assert load_config(overrides=["views.grid=2x2", "views.adaptive=true", *more])[0].views.adaptive
    assert load_config(overrides=["views.grid=2x2", "views.aggregate=whole"])[0].views.names == ["whole"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["risks={fnr: 0.1, false_exit_rate: 0.1}"],
            "policy.name=scrc with risks fnr + false_exit_rate; give miss_rate",
        ),
        (["risks={miss_rate: 0.1, error: 0.1}"], "policy.name=scrc with risks miss_rate + error"),
        (["risks={miss_rate: 0.1}", "class_coverage={cat: 0.5}"], "policy.name=scrc with class_coverage"),
        (["risks={miss_rate: 0.1}", "target_prior=0.5"], "policy.name=scrc with target_prior"),
        (["risks={miss_rate: 0.1}", "unit=group_mean"], "policy.name=scrc with unit=group_mean"),
        (["risks={miss_rate.cat: 0.1}", "data.slices=[city]"], "policy.name=scrc with data.slices"),
    ],
)
def test_what_scrc_does_not_take_is_said_by_the_config(overrides, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(overrides=["policy.name=scrc", *overrides])


@pytest.mark.parametrize("risks", ["{miss_rate: 0.1}", "{miss_rate: 0.1, false_exit_rate: 0.1}", "{miss_rate.a: 0.1}"])
def test_targets_of_scrc_are_taken(risks):
    assert load_config(overrides=["policy.name=scrc", f"risks={risks}"])[0].policy.name == "scrc"


def test_the_default_of_adaptive_views_is_the_one_that_was_measured():
    from stage1.views.adaptive import TOLERANCE

    assert load_config()[0].views.tolerance == TOLERANCE
    with pytest.raises(ConfigError, match=r"views\.tolerance"):
        load_config(overrides=["views.grid=2x2", "views.tolerance=1"])


def test_views_are_off_by_default_and_cached_only_where_the_head_learns_from_them():
    views = load_config()[0].views
    assert views.policy is None
    assert views.cached is None
    views = load_config(overrides=["views.grid=3x3"])[0].views
    assert views.policy.count == 10
    assert views.cached is None
    views = load_config(overrides=["views.grid=3x3", "views.train=mil", "images.unfreeze=last"])[0].views
    assert views.cached == views.policy


@pytest.mark.parametrize(
    "written, names",
    [
        ("[true, False]", ["true", "False"]),
        ("[no, yes]", ["no", "yes"]),
        ("[0, 1]", ["0", "1"]),
        ("[1.0, 2.0]", ["1.0", "2.0"]),
        ("[01, 08, 12:30, 1_0]", ["01", "08", "12:30", "1_0"]),
        ("[null, ~, 'x: y']", ["null", "~", "x: y"]),
    ],
)
def test_class_names_are_the_text_that_was_written(tmp_path, written, names):
    assert load_config(overrides=[f"data.classes={written}"])[0].data.classes == names
    assert load_config(environment={"STAGE1_DATA__CLASSES": written})[0].data.classes == names
    path = tmp_path / "c.yaml"
    path.write_text(f"data:\n  classes: {written}\n")
    assert load_config(path)[0].data.classes == names
    path.write_text(to_yaml(load_config(path)[0]))  # as a run directory keeps it
    assert load_config(path)[0].data.classes == names
    path.write_text("data:\n  classes:" + "".join(f"\n  - {item}" for item in written[1:-1].split(", ")))
    assert load_config(path)[0].data.classes == names


def test_words_stay_words_only_where_words_are_meant(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text(
        "name: 1.0\nassume_iid: yes\nseed: 3\nclass_coverage: {true: .5, 01: .4}\ndata: {table: null, near_duplicates:"
        " no, role_tables: {train: 7}}\n"
    )
    config, _ = load_config(path)
    assert (config.name, config.assume_iid, config.seed, config.data.table) == ("1.0", True, 3, None)
    assert config.class_coverage == {"true": 0.5, "01": 0.4}
    assert config.data.near_duplicates is False
    assert config.data.role_tables == {"train": "7"}
    assert load_config(overrides=["class_coverage.no=.5"])[0].class_coverage == {"no": 0.5}
    assert DataConfig(classes=[0, True]).classes == ["0", "True"]
    for wrong in ("data.classes=no", "data.classes=[[a], b]"):
        with pytest.raises(ConfigError, match="data.classes"):
            load_config(overrides=[wrong])


@pytest.mark.parametrize("name", recipes())
def test_a_table_takes_the_place_of_the_generator_and_is_split_as_by_every_recipe(name, tmp_path):
    """Compare refuses runs that are split otherwise; the table was ignored where the recipe had a generator."""
    baseline = load_config(recipe="baseline", overrides=["data.table=mine"])[0].split
    file = tmp_path / "mine.yaml"
    file.write_text("data: {table: mine}\n")
    for config, origin in (
        load_config(recipe=name, overrides=["data.table=mine"]),
        load_config(recipe=name, environment={"STAGE1_DATA__TABLE": "mine"}),
        load_config(file, recipe=name),
        load_config(recipe=name, overrides=["data.source=auto", "data.table=mine"]),
    ):
        assert (config.data.source, config.data.table) == ("auto", "mine")
        assert config.split == baseline
        assert set(origin["data.table"].split()) & {"command", "file", "env"}
    roles = load_config(recipe=name, overrides=["data.role_tables.train=a"])[0]
    assert (roles.data.source, roles.data.role_tables) == ("auto", {"train": "a"})
    kept = load_config(recipe=name, overrides=["data.table=mine", "split.method=hash", "split.seed=3"])[0].split
    assert (kept.method, kept.seed) == ("hash", 3)


def test_recipes_for_photos_split_alike_on_their_own():
    of_scenes = {"demo", "streetview"}  # thousands of videos; their figures are of a split by hash
    splits = {name: load_config(recipe=name)[0].split for name in recipes() if name not in of_scenes}
    assert set(splits) > {"baseline", "finetune", "lora", "gate"}
    assert all(split == splits["baseline"] for split in splits.values()), splits


def test_of_a_table_and_the_generator_the_later_one_stays(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("data: {table: mine}\n")
    scenes = load_config(file, recipe="baseline", overrides=["data.source=roadscenes"])[0]
    assert (scenes.data.source, scenes.data.table) == ("roadscenes", None)
    demo = load_config(recipe="demo")[0].model_dump(mode="json")
    again = load_config(values=demo, overrides=["data.table=mine"])[0]  # on the config of a run directory
    assert (again.data.source, again.data.table, again.split.method) == ("auto", "mine", "hash")
    for overrides in (["data.source=roadscenes", "data.table=mine"], ["data={source: roadscenes, table: mine}"]):
        with pytest.raises(ConfigError, match="data.table=mine with data.source=roadscenes .*leave one out"):
            load_config(recipe="smoke", overrides=overrides)


def test_an_override_without_a_value_is_no_missing_file():
    with pytest.raises(
        ConfigError, match=r"train\.lr: no such config file; if it is a key, give it a value: train\.lr=VALUE"
    ):
        load_config("train.lr")
    with pytest.raises(MissingError, match="no such config file"):
        load_config("mine.yaml")
