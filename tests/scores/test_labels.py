"""What a label means: one rule, whatever the file's format (the table in docs/BRING_YOUR_OWN_SCORES.md)."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from stage1.config import DataConfig
from stage1.data.ingest import read_source
from stage1.errors import DataError
from stage1.scores import Scores, read_scores, write_scores
from stage1.scores.labels import found_classes, label_text, named_by_digits, normal_form, place_labels, stored_names

# What stands in the label column, by type; the first two rows, repeated. A CSV holds the text that a program writes for
# each.
COLUMNS: dict[str, tuple[Any, Any]] = {
    "bool": (True, False),
    "int": (1, 0),
    "float": (1.0, 0.0),
    "text bool": ("TRUE", "False"),
    "text number": ("1", "0"),
    "text float": ("1.0", "0.00"),
    "names": ("roadwork", "none"),
}
NUMBERS = ("int", "float", "text number", "text float")
BOOLEANS = ("bool", "text bool")
REFUSED = None
# (types of column, classes) -> places of the two labels, or REFUSED.
RULE: list[tuple[tuple[str, ...], list[str], tuple[int, int] | None]] = [
    (NUMBERS + BOOLEANS + ("names",), ["none", "roadwork"], (1, 0)),
    (("names",), ["roadwork", "none"], (0, 1)),
    (NUMBERS + BOOLEANS, ["roadwork", "none"], (1, 0)),  # positions
    (NUMBERS + BOOLEANS, ["0", "1"], (1, 0)),
    (NUMBERS + BOOLEANS, ["1", "0"], (0, 1)),  # named by digits: never positions
    (NUMBERS + BOOLEANS, ["1.0", "0.0"], (0, 1)),
    (NUMBERS + BOOLEANS, ["false", "true"], (1, 0)),
    (BOOLEANS, ["True", "False"], (0, 1)),
    (NUMBERS, ["True", "False"], REFUSED),  # position or answer?
    (NUMBERS + BOOLEANS, ["no", "yes"], (1, 0)),
    (NUMBERS + BOOLEANS, ["yes", "no"], REFUSED),
    (NUMBERS + BOOLEANS, ["1", "2"], REFUSED),
    (("names",), ["0", "1"], REFUSED),
    (("names",), ["true", "false"], REFUSED),
    (NUMBERS, ["00", "01"], REFUSED),  # 01 is a name of its own
]
CASES = [
    pytest.param(kind, classes, places, id=f"{kind}-{'_'.join(classes)}")
    for kinds, classes, places in RULE
    for kind in kinds
]


def as_text(value: Any) -> str:
    return str(value)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def write_images(pictures: Path, to: Path, values: tuple[Any, Any]) -> Path:
    """A table of four images beside `pictures`, by the ending of `to`; without one a saved Hugging Face data set."""
    paths = [str(pictures / f"{number}.png") for number in range(4)]
    labels = [values[number % 2] for number in range(4)]
    if to.suffix == ".parquet":
        pq.write_table(pa.table({"image": paths, "label": labels}), to)
    elif to.suffix:
        with open(to, "w", newline="") as stream:
            writer = csv.writer(stream, delimiter="\t" if to.suffix == ".tsv" else ",")
            writer.writerows(
                [["image", "label"], *([path, as_text(label)] for path, label in zip(paths, labels, strict=True))]
            )
    else:
        datasets = pytest.importorskip("datasets")
        cells = [{"bytes": Path(path).read_bytes(), "path": None} for path in paths]
        kind = datasets.Value({bool: "bool", int: "int64", float: "float64", str: "string"}[type(labels[0])])
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        datasets.Dataset.from_dict({"image": cells, "label": labels}, features=features).save_to_disk(str(to))
    return to


def write_score_file(to: Path, values: tuple[Any, Any], name: str = "label") -> Path:
    labels = [values[number % 2] for number in range(4)]
    if to.suffix == ".npz":
        np.savez(to, logits=np.zeros((4, 2)), **{name: np.array(labels)})
    elif to.suffix == ".parquet":
        pq.write_table(pa.table({"logit_0": [0.0] * 4, "logit_1": [0.0] * 4, name: labels}), to)
    else:
        sign = "\t" if to.suffix == ".tsv" else ","
        to.write_text(
            "\n".join([sign.join(("logit_0", "logit_1", name)), *(f"0{sign}0{sign}{label}" for label in labels)]) + "\n"
        )
    return to


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ""])
@pytest.mark.parametrize("kind, classes, places", CASES)
def test_labels_of_images(
    pictures: Path, tmp_path: Path, ending: str, kind: str, classes: list[str], places: tuple[int, int] | None
) -> None:
    table = write_images(pictures, tmp_path / f"table{ending}", COLUMNS[kind])
    config = DataConfig(table=str(table), classes=classes)
    if places is REFUSED:
        with pytest.raises(DataError, match=r"table.*label"):
            read_source(config)
    else:
        assert read_source(config).table.labels.tolist() == [*places, *places]


@pytest.mark.parametrize("ending", [".npz", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind, classes, places", CASES)
def test_labels_of_scores(
    tmp_path: Path, ending: str, kind: str, classes: list[str], places: tuple[int, int] | None
) -> None:
    path = write_score_file(tmp_path / f"scores{ending}", COLUMNS[kind])
    if places is REFUSED:
        with pytest.raises(DataError, match=r"scores\.[a-z]+.*label"):
            read_scores(path, classes=classes)
    else:
        assert read_scores(path, classes=classes)[0].known_labels.tolist() == [*places, *places]


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ""])
@pytest.mark.parametrize("kind", COLUMNS)
def test_classes_of_images_that_nobody_named(pictures: Path, tmp_path: Path, ending: str, kind: str) -> None:
    table = read_source(DataConfig(table=str(write_images(pictures, tmp_path / f"table{ending}", COLUMNS[kind])))).table
    wanted = ("none", "roadwork") if kind == "names" else ("false", "true") if kind in BOOLEANS else ("0", "1")
    assert table.classes == wanted
    assert table.labels.tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("ending", [".npz", ".csv", ".tsv", ".parquet"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_columns_of_scores_that_nobody_named(tmp_path: Path, ending: str, kind: str) -> None:
    path = write_score_file(tmp_path / f"scores{ending}", COLUMNS[kind])
    if kind == "names":
        with pytest.raises(DataError, match=r"data.classes=\[none, roadwork\]"):
            read_scores(path)
    else:
        assert read_scores(path)[0].known_labels.tolist() == [1, 0, 1, 0]


def test_class_labels_of_a_score_file_go_by_their_names(tmp_path: Path) -> None:
    info = {"info": {"features": {"truth": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    table = pa.table({"logit_0": [0.0, 0.0], "logit_1": [1.0, 1.0], "truth": [0, 1]})
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(info)}), tmp_path / "s.parquet")
    for classes, places in ((["dog", "cat"], [1, 0]), (["cat", "dog"], [0, 1]), (None, [0, 1])):
        scores, _ = read_scores(tmp_path / "s.parquet", columns={"label": "truth"}, classes=classes)
        assert scores.known_labels.tolist() == places
    with pytest.raises(DataError, match="label 'cat' is outside the classes none, roadwork"):
        read_scores(tmp_path / "s.parquet", columns={"label": "truth"}, classes=["none", "roadwork"])


def test_booleans_of_the_issue(tmp_path: Path) -> None:
    path = tmp_path / "labels_bool_csv.csv"
    path.write_text("id,label,p_true,p_false\na,True,0.9,0.1\nb,False,0.2,0.8\n")
    scores, _ = read_scores(
        path, values="probabilities", columns={"scores": "p_true,p_false"}, classes=["True", "False"]
    )
    assert scores.known_labels.tolist() == [0, 1]


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_files_of_ours_hold_column_numbers_whatever_the_classes_are_called(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"ours{ending}"
    write_scores(path, Scores(logits=np.zeros((3, 2)), labels=np.array([0, 1, 1])))
    for classes in (None, ["1", "0"], ["true", "false"], ["a", "b"]):
        assert read_scores(path, classes=classes)[0].known_labels.tolist() == [0, 1, 1]


def test_label_index_holds_column_numbers_and_stands_alone(tmp_path: Path) -> None:
    path = write_score_file(tmp_path / "i.csv", (1, 0), name="label_index")
    assert read_scores(path, classes=["1", "0"])[0].known_labels.tolist() == [1, 0, 1, 0]
    both = tmp_path / "both.csv"
    both.write_text("logit_0,logit_1,label,label_index\n0,1,1,0\n")
    with pytest.raises(DataError, match="--columns label=NAME"):
        read_scores(both, classes=["1", "0"])
    assert read_scores(both, classes=["1", "0"], columns={"label": "label_index"})[0].known_labels.tolist() == [0]


@pytest.mark.parametrize("ending", [".npz", ".csv", ".parquet"])
def test_a_label_that_is_no_class_is_named_with_its_row(tmp_path: Path, ending: str) -> None:
    path = write_score_file(tmp_path / f"s{ending}", ("roadwork", "rodwork"))
    with pytest.raises(
        DataError, match=r"s\.[a-z]+: column 'label': row 1: label 'rodwork' is outside the classes none, roadwork"
    ):
        read_scores(path, classes=["none", "roadwork"])


# ---- the rule itself ---------------------------------------------------------------------------------------------


def test_a_column_is_judged_as_a_whole() -> None:
    assert place_labels(["cat", "1"], ["cat", "dog"]) == {"cat": 0}  # names: a number is none
    assert place_labels(["0", "1", "bird"], ["cat", "dog"]) == {"0": 0, "1": 1}
    assert place_labels(["True", "0"], ["cat", "dog"]) == {"True": 1, "0": 0}
    assert place_labels(["True", "0"], ["0", "1"]) == {"True": 1, "0": 0}
    assert place_labels(["true", "0", "1"], ["false", "true"]) == {"true": 1, "0": 0, "1": 1}
    assert place_labels(["0", "2"], ["no", "maybe", "yes"]) == {"0": 0, "2": 2}  # 2 can only be a position
    with pytest.raises(DataError, match="as a position it is 'maybe', as a word 'yes'"):
        place_labels(["0", "1"], ["no", "maybe", "yes"])
    assert place_labels(["0", "1"], ["cat", "dog"], positions=False) == {}


def test_missing_labels_are_no_label() -> None:
    assert label_text(None) == label_text(float("nan")) == label_text(np.float32("nan")) == ""
    assert place_labels(["", "nan", "NaN", "a"], ["a", "b"]) == {"a": 0}
    assert place_labels(["nan", "roti"], ["nan", "roti"]) == {"nan": 0, "roti": 1}
    assert found_classes(["", "nan", "b", "a"]) == ("a", "b")


def test_names_that_are_one_label_are_refused() -> None:
    for names in (["1", "1.0"], ["True", "true"], ["0.5", "0.50"]):
        with pytest.raises(DataError, match="same label"):
            place_labels(["x"], names)
    assert place_labels(["01", "1", "Cat"], ["1", "01", "cat", "Cat"]) == {"01": 1, "1": 0, "Cat": 3}


def test_found_classes_are_in_order() -> None:
    assert found_classes(["10", "9", "2", "9.0"]) == ("2", "9", "10")
    assert found_classes(["True", "0", "1"]) == ("0", "1")
    assert found_classes(["01", "1", "2"]) == ("01", "1", "2")
    assert found_classes(["1.0", "1.1"], as_they_stand=True) == ("1.0", "1.1")
    assert found_classes(["True", "nan"], as_they_stand=True) == ("True", "nan")


@given(st.integers(-(10**17), 10**17))
def test_whole_numbers_have_one_form(number: int) -> None:
    assert normal_form(str(number)) == normal_form(f"{number}.0") == label_text(number) == str(number)
    if abs(number) < 2**53:
        assert label_text(float(number)) == str(number)


@given(st.text(max_size=8))
def test_the_form_of_a_form_is_itself(text: str) -> None:
    assert normal_form(normal_form(text)) == normal_form(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_the_same_as_text_and_as_value(value: float) -> None:
    assert label_text(value) == normal_form(str(value))
    assert named_by_digits(label_text(value)) or "e" in str(value)


PAGE = Path(__file__).parents[2] / "docs" / "BRING_YOUR_OWN_SCORES.md"


def documented() -> list[tuple[list[str], list[str], str]]:
    """(labels, classes, places) of each row of the page's table."""
    rows = re.findall(r"^\| (`[^|]+`) \| `\[([^|]+)\]` \| ([^|]+) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return [(re.findall("`([^`]+)`", labels), classes.split(", "), places) for labels, classes, places in rows]


def test_the_table_of_the_page_is_what_is_done() -> None:
    assert len(documented()) == 15
    for labels, classes, places in documented():
        try:
            found = place_labels(labels, classes)
            done = ", ".join(str(found[label]) for label in labels) if len(found) == len(labels) else "refused"
        except DataError:
            done = "refused"
        assert done == places, (labels, classes)


@pytest.mark.parametrize(
    "metadata", [b"[" * 100_000, b"{" * 5_000, b"\xff\xfe", b'{"info": {"features": 3}}', b"9" * 5_000]
)
def test_damaged_metadata_holds_no_names(metadata: bytes) -> None:
    assert stored_names({b"huggingface": metadata}, "label") is None


def test_two_labels_that_are_no_text_stay_two() -> None:
    assert label_text(b"\xff") != label_text(b"\xfe")
