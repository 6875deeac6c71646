"""A bundle with thresholds by slice: the slice of an image comes with it, and without one it defers and says why."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from stage1.bundle import verify_bundle
from stage1.cascade.stages import open_cascade
from stage1.cli import app
from stage1.errors import ConfigError, DataError, MissingError
from stage1.inference import load_bundle
from stage1.inference.inputs import iterate_inputs, read_slices
from stage1.policy import fit_policy
from stage1.streetvision.classifier import Classifier

from .conftest import bundle_parts

CLASSES = bundle_parts.CLASSES


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("sliced")
    run = made / "run"
    run.mkdir()
    drawn = bundle_parts.draw(3000, 0)
    # Nothing can be shown for the thirty images of c.
    city = np.where(np.arange(3000) % 100 == 0, "c", np.where(np.arange(3000) % 2 == 0, "a", "b"))
    calibration = replace(drawn, slices={"city": city})
    policy = fit_policy(
        "softmax",
        calib=calibration,
        risks={"fnr": 0.05, "false_exit_rate": 0.05},
        classes=CLASSES,
        slices=("city",),
    )
    assert [claim.certified for claim in policy.certificate.slices] == [True, True, False]
    policy.save(run / "thresholds.json")
    policy.certificate.save(run / "certificate.json")
    (run / "model.onnx").write_bytes(bundle_parts.tiny_model())
    return bundle_parts.Parts(run, calibration, bundle_parts.tiny_model()).write(made / "bundle")


def answers(*arguments: object) -> dict:
    done = CliRunner().invoke(app, ["predict", *map(str, arguments), "--json"])
    document = json.loads(done.stdout)
    by_name = {Path(row["path"]).name: (row["decision"], row["reason"]) for row in document["rows"]}
    return {"rows": by_name, "bundle": document["bundle"], "stderr": done.stderr}


UNKNOWN = "its city is not known"


def test_python_takes_the_slice_of_each_image(folder: Path, photos: Path) -> None:
    bundle = load_bundle(folder)
    images = [photos / "1 red.jpg"] * 5
    rows = bundle.predict(images, slices={"city": ["a", "c", "elsewhere", None, " b "]})
    assert [row.exit for row in rows] == [True, False, False, False, True]
    assert [row.reason for row in rows] == [
        None,
        "nothing is certified for city 'c'",
        "city 'elsewhere' is none of the calibrated ones",
        UNKNOWN,
        None,
    ]
    assert {row.reason for row in bundle.predict(images)} == {UNKNOWN}
    files = [photos / "1 red.jpg", photos / "below" / "cut.jpg", *images[:3]]
    given = {"city": ["a", "a", "c", "", " b "]}
    batch = bundle.predictor.answer_batch([path.read_bytes() for path in files], slices=given)
    assert [replace(row, path="") for row in batch] == [
        replace(row, path="") for row in bundle.predict(files, slices=given)
    ]
    assert not bundle.predictor.answer(np.zeros((20, 20, 3), np.uint8)).exit
    assert bundle.about["slices"] == "city"
    with pytest.raises(DataError, match="slices: city: give one value for each of the 5 images"):
        bundle.predict(images, slices={"city": ["a"]})


def test_a_folder_has_no_slices_and_says_what_to_give(folder: Path, photos: Path, tmp_path: Path) -> None:
    found = answers(folder, photos / "1 red.jpg", photos / "2 blue.png")
    assert set(found["rows"].values()) == {("defer", UNKNOWN)}
    assert "2 of 2 images defer because their city is not known; give a table with a column city" in found["stderr"]
    table = tmp_path / "cities.csv"
    table.write_text(f"image,city\n{photos / '1 red.jpg'},a\n{photos / '2 blue.png'},c\n")
    found = answers(folder, photos / "1 red.jpg", photos / "2 blue.png", "--slices", table)
    assert found["rows"]["1 red.jpg"] == ("exit:roadwork", None)
    assert found["rows"]["2 blue.png"] == ("defer", "nothing is certified for city 'c'")
    assert "not known" not in found["stderr"]


def test_the_column_of_a_table_travels(folder: Path, photos: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    names, cities = ["1 red.jpg", "2 blue.png", "3 grey.JPG"], ["a", "b", None]
    (photos / "t.csv").write_text("image, city\n1 red.jpg,a\n2 blue.png,b\n3 grey.JPG,\n")
    pq.write_table(pa.table({"city": cities, "image": names}), photos / "t.parquet")
    for table in (photos / "t.csv", photos / "t.parquet"):
        carried = [dict(one.slices) for one in iterate_inputs([table], slices=["city"])]
        assert carried == [{"city": "a"}, {"city": "b"}, {"city": ""}]
        rows = answers(folder, table)["rows"]
        assert rows["1 red.jpg"][0].startswith("exit:")
        assert rows["3 grey.JPG"] == ("defer", UNKNOWN)


def test_what_cannot_be_given(folder: Path, bundle_folder: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("image\na.jpg\n")
    with pytest.raises(DataError, match="no column 'city'; give a table with the columns image and city"):
        read_slices(tmp_path / "t.csv", "city")
    with pytest.raises(DataError, match=r"a table \(.csv"):
        read_slices(photos, "city")
    with pytest.raises(MissingError):
        read_slices(tmp_path / "none.csv", "city")
    refused = CliRunner().invoke(app, ["predict", str(bundle_folder), str(photos), "--slices", str(tmp_path / "t.csv")])
    assert isinstance(refused.exception, ConfigError)
    assert "one pair of thresholds for all images" in str(refused.exception)
    plain = answers_of_plain(bundle_folder, photos)
    assert "reason" not in plain["rows"][0]
    assert "slices" not in plain["bundle"]


def answers_of_plain(bundle_folder: Path, photos: Path) -> dict:
    return json.loads(
        CliRunner().invoke(app, ["predict", str(bundle_folder), str(photos / "1 red.jpg"), "--json"]).stdout
    )


def test_the_bundle_is_made_again_from_its_data(folder: Path) -> None:
    report = verify_bundle(folder, recompute=True)
    assert not [line for line in report.problems if "README" not in line and "evaluation is missing" not in line]
    card = (folder / "README.md").read_text()
    assert "| city=c | 30 | 0 | never | never |" in card
    assert "Each slice has thresholds of its own." in card


def test_a_detector_refuses_thresholds_that_no_picture_can_choose(folder: Path) -> None:
    with pytest.raises(ConfigError, match="thresholds differ by city, which no picture carries"):
        Classifier(str(folder), device="cpu", threads=1)


def test_a_cascade_that_takes_the_bundles_exits_refuses_it_too(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "cascade.yaml"
    text = (
        f"classes: [{', '.join(CLASSES)}]\n"
        "risks: {miss_rate: 0.1, false_exit_rate: 0.1}\n"
        "stages:\n"
        f"  - {{name: first, bundle: '{folder}', exit: EXIT}}\n"
        f"  - {{name: last, bundle: '{folder}'}}\n"
    )
    file.write_text(text.replace("EXIT", "own"))
    with pytest.raises(ConfigError, match="stage 'first': thresholds of its bundle differ by city"):
        open_cascade(file)
    file.write_text(text.replace("EXIT", "auto"))
    assert open_cascade(file).names == ["first", "last"]
