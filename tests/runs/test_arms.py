"""compare of run directories: grouping, refusals, the choice on val_select, the confirmation on val_test, and what
is written.
"""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from stage1.commands.arms import compare_runs, write_comparison
from stage1.errors import ConfigError, DataError, IntegrityError, MissingError
from stage1.evaluation.comparison import NO_DIFFERENCE
from stage1.evaluation.schema import COMPARISON_ARMS_KIND
from stage1.report.arms_table import arms_lines
from stage1.scores import read_role, write_role
from stage1.storage.documents import read_document

from ..command_line import stage1
from .arm_runs import SIZES, make_run, table
from .conftest import one_line_error

pytest.importorskip("torch", reason="run directories hold torch tensors")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds each of a frozen arm, a better one, and one that is the frozen one again by another name."""
    root = tmp_path_factory.mktemp("arms")
    samples = table()
    for seed in range(3):
        make_run(root / f"frozen{seed}", samples, strength=1.0, seed=seed, overrides=("name=frozen",))
        make_run(root / f"lora{seed}", samples, strength=1.4, seed=seed, overrides=("name=lora", "adapter.kind=lora"))
        make_run(root / f"twin{seed}", samples, strength=1.0, seed=seed + 10, overrides=("name=twin", "head.kind=mlp"))
    return root


def everything(root, **options):
    paths = [root / f"{name}{seed}" for name in ("frozen", "lora", "twin") for seed in range(3)]
    return compare_runs(paths, {}, **{"resamples": 200, **options})


@pytest.fixture(scope="module")
def document(runs):
    return everything(runs)


def differences(part):
    return {(row["arm"], row["metric"]): row for row in part["differences"]}


def test_runs_that_differ_in_the_seed_alone_are_one_arm(document):
    assert [(arm["name"], arm["seeds"]) for arm in document["arms"]] == [("frozen", 3), ("lora", 3), ("twin", 3)]
    assert [run["seed"] for run in document["arms"][2]["runs"]] == [10, 11, 12]
    assert not any("Fewer than" in note for note in document["notes"])


def test_the_better_arm_is_chosen_on_val_select_and_confirmed_on_val_test_alone(document, runs):
    assert (document["on"], document["n"], document["unit"]) == ("val_select", SIZES["val_select"], "group")
    assert document["chosen"] == "lora"
    confirmed = document["confirmation"]
    assert [arm["name"] for arm in confirmed["arms"]] == ["frozen", "lora"]
    assert (confirmed["role"], confirmed["n"]) == ("val_test", SIZES["val_test"])
    for metric in ("augrc", "nll", "mcc"):
        assert differences(confirmed)["lora", metric]["better"] == "lora", metric
    # Where the thresholds of each arm came to lie is the luck of one val_calib: no interval, and nobody is better.
    coverage = differences(confirmed)["lora", "coverage"]
    assert coverage["difference"] > 0.1
    assert (coverage["low"], coverage["better"]) == (None, None)
    assert coverage["note"].startswith("no interval: the luck of val_calib")
    assert differences(document)["twin", "augrc"]["verdict"] == NO_DIFFERENCE
    assert "lora is better" in document["conclusion"]
    # Values are the means of what each run's own policy does.
    from stage1.policy import load_policy

    coverage = [
        load_policy(runs / f"lora{seed}").decide(read_role(runs / f"lora{seed}", "val_test")).coverage
        for seed in range(3)
    ]
    found = confirmed["arms"][1]["metrics"]["coverage"]
    assert found["per_seed"] == pytest.approx(coverage)
    assert found["value"] == pytest.approx(np.mean(coverage))
    assert found["sd"] == pytest.approx(np.std(coverage, ddof=1))


def test_where_nothing_is_better_the_reference_stays(runs):
    found = compare_runs([], {"lora": [runs / "lora0"], "frozen": [runs / "frozen0"]}, resamples=50)
    assert found["chosen"] == found["reference"] == "lora"
    assert found["conclusion"] == "No arm has a better augrc than lora on val_select; lora stays."
    assert found["confirmation"]["differences"] == []
    assert any("Fewer than 3 seeds: lora (1), frozen (1)" in note for note in found["notes"])


def test_no_difference_is_a_result(runs):
    """Seed 1 of the same training happens to look better than seed 0 (or the other way): that is not shown."""
    one, other = {"x": [runs / "frozen0"]}, {"y": [runs / "frozen1"]}
    found = compare_runs([], one | other, resamples=200)
    if found["chosen"] == "x":
        found = compare_runs([], other | one, resamples=200)
    assert found["chosen"] != found["reference"]
    assert found["conclusion"].endswith("no difference shown.")
    assert differences(found["confirmation"])[found["chosen"], "augrc"]["verdict"] == NO_DIFFERENCE


def test_on_val_test_nothing_is_left_to_confirm(runs):
    found = compare_runs([runs / "frozen0", runs / "lora0"], {}, on="val_test", resamples=30)
    assert found["confirmation"] is None
    assert "On val_test: augrc" in found["conclusion"]
    assert any("val_test itself" in note for note in found["notes"])


def test_costs_come_from_the_run(document):
    run = document["arms"][0]["runs"][1]
    scored = sum(SIZES.values()) - SIZES["train"]
    assert (run["run"], run["train_seconds"], run["seconds"]) == ("frozen1", 3.0, 13.0)
    assert run["images_per_second"] == pytest.approx(scored / 10.0)
    assert run["score_peak_mib"] == 1000.0
    assert run["parameters"] is None  # no model.onnx here


def test_other_splits_are_refused_with_role_and_run(runs, tmp_path):
    other = table()
    test = other.rows("val_calib")
    swapped = other.roles.copy()
    swapped[test[0]] = "train"
    from dataclasses import replace

    make_run(tmp_path / "moved", replace(other, roles=swapped), strength=1.2, overrides=("name=moved",))
    with pytest.raises(DataError, match=r"moved: train holds other images than in .*frozen0 \(61 and 60"):
        compare_runs([runs / "frozen0", runs / "lora0", tmp_path / "moved"], {})
    one_line_error(
        stage1("compare", runs / "frozen0", runs / "lora0", tmp_path / "moved"), 2, "train", "moved", "one split"
    )


def test_stale_scores_are_refused(runs, tmp_path):
    shutil.copytree(runs / "lora0", tmp_path / "stale")
    write_role(tmp_path / "stale", "val_select", read_role(runs / "lora0", "val_select").take(np.arange(400)))
    with pytest.raises(IntegrityError, match="val_select are of another split"):
        compare_runs([runs / "frozen0", tmp_path / "stale"], {})


@pytest.mark.parametrize(
    ("names", "options", "error", "words"),
    [
        (["frozen0", "frozen1"], {}, ConfigError, "one arm only"),
        (["frozen0", "frozen0"], {}, ConfigError, "given twice"),
        (["frozen0", "nothing"], {}, MissingError, "not a run directory"),
        (["frozen0", "lora0"], {"on": "val_calib"}, ConfigError, "--on val_calib"),
        (["frozen0", "lora0"], {"by": "beauty"}, ConfigError, "--by beauty"),
    ],
)
def test_what_makes_no_sense_is_refused(runs, names, options, error, words):
    with pytest.raises(error, match=words):
        compare_runs([runs / name for name in names], {}, **options)


def test_two_runs_of_one_seed_are_no_two_seeds(runs, tmp_path):
    shutil.copytree(runs / "lora0", tmp_path / "copy")
    with pytest.raises(ConfigError, match="both are seed 0"):
        compare_runs([runs / "frozen0", runs / "lora0", tmp_path / "copy"], {})


def test_other_targets_leave_coverage_out(runs, tmp_path):
    make_run(tmp_path / "other", table(), strength=1.4, overrides=("name=other", "risks={fnr: 0.1, fpr: 0.1}"))
    found = compare_runs([runs / "frozen0", tmp_path / "other"], {}, resamples=30)
    assert "coverage" not in found["arms"][0]["metrics"]
    assert found["target"] is None
    assert any("another target" in note for note in found["notes"])
    with pytest.raises(ConfigError, match="--by coverage"):
        compare_runs([runs / "frozen0", tmp_path / "other"], {}, by="coverage")


def test_choosing_by_coverage_says_what_that_costs(runs):
    found = compare_runs([runs / "frozen0", runs / "lora0"], {}, by="coverage", resamples=30)
    assert any("2 looks" in note for note in found["notes"])


def test_what_is_written_and_printed(document, tmp_path):
    written = write_comparison(document, tmp_path / "out")
    assert [path.name for path in written] == ["comparison.json", "comparison.md", "comparison.png", "comparison.svg"]
    assert read_document(written[0], COMPARISON_ARMS_KIND) == document
    text = written[1].read_text()
    assert document["conclusion"] in text
    assert "| lora | 3 |" in text
    assert "![Paired differences to frozen](comparison.png)" in text
    first = written[2].read_bytes()
    assert first == write_comparison(document, tmp_path / "again")[2].read_bytes()
    lines = arms_lines(document)
    assert any(line.startswith("minus frozen") for line in lines)
    assert str(tmp_path) not in text + "\n".join(lines)


def test_the_command_groups_by_arm(runs, tmp_path):
    result = stage1(
        "compare",
        "--arm",
        f"frozen={runs / 'frozen0'},{runs / 'frozen1'}",
        "--arm",
        f"tuned={runs / 'lora0'},{runs / 'lora1'}",
        "--resamples",
        "50",
        "--output",
        tmp_path / "out",
        "--json",
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert [arm["name"] for arm in found["arms"]] == ["frozen", "tuned"]
    assert (tmp_path / "out" / "comparison.svg").is_file()
    one_line_error(stage1("compare", "--arm", "frozen"), 2, "NAME=RUN")
    one_line_error(stage1("compare", runs / "frozen0"), 2, "one arm only")


def test_parameters_are_those_of_the_exported_model(tmp_path):
    onnx = pytest.importorskip("onnx")
    from stage1.runs.costs import parameters_of

    weights = [
        onnx.numpy_helper.from_array(np.zeros((3, 4), np.float32), "w"),
        onnx.numpy_helper.from_array(np.zeros(5, np.float16), "b"),
        onnx.numpy_helper.from_array(np.zeros(7, np.int64), "shape"),
    ]
    graph = onnx.helper.make_graph([], "g", [], [], initializer=weights)
    onnx.save(onnx.helper.make_model(graph), str(tmp_path / "model.onnx"))
    assert parameters_of(tmp_path / "model.onnx") == 17
