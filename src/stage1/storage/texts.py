"""Texts, YAML and JSON of others are read within limits; what is damaged is one ValueError, one line."""

from __future__ import annotations

import codecs
import json
import math
import os
import stat
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

_CHUNK = 1 << 20
MOST_TEXT = 1 << 30  # bytes of a text that is read whole: tables as CSV; larger ones belong into Parquet
MOST_DOCUMENT = 256 << 20  # bytes of a JSON document; the largest of ours hold some numbers for each image
_YAML_LENGTH = 1 << 20  # characters; the largest config in use has a hundredth of it
_YAML_NODES = 50_000
_INTEGER_BITS = 256
_JSON_DIGITS = 80


def read_yaml(text: str, texts: Collection[str] = (), place: str = "") -> Any:
    """Plain values; a key repeated in one mapping is refused, unlike in YAML. Raises ValueError, ImportError.

    texts: dotted keys (a.b) below which every unquoted word stays the text that was written: no, true, 01 and 1.0 are
    names there, as are all keys everywhere. place: the dotted key that `text` is the value of.
    Refused, too: aliases that write out to more than a document can be, numbers of hundreds of digits, and tags of
    programs.
    """
    import yaml

    if len(text) > _YAML_LENGTH:
        raise ValueError(f"{len(text)} characters; no document of this kind has more than {_YAML_LENGTH}")

    class Loader(yaml.SafeLoader):
        """Of its own: constructors are kept by class."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        # Before `<<` is written out, which may well bring a key that is set again.
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands twice", node.start_mark)
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    def whole(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
        value: int = loader.construct_yaml_int(node)
        if value.bit_length() > _INTEGER_BITS:
            raise ValueError(f"a number of {len(node.value)} digits")
        return value

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Loader.add_constructor("tag:yaml.org,2002:int", whole)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_bomb(node)
        _keep_words(node, texts, place)
        return loader.construct_document(node)
    except RecursionError as error:  # of ten thousand opening brackets
        raise ValueError("nested too deeply") from error
    except (yaml.YAMLError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # A tag that does not fit its value (`!!timestamp x`, `!!bool x`) makes the library trip over itself.
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def _refuse_bomb(root: Any) -> None:
    """Raises ValueError where aliases write out to more than `_YAML_NODES` values, or to themselves."""
    import yaml

    sizes: dict[int, int] = {}
    open_: set[int] = set()
    waiting = [(root, False)]
    while waiting:
        node, children_done = waiting.pop()
        if id(node) in sizes:
            continue
        children: list[Any] = []
        if isinstance(node, yaml.MappingNode):
            children = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            children = list(node.value)
        if children_done:
            sizes[id(node)] = 1 + sum(sizes[id(child)] for child in children)
            open_.discard(id(node))
            if sizes[id(node)] > _YAML_NODES:
                raise ValueError(f"aliases write it out to more than {_YAML_NODES} values; write the values themselves")
            continue
        if id(node) in open_:
            raise ValueError("an alias of itself; write the values themselves")
        open_.add(id(node))
        waiting.append((node, True))
        waiting += [(child, False) for child in children if id(child) not in sizes]


def read_json(text: str | bytes) -> Any:
    """The document in a JSON text. Raises ValueError in one line; unlike Python's reader it refuses NaN, infinities and
    numbers beyond the range of a float, a key repeated in one object, and nesting without end."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            raise ValueError(f"key {max(names, key=names.count)[:40]!r} stands twice in one object")
        return found

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no number of JSON")

    def number(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError(f"{digits[:40]} is beyond the range of a number")
        return value

    def whole(digits: str) -> int:
        if len(digits) > _JSON_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    try:
        return json.loads(text, object_pairs_hook=once, parse_constant=constant, parse_float=number, parse_int=whole)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8, byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def require_stored(path: str | os.PathLike[str]) -> None:
    """Raises ValueError for a zip with compressed parts: torch writes none, and a few KB could become any size."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
        if any(part.compress_type != zipfile.ZIP_STORED for part in parts):
            raise ValueError("compressed parts, which torch does not write")
        if sum(part.file_size for part in parts) > os.stat(path).st_size:
            raise ValueError("parts that are larger than the file")


READ_FAILURES = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What readers of tar, Parquet and Arrow raise where a file is damaged: beside these they have kinds of their own,
which are such.
"""


def read_failure(error: BaseException) -> str:
    """One short line of what a reader said."""
    return " ".join(str(error).split())[:160] or type(error).__name__


def read_text(path: str | os.PathLike[str]) -> str:
    """The text of a file in UTF-8, without the mark that some editors put before it.

    Of a document written by hand: at most `_YAML_LENGTH` characters, asked before it is read.
    Raises OSError where it cannot be read, ValueError where it is larger or naming the first byte that is no UTF-8.
    """
    require_text(path, 4 * _YAML_LENGTH)
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(not_utf8(path)) from error


def require_text(path: str | os.PathLike[str], most: int = MOST_TEXT) -> None:
    """Asked before a text is read whole: a hole in a file has any size and costs its maker nothing.

    Raises OSError; ValueError where the file has more than `most` bytes, or begins with zeros, which no text does.
    """
    state = os.stat(path)
    if not stat.S_ISREG(state.st_mode):  # what a pipe holds cannot be asked
        return
    if state.st_size > most:
        raise ValueError(f"{state.st_size} bytes; a text of this kind has {most} at most")
    with open(path, "rb") as stream:
        head = stream.read(1 << 10)
    if head and not head.strip(b"\0"):
        raise ValueError("it begins with zeros, which no text does")


def not_utf8(path: str | os.PathLike[str]) -> str:
    """Why a file failed to decode as UTF-8, with its first bad byte (a chunked reader does not know it)."""
    decoder, place = codecs.getincrementaldecoder("utf-8")(), 0
    with open(path, "rb") as stream:
        while True:
            piece = stream.read(_CHUNK)
            kept = len(decoder.getstate()[0])  # of a character that began in the piece before
            try:
                decoder.decode(piece, final=not piece)
            except UnicodeDecodeError as error:
                return f"not UTF-8, byte {place - kept + error.start}; save it as UTF-8"
            if not piece:
                return "not UTF-8; save it as UTF-8"
            place += len(piece)


def _keep_words(root: Any, texts: Collection[str], place: str) -> None:
    """Tag plain scalars as text: keys of mappings, and what is at or below a place in `texts` (at it, null is null)."""
    import yaml

    word, nothing = "tag:yaml.org,2002:str", "tag:yaml.org,2002:null"
    waiting, seen = [(root, place, False)], set()
    while waiting:
        node, place, inside = waiting.pop()
        if id(node) in seen:  # an alias, maybe of a node above
            continue
        seen.add(id(node))
        below = inside or place in texts
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if isinstance(key, yaml.ScalarNode):
                    key.tag = key.tag if key.value == "<<" else word
                    waiting.append((value, f"{place}.{key.value}" if place else key.value, below))
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(item, place, below) for item in node.value]
        elif node.style is None and below and (inside or node.tag != nothing):
            node.tag = word
