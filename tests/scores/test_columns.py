"""What a cell of a score file means is the same in every format, and what cannot be read is named in one line."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1.errors import DataError
from stage1.scores import Scores, read_scores
from stage1.scores.columns import open_columns


def text_file(path: Path, *lines: str, encoding: str = "utf-8", newline: str = "\n") -> Path:
    path.write_bytes(newline.join([*lines, ""]).encode(encoding))
    return path


def in_every_format(folder: Path, columns: dict[str, list]) -> list[Path]:
    """The same rows as a CSV, a TSV, a Parquet file and an npz. None is an empty cell, NaN in an npz of numbers."""
    table = pa.table(columns)
    paths = [folder / f"rows.{ending}" for ending in ("csv", "tsv", "parquet", "npz")]
    for path, separator in ((paths[0], ","), (paths[1], "\t")):
        with open(path, "w", encoding="utf-8", newline="") as stream:
            csv.writer(stream, delimiter=separator).writerows([list(columns), *zip(*columns.values(), strict=True)])
    pq.write_table(table, paths[2])
    arrays = {
        name: (
            np.array(["" if cell is None else cell for cell in cells])
            if any(isinstance(cell, str) for cell in cells)
            else np.array([np.nan if cell is None else cell for cell in cells])
        )
        for name, cells in columns.items()
    }
    np.savez(paths[3], **arrays)
    return paths


LOGITS = {"logit_0": [0.0, 1.0, 0.5], "logit_1": [1.5, -0.25, 0.125], "label": [1, 0, 1]}

NAMES = {
    "leading zeros": (["007", "7", "07"], ["007", "7", "07"]),
    "twenty digits": (["98765432109876543210", "98765432109876543211", "1"],) * 2,
    "whole numbers": ([7, 8, 123456789012345678], ["7", "8", "123456789012345678"]),
    "whole numbers beside an empty cell, as pandas has them": ([7.0, 12.0, None], ["7", "12", ""]),
    "floats": ([0.5, 7.0, 1e-7], ["0.5", "7.0", "1e-07"]),
    "booleans": ([True, False, True], ["True", "False", "True"]),
    "white space": ([" a", "a b", "c  "], ["a", "a b", "c"]),
    "not ASCII": (["café", "日本", "🚧"], ["café", "日本", "🚧"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NAMES)
def test_names_are_text_and_the_same_in_every_format(kind, tmp_path):
    cells, expected = NAMES[kind]
    found = [open_columns(path).texts("slice_x") for path in in_every_format(tmp_path, {"slice_x": cells, **LOGITS})]
    assert found == [found[0]] * 4
    assert len(set(found[0])) == len(set(cells))
    assert found[0] == expected


@pytest.mark.parametrize("kind", NAMES)
def test_cells_that_repeat_are_read_once_and_mean_the_same(kind, tmp_path):
    cells = [cell for cell in NAMES[kind][0] for _ in range(2)] + NAMES[kind][0][::-1]
    rows = {name: (values * 3)[: len(cells)] for name, values in LOGITS.items()}
    for path in in_every_format(tmp_path, {"slice_x": cells, **rows}):
        values, codes = open_columns(path).repeated_texts("slice_x")
        assert [values[code] for code in codes] == open_columns(path).texts("slice_x")
        assert len(values) < len(cells)
        distinct, where, first = open_columns(path).cells("slice_x")
        assert sorted(first) == sorted(int(np.argmax(where == code)) for code in range(len(distinct)))


def test_the_row_that_is_named_is_the_first_of_its_kind(tmp_path):
    logits = {"logit_0": [0.0] * 6, "logit_1": [1.0] * 6}
    for path in in_every_format(tmp_path, {**logits, "label": [0, 1, 0, 1, None, 2.5]}):
        with pytest.raises(DataError, match="row 4"):
            read_scores(path)
    for path in in_every_format(tmp_path, {**logits, "group": ["a", "a", "a", "b", "b", "b\0c"]}):
        with pytest.raises(DataError, match="row 5"):
            read_scores(path)
    for path in in_every_format(tmp_path, {**logits, "role": ["val_test"] * 3 + ["", "val_test", ""]}):
        with pytest.raises(DataError, match=r"column 'role' has empty cells \(the first in row 3\)"):
            read_scores(path)


@pytest.mark.parametrize("given", [["1.0", "1", "2.0"], ["1.0", "1.00", "1.5"], ["true", "yes", "False"]])
def test_text_that_is_no_column_of_floats_or_booleans_stays_as_it_is(given, tmp_path):
    path = text_file(tmp_path / "a.csv", "slice_x", *given)
    assert open_columns(path).texts("slice_x") == given


def test_floats_too_large_to_be_names_are_refused(tmp_path):
    np.savez(tmp_path / "a.npz", id=np.array([1.0, 98765432109876543210.0]))
    with pytest.raises(DataError, match=r"a.npz: column 'id': row 1 .* no longer exact; write this column as text"):
        open_columns(tmp_path / "a.npz").texts("id")


def test_a_cell_that_would_blow_up_the_column_is_refused(tmp_path):
    path = text_file(tmp_path / "a.csv", "id", *["x"] * 3000, "y" * 200_000)
    with pytest.raises(DataError, match="column 'id': row 3000 is 200000 characters long"):
        open_columns(path).texts("id")


@pytest.mark.parametrize("blank", ["", "   ", "nan", "NaN", "null", "None", "<NA>"])
def test_blank_groups_are_groups_of_their_own(blank, tmp_path):
    heard: list[str] = []
    path = text_file(
        tmp_path / "a.csv", "id,group,label,logit_0,logit_1", "a,cam,1,0,1", f"b,{blank},0,1,0", f"c,{blank},1,0,2"
    )
    scores, _ = read_scores(path, say=heard.append)
    assert scores.groups.tolist() == ["cam", "b", "c"]
    assert "2 of 3 rows have a blank group" in heard[0]
    assert Scores(logits=np.zeros((3, 2)), groups=["cam", None, np.nan]).groups.tolist() == ["cam", "row 1", "row 2"]


def test_the_own_group_of_a_row_is_nobody_elses():
    scores = Scores(logits=np.zeros((3, 2)), groups=["b", "", ""], ids=["a", "b", "c"])
    assert len(set(scores.groups.tolist())) == 3
    again = scores.take([1, 2])
    assert again.groups.tolist() == scores.groups[1:].tolist()


def test_one_empty_cell_among_the_ids_is_named(tmp_path):
    path = text_file(tmp_path / "a.csv", "id,label,logit_0,logit_1", "a,1,0,1", ",0,1,0")
    with pytest.raises(DataError, match=r"column 'id' has empty cells \(the first in row 1\)"):
        read_scores(path)


# ---- the text of tables ------------------------------------------------------------------------------------------

ROWS = ["id,group,label,logit_0,logit_1", "x,g,1,0,1.5", "y,h,0,1,0.5"]
SPELLINGS = {
    "semicolons": [row.replace(",", ";") for row in ROWS],
    "tabs": [row.replace(",", "\t") for row in ROWS],
    "bars": [row.replace(",", "|") for row in ROWS],
    "the separator said": ["sep=;", *(row.replace(",", ";") for row in ROWS)],
    "padded names": [" id ,group,  label, logit_0 ,logit_1 ", *ROWS[1:]],
    "padded cells": [ROWS[0], "x , g, 1 , 0 , 1.5", *ROWS[2:]],
    "quoted": ['"id","group","label","logit_0","logit_1"', '"x","g","1","0","1.5"', ROWS[2]],
    "capitals": ["ID,Group,LABEL,Logit_0,Logit_1", *ROWS[1:]],
    "a byte order mark": ["\ufeff" + ROWS[0], *ROWS[1:]],
    "an empty line first": ["", *ROWS],
}


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("ending", ["csv", "CSV", "tsv"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_same_rows_however_they_are_written(spelling, ending, newline, tmp_path):
    path = text_file(tmp_path / f"a.{ending}", *SPELLINGS[spelling], newline=newline)
    scores, _ = read_scores(path)
    assert scores.ids.tolist() == ["x", "y"]
    assert scores.groups.tolist() == ["g", "h"]
    assert scores.labels.tolist() == [1, 0]
    assert scores.logits.tolist() == [[0, 1.5], [1, 0.5]]


def test_a_line_break_inside_quotes_is_part_of_a_cell(tmp_path):
    path = text_file(tmp_path / "a.csv", 'id,label,"logit_0",logit_1', '"x\ny",1,0,1', '"a, b",0,1,0')
    assert read_scores(path)[0].ids.tolist() == ["x\ny", "a, b"]


@pytest.mark.parametrize("ending", ["PARQUET", "NPZ", "Parquet"])
def test_endings_in_capitals(ending, tmp_path):
    path = tmp_path / f"a.{ending}"
    if ending == "NPZ":
        with open(path, "wb") as stream:
            np.savez(stream, logits=np.eye(2))
    else:
        pq.write_table(pa.table({"logit_0": [1.0, 0.0], "logit_1": [0.0, 1.0]}), path)
    assert read_scores(path)[0].logits.tolist() == [[1, 0], [0, 1]]


TEXT_ERRORS = {
    "latin 1": ("a.csv", "id,label,logit_1\ncaf\xe9,1,2\n".encode("latin-1"), ["not UTF-8 text (byte 20)"]),
    "latin 1 in the header": ("a.csv", "id,label,caf\xe9\n1,1,2\n".encode("latin-1"), ["not UTF-8 text (byte 12)"]),
    "UTF-16": ("a.csv", "id,label,logit_1\nx,1,2\n".encode("utf-16"), ["UTF-16"]),
    "a name twice": ("a.csv", b"label,logit_1,label \n1,2,0\n", ["two columns are called 'label'"]),
    "a name twice in two cases": ("a.csv", b"LABEL,logit_1,Label\n1,2,0\n", ["'LABEL' and 'Label'", "rename one"]),
    "a superscript": (
        "a.csv",
        "logit_0,logit_1,logit_²,label\n1,2,3,0\n".encode(),
        ["column 'logit_²'", "plain digits"],
    ),
    "a missing class": ("a.csv", b"logit_0,logit_2,label\n1,2,0\n", ["no column 'logit_1'"]),
    "a class by a huge number": ("a.csv", b"logit_0,logit_" + b"1" * 5000 + b"\n1,2\n", ["plain digits"]),
    "zeros before the number": ("a.csv", b"logit_00,logit_01\n1,2\n", ["column 'logit_00'"]),
    "a short row": ("a.csv", b"label,logit_0,logit_1\n1,2,0\n1,2\n", ["Expected 3 columns, got 2"]),
    "a decimal comma": ("a.csv", b"label;logit_1\n1;0,5\n", ["row 0", "'0,5'", "a point, not a comma"]),
    "beyond range": ("a.csv", b"label,logit_1\n1,1e999\n", ["column 'logit_1': row 0 is inf"]),
    "4,300 digits": ("a.csv", b"label,logit_1\n1," + b"9" * 4301 + b"\n", ["column 'logit_1': row 0 is inf"]),
    "4,300 digits as a label": ("a.csv", b"label,logit_1\n" + b"9" * 4301 + b",1\n", ["row 0"]),
    "underscores": ("a.csv", b"label,logit_1\n1,1_0\n", ["'1_0'", "not a number"]),
    "no rows and no names": ("a.csv", b"\n\n", ["no logits"]),
    "nothing": ("a.tsv", b"", ["the file is empty"]),
    "zeros": ("a.tsv", bytes(100), ["a.tsv"]),
    "a header alone": ("a.csv", b"label,logit_1\n", ["no rows"]),
    "a quote in the header": (
        "a.csv",
        b'"id,label,logit_1\n' + b"1,1,2\n" * 30_000,
        ["a quote in its header never closes"],
    ),
}


@pytest.mark.parametrize("kind", TEXT_ERRORS)
def test_text_that_cannot_be_read_is_named_in_one_line(kind, tmp_path):
    name, content, words = TEXT_ERRORS[kind]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_scores(tmp_path / name)
    assert "\n" not in str(raised.value)
    assert name in str(raised.value)
    for word in words:
        assert word in str(raised.value)


# ---- binary files ------------------------------------------------------------------------------------------------


def npz(**arrays: object) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zipped(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return stream.getvalue()


def npy(descr: str, shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': {descr!r}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def one_array() -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.eye(2))
    return stream.getvalue()


GOOD = npz(logits=np.eye(40), labels=np.arange(40))
NPZ_ERRORS = {
    "empty": (b"", ["the file is empty"]),
    "one array": (one_array(), ["np.savez"]),
    "text": (b"logit_0,logit_1\n", ["not a zip file"]),
    "truncated": (GOOD[:-30], ["a.npz"]),
    "a byte changed": (GOOD[:500] + b"\xff" + GOOD[501:], ["column 'logits'", "CRC"]),
    "a pickle": (npz(logits=np.eye(2), labels=np.array([{}, []], dtype=object)), ["'labels'", "Object arrays"]),
    "a huge shape": (zipped(logits=npy("<f8", "(1000000000000, 2)", bytes(64))), ["'logits'"]),
    "a huge shape of nothing": (zipped(logits=npy("<U0", "(1000000000000,)")), ["'logits'", "numbers or text"]),
    "a huge number of classes": (zipped(logits=npy("<f8", "(0, 1000000000000)")), ["100000 at most"]),
    "a negative shape": (zipped(logits=npy("<f8", "(-1, 2)", bytes(64))), ["'logits'"]),
    "a header of code": (zipped(logits=npy("<f8", "(__import__('os'),)")), ["'logits'"]),
    "complex numbers": (npz(logits=np.eye(2) * 1j), ["'logits'", "complex128"]),
    "records": (npz(logits=np.zeros(2, dtype=[("a", "f8")])), ["'logits'"]),
    "dates": (npz(logits=np.zeros((2, 2), dtype="M8[s]")), ["'logits'", "numbers"]),
    "one number": (npz(logits=np.float64(3)), ["logits"]),
    "one number for a role": (npz(logits=np.eye(2), role=np.str_("val_calib")), ["'role'", "one value per row"]),
    "other members": (zipped(readme=b"text"), ["no logits", "readme"]),
    "too few roles": (npz(logits=np.eye(3), role=["val_calib"]), ["roles: 1 values for 3 rows"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", NPZ_ERRORS)
def test_a_damaged_npz_is_named_in_one_line(kind, tmp_path):
    content, words = NPZ_ERRORS[kind]
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_scores(tmp_path / "a.npz")
    assert "\n" not in str(raised.value)
    assert "a.npz" in str(raised.value)
    for word in words:
        assert word in str(raised.value)


def test_a_nul_never_makes_one_name_of_two(tmp_path):
    groups = ["a\0b", "a\0c", "d"]
    np.savez(tmp_path / "a.npz", group=np.array(groups), label=np.array([text.encode() for text in groups]))
    text_file(tmp_path / "a.csv", "group,x", *(f"{text},1" for text in groups))
    pq.write_table(pa.table({"group": groups}), tmp_path / "a.parquet")
    for ending in ("npz", "csv", "parquet"):
        with pytest.raises(DataError, match=r"column 'group': row 0 is 'a\\x00b': a NUL has no place"):
            open_columns(tmp_path / f"a.{ending}").texts("group")
    assert open_columns(tmp_path / "a.npz").cells("label")[0] == [b"a\0b", b"a\0c", b"d"]


@pytest.mark.parametrize("ending", ["csv", "tsv"])
def test_as_many_classes_as_anyone_has(ending, tmp_path):
    logits = np.arange(3 * 21_841, dtype=float).reshape(3, -1) + 0.123456789012345
    mark = {"csv": ",", "tsv": "\t"}[ending]
    lines = [
        mark.join(f"logit_{place}" for place in range(21_841)),
        *(mark.join(map(repr, row)) for row in logits.tolist()),
    ]
    assert (read_scores(text_file(tmp_path / f"wide.{ending}", *lines))[0].logits == logits).all()


def test_what_unfolds_to_gigabytes_is_refused_before_it_does(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("logits.npy", "w") as out,
    ):
        out.write(npy("<f8", "(20000000, 2)"))
        for _ in range(320):
            out.write(bytes(1_000_000))
    with pytest.raises(DataError, match="'logits' unfolds to 305 MiB"):
        read_scores(tmp_path / "a.npz")


def test_members_that_nobody_asks_for_do_no_harm(tmp_path):
    (tmp_path / "a.npz").write_bytes(npz(logits=np.eye(2), notes=np.array([{}], dtype=object)))
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("README.txt", "text")
    assert len(read_scores(tmp_path / "a.npz")[0]) == 2


LISTS = pa.array([[0.0, 1.0], [1.0, 0.0], [2.0]])
PARQUET_ERRORS = {
    "ragged": ({"logits": LISTS}, ["column 'logits'", "row 2", "1 number(s)"]),
    "an empty place": ({"logits": [[0.0, 1.0], [None, 0.0]]}, ["column 'logits'", "row 1"]),
    "an empty list": ({"logits": [[0.0, 1.0], None]}, ["column 'logits'", "first in row 1"]),
    "lists of lists": ({"logits": [[[0.0], [1.0]]]}, ["column 'logits'", "list"]),
    "a struct": ({"logit_0": [{"a": 1.0}], "logit_1": [1.0]}, ["column 'logit_0'", "struct"]),
    "a struct for an id": ({"logits": [[0.0, 1.0]], "id": [{"a": 1}]}, ["column 'id'", "struct"]),
    "lists for a label": ({"logits": [[0.0, 1.0]], "label": [[1]]}, ["column 'label'", "list"]),
    "text": ({"logit_0": ["a"], "logit_1": [1.0]}, ["column 'logit_0'", "'a'"]),
    "dates": ({"logit_0": pa.array([1], type=pa.date32()), "logit_1": [1.0]}, ["column 'logit_0'", "date32"]),
    "null": ({"logit_0": [None], "logit_1": [1.0]}, ["column 'logit_0'", "empty cells"]),
    "NaN": ({"logit_0": [float("nan")], "logit_1": [1.0]}, ["column 'logit_0'", "row 0 is nan"]),
}  # fmt: skip


@pytest.mark.parametrize("kind", PARQUET_ERRORS)
def test_parquet_columns_of_another_kind_are_named(kind, tmp_path):
    columns, words = PARQUET_ERRORS[kind]
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    with pytest.raises(DataError) as raised:
        read_scores(tmp_path / "a.parquet")
    assert "\n" not in str(raised.value)
    for word in ("a.parquet", *words):
        assert word in str(raised.value)


def test_parquet_of_many_kinds_is_read(tmp_path):
    columns = {
        "logits": pa.array([[0.0, 1.0], [1.0, 0.0]], type=pa.list_(pa.float32(), 2)),
        "group": pa.array(["a", "b"]).dictionary_encode(),
        "id": pa.array([b"x", b"y"]),
        "label": pa.array([1, 0], type=pa.uint8()),
        "gate": pa.array([1, 2], type=pa.int16()),
    }
    # A directory called name=value is no column.
    folder = tmp_path / "role=val_tset"
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "a.parquet")
    scores, roles = read_scores(folder / "a.parquet")
    assert roles is None
    assert scores.groups.tolist() == ["a", "b"]
    assert scores.ids.tolist() == ["x", "y"]
    assert scores.logits.tolist() == [[0, 1], [1, 0]]
    assert scores.gate.tolist() == [1, 2]
