"""Small fuzzers: 200 mutations of each kind of document that a stranger may hand in; every refusal is an error of ours.

A mutation overwrites, drops, doubles or inserts bytes, or puts a hostile piece (deep nesting, huge numbers, NaN,
aliases, NUL) somewhere. What is read must be read, or refused by a Stage1Error of one line, in bounded time and memory.
"""

from __future__ import annotations

import io
import json
import resource
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from stage1.bundle.manifest import read_manifest
from stage1.cascade.config import load_cascade
from stage1.config import DataConfig, load_config, to_yaml
from stage1.data.ingest import source_digest
from stage1.data.listing import list_sources
from stage1.errors import Stage1Error
from stage1.sources.locators import read_locator, split_locator
from stage1.storage.documents import read_document, schema_kinds
from stage1.storage.texts import read_json, read_yaml
from stage1.streetvision.card import read_card

from ..command_line import stage1
from ..limits import spends_at_most
from ..runs.conftest import one_line_error
from ..storage.document_kinds import KINDS

MUTATIONS = 200
SECONDS = 10.0
MEMORY = int(1.5 * 2**30)
PIECES = (
    b"[" * 1500,
    b"{" * 1500,
    b'{"a":' * 1500,
    b"9" * 5000,
    b"NaN",
    b"-Infinity",
    b"1e999",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"&a [*a]",
    b"*a",
    b"!!python/object/apply:os.getcwd []",
    b"!!timestamp x",
    b"!!bool x",
    b"!!binary x",
    b"!!int x",
    b"\t",
    b": ",
    b"0x" + b"f" * 5000,
    b"null",
    b'""',
    b"-",
    b"2001-99-99",
    b"{}",
    b"[]",
    b"<<: 3\n",
    b"a: 1\na: 2\n",
    b"# \r\n",
    b"%YAML 9.9\n---\n",
)


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """`data` with one to three changes."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(changed) + 1))
        width = int(rng.integers(1, 16))
        kind = int(rng.integers(0, 5))
        if kind == 0:
            changed[place : place + width] = rng.integers(0, 256, width, dtype=np.uint8).tobytes()
        elif kind == 1:
            del changed[place : place + width]
        elif kind == 2:
            changed[place:place] = changed[place : place + width * 8]
        elif kind == 3:
            changed[place : place + int(rng.integers(0, 4))] = PIECES[int(rng.integers(0, len(PIECES)))]
        else:
            del changed[place:]
    return bytes(changed)


def survives(read: Callable[[bytes], object], data: bytes, *, seed: int, most: int = MUTATIONS) -> None:
    """`read` of mutations of `data`: an answer or a Stage1Error of one line, soon, in bounded memory; some of each
    are seen.
    """
    read(data)
    rng = np.random.default_rng(seed)
    refused = 0
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # other tests of this process have peaks of their own
    for number in range(most):
        document = mutated(data, rng)
        try:
            with spends_at_most(SECONDS):
                read(document)
        except Stage1Error as error:
            refused += 1
            assert len(str(error).splitlines()) == 1, (number, str(error))  # noqa: PT017
        except Exception as error:
            raise AssertionError(
                f"mutation {number} of seed {seed}: {type(error).__name__}: {str(error)[:200]}"
            ) from error
    assert refused > most // 10, "the mutations are too tame to prove anything"
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY


def through(path: Path, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def reading(data: bytes) -> object:
        path.write_bytes(data)
        return read(path)

    return reading


def picture(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue()


# ---- YAML and overrides ------------------------------------------------------------------------------------------


def test_yaml_configs(tmp_path):
    config, _ = load_config(recipe="baseline", overrides=["data.table=photos", "data.classes=[a, b]"], environment={})
    data = to_yaml(config).encode()
    survives(through(tmp_path / "run.yaml", lambda path: load_config(path, environment={})), data, seed=1)


CASCADE = b"""classes: [a, b]
stages:
  - bundle: runs/a/bundle
    exit: auto
  - http: {url: "https://one.example/v1", timeout_s: 5}
    cost: {per_image: 0.01}
"""


def test_cascade_configs(tmp_path):
    read = through(tmp_path / "cascade.yaml", load_cascade)
    survives(lambda data: _only_ours(read, data), CASCADE, seed=2)


def _only_ours(read: Callable[[bytes], object], data: bytes) -> object:
    if data == CASCADE:
        try:
            return read(data)
        except Stage1Error:
            return None  # which keys a stage takes is of no account here
    return read(data)


@pytest.mark.parametrize(
    "text",
    ["data.classes=[a, b]", "risks={fnr: 0.1, fpr: 0.2}", "train.epochs=3", "seed=4", "views.grid=3x3", "name=x"],
)
def test_overrides(text):
    def read(data: bytes) -> object:
        return load_config(overrides=[data.decode("utf-8", "surrogateescape")], environment={})

    survives(read, text.encode(), seed=len(text), most=MUTATIONS // 4)


@pytest.mark.parametrize(
    "text, words",
    [
        ("a: [" + "[" * 20_000, "nested too deeply"),
        (
            "a: &a [1]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
            + "".join(
                f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n"
                for before, name in zip("bcdefg", "cdefgh", strict=True)
            ),
            "aliases",
        ),
        ("a: &a [*a]", "alias of itself"),
        ("a: 0x" + "f" * 5000, "5002 digits"),
        ("a: " + "9" * 5000, "4300"),
        ("a: !!timestamp x", "NoneType"),
        ("a: !!bool x", "x"),
        ("x" * 2_000_000, "characters"),
        ("a: \0", "special characters"),
    ],
    ids=["nesting", "bomb", "loop", "hex", "digits", "timestamp", "bool", "long", "nul"],
)
def test_hostile_yaml_is_a_value_error_at_once(text, words):
    with spends_at_most(5), pytest.raises(ValueError, match=words):
        read_yaml(text)


# ---- JSON --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text, words",
    [
        ("[" * 100_000, "nested"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ('{"a": NaN}', "NaN"),
        ('{"a": -Infinity}', "Infinity"),
        ('{"a": 1e999}', "range"),
        ('{"a": 1, "a": 2}', "twice"),
        (b'{"a": "\xff"}', "UTF-8"),
        ("", "line 1"),
    ],
)
def test_hostile_json_is_a_value_error(text, words):
    with pytest.raises(ValueError, match=words):
        read_json(text)


def example(schema: dict, root: dict) -> object:
    """Something of the shape of a schema; not always valid, which is as good for a mutation to start from."""
    if "$ref" in schema:
        place: object = root
        for part in schema["$ref"].removeprefix("#/").split("/"):
            place = place[part]  # type: ignore[index]
        return example(place, root)  # type: ignore[arg-type]
    for word in ("const", "default"):
        if word in schema:
            return schema[word]
    if "enum" in schema:
        return schema["enum"][0]
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return example(schema[word][0], root)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        return {name: example(part, root) for name, part in schema.get("properties", {}).items()}
    return {
        "array": [example(schema.get("items", {}), root)] if isinstance(schema.get("items", {}), dict) else [],
        "string": "x",
        "integer": 1,
        "number": 0.5,
        "boolean": True,
        "null": None,
    }[kind]


@pytest.mark.parametrize("kind", schema_kinds())
def test_json_documents_of_every_kind(kind, tmp_path):
    from stage1.storage.documents import schema

    data = json.dumps(example(schema(kind), schema(kind))).encode()
    path = tmp_path / f"{kind}.json"

    def read(document: bytes) -> object:
        path.write_bytes(document)
        try:
            return read_document(path, KINDS[kind])
        except Stage1Error:
            if document == data:
                return None  # of the shape, not of the rules
            raise

    survives(read, data, seed=len(kind), most=60)


CARD = {"model_name": "m", "description": "d", "version": "1.0.0", "submitted_by": "x", "submission_time": 1}


def test_manifests_and_cards(tmp_path):
    def ignoring(read: Callable[[Path], object], path: Path) -> Callable[[bytes], object]:
        def reading(data: bytes) -> object:
            path.write_bytes(data)
            try:
                return read(path)
            except Stage1Error:
                if data in (b"{}", json.dumps(CARD).encode()):
                    return None
                raise

        return reading

    (tmp_path / "bundle").mkdir()
    manifest = ignoring(lambda path: read_manifest(path.parent), tmp_path / "bundle" / "bundle.json")
    survives(manifest, b"{}", seed=3, most=60)
    survives(ignoring(read_card, tmp_path / "card.json"), json.dumps(CARD).encode(), seed=4)


# ---- tar and Parquet ---------------------------------------------------------------------------------------------


def look(path: Path) -> None:
    """What a split asks of a source: its listing, its digest, and the bytes of each image."""
    config = DataConfig(table=str(path))
    listings = list_sources(config)
    source_digest(config)
    for listing in listings:
        for place in listing.paths:
            if split_locator(place):
                try:
                    read_locator(place)
                except (OSError, Stage1Error):
                    continue  # quarantined, by name


def archive() -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for index in range(4):
            note = json.dumps({"label": "ab"[index % 2], "group": f"g{index}"}).encode()
            for name, data in ((f"{index}.png", picture(index)), (f"{index}.json", note)):
                info = tarfile.TarInfo(name)
                info.size, info.pax_headers = len(data), {"comment": "x"} if index == 2 else {}
                tar.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def test_tar_archives(tmp_path):
    survives(_of_many(tmp_path, ".tar"), archive(), seed=5)


def test_tar_headers(tmp_path):
    """The same, where every change falls into headers: most bytes of an archive are content."""
    data, read = archive(), _of_many(tmp_path, ".tar")
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        headers = [member.offset for member in tar]
    rng = np.random.default_rng(6)
    for _ in range(MUTATIONS):
        changed = bytearray(data)
        place = headers[int(rng.integers(len(headers)))] + int(rng.integers(0, 512))
        changed[place : place + 8] = rng.integers(0, 256, 8, dtype=np.uint8).tobytes()
        try:
            read(bytes(changed))
        except Stage1Error as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.parametrize("headers", [{"size": "-1024"}, {"size": "9" * 30}, {"size": "x"}, {"path": "a" * 70_000}])
def test_tar_with_hostile_pax_headers(headers, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.png", "b.png"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 12, headers
            tar.addfile(info, io.BytesIO(b"x" * 12))
    try:
        with spends_at_most(SECONDS):
            look(tmp_path / "x.tar")
    except Stage1Error as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


def test_a_damaged_header_inside_a_tar_is_said_and_loses_nothing_unseen(tmp_path):
    data = bytearray(archive())
    with tarfile.open(fileobj=io.BytesIO(bytes(data))) as tar:
        third = [member.offset for member in tar][3]
    data[third : third + 100] = b"\xff" * 100
    (tmp_path / "x.tar").write_bytes(bytes(data))
    with pytest.raises(Stage1Error, match=r"damaged|no readable"):
        look(tmp_path / "x.tar")


def _of_many(folder: Path, ending: str) -> Callable[[bytes], object]:
    count = 0

    def read(data: bytes) -> object:
        nonlocal count
        count += 1  # readers keep what they know of a file by its name and time
        path = folder / f"{count}{ending}"
        path.write_bytes(data)
        try:
            return look(path)
        finally:
            path.unlink()

    return read


def table(embedded: bool) -> bytes:
    n = 6
    image = (
        pa.array([{"bytes": picture(row), "path": f"{row}.png"} for row in range(n)])
        if embedded
        else pa.array([f"{row}.png" for row in range(n)])
    )
    columns = {
        "image": image,
        "label": [row % 2 for row in range(n)],
        "group": [f"g{row}" for row in range(n)],
        "timestamp": pa.array([10**9 * row for row in range(n)], pa.timestamp("ns")),
    }
    stream = io.BytesIO()
    pq.write_table(pa.table(columns), stream, compression="none", row_group_size=3)
    return stream.getvalue()


@pytest.mark.parametrize("embedded", [False, True], ids=["paths", "embedded"])
def test_parquet_image_tables(embedded, tmp_path):
    read = _of_many(tmp_path, ".parquet")
    survives(read, table(embedded), seed=7 + embedded)


def test_times_and_texts_that_python_cannot_hold_are_named_by_row(tmp_path):
    times = pa.array([0, 2**62], pa.int64()).cast(pa.timestamp("us"))
    pq.write_table(
        pa.table({"image": ["a.png", "b.png"], "label": ["x", "y"], "timestamp": times}), tmp_path / "t.parquet"
    )
    with pytest.raises(Stage1Error, match=r"row 1: column 'timestamp'"):
        look(tmp_path / "t.parquet")
    bad = pa.array([b"a.png", b"\xff.png"], pa.binary())
    texts = pa.Array.from_buffers(pa.string(), 2, bad.buffers())
    pq.write_table(pa.table({"image": texts, "label": ["x", "y"]}), tmp_path / "u.parquet")
    with pytest.raises(Stage1Error, match=r"row 1: column 'image'"):
        look(tmp_path / "u.parquet")


def test_csv_image_tables(tmp_path):
    rows = "\n".join(f"{index}.png,{'ab'[index % 2]},g{index}" for index in range(30))
    read = _of_many(tmp_path, ".csv")
    survives(read, f"image,label,group\n{rows}\n".encode(), seed=9)
    (tmp_path / "x.csv").write_bytes(b"image,label\n" + b"a.png,x\n" * 3000 + b"caf\xe9.png,y\n")
    with pytest.raises(Stage1Error, match=f"not UTF-8, byte {12 + 8 * 3000 + 3}"):
        look(tmp_path / "x.csv")


# ---- tensors -----------------------------------------------------------------------------------------------------


def test_tensors_of_scores_and_weights(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    from stage1.model.weights import read_weights
    from stage1.scores import Scores, read_role, write_role

    rng = np.random.default_rng(0)
    write_role(
        tmp_path,
        "val_test",
        Scores(logits=rng.normal(size=(8, 2)), labels=np.arange(8) % 2, ids=[f"i{n}" for n in range(8)]),
    )
    logits = (tmp_path / "val_test_logits.pt").read_bytes()
    survives(through(tmp_path / "val_test_logits.pt", lambda path: read_role(tmp_path, "val_test")), logits, seed=10)
    (tmp_path / "val_test_logits.pt").write_bytes(logits)
    ids = (tmp_path / "val_test_ids.json").read_bytes()
    survives(through(tmp_path / "val_test_ids.json", lambda path: read_role(tmp_path, "val_test")), ids, seed=11)
    (tmp_path / "val_test_ids.json").write_bytes(ids)
    torch.save(torch.zeros(1).expand(10**9, 2), tmp_path / "val_test_logits.pt")
    with pytest.raises(Stage1Error, match="more than it holds"):
        read_role(tmp_path, "val_test")

    stream = io.BytesIO()
    torch.save({"a": torch.zeros(4, 4), "b": torch.ones(3)}, stream)
    survives(through(tmp_path / "w.pt", read_weights), stream.getvalue(), seed=12)
    from safetensors.torch import save

    data = save({"a": torch.zeros(4, 4), "b": torch.ones(3)})
    survives(through(tmp_path / "w.safetensors", read_weights), data, seed=13)


def test_a_zip_bomb_is_no_tensor(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra train is not installed")
    import zipfile

    from stage1.model.weights import read_weights

    torch.save({"a": torch.zeros(2_000_000)}, tmp_path / "w.pt")
    with (
        zipfile.ZipFile(tmp_path / "w.pt") as whole,
        zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as small,
    ):
        for part in whole.infolist():
            small.writestr(part.filename, whole.read(part))
    assert (tmp_path / "small.pt").stat().st_size < 100_000
    with pytest.raises(Stage1Error, match="compressed"):
        read_weights(tmp_path / "small.pt")


# ---- a few of each, whole ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, data, code, words",
    [
        ("x.yaml", b"name: cafe\xe9\n", 2, "not UTF-8, byte 10"),
        ("x.yaml", b"seed: " + b"9" * 5000, 2, "not valid YAML"),
        ("x.yaml", b"seed: 99999999999999999999\n", 2, "seed"),
        ("x.yaml", b'name: "a\\0b"\n', 2, "NUL"),
        ("x.yaml", b'name: "\\ud800"\n', 2, "half a character"),
        ("x.yaml", b"a: 1\na: 2\n", 2, "twice"),
        ("x.parquet", b"PAR1" + b"\xff" * 40 + b"PAR1", 2, "Parquet"),
        ("x.tar", b"\xff" * 2048, 2, "tar"),
        ("x.csv", b"image,label\n\xe9.png,a\n", 2, "not UTF-8, byte 12"),
    ],
    ids=lambda value: None if isinstance(value, (bytes, int)) else value,
)
def test_through_the_command_line(name, data, code, words, tmp_path):
    (tmp_path / name).write_bytes(data)
    given = [name] if name.endswith(".yaml") else ["--recipe", "baseline", f"data.table={name}"]
    one_line_error(stage1("run", *given, "-o", "out", cwd=tmp_path), code, words)
    assert {path.name for path in tmp_path.iterdir()} == {name}
