"""Views from images to a bundle that answers: chosen on val_select, certified, shipped, refused where others are
asked for.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stage1 import load_bundle, run
from stage1.bundle import verify_bundle
from stage1.bundle.schema import BUNDLE_KIND
from stage1.calibration import FittedMap, choose_map
from stage1.config import load_config
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, IntegrityError
from stage1.evaluation.schema import EVALUATION_KIND
from stage1.inference.schema import PREDICTIONS_KIND
from stage1.policy import Certificate
from stage1.runs.directory import RunDir, stored_config
from stage1.runs.schema import TRACE_KIND
from stage1.runtime.crops import WHOLE, ViewPolicy, parse_views
from stage1.scores import read_role
from stage1.stages import STAGES
from stage1.storage.documents import read_document, validate
from stage1.views import ViewsDocument
from stage1.views.schema import VIEWS_KIND

from ..command_line import stage1
from .conftest import SETTINGS, one_line_error

pytest.importorskip("timm", reason="the extra train is not installed")

GRID = ("views.grid=2x2", "views.resamples=60")


def write_small_signs(folder: Path, n: int = 300, side: int = 160, seed: int = 0) -> Path:
    """n JPEGs and labels.csv: 'sign' shows one small bright square somewhere, 'empty' a fainter blur or nothing."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    rows = ["image,label"]
    for index in range(n):
        label = ("empty", "sign")[index % 2]
        pixels = rng.normal(90, 12) + rng.normal(0, 25, (side, side, 3))
        top, left = rng.integers(0, side - 26, 2)
        pixels[top : top + 26, left : left + 26] += rng.normal(95 if label == "sign" else 20, 22) * np.array(
            [1, 0.5, 0]
        )
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(
            folder / "images" / f"{index:04d}.jpg", quality=92
        )
        rows.append(f"images/{index:04d}.jpg,{label}")
    (folder / "labels.csv").write_text("\n".join(rows) + "\n")
    return folder / "labels.csv"


@pytest.fixture(scope="module")
def signs(tmp_path_factory) -> Path:
    return write_small_signs(tmp_path_factory.mktemp("signs"))


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("features")


def go(signs, store, folder, *overrides):
    settings = [*SETTINGS, f"data.table={signs}", f"features.store={store}", *GRID, *overrides]
    return run(recipe="baseline", overrides=settings, output=folder)


@pytest.fixture(scope="module")
def mil(signs, store, tmp_path_factory):
    return go(
        signs,
        store,
        tmp_path_factory.mktemp("runs") / "mil",
        "views.train=mil",
        "views.pool=lse:8",
        "views.aggregate=lse:8",
    )


def files_of(result, role="val_test"):
    table = SampleTable.read(result.folder / "samples.parquet")
    return [table.read_bytes(row) for row in table.rows(role)], table


def answers_as_scored(result):
    """The bundle's answers on val_test are those of the scores that the certificate's thresholds meet."""
    images, _ = files_of(result)
    bundle, scores = load_bundle(result.bundle), read_role(result.folder, "val_test")
    answers, expected = bundle.predict(images), bundle.policy.decide(scores)
    assert [answer.exit for answer in answers] == expected.exit.tolist()
    assert np.allclose([answer.probability for answer in answers], expected.probability, atol=1e-4)
    return answers


def test_the_bundle_is_certified_for_its_views(mil):
    certificate = Certificate.load(mil.bundle / "certificate.json")
    views = ViewsDocument.load(mil.bundle / "views.json")
    manifest = read_document(mil.bundle / "bundle.json", BUNDLE_KIND)
    assert certificate.views is not None
    assert certificate.views.digest == views.digest == manifest["created_from"]["views"]
    assert "5 views (whole + 2x2 tiles, 12 % overlap), aggregated by lse:8" in certificate.statement
    assert any(views.digest in line for line in certificate.void_if)
    assert views.select_folds is None  # lse:8 learned nothing there: val_select is scored by what ships, like the rest
    assert manifest["views"] == {"description": views.description, "count": 5}
    assert views.description in (mil.bundle / "README.md").read_text()
    assert verify_bundle(mil.bundle, recompute=True).problems == ()


def test_it_answers_as_it_was_scored_and_says_which_view_decided(mil):
    answers = answers_as_scored(mil)
    names = ViewPolicy(grid=(2, 2)).names
    assert {answer.views for answer in answers} == {5}
    assert {answer.view for answer in answers} <= set(names)
    images, _ = files_of(mil)
    for image, answer in zip(images, answers, strict=True):
        height, width = np.asarray(Image.open(io.BytesIO(image))).shape[:2]
        assert answer.box == tuple(ViewPolicy(grid=(2, 2)).boxes(height, width)[names.index(answer.view)].tolist())
    assert read_role(mil.folder, "val_calib").extra["view_spread"].min() >= 0


def test_the_report_frames_the_deciding_view(mil):
    page, evaluation = (
        (mil.folder / "report.html").read_text(),
        read_document(mil.folder / "evaluation.json", EVALUATION_KIND),
    )
    assert evaluation["worst"], "the problem must be hard enough for an error"
    assert page.count("decided, 5 views") + page.count("weighed most, 5 views") == 2 * len(evaluation["worst"])
    assert page.count('class="framed"') == len(evaluation["worst"])
    assert "5 views (whole + 2x2 tiles" in page
    (mil.folder / "report.html").unlink()
    assert stage1("report", mil.folder).returncode == 0
    assert (mil.folder / "report.html").read_text() == page


def test_evaluation_and_card_say_what_the_bundle_answers(mil):
    names = ViewPolicy(grid=(2, 2)).names
    answers = answers_as_scored(mil)
    trace = read_document(mil.folder / "looked.json", TRACE_KIND)
    assert [names[view] for view in trace["deciding"]] == [answer.view for answer in answers]
    assert trace["used"] == [answer.views for answer in answers]
    seen = read_document(mil.folder / "evaluation.json", EVALUATION_KIND)["views"]
    assert (seen["of"], seen["mean"]) == (5, 5.0)
    by_view = {row["view"]: row["right"] + row["deferred"] + row["wrong"] for row in seen["decided"]}
    assert by_view == Counter(answer.view for answer in answers)
    assert "views chosen: lse:8: asked for" in (mil.bundle / "README.md").read_text()


def changed(mil, folder, *overrides):
    """The same run with other settings: only the stages that depend on them are done again."""
    config, _ = load_config(values=stored_config(mil.folder).model_dump(mode="json"), overrides=overrides)
    shutil.copytree(mil.folder, folder)
    return run(config, output=folder, allow_change=True)


def test_where_no_gain_is_shown_whole_images_ship_alone(mil, tmp_path):
    result = changed(
        mil, tmp_path / "run", "views.aggregate=[whole]", "risks.miss_rate=0.45", "risks.false_exit_rate=0.45"
    )
    assert set(result.done) == {"score", "calibrate", "evaluate", "bundle"}
    assert ViewsDocument.load(result.folder / "views.json").policy == WHOLE
    assert not (result.bundle / "views.json").exists()
    assert Certificate.load(result.bundle / "certificate.json").views is None
    assert load_bundle(result.bundle).views == WHOLE
    assert read_role(result.folder, "val_test").extra == {}
    assert not (result.folder / "looked.json").exists()
    assert "views" not in read_document(result.folder / "evaluation.json", EVALUATION_KIND)
    page = (result.folder / "report.html").read_text()
    assert "were tried on val_select" in page
    assert "framed" not in page.partition("</style>")[2]
    assert {answer.views for answer in answers_as_scored(result)} == {None}


def test_adaptive_views_answer_as_they_were_scored(mil, tmp_path):
    result = changed(mil, tmp_path / "run", "views.adaptive=true")
    answers, views = answers_as_scored(result), ViewsDocument.load(result.folder / "views.json")
    used = [answer.views for answer in answers]
    assert min(used) >= 1
    assert max(used) <= 5
    assert verify_bundle(result.bundle, recompute=True).problems == ()
    certificate = Certificate.load(result.bundle / "certificate.json")
    assert "as many of them in turn as an image needs" in certificate.statement
    trace = read_document(result.folder / "looked.json", TRACE_KIND)
    assert trace["used"] == used
    assert [views.policy.names[view] for view in trace["deciding"]] == [answer.view for answer in answers]
    mean = read_document(result.folder / "evaluation.json", EVALUATION_KIND)["views"]["mean"]
    assert mean == pytest.approx(np.mean(used))
    assert f"{mean:.4g} of 5 on average on `val_test`" in (result.bundle / "README.md").read_text()
    assert (result.folder / "figures" / "views.png").is_file()
    assert f"{mean:.2f} of 5 views" in (result.folder / "report.html").read_text()
    assert certificate.attempt == 2
    scored_by_others(result)


def test_what_learned_from_val_select_is_judged_there_by_fits_on_other_folds(mil, tmp_path):
    result = changed(mil, tmp_path / "run", "views.aggregate=learned")
    assert set(result.done) == {"score", "calibrate", "evaluate", "bundle"}
    scored_by_others(result)
    answers_as_scored(result)
    assert verify_bundle(result.bundle, recompute=True).problems == ()
    assert "On val_select each image is scored by a fit on the other" in (result.folder / "report.html").read_text()
    again = changed(result, tmp_path / "again", "risks.miss_rate=0.35")
    assert set(again.done) == {"calibrate", "evaluate", "bundle"}
    for name in ("val_select_logits.pt", "views.json", "calibration.json"):
        assert (again.folder / name).read_bytes() == (result.folder / name).read_bytes()
    assert verify_bundle(again.bundle, recompute=True).problems == ()


def scored_by_others(result):
    """val_select's scores are not those of what ships, which was fitted on them, and the map is fitted on them as
    they are.
    """
    views, stored = ViewsDocument.load(result.folder / "views.json"), read_role(result.folder, "val_select")
    assert views.select_folds == 10
    shipped, table = files_of(result, "val_select")
    answers = load_bundle(result.bundle).predictor.answered(shipped)[1]
    assert not np.allclose(answers.logits, stored.logits, atol=1e-3)
    assert np.corrcoef(answers.logits[:, 1], stored.logits[:, 1])[0, 1] > 0.8
    assert stored.ids.tolist() == table.ids[table.rows("val_select")].tolist()
    frozen = FittedMap.load(result.folder / "calibration.json")
    chosen = choose_map(stored, candidates=("temperature", "platt", "beta"), keep_order=True, seed=0)
    assert frozen.to_document() == FittedMap.load(result.bundle / "calibration.json").to_document()
    assert frozen.comparison == chosen.to_document()


@pytest.mark.slow
def test_a_choice_for_whole_images_ships_what_a_run_without_views_ships(signs, store, tmp_path):
    settings = [
        *SETTINGS,
        f"data.table={signs}",
        f"features.store={store}",
        "risks={miss_rate: 0.45, false_exit_rate: 0.45}",
    ]
    viewed = run(recipe="baseline", output=tmp_path / "viewed", overrides=[*settings, *GRID, "views.aggregate=whole"])
    plain = run(recipe="baseline", output=tmp_path / "plain", overrides=settings)
    for name in ("model.onnx", "certificate.json", "thresholds.json", "calibration.parquet"):
        assert (viewed.bundle / name).read_bytes() == (plain.bundle / name).read_bytes(), name


@pytest.mark.slow
def test_head_on_every_view_goes_through(signs, store, tmp_path):
    result = go(
        signs,
        store,
        tmp_path / "run",
        "views.train=views",
        "views.aggregate=[whole, mean, max]",
        "risks={miss_rate: 0.45, false_exit_rate: 0.45}",
    )
    answers_as_scored(result)
    comparison = read_document(result.folder / "views.json", VIEWS_KIND)["comparison"]
    assert [row["name"] for row in comparison["table"]] == ["whole", "mean", "max"]


def test_stages_depend_on_the_views_they_use(mil):
    def inputs(*overrides):
        config, _ = load_config(values=stored_config(mil.folder).model_dump(mode="json"), overrides=overrides)
        return {stage.name: stage.inputs(RunDir(mil.folder, config, {})) for stage in STAGES if stage.wanted(config)}

    before = inputs()

    def stale(*overrides):
        return {name for name, digest in inputs(*overrides).items() if digest != before[name]}

    assert stale("views.aggregate=max") == {"score"}
    assert stale("views.pool=topk:2") == {"train"}
    assert stale("views.overlap=0.2") == {"extract", "train", "export", "score"}
    assert stale("views.adaptive=true", "risks.miss_rate=0.2") == {"score", "calibrate"}


# ---- what must not go through ------------------------------------------------------------------------------------


def test_other_views_are_refused_in_one_line(mil, signs):
    one_line_error(stage1("predict", mil.bundle, signs, "--views", "3x3"), 2, "--views whole+3x3@0.12", "5 views")
    one_line_error(stage1("predict", mil.bundle, signs, "--views", "3 by 3"), 2, "'3 by 3'")
    with pytest.raises(ConfigError, match="certified for 5 views"):
        load_bundle(mil.bundle).require_views(WHOLE)
    load_bundle(mil.bundle).require_views(parse_views("2x2"))


def test_changed_views_are_found(mil, tmp_path):
    copy = shutil.copytree(mil.bundle, tmp_path / "bundle")
    document = json.loads((copy / "views.json").read_text())
    document["aggregator"]["name"] = "max"
    (copy / "views.json").write_text(json.dumps(document, indent=2) + "\n")
    assert [line.partition(":")[0] for line in verify_bundle(copy).problems] == ["views.json"]
    with pytest.raises(IntegrityError, match=r"views\.json"):
        load_bundle(copy, verify=False)
    (copy / "views.json").unlink()
    with pytest.raises(IntegrityError, match="5 views"):
        load_bundle(copy, verify=False)


# ---- strange images ----------------------------------------------------------------------------------------------


@pytest.fixture
def strange(tmp_path) -> Path:
    folder = tmp_path / "strange"
    folder.mkdir()
    rng = np.random.default_rng(1)
    shapes = {"a_line": (1, 5000), "b_column": (5000, 1), "c_small": (40, 64), "d_dot": (1, 1), "e_photo": (160, 120)}
    for name, shape in shapes.items():
        Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).save(folder / f"{name}.png")
    Image.fromarray(rng.integers(0, 256, (90, 90), dtype=np.uint8)).save(folder / "f_gray.png")
    Image.fromarray(rng.integers(0, 65536, (90, 90), dtype=np.uint16)).save(folder / "g_deep.png")
    Image.fromarray(rng.integers(0, 256, (90, 90, 4), dtype=np.uint8), mode="CMYK").save(folder / "h_cmyk.jpg")
    Image.fromarray(rng.integers(0, 256, (90, 90), dtype=np.uint8)).convert("P").save(folder / "i_palette.png")
    (folder / "j_broken.jpg").write_bytes(b"\xff\xd8\xff nothing more")
    return folder


def test_strange_images_are_answered_and_the_small_ones_counted(mil, strange):
    result = stage1("predict", mil.bundle, strange, "--format", "csv")
    assert result.returncode == 1, result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [Path(row["path"]).stem[0] for row in rows] == list("abcdefghij")
    assert [row["views"] for row in rows] == ["5"] * 9 + [""]
    assert all(row["view"] for row in rows[:9])
    assert (
        "note: 2 of 9 images no larger than the model's input (64 px): tiles and crops add nothing there"
        in result.stderr
    )
    document = json.loads(stage1("predict", mil.bundle, strange, "--json").stdout)
    assert [Path(row["path"]).stem for row in document["rows"] if row["small"]] == ["c_small", "d_dot"]
    assert (document["images"], document["failures"], document["small"]) == (10, 1, 2)
    validate(document, PREDICTIONS_KIND, "predict --json")


def test_columns_for_views_stand_only_where_there_are_views(mil, finished, strange, tmp_path):
    photo = strange / "e_photo.png"
    with_views = json.loads(stage1("predict", mil.bundle, photo, "--json").stdout)
    assert with_views["bundle"]["views"] == load_bundle(mil.bundle).predictor.views.description
    assert set(with_views["rows"][0]) >= {"views", "view", "box", "small"}
    without = json.loads(stage1("predict", finished.bundle, photo, "--json").stdout)
    assert not {"views", "view", "box", "small"} & set(without["rows"][0])
    for document in (with_views, without):
        validate(document, PREDICTIONS_KIND, "predict --json")
    assert stage1("predict", finished.bundle, photo, "--views", "whole").returncode == 0
    table = stage1("predict", mil.bundle, photo).stdout.splitlines()
    assert table[0].split() == ["decision", "label", "probability", "views", "view", "path"]
    assert (
        stage1("predict", mil.bundle, photo, "--output", tmp_path / "a.parquet", "--format", "parquet").returncode == 0
    )
