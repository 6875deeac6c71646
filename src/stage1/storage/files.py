"""Files appear whole or not at all; digests; the lock of a run directory."""

from __future__ import annotations

import codecs
import errno
import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stage1.errors import ConfigError, Stage1Error
from stage1.storage.temporaries import temporary_file

_CHUNK = 1 << 20
MOST_TEXT = 1 << 30  # bytes of a text that is read whole: tables as CSV; larger ones belong into Parquet
MOST_DOCUMENT = 256 << 20  # bytes of a JSON document; the largest of ours hold some numbers for each image
_YAML_LENGTH = 1 << 20  # characters; the largest config in use has a hundredth of it
_YAML_NODES = 50_000
_INTEGER_BITS = 256
_JSON_DIGITS = 80
_READER_S = 60.0  # that a FIFO is waited for to be opened by somebody
_OPEN_ALREADY = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")


def digest_bytes(data: bytes) -> str:
    """sha256 of `data`, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: str | os.PathLike[str]) -> str:
    """sha256 of the file's bytes, read in pieces of 1 MiB."""
    sha = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_CHUNK):
            sha.update(piece)
    return sha.hexdigest()


def digest_ids(ids: Iterable[str]) -> str:
    """sha256 of a set of ids: sorted, joined by newlines, so that the order of rows does not matter."""
    return digest_bytes("\n".join(sorted(ids)).encode())


@contextmanager
def atomic_writer(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary stream whose content replaces `path` only when the block ends without an error.

    A link stays, and what it points to is replaced. A device or FIFO gets the content when it is whole, and stays what
    it is.
    Raises Stage1Error (one line, with the path) where the disk is full or the folder cannot be written to, ConfigError
    where the path is a folder, a socket or a disk.
    """
    with _replacing(Path(path)) as temporary, open(temporary, "r+b") as stream:
        yield stream
        stream.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """The name of an empty temporary file; after the block it is synced and renamed over `path`, or written into it
    where that is no regular file.

    On an error it is removed and `path` is unchanged; OSError becomes Stage1Error.
    """
    try:
        if _is_special(path):
            with tempfile.TemporaryDirectory(prefix="stage1-") as folder:
                temporary = os.path.join(folder, "whole")
                open(temporary, "xb").close()
                yield temporary
                _write_into(path, temporary)
            return
        target = Path(os.path.realpath(path))
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(target) as temporary:
            yield temporary
            with open(temporary, "rb") as stream:
                os.fsync(stream.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, target)
            _sync_folder(target.parent)
    except OSError as error:
        raise write_error(path, error) from error


def _is_special(path: Path) -> bool:
    """Whether `path` is something that is written into, not replaced.

    Raises ConfigError for what cannot be written at all, OSError for links in a circle and the like.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; give the name of a file")
    if stat.S_ISSOCK(mode) or stat.S_ISBLK(mode):
        kind = "socket" if stat.S_ISSOCK(mode) else "disk"
        raise ConfigError(f"{path}: is a {kind}, which is not written to; give the name of a file")
    return not stat.S_ISREG(mode) or _OPEN_ALREADY.fullmatch(os.path.abspath(path)) is not None


def _write_into(path: Path, whole: str) -> None:
    handle = _opened(path)
    try:
        os.set_blocking(handle, True)
        with open(whole, "rb") as reading, open(handle, "wb", closefd=False) as writing:
            shutil.copyfileobj(reading, writing, _CHUNK)
    finally:
        os.close(handle)


def _opened(path: Path) -> int:
    """A handle to write with. A FIFO without a reader is waited for, not for ever. Raises OSError."""
    end = time.monotonic() + _READER_S
    while True:
        try:
            # Append: standard output may be a file that others have written to.
            return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError as error:
            if error.errno != errno.ENXIO or time.monotonic() > end:
                why = "nobody reads from it" if error.errno == errno.ENXIO else error.strerror
                raise OSError(error.errno, why) from error
        time.sleep(0.05)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` as UTF-8 to `path`, whole or not at all. Bytes of a file name that are no UTF-8 appear as
    \udcXX.
    """
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_through(path: str | os.PathLike[str], save: Callable[[str], None]) -> None:
    """For libraries that only write to a path: `save(temporary)`, then sync and rename over `path`."""
    with _replacing(Path(path)) as temporary:
        save(temporary)


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


def write_error(path: Path, error: OSError) -> Stage1Error:
    """The one-line error for a failed write: which file, why, what to do."""
    why = error.strerror or str(error)
    return Stage1Error(
        f"{path}: cannot be written ({why}); free space or choose another --output. Nothing was replaced."
    )


def _sync_folder(folder: Path) -> None:
    # Without this a crash right after the rename may bring back the old name on some file systems.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def locked(folder: str | os.PathLike[str], *, wait: bool = False) -> Iterator[None]:
    """Hold the exclusive lock of a folder; wait: until it is free, else a second process gets a one-line error at once.

    The lock is the kernel's (flock), so it is released with the process, however that ends.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"{folder}: is no folder, or lies below what is none; choose another --output") from error
    except OSError as error:
        raise write_error(path, error) from error
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            raise Stage1Error(
                f"{folder}: another process (pid {holder}) works in this run directory; wait for it or use another one"
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
