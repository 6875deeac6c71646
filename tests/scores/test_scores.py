"""Scores: validation, files, tensors of a run."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytest import approx
from scipy import special

from stage1.errors import DataError, IntegrityError, MissingError
from stage1.scores import Scores, from_probabilities, read_role, read_scores, write_role, write_scores


def example(k=2):
    rng = np.random.default_rng(0)
    return Scores(
        logits=rng.normal(size=(7, k)),
        labels=rng.integers(0, k, 7),
        gate=rng.normal(size=7),
        groups=list("aabbccd"),
        ids=[f"id{row}" for row in range(7)],
    )


def same(a: Scores, b: Scores) -> bool:
    return all(
        (getattr(a, name) is None and getattr(b, name) is None) or np.array_equal(getattr(a, name), getattr(b, name))
        for name in ("logits", "labels", "gate", "groups", "ids")
    )


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"logits": [[0.0, np.nan]]}, "logits: row 0"),
        ({"logits": [[0.0, np.inf]]}, "logits: row 0"),
        ({"logits": [0.0, 1.0]}, "logits: 1 dimension"),
        ({"logits": [[0.0]]}, "1 column"),
        ({"logits": [["a", "b"]]}, "not numbers"),
        ({"logits": np.zeros((2, 2)), "labels": [0]}, "labels: 1 values for 2 rows"),
        ({"logits": np.zeros((2, 2)), "labels": [0, 2]}, "labels: row 1 is 2, outside 0..1"),
        ({"logits": np.zeros((2, 2)), "labels": [0, -1]}, "labels: row 1 is -1"),
        ({"logits": np.zeros((2, 2)), "labels": [0.5, 1]}, "whole numbers"),
        ({"logits": np.zeros((2, 2)), "labels": ["none", "roadwork"]}, "whole numbers"),
        ({"logits": np.zeros((2, 2)), "ids": ["a", "a"]}, "'a' occurs 2 times"),
        ({"logits": np.zeros((2, 2)), "groups": ["a"]}, "groups: 1 values"),
        ({"logits": np.zeros((2, 2)), "gate": [0.0, np.nan]}, "gate: row 1"),
    ],
)
def test_bad_fields_are_named(fields, message):
    with pytest.raises(DataError, match=message):
        Scores(**fields)


def test_margin_and_probabilities():
    scores = example()
    assert scores.margin == approx(scores.logits[:, 1] - scores.logits[:, 0])
    assert scores.probabilities == approx(special.softmax(scores.logits, axis=1))
    with pytest.raises(DataError, match="3 classes"):
        _ = example(3).margin


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_binary_probabilities_keep_their_order_and_ties(values):
    p = np.array(values)
    margin = from_probabilities(p).margin
    assert np.isfinite(margin).all()
    for i in range(len(p) - 1):
        if p[i] == p[i + 1]:
            assert margin[i] == margin[i + 1]
        elif 1 - p[i] != 1 - p[i + 1]:  # floats this close to 0 have the same complement
            assert (margin[i] < margin[i + 1]) == (p[i] < p[i + 1])


@pytest.mark.parametrize("values", [[1.2], [-0.1], [np.nan], [[0.5, 0.6]], [[[0.5]]]])
def test_probabilities_that_are_none(values):
    with pytest.raises(DataError, match="probabilities"):
        from_probabilities(values)


def bfloat16(values: np.ndarray) -> np.ndarray:
    """Rounded to the nearest bfloat16: the upper half of a float32."""
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


@pytest.mark.parametrize(
    "rounded", [np.float32, np.float16, bfloat16, lambda p: p.round(3)], ids=["32", "16", "b16", "3"]
)
@pytest.mark.parametrize("k", [2, 3, 1000])
def test_probabilities_off_by_rounding_are_read(rounded, k):
    p = special.softmax(np.random.default_rng(0).normal(0, 3 if k < 1000 else 8, (500, k)), axis=1)
    heard: list[str] = []
    if k == 1000 and not isinstance(rounded, type) and rounded is not bfloat16:
        return  # a thousand classes printed with three digits are not probabilities any more
    given = rounded(p).astype(np.float64)
    scores = from_probabilities(given, say=heard.append)
    assert np.allclose(scores.probabilities, given / given.sum(axis=1, keepdims=True), atol=1e-9)
    off = int((np.abs(given.sum(axis=1) - 1) > 1e-5).sum())
    assert [line.split(" rows")[0] for line in heard] == ([f"{off} of 500"] if off else [])


@pytest.mark.parametrize(
    "values, count",
    [
        ([1.0000001, 0.5, -1e-9], 2),
        ([[1.0000001, -1e-9], [0.5, 0.5]], 1),
        ([[0.499, 0.499], [0.5, 0.5], [0.502, 0.5]], 2),
        ([0.0, 1.0], 0),
    ],
)
def test_what_was_clipped_is_counted(values, count):
    heard: list[str] = []
    scores = from_probabilities(values, say=heard.append)
    assert ((scores.probabilities >= 0) & (scores.probabilities <= 1)).all()
    assert [line.split(" of ")[0] for line in heard] == ([str(count)] if count else [])


@pytest.mark.parametrize(
    "values, row",
    [
        ([0.5, 1.01], 1),
        ([0.5, 0.5, -0.01], 2),
        ([[0.5, 0.5], [0.5, 0.49]], 1),
        ([[0.5, 0.51]], 0),
        ([[1.1, -0.1]], 0),
        ([0.5, np.nan], 1),
        ([0.5, np.inf], 1),
    ],
)
def test_beyond_rounding_the_row_is_named(values, row):
    with pytest.raises(DataError, match=f"probabilities: row {row} (is|sums to)"):
        from_probabilities(values)


UNSAID = {
    "probabilities in one column": ("p\n0.2\n0.9\n", "p", "all values lie in [0, 1]: these look like probabilities"),
    "probabilities of two": (
        "a,b\n0.2,0.8\n0.9,0.1\n",
        "a,b",
        "[0, 1] and rows sum to 1: these look like probabilities",
    ),
    "logits": ("p\n-2.5\n3\n", "p", "between -2.5 and 3: these look like logits"),
    "neither": ("a,b\n0.2,0.2\n0.9,0.1\n", "a,b", "do not sum to 1: these look like neither"),
}


@pytest.mark.parametrize("kind", UNSAID)
def test_what_columns_hold_is_never_guessed(kind, tmp_path):
    text, columns, words = UNSAID[kind]
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        read_scores(tmp_path / "a.csv", columns={"scores": columns})
    assert "say --values logits or --values probabilities" in str(raised.value)
    assert words in str(raised.value)


def test_names_of_ours_say_what_columns_hold(tmp_path):
    (tmp_path / "a.csv").write_text("prob_0,prob_1,logit_0,logit_1\n0.25,0.75,0,1\n")
    with pytest.raises(DataError, match="holds logits and probabilities; say which"):
        read_scores(tmp_path / "a.csv")
    assert read_scores(tmp_path / "a.csv", values="logits")[0].margin == approx([1])
    assert read_scores(tmp_path / "a.csv", columns={"scores": "prob_1"})[0].margin == approx([np.log(3)])
    np.savez(tmp_path / "a.npz", probabilities=[0.75])
    assert read_scores(tmp_path / "a.npz")[0].margin == approx([np.log(3)])


@pytest.mark.parametrize("said", ["logits", None])
def test_logits_that_look_like_probabilities_are_read_with_a_warning(said, tmp_path):
    heard: list[str] = []
    (tmp_path / "a.csv").write_text("logit_0,logit_1\n0.25,0.75\n0.5,0.5\n")
    assert read_scores(tmp_path / "a.csv", values=said, say=heard.append)[0].margin.tolist() == [0.5, 0.0]
    assert len(heard) == 1
    assert "these look like probabilities" in heard[0]
    write_scores(tmp_path / "b.csv", example())
    read_scores(tmp_path / "b.csv", say=heard.append)
    assert len(heard) == 1


@pytest.mark.parametrize("ending", ["npz", "parquet", "csv"])
@pytest.mark.parametrize("k", [2, 3])
def test_files_round_trip(tmp_path, ending, k):
    path = tmp_path / f"scores.{ending}"
    roles = ["val_select"] * 3 + ["val_calib"] * 4
    write_scores(path, example(k), roles)
    scores, back = read_scores(path)
    assert same(scores, example(k))
    assert back.tolist() == roles


@pytest.mark.parametrize("ending", [".parquet", ".csv"])
def test_rows_written_in_pieces_are_the_same_rows(tmp_path, ending, monkeypatch):
    monkeypatch.setattr("stage1.scores.score_files._ROWS_AT_ONCE", 3)
    scores, roles = example(), ["val_select"] * 2 + ["val_calib"] * 5
    write_scores(tmp_path / f"a{ending}", scores, roles)
    again, found = read_scores(tmp_path / f"a{ending}")
    assert same(scores, again)
    assert found is not None
    assert found.tolist() == roles


def test_probability_columns_are_read_only_where_said(tmp_path):
    (tmp_path / "p.csv").write_text("label,prob_0,prob_1\n0,0.9,0.1\n1,0.2,0.8\n")
    scores, roles = read_scores(tmp_path / "p.csv", values="probabilities")
    assert roles is None
    assert scores.probabilities[:, 1] == approx([0.1, 0.8])
    with pytest.raises(DataError, match="no logits found"):
        read_scores(tmp_path / "p.csv", values="logits")
    # Columns by our names say themselves what they hold.
    assert (read_scores(tmp_path / "p.csv")[0].logits == scores.logits).all()


def test_foreign_names_and_one_column(tmp_path):
    np.savez(tmp_path / "x.npz", prob=np.array([0.1, 1.0, 1.0]), truth=np.array([0, 1, 1]))
    scores, _ = read_scores(tmp_path / "x.npz", values="probabilities", columns={"scores": "prob", "label": "truth"})
    assert scores.labels.tolist() == [0, 1, 1]
    assert scores.margin[1] == scores.margin[2] > 100
    with pytest.raises(DataError, match="no column 'lable'"):
        read_scores(tmp_path / "x.npz", values="probabilities", columns={"scores": "prob", "label": "lable"})


@pytest.mark.parametrize(
    "name, text, message",
    [
        ("a.csv", "label,logit_0,logit_1\n0,1,nan\n", "NaN|empty|logits"),
        ("b.csv", "label,logit_0,logit_1\n0,1,\n", "empty cells"),
        ("c.csv", "label,logit_0,logit_1,role\n0,1,2,tset\n", "role 'tset'"),
        ("d.txt", "x", "unknown ending"),
        ("e.npz", "x", "cannot be read as .npz"),
        ("f.parquet", "x", "cannot be read as .parquet"),
        ("g.csv", "", "cannot be read as .csv"),
        ("h.csv", "id,label,logit_0,logit_1\na,0,1,2\na,0,1,2\n", "occurs 2 times"),
    ],
)
def test_bad_files_are_named(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_scores(tmp_path / name)
    assert name in str(caught.value)
    with pytest.raises(MissingError):
        read_scores(tmp_path / "nothing.csv")


def test_tensors_of_a_run_round_trip(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    write_role(tmp_path, "val_calib", example())
    assert same(read_role(tmp_path, "val_calib"), example())
    assert torch.load(tmp_path / "val_calib_logits.pt", weights_only=True).shape == (7, 2)
    with pytest.raises(MissingError, match="val_test"):
        read_role(tmp_path, "val_test")
    (tmp_path / "val_calib_logits.pt").write_bytes(b"broken")
    with pytest.raises(IntegrityError, match="val_calib_logits.pt"):
        read_role(tmp_path, "val_calib")


def test_an_attribute_that_is_asked_for_is_found_under_its_own_name(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("logit_0,logit_1,city\n0,1,bern\n1,0,zug\n")
    assert read_scores(path)[0].slices == {}
    assert read_scores(path, slices=["city", "night"])[0].slices["city"].tolist() == ["bern", "zug"]
    path.write_text("logit_0,logit_1,city,slice_city\n0,1,x,bern\n1,0,y,zug\n")
    assert read_scores(path, slices=["city"])[0].slices["city"].tolist() == ["bern", "zug"]
    given = read_scores(path, slices=["city"], columns={"slice_city": "city"})[0]
    assert given.slices["city"].tolist() == ["x", "y"]
