"""Damaged score files of every kind: scores, or one line that names the file. Never another exception, a stall or
gigabytes.
"""

from __future__ import annotations

import io
import resource
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from stage1.errors import DataError, IntegrityError, MissingError, Stage1Error
from stage1.scores import Scores, read_role, read_scores, write_role

from ..limits import spends_at_most

MUTATIONS = 200
LONGEST_S = 10.0
MOST_KIB = 1_500 << 10
N = 400


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "logit_0": rng.normal(size=N),
        "logit_1": rng.normal(size=N),
        "label": np.arange(N) % 2,
        "id": np.array([f"i{row}" for row in range(N)]),
        "group": np.array([f"g{row // 2}" for row in range(N)]),
    }


def npz(save: Callable[..., None]) -> bytes:
    parts, stream = columns(), io.BytesIO()
    logits = np.stack([parts.pop("logit_0"), parts.pop("logit_1")], axis=1)
    save(stream, logits=logits, **parts)
    return stream.getvalue()


def table(kind: str) -> bytes:
    stream = io.BytesIO()
    rows = pa.table({name: pa.array(cells.tolist()) for name, cells in columns().items()})
    if kind == "parquet":
        pq.write_table(rows, stream)
    elif kind == "lists.parquet":
        logits = pa.array(np.stack([rows["logit_0"], rows["logit_1"]], axis=1).tolist())
        pq.write_table(rows.drop_columns(["logit_0", "logit_1"]).append_column("logits", logits), stream)
    else:
        pyarrow.csv.write_csv(rows, stream, pyarrow.csv.WriteOptions(delimiter="\t" if kind == "tsv" else ","))
    return stream.getvalue()


KINDS = {
    "stored.npz": lambda: npz(np.savez),
    "packed.npz": lambda: npz(np.savez_compressed),
    **{f"a.{kind}": lambda kind=kind: table(kind) for kind in ("csv", "tsv", "parquet", "lists.parquet")},
}


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One to eight bytes changed, or a piece cut out, doubled, zeroed or filled with noise, or the end cut off."""
    data = bytearray(content)
    # Headers and footers are where the claims stand; half of the damage goes there.
    at = int(
        rng.choice(
            [
                rng.integers(min(256, len(data))),
                len(data) - 1 - rng.integers(min(512, len(data))),
                *rng.integers(len(data), size=2),
            ]
        )
    )
    size = int(rng.choice([1, 4, 40, 400]))
    match rng.integers(7):
        case 0 | 1:
            for place in rng.integers(max(0, at - 20), min(len(data), at + 20) + 1, size=rng.integers(1, 9)):
                data[min(place, len(data) - 1)] = rng.integers(256)
        case 2:
            del data[at : at + size]
        case 3:
            data[at:at] = data[at : at + size]
        case 4:
            data[at : at + size] = bytes(len(data[at : at + size]))
        case 5:
            data[at : at + size] = rng.bytes(size)
        case _:
            del data[at:]
    return bytes(data)


def read_or_named(read: Callable[[], Scores], kinds: tuple[type[Stage1Error], ...]) -> str:
    with spends_at_most(LONGEST_S), warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning is a line on stderr that nobody asked for
        said = ""
        try:
            assert np.isfinite(read().logits).all()
        except kinds as error:
            said = str(error) or "\n"
        assert "\n" not in said
        assert len(said) < 1500
    return "named" if said else "read"


def peak_kib() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if sys.platform == "darwin" else peak


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_named(name, tmp_path):
    before = peak_kib()
    rng, content, path = np.random.default_rng(17), KINDS[name](), tmp_path / name
    path.write_bytes(content)
    assert read_or_named(lambda: read_scores(path)[0], ()) == "read"
    outcomes = []
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, rng))
        outcomes.append(read_or_named(lambda: read_scores(path)[0], (DataError,)))
    assert outcomes.count("named") > MUTATIONS // 20, "damage that never shows is no test"
    assert peak_kib() - before < MOST_KIB


@pytest.mark.parametrize("file", ["val_calib_logits.pt", "val_calib_labels.pt", "val_calib_ids.json"])
def test_a_damaged_tensor_of_a_run_is_read_or_named(file, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    parts = columns()
    scores = Scores(
        logits=np.stack([parts["logit_0"], parts["logit_1"]], axis=1),
        labels=parts["label"],
        ids=parts["id"],
        groups=parts["group"],
    )
    write_role(tmp_path, "val_calib", scores)
    before = peak_kib()
    path = tmp_path / file
    rng, content = np.random.default_rng(18), path.read_bytes()
    assert read_or_named(lambda: read_role(tmp_path, "val_calib"), ()) == "read"
    outcomes = []
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, rng))
        outcomes.append(read_or_named(lambda: read_role(tmp_path, "val_calib"), (IntegrityError, MissingError)))
    assert outcomes.count("named") > MUTATIONS // 20
    assert peak_kib() - before < MOST_KIB


NAMES = {
    "not a mapping": "[]",
    "a number": "7",
    "a text": '"ids"',
    "null": "null",
    "nothing": "",
    "no ids": "{}",
    "a list of lists": '{"ids": [[1], [2, 3]], "groups": null}',
    "nested": "[" * 100_000,
    "a number of 5,000 digits": '{"ids": ' + "9" * 5000 + ', "groups": null}',
    "slices that are a list": '{"ids": null, "groups": null, "slices": [1]}',
    "not UTF-8": b'{"ids": ["caf\xe9"]}',
}


@pytest.mark.parametrize("kind", NAMES)
def test_the_names_beside_the_tensors(kind, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed")
    write_role(tmp_path, "val_calib", Scores(logits=np.eye(2), labels=[0, 1]))
    content = NAMES[kind]
    (tmp_path / "val_calib_ids.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(IntegrityError, match="val_calib_ids.json") as raised:
        read_role(tmp_path, "val_calib")
    assert "\n" not in str(raised.value)


def test_tensors_of_another_kind_are_named(tmp_path):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    write_role(tmp_path, "val_calib", Scores(logits=np.eye(2), labels=[0, 1]))
    strange = [
        {"a": 1},
        [torch.eye(2)],
        torch.eye(2).to_sparse(),
        torch.eye(2, dtype=torch.complex64),
        torch.eye(2) * float("nan"),
        torch.zeros(1).expand(10**9, 2),
        torch.zeros(2, 2, 2),
        torch.tensor(1.0),
    ]
    for content in strange:
        torch.save(content, Path(tmp_path) / "val_calib_logits.pt")
        read_or_named(lambda: read_role(tmp_path, "val_calib"), (IntegrityError,))
        with pytest.raises(IntegrityError, match="val_calib"):
            read_role(tmp_path, "val_calib")
