"""What `predict` reads and writes: every kind of source, every format, in order, whole, and bounded in memory."""

from __future__ import annotations

import csv
import io
import json
import os
import stat
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage1.errors import ConfigError, DataError, MissingError
from stage1.inference import FORMATS, Input, Row, iterate_inputs, load_bundle, open_writer, predict_to
from stage1.inference.schema import PREDICTIONS_KIND
from stage1.storage.cells import plain_cell
from stage1.storage.documents import validate

ROWS = [
    Row(
        "a b.jpg",
        "roadwork",
        0.123456789012345,
        True,
        "exit:roadwork",
        confidence=0.123456789012345,
        probabilities=(0.876543210987655, 0.123456789012345),
    ),
    Row("ü,\"'|\n\x1b[31mred.jpg", "none", 0.5, False, "defer", confidence=0.5, probabilities=(0.5, 0.5)),
    Row(os.fsdecode(b"bad\xffname.jpg"), None, None, False, "defer", "truncated: 12 bytes"),
]


@pytest.fixture(scope="module")
def bundle(bundle_folder):
    return load_bundle(bundle_folder)


def names(*sources, stdin: bytes | None = None) -> list[str]:
    return [one.name for one in iterate_inputs(sources, None if stdin is None else io.BytesIO(stdin))]


def answered(bundle, *sources, kind="csv", stdin: bytes | None = None) -> tuple[list[dict], int, list[Row]]:
    text, failed = io.StringIO(), []
    with open_writer(kind, text, bundle.about) as writer:
        inputs = iterate_inputs(sources, None if stdin is None else io.BytesIO(stdin))
        failures = predict_to(bundle.predictor, inputs, writer, on_failure=failed.append)
    return list(csv.DictReader(io.StringIO(text.getvalue()))), failures, failed


# ---- sources -----------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_without_hidden_files(photos):
    assert names(photos) == [str(photos / name) for name in ("1 red.jpg", "2 blue.png", "3 grey.JPG", "below/cut.jpg")]


def test_pipes_and_holes_among_the_images_are_named_at_once(bundle, photos):
    os.mkfifo(photos / "below" / "pipe.jpg")
    with open(photos / "below" / "hole.png", "wb") as stream:
        stream.truncate(100 << 30)
    start = time.process_time()
    rows, failures, failed = answered(bundle, photos, photos / "below" / "pipe.jpg", "/dev/zero")
    assert time.process_time() - start < 10
    errors = [(Path(row.path).name, row.error.partition(":")[0]) for row in failed]
    assert errors == [
        ("cut.jpg", "truncated"),
        ("hole.png", "too large"),
        ("pipe.jpg", "not a file"),
        ("pipe.jpg", "not a file"),
        ("zero", "not a file"),
    ]
    assert (len(rows), failures) == (8, 5)


def test_a_damaged_image_is_one_line_and_pillow_adds_none(bundle_folder, tmp_path):
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", 9_000, 11_000, 8, 2, 0, 0, 0)
    (tmp_path / "wide.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "TIFF")
    many = struct.pack("<HHIHH", 277, 3, 1, 4000, 0)
    tiff = stream.getvalue().replace(struct.pack("<HHIHH", 277, 3, 1, 3, 0), many)
    assert many in tiff
    (tmp_path / "many.tif").write_bytes(tiff)
    command = [sys.executable, "-m", "stage1.cli", "predict", str(bundle_folder), str(tmp_path), "--format", "csv"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    named = [line.rpartition("/")[2].split(":")[0] for line in done.stderr.splitlines()]
    assert named == ["many.tif", "wide.png", "error"], done.stderr


def test_files_folders_tables_and_stdin_in_one_call(photos, tmp_path):
    table = tmp_path / "list.csv"
    table.write_text("image\nmy phötos/2 blue.png\n")
    assert names(photos / "1 red.jpg", photos / "below", table, "-", stdin=b"x.jpg\r\n\ny z.jpg") == [
        str(photos / "1 red.jpg"),
        str(photos / "below/cut.jpg"),
        str(photos / "2 blue.png"),
        "x.jpg",
        "y z.jpg",
    ]


@pytest.mark.parametrize("column", ["image", "path", "file_name", "filepath", "image_path", " Image "])
@pytest.mark.parametrize("suffix, delimiter", [(".csv", ","), (".tsv", "\t"), (".CSV", ",")])
def test_text_tables_with_any_alias_resolve_against_the_table(photos, column, suffix, delimiter):
    table = photos / f"table{suffix}"
    rows = [["label", column], ["none", "1 red.jpg"], ["roadwork", "/abs/2.jpg"]]
    table.write_text("\ufeff" + "\r\n".join(delimiter.join(row) for row in rows), encoding="utf-8")
    assert names(table) == [str(photos / "1 red.jpg"), "/abs/2.jpg"]


def test_parquet_holds_paths_or_the_images_themselves(bundle, photos):
    data = (photos / "1 red.jpg").read_bytes()
    pq.write_table(pa.table({"path": ["1 red.jpg", "2 blue.png"]}), photos / "paths.parquet")
    pq.write_table(pa.table({"image": [data, b"broken", None]}), photos / "bytes.parquet")
    structs = [{"bytes": data, "path": "x.jpg"}, {"bytes": None, "path": "2 blue.png"}]
    pq.write_table(pa.table({"image": structs, "label": [0, 1]}), photos / "structs.parquet")
    rows, failures, _ = answered(bundle, photos / "paths.parquet", photos / "bytes.parquet", photos / "structs.parquet")
    assert [row["decision"] for row in rows] == [
        "exit:roadwork",
        "exit:none",
        "exit:roadwork",
        "defer",
        "defer",
        "exit:roadwork",
        "exit:none",
    ]
    assert failures == 2
    assert rows[3]["path"] == f"{photos / 'bytes.parquet'}::1"
    assert rows[4]["error"] == "row 2: no image in this cell; fill it or drop the row"


def test_a_list_is_relative_to_itself(photos):
    (photos / "list.txt").write_text("1 red.jpg\nbelow/cut.jpg\n")
    assert names(photos / "list.txt") == [str(photos / "1 red.jpg"), str(photos / "below/cut.jpg")]


def test_file_names_need_not_be_utf8(bundle, photos):
    odd = os.fsencode(photos) + b"/\xff\xfe.jpg"
    Path(os.fsdecode(odd)).write_bytes((photos / "1 red.jpg").read_bytes())
    rows, failures, _ = answered(bundle, "-", stdin=odd + b"\n")
    assert failures == 0
    assert rows[0]["path"].endswith("\\udcff\\udcfe.jpg")


def test_empty_cells_are_named_by_their_line(bundle, photos):
    (photos / "table.csv").write_text("label,image\nnone,\nnone\nnone,1 red.jpg\n")
    rows, failures, failed = answered(bundle, photos / "table.csv")
    assert failures == 2
    assert [row.error for row in failed] == [
        f"line {line}: no image in this cell; fill it or drop the row" for line in (2, 3)
    ]
    assert rows[2]["decision"] == "exit:roadwork"


@pytest.mark.parametrize(
    "name, content, kind, message",
    [
        ("t.csv", b"label,file\nx,y\n", DataError, "no image column .* it has label, file"),
        ("t.csv", b"", DataError, "it has no columns"),
        ("t.csv", b"image\n\xff\xfe\n", DataError, "not UTF-8, byte 6"),
        ("t.parquet", b"no", DataError, "cannot be read as Parquet"),
        ("t.tsv", None, MissingError, "no such table"),
        ("t.txt", None, MissingError, "no such table or list"),
    ],
)
def test_bad_tables_say_what_is_wrong(tmp_path, name, content, kind, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=message) as caught:
        names(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_a_folder_without_images_and_a_stdin_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no image in this folder"):
        names(tmp_path)
    with pytest.raises(DataError, match="there is no stdin"):
        list(iterate_inputs(["-"]))


def test_a_missing_path_fails_by_name_and_the_rest_is_answered(bundle, photos):
    rows, failures, failed = answered(bundle, photos / "nope.jpg", photos)
    assert failures == 2
    assert [Path(row.path).name for row in failed] == ["nope.jpg", "cut.jpg"]
    assert [row["decision"] for row in rows] == ["defer", "exit:roadwork", "exit:none", "defer", "defer"]
    assert [row["error"] == "" for row in rows] == [False, True, True, True, False]


# ---- formats -----------------------------------------------------------------------------------------------------


def written(kind: str, tmp_path: Path, rows=ROWS) -> Path:
    path = tmp_path / f"out.{kind}"
    with open_writer(kind, path, {"name": "demo", "classes": ["none", "roadwork"]}) as writer:
        for row in rows:
            writer.write([row])
    return path


def expected(row: Row) -> dict:
    return {
        "path": row.path.encode("utf-8", "backslashreplace").decode(),
        "label": row.label,
        "probability": row.probability,
        "exit": row.exit,
        "decision": row.decision,
        "error": row.error,
        "confidence": row.confidence,
        "p_none": row.probabilities and row.probabilities[0],
        "p_roadwork": row.probabilities and row.probabilities[1],
    }


def test_csv_round_trip(tmp_path):
    with open(written("csv", tmp_path), encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert list(found[0]) == [
        "path",
        "label",
        "probability",
        "exit",
        "decision",
        "error",
        "confidence",
        "p_none",
        "p_roadwork",
    ]
    for row, one in zip(ROWS, found, strict=True):
        truth = expected(row)
        assert one["path"] == truth["path"]
        assert (one["label"] or None, one["error"] or None) == (row.label, row.error)
        assert (float(one["probability"]) if one["probability"] else None) == row.probability
        for name in ("confidence", "p_none", "p_roadwork"):
            assert (float(one[name]) if one[name] else None) == truth[name]
        assert one["exit"] == ("true" if row.exit else "false")


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
def test_a_class_may_be_called_anything(kind, tmp_path):
    classes = ["path", "confidence", "p_path", "", "a,b", 'say "no"', "two\nlines", "<b>", "$x$", "é🚧", "=1+1"]
    shares = tuple(float(share) for share in np.arange(1, len(classes) + 1) / 66)
    path = tmp_path / f"out.{kind}"
    with open_writer(kind, path, {"classes": classes}) as writer:
        writer.write([Row("a.jpg", "=1+1", shares[-1], False, "defer", confidence=shares[-1], probabilities=shares)])
    if kind == "csv":
        with open(path, encoding="utf-8", newline="") as stream:
            (row,) = csv.DictReader(stream)
    else:
        row = json.loads(path.read_text())["rows"][0] if kind == "json" else pq.read_table(path).to_pylist()[0]
    assert row["path"] == "a.jpg"
    assert [float(row[f"p_{name}"]) for name in classes] == list(shares)
    assert float(row["confidence"]) == shares[-1]


def test_no_cell_of_a_csv_starts_a_formula(tmp_path):
    names = ["=cmd|'/C calc'!A0", "+1+cmd|' /C calc'!A0", "-2+3.png", "@SUM(1+1).png", "\t=1", "'=1", "plain.png"]
    rows = [replace(ROWS[0], path=name, label="-none", probability=0.25, decision="=x", error=None) for name in names]
    with open(written("csv", tmp_path, rows), encoding="utf-8", newline="") as stream:
        found = list(csv.DictReader(stream))
    for cells, name in zip(found, names, strict=True):
        assert not [cell for cell in cells.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
        assert plain_cell(cells["path"]) == name
        assert (cells["label"], cells["decision"], cells["probability"]) == ("'-none", "'=x", "0.25")
    assert found[-1]["path"] == "plain.png"


@pytest.mark.parametrize("kind", ["csv", "parquet", "json", "table"])
def test_a_fifo_gets_the_whole_document(tmp_path, kind):
    os.mkfifo(tmp_path / "fifo")
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append((tmp_path / "fifo").read_bytes()), daemon=True)
    reader.start()
    with open_writer(kind, tmp_path / "fifo", {"name": "demo", "classes": ["none", "roadwork"]}) as writer:
        writer.write(ROWS)
    reader.join(30)
    with open_writer(kind, tmp_path / "file", {"name": "demo", "classes": ["none", "roadwork"]}) as writer:
        writer.write(ROWS)
    assert found == [(tmp_path / "file").read_bytes()]
    assert stat.S_ISFIFO((tmp_path / "fifo").stat().st_mode)


def test_json_is_one_document(tmp_path):
    document = json.loads(written("json", tmp_path).read_text())
    assert document["bundle"]["name"] == "demo"
    assert document["rows"] == [expected(row) for row in ROWS]
    assert (document["images"], document["exits"], document["failures"]) == (3, 1, 1)
    assert json.loads(written("json", tmp_path, []).read_text())["rows"] == []
    validate(document, PREDICTIONS_KIND, "out.json")
    assert "small" not in document


def test_json_of_views_counts_the_images_to_which_tiles_add_nothing():
    looked = {"views": 5, "view": "whole", "box": (0, 0, 9, 9)}
    rows = [
        Row("tiny.jpg", "none", 0.25, True, "exit:none", **looked, small=True),
        Row("large.jpg", "none", 0.5, False, "defer", **looked),
        Row("broken.jpg", None, None, False, "defer", "truncated: 12 bytes"),
    ]
    text = io.StringIO()
    with open_writer("json", text, {"views": "5 views (whole + 2x2 tiles)"}) as writer:
        writer.write(rows)
    document = json.loads(text.getvalue())
    assert [row["small"] for row in document["rows"]] == [True, False, False]
    assert document["small"] == 1
    validate(document, PREDICTIONS_KIND, "out.json")


def test_parquet_round_trip(tmp_path):
    table = pq.read_table(written("parquet", tmp_path))
    assert table.to_pylist() == [expected(row) for row in ROWS]
    assert table.schema.field("exit").type == pa.bool_()
    empty = pq.read_table(written("parquet", tmp_path, []))
    assert empty.num_rows == 0
    assert empty.schema.names == table.schema.names


def test_table_has_one_line_a_row_and_no_terminal_codes(tmp_path):
    lines = written("table", tmp_path).read_text().splitlines()
    assert len(lines) == 1 + len(ROWS)
    assert lines[0].split() == ["decision", "label", "probability", "path"]
    assert lines[1].split(maxsplit=3) == ["exit:roadwork", "roadwork", "0.123457", "a b.jpg"]
    assert "\x1b" not in lines[2]
    assert lines[2].endswith("ü,\"'|\\n\\x1b[31mred.jpg")
    assert lines[3].startswith("error ")
    assert lines[3].endswith("name.jpg: truncated: 12 bytes")


def test_table_is_coloured_on_a_terminal_only(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured, plain = Terminal(), Terminal()
    with open_writer("table", coloured) as writer:
        writer.write(ROWS)
    monkeypatch.setenv("NO_COLOR", "1")
    with open_writer("table", plain) as writer:
        writer.write(ROWS)
    assert "\x1b[32mexit:roadwork" in coloured.getvalue()
    assert "\x1b" not in plain.getvalue()


def test_rows_come_as_they_are_made():
    stream = io.StringIO()
    with open_writer("csv", stream) as writer:
        writer.write(ROWS[:1])
        assert "a b.jpg" in stream.getvalue()


@pytest.mark.parametrize("kind", FORMATS)
def test_a_failed_run_leaves_no_file_and_keeps_the_old_one(tmp_path, kind):
    path = written(kind, tmp_path)
    before = path.read_bytes()

    def fail() -> None:
        with open_writer(kind, path) as writer:
            writer.write(ROWS)
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        fail()
    assert path.read_bytes() == before
    assert [item.name for item in tmp_path.iterdir()] == [path.name]


def test_unknown_format_and_parquet_to_a_pipe():
    with (
        pytest.raises(ConfigError, match="format 'xml' is unknown; use table, csv, parquet, json"),
        open_writer("xml", io.StringIO()),
    ):
        pass
    with pytest.raises(ConfigError, match="--output FILE.parquet"), open_writer("parquet", io.StringIO()):
        pass


# ---- the stream --------------------------------------------------------------------------------------------------


class Counting:
    def __init__(self) -> None:
        self.rows: list[Row] = []

    def write(self, rows) -> None:
        self.rows += rows

    def close(self) -> None:
        pass


def test_inputs_are_taken_in_pieces_not_all_at_once(bundle, picture, monkeypatch):
    monkeypatch.setattr("stage1.inference.tables._CHUNK_IMAGES", 10)
    data, writer, ahead = picture(), Counting(), []

    def inputs():
        for number in range(95):
            ahead.append(number - len(writer.rows))
            yield Input(f"{number}", data)

    assert predict_to(bundle.predictor, inputs(), writer) == 0
    assert [row.path for row in writer.rows] == [str(number) for number in range(95)]
    assert max(ahead) < 10


def test_large_embedded_images_are_bounded_by_their_bytes(bundle, picture, monkeypatch):
    data, writer, ahead = picture(), Counting(), []
    monkeypatch.setattr("stage1.inference.tables._CHUNK_BYTES", 3 * len(data))

    def inputs():
        for number in range(20):
            ahead.append(number - len(writer.rows))
            yield Input(f"{number}", data)

    predict_to(bundle.predictor, inputs(), writer)
    assert len(writer.rows) == 20
    assert max(ahead) < 3


def test_no_inputs_give_an_empty_document(bundle):
    assert answered(bundle) == ([], 0, [])
