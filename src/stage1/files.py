"""Files appear whole or not at all; digests; the lock of a run directory."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from stage1.errors import Stage1Error

_CHUNK = 1 << 20


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

    Raises Stage1Error (one line, with the path) where the disk is full or the folder cannot be written to.
    """
    with _replacing(Path(path)) as temporary, open(temporary, "wb") as stream:
        yield stream
        stream.flush()


@contextmanager
def _replacing(path: Path) -> Iterator[str]:
    """The name of an empty temporary file in the same folder; after the block it is synced and renamed over `path`.

    On an error it is removed and `path` is as it was; OSError becomes Stage1Error.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
    except OSError as error:
        raise write_error(path, error) from error
    try:
        yield temporary
        with open(temporary, "rb") as stream:
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise write_error(path, error) from error
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path`, whole or not at all."""
    with atomic_writer(path) as stream:
        stream.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    r"""Write `text` as UTF-8 to `path`, whole or not at all. Bytes of a file name that are no UTF-8 appear as \udcXX."""
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def write_through(path: str | os.PathLike[str], save: Callable[[str], None]) -> None:
    """For libraries that only write to a path: `save(temporary)`, then sync and rename over `path`."""
    with _replacing(Path(path)) as temporary:
        save(temporary)


def read_yaml(text: str, texts: Collection[str] = (), place: str = "") -> Any:
    """Plain values; unlike YAML itself, a key that stands twice in one mapping is refused. Raises ValueError, ImportError.

    texts: dotted keys (a.b) below which every unquoted word stays the text that was written: no, true, 01 and 1.0 are names
    there, as are all keys everywhere. place: the dotted key that `text` is the value of.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Of its own: constructors are kept by class."""

    def mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
        # Before `<<` is written out, which may well bring a key that is set anew.
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [name for place, name in enumerate(names) if name in names[:place]]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} stands twice", node.start_mark)
        loader.flatten_mapping(node)
        return loader.construct_mapping(node, deep=True)

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _keep_words(node, texts, place)
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:  # the latter of ten thousand opening brackets
        raise ValueError(str(error)) from error


def _keep_words(root: Any, texts: Collection[str], place: str) -> None:
    """Tag plain scalars as text: the keys of mappings, and what lies at or below a place in `texts` (at it, null is null)."""
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

    The lock is the kernel's (flock), so it goes with the process, however that ends.
    """
    path = Path(folder) / ".lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
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
