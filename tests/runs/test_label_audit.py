"""audit-labels: from cached features to a CSV, a page of pictures, and a corrected table that the next run reads."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from stage1.commands.label_audit import COLUMNS, LABEL_AUDIT_KIND, _new_labels, apply_labels, audit_labels
from stage1.config import load_config, to_yaml
from stage1.data.ingest import read_source
from stage1.data.table import SampleTable
from stage1.errors import ConfigError, DataError, MissingError, Stage1Error
from stage1.features.store import FeatureKey, FeatureStore
from stage1.runs.schema import FEATURES_KIND
from stage1.storage.documents import read_document, write_document
from stage1.storage.files import digest_file, write_text

from ..command_line import stage1
from ..report.browser import CHROMIUM, chromium
from .conftest import one_line_error, write_photos

FIGURES = True  # drawn, and looked at

KEY = FeatureKey("p" * 64, "b" * 64, "pool", "float32", "onnx:test")
SETTINGS = (
    "backbone.name=embedded",
    "backbone.fit=squash",
    "head.kind=linear",
    "split.method=balanced",
    "data.near_duplicates=false",
)


@pytest.fixture(scope="module")
def audited(tmp_path_factory):
    """A run whose features are three numbers of each photo, with 5 % of the labels of train and val_select planted
    wrong.
    """
    folder = tmp_path_factory.mktemp("audited")
    photos = write_photos(folder / "photos", n=400, seed=3)
    config, _ = load_config(overrides=[f"data.table={photos}", *SETTINGS], environment={})
    table = read_source(config.data).table
    n = len(table)
    roles = np.array(["train", "val_select", "val_calib", "val_test"])[np.minimum(np.arange(n) * 5 // n, 3)]
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(np.isin(roles, ["train", "val_select"]))
    wrong = rng.choice(rows, round(0.05 * len(rows)), replace=False)
    labels = table.labels.copy()
    labels[wrong] = 1 - labels[wrong]
    truth = table.labels
    features = (np.stack([2.0 * truth - 1, truth, rng.normal(size=n)], axis=1) + 0.3 * rng.normal(size=(n, 3))).astype(
        np.float32
    )
    run = folder / "run"
    run.mkdir()
    write_text(run / "config.yaml", to_yaml(config))
    from dataclasses import replace

    replace(table, roles=roles, labels=labels).write(run / "samples.parquet")
    store = FeatureStore(run / "features")
    store.extract(
        table.ids.tolist(),
        [lambda: b""] * n,
        KEY,
        lambda items, cuts: iter([(np.arange(n), features, [])]),
        shard_size=n,
    )
    write_document(
        run / "features.json",
        {
            "backbone": "embedded",
            "pooling": "pool",
            "fingerprint": "0" * 64,
            "licence": "x",
            "weights": "x",
            "dim": 3,
            "preprocessing": {},
            "backbone_onnx": "0" * 64,
            "engine": "onnx",
            "store": None,
            "seed": 0,
            "key": {name: getattr(KEY, name) for name in ("preprocessing", "backbone", "pooling", "dtype", "engine")},
        },
        FEATURES_KIND,
    )
    document = audit_labels(run, top=30)
    return run, document, set(table.ids[wrong].tolist()), photos


def table_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def fill(source: Path, target: Path, change) -> Path:
    """labels.csv with `change(row)` as new_label."""
    rows = table_of(source)
    with open(target, "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows([{**row, "new_label": change(row)} for row in rows])
    return target


def test_planted_noise_is_on_top(audited):
    run, document, wrong, _ = audited
    found = [item["id"] for item in document["suspects"][: len(wrong)]]
    assert len(wrong & set(found)) / len(wrong) >= 0.75
    assert {item["role"] for item in document["suspects"]} <= {"train", "val_select"}
    assert document == read_document(run / "label_audit" / "label_audit.json", LABEL_AUDIT_KIND)
    first = document["suspects"][0]
    assert first["suggested"] != first["label"]
    assert sum(first["neighbours"].values()) == 10
    assert re.match(
        rf"p\({first['label']}\) .* by a probe that did not see it; of the 10 nearest images", first["reason"]
    )
    assert 0 < document["estimated"]["total"] <= 3 * len(wrong)
    # No place of this machine in the document.
    assert str(run.parent) not in json.dumps(document)


def test_the_csv_is_for_a_person_to_fill_in(audited):
    run, document, *_ = audited
    rows = table_of(run / "label_audit" / "labels.csv")
    assert list(rows[0]) == list(COLUMNS)
    assert [row["id"] for row in rows] == [item["id"] for item in document["suspects"]]
    assert all(row["new_label"] == "" and Path(row["path"]).is_file() for row in rows)


def test_the_way_back_into_a_table(audited, tmp_path):
    run, document, wrong, photos = audited
    before = (digest_file(photos), digest_file(run / "samples.parquet"))
    edited = fill(
        run / "label_audit" / "labels.csv",
        tmp_path / "edited.csv",
        lambda row: row["suggested"] if row["id"] in wrong else row["label"],
    )
    found = apply_labels(run, edited, tmp_path / "corrected.csv")
    listed = {item["id"] for item in document["suspects"]}
    assert (found["changed"], found["confirmed"], found["open"]) == (len(wrong & listed), 30 - len(wrong & listed), 0)
    assert (digest_file(photos), digest_file(run / "samples.parquet")) == before
    # data.table reads it: the same images in the same roles, nothing lost, and the labels of the suspects put right.
    config, _ = load_config(overrides=[f"data.table={tmp_path / 'corrected.csv'}"], environment={})
    corrected, original = read_source(config.data).table, SampleTable.read(run / "samples.parquet")
    assert corrected.ids.tolist() == original.ids.tolist()
    assert corrected.roles.tolist() == original.roles.tolist()
    differs = corrected.ids[corrected.labels != original.labels]
    assert set(differs.tolist()) == wrong & listed
    assert "data.source=table" in found["next"]


def test_rows_left_open_stay_as_they_are(audited, tmp_path):
    run, *_ = audited
    found = apply_labels(run, run / "label_audit" / "labels.csv", tmp_path / "same.csv")
    assert (found["changed"], found["confirmed"], found["open"]) == (0, 0, 30)


def test_work_of_a_person_is_not_overwritten(audited, tmp_path):
    run, *_ = audited
    folder = tmp_path / "again"
    audit_labels(run, folder, top=5)
    fill(folder / "labels.csv", folder / "labels.csv", lambda row: row["label"])
    with pytest.raises(ConfigError, match="5 new labels that would be lost"):
        audit_labels(run, folder, top=5)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"new_label": "tree"}, "line 2.*'tree' is no class"),
        ({"id": "0" * 64, "new_label": "day"}, "no image"),
        ({"new_label": "day", "label": "other"}, "label was 'other'"),
    ],
)
def test_wrong_cells_are_named(audited, tmp_path, change, words):
    run, *_ = audited
    rows = table_of(run / "label_audit" / "labels.csv")
    rows[0] |= change
    with open(tmp_path / "bad.csv", "w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(COLUMNS))
        writer.writeheader()
        writer.writerows(rows)
    with pytest.raises(DataError, match=words):
        apply_labels(run, tmp_path / "bad.csv", tmp_path / "out.csv")
    assert not (tmp_path / "out.csv").exists()


def test_labels_of_evaluation_roles_are_not_touched(audited, tmp_path):
    run, *_ = audited
    table = SampleTable.read(run / "samples.parquet")
    row = int(table.rows("val_calib")[0])
    (tmp_path / "calib.csv").write_text(
        f"id,label,new_label\n{table.ids[row]},{table.classes[table.labels[row]]},day\n"
    )
    with pytest.raises(DataError, match="val_calib, whose labels no model may pick"):
        apply_labels(run, tmp_path / "calib.csv", tmp_path / "out.csv")


def test_other_bad_input(audited, tmp_path):
    run, _, _, photos = audited
    with pytest.raises(MissingError, match="not a run directory"):
        audit_labels(tmp_path)
    with pytest.raises(ConfigError, match="--top 0"):
        audit_labels(run, top=0)
    with pytest.raises(MissingError, match="no such file"):
        apply_labels(run, tmp_path / "none.csv")
    labels = run / "label_audit" / "labels.csv"
    with pytest.raises(ConfigError, match="nothing is changed in place"):
        apply_labels(run, labels, labels)
    with pytest.raises(ConfigError, match="nothing is changed in place"):
        apply_labels(run, labels, photos)
    (tmp_path / "x.csv").write_text("id,label\n")
    with pytest.raises(DataError, match="no column 'new_label'"):
        apply_labels(run, tmp_path / "x.csv")


def test_an_image_that_is_gone_is_named(audited):
    run, document, *_ = audited
    table = SampleTable.read(run / "samples.parquet")
    path = Path(str(table.paths[table.ids == document["suspects"][0]["id"]][0]))
    moved = path.rename(path.with_suffix(".moved"))
    try:
        with pytest.raises(Stage1Error, match="cannot now"):
            audit_labels(run, run.parent / "gone", top=3)
    finally:
        moved.rename(path)


def test_the_command(audited, tmp_path):
    run, *_ = audited
    result = stage1("audit-labels", run, "--top", "4", "--output", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "an estimate, not a bound" in result.stdout
    result = stage1(
        "audit-labels", run, "--apply", tmp_path / "out" / "labels.csv", "--output", tmp_path / "t.csv", "--json"
    )
    assert json.loads(result.stdout)["open"] == 4
    one_line_error(stage1("audit-labels", tmp_path / "nowhere"), 3, "nowhere")


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_self_contained_and_escapes(audited):
    from stage1.report.contact_sheet import contact_sheet

    _, document, *_ = audited
    hostile = json.loads(json.dumps(document))
    hostile["suspects"] = hostile["suspects"][:1]
    hostile["suspects"][0] |= {"path": "<script>alert(1)</script>.jpg", "label": "<b>"}
    page = contact_sheet(hostile, [b"x"])
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)
    assert page == contact_sheet(hostile, [b"x"])
    with pytest.raises(DataError, match="2 for 1"):
        contact_sheet(hostile, [b"x", b"y"])


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: the page is not looked at")
def test_every_picture_shows_in_a_browser(audited, tmp_path):
    run, document, *_ = audited
    page = (run / "label_audit" / "contact_sheet.html").read_text(encoding="utf-8")
    probe = (
        '<script>addEventListener("load", () => { const all = [...document.images]; document.body.dataset.shown = '
        "all.filter((image) => image.complete && image.naturalWidth > 0).length + '/' + all.length; "
        "document.body.dataset.wide = document.documentElement.scrollWidth - innerWidth; });</script>"
    )
    page = (
        re.sub(r"<meta http-equiv[^>]*>", "", page).replace('loading="lazy"', "").replace("</body>", f"{probe}</body>")
    )
    (tmp_path / "page.html").write_text(page, encoding="utf-8")
    done = chromium(
        tmp_path / "page.html",
        tmp_path / "profile",
        "--window-size=400,900",
        "--virtual-time-budget=5000",
        "--dump-dom",
    )
    n = len(document["suspects"])
    assert f'data-shown="{n}/{n}"' in done.stdout
    wide = re.search(r'data-wide="(-?\d+)"', done.stdout)
    assert wide
    assert int(wide[1]) <= 0


def test_labels_that_a_spreadsheet_wrote_anew_are_the_same_labels(tmp_path):
    texts = np.array(["x", "y"])
    table = SampleTable(
        ids=texts,
        paths=texts,
        labels=np.array([0, 1]),
        groups=texts,
        sources=texts,
        timestamps=texts,
        roles=np.array(["train", "train"]),
        classes=("true", "false"),
    )
    file = tmp_path / "labels.csv"
    file.write_text("id,label,new_label\nx,TRUE,FALSE\ny,FALSE,\n")
    assert _new_labels(file, table) == ({"x": 1}, 1)
