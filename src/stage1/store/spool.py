"""The spool: a folder in which a decision is safe before the database has it.

A segment is a file of lines, each `LENGTH CRC32 JSON`: eight hexadecimal digits each, then the canonical JSON, which
holds no line break. Lines are appended and synced together (group commit: whoever comes first writes for all that
wait). A segment is locked (flock) by the process that writes it; one that nobody holds was left by a process that
died, and is taken over.

What a kill leaves: lines are acknowledged after the sync, so what follows the last line break was never acknowledged,
and goes. A line that has its end and cannot be read is a fault of the disk or of a person, and may have been
acknowledged: the others are taken, and the file is kept aside as `NAME.damaged`.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import threading
import zlib
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from stage1.errors import ConfigError, StoreError

ENDING, DAMAGED = ".segment", ".damaged"
STORE_FILE = "store"
_LINE = re.compile(rb"([0-9a-f]{8}) ([0-9a-f]{8}) ")
_HEADER = 18
_ROLL_BYTES = 4 << 20
_ROOM_BYTES = 1 << 30


@dataclass(slots=True, eq=False)
class Segment:
    """An open file of the spool, locked by this process. events: lines in it; size: bytes that are synced."""

    path: Path
    handle: int
    events: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class Lines:
    """What a segment holds. damaged: lines that were acknowledged, perhaps, and cannot be read."""

    contents: list[bytes]
    damaged: int


class _Batch:
    """Lines that are synced together; all callers that put lines in wait for the one that writes."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.done = False
        self.error: StoreError | None = None


class Spool:
    """folder: of this store alone; store_id: its name, so that no other store's decisions are taken for its own.

    room: bytes that may wait for the database before `append` refuses.
    """

    def __init__(self, folder: Path, store_id: str, *, room: int = _ROOM_BYTES) -> None:
        self.folder, self._room = folder, room
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _claim(folder, store_id)
        except OSError as error:
            raise StoreError(f"{folder}: cannot be used as the spool ({error.strerror})") from error
        self._gather = threading.Lock()  # the lines of the next batch
        self._file = threading.Lock()  # the current segment: taken after `_gather` is let go
        self._batch = _Batch()
        self._current: Segment | None = None
        self._full: deque[Segment] = deque()
        self._bytes = 0
        self.appended = 0
        """Decisions that were synced or taken over, since the start."""

    def append(self, contents: Iterable[bytes]) -> None:
        """Returns when the contents are on the disk. Raises StoreError, and keeps none of them, where they cannot be
        written.
        """
        lines = [framed(content) for content in contents]
        with self._gather:
            batch = self._batch
            batch.lines += lines
        with self._file:
            if not batch.done:
                with self._gather:
                    self._batch = _Batch()
                batch.done = True
                try:
                    self._write(batch.lines)
                except StoreError as error:
                    batch.error = error
                except OSError as error:
                    batch.error = StoreError(f"{self.folder}: the spool cannot be written ({error.strerror or error})")
        if batch.error is not None:
            raise StoreError(str(batch.error))

    def take(self) -> Segment | None:
        """The oldest segment with decisions in it, which is appended to no more. For one thread."""
        with self._file:
            if self._full:
                return self._full.popleft()
            if self._current is None or not self._current.events:
                return None
        fresh = None
        with suppress(OSError):  # a full disk: the next append says so, and what waits can still leave
            fresh = self._new()
        with self._file:
            taken, self._current = self._current, fresh
        return taken

    def adopt(self) -> list[Segment]:
        """The segments that processes left which are gone, oldest first, now held by this one."""
        adopted = []
        for path in sorted(self.folder.glob(f"*{ENDING}"), key=_age):
            if (segment := _seized(path)) is not None:
                segment.size = os.fstat(segment.handle).st_size
                segment.events = len(read_lines(segment).contents)
                adopted.append(segment)
        for path in self.folder.glob("*.new"):  # killed before it was a segment
            if (unused := _seized(path)) is not None:
                path.unlink(missing_ok=True)
                os.close(unused.handle)
        with self._file:
            self.appended += sum(segment.events for segment in adopted)
            self._bytes += sum(segment.size for segment in adopted)
        return adopted

    def drop(self, segment: Segment, *, keep_damaged: bool = False) -> None:
        """Let go of a segment whose decisions the database has."""
        if keep_damaged:
            segment.path.rename(segment.path.with_suffix(DAMAGED))
        else:
            segment.path.unlink(missing_ok=True)
        os.close(segment.handle)
        with self._file:
            self._bytes -= segment.size

    def leave(self, segment: Segment) -> None:
        """Let go of a segment that the database does not have: the next start takes it over."""
        os.close(segment.handle)

    def damaged(self) -> int:
        """Files with lines that could not be read."""
        return sum(1 for _ in self.folder.glob(f"*{DAMAGED}"))

    def close(self) -> None:
        """Let go of the files: the next process that opens the spool takes over what is left."""
        with self._file:
            segments = [*self._full, *([self._current] if self._current else [])]
            self._full.clear()
            self._current = None
        for segment in segments:
            if not segment.events:
                segment.path.unlink(missing_ok=True)
            os.close(segment.handle)

    def _write(self, lines: list[bytes]) -> None:
        data = b"".join(lines)
        if self._bytes + len(data) > self._room:
            raise StoreError(
                f"{self.folder}: {self._bytes} bytes wait for the database, and no more may; see the store"
            )
        segment = self._current
        if segment is None:
            segment = self._current = self._new()
        try:
            done = 0
            while done < len(data):
                done += os.pwrite(segment.handle, data[done:], segment.size + done)
            os.fdatasync(segment.handle)
        except OSError:
            # What was not acknowledged must not be found. Whether pages of a failed sync are on the disk is unknown:
            # nothing more is appended to them.
            with suppress(OSError):
                os.ftruncate(segment.handle, segment.size)
            self._current = None
            self._retire(segment)
            raise
        segment.size += len(data)
        segment.events += len(lines)
        self._bytes += len(data)
        self.appended += len(lines)
        if segment.size >= _ROLL_BYTES:
            self._current = None
            self._retire(segment)

    def _retire(self, segment: Segment) -> None:
        if segment.events:
            self._full.append(segment)
        else:
            segment.path.unlink(missing_ok=True)
            os.close(segment.handle)

    def _new(self) -> Segment:
        path = self.folder / f"{os.getpid()}-{secrets.token_hex(8)}{ENDING}"
        making = path.with_suffix(".new")
        handle = os.open(making, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.rename(making, path)  # from here on others see it: locked
            _sync_folder(self.folder)
        except OSError:
            os.close(handle)
            for name in (making, path):
                name.unlink(missing_ok=True)
            raise
        return Segment(path, handle)


def framed(content: bytes) -> bytes:
    """A content as its line.

    >>> framed(b"{}")
    b'00000002 a3b6f7a3 {}\\n'
    """
    return b"%08x %08x %b\n" % (len(content), zlib.crc32(content), content)


def read_lines(segment: Segment) -> Lines:
    """The contents of a segment; see the module for what of a damaged one is kept."""
    data = b""
    while piece := os.pread(segment.handle, 1 << 22, len(data)):
        data += piece
    *whole, _ = data.split(b"\n")  # what follows the last line break is torn, or empty
    contents: list[bytes] = []
    for line in whole:
        found = _LINE.match(line)
        content = line[_HEADER:]
        if found and int(found[1], 16) == len(content) and int(found[2], 16) == zlib.crc32(content):
            contents.append(content)
    return Lines(contents, damaged=len(whole) - len(contents))


def _claim(folder: Path, store_id: str) -> None:
    """Write the name of the store into the folder, or compare it with the one that stands there."""
    path = folder / STORE_FILE
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        found = path.read_text(encoding="ascii", errors="replace").strip()
        if found and found != store_id:  # empty: killed between the making and the writing
            raise ConfigError(f"{folder}: is the spool of another store; give each store a folder of its own") from None
        if found:
            return
        handle = os.open(path, os.O_WRONLY)
    with open(handle, "w", encoding="ascii") as stream:
        stream.write(store_id)
        stream.flush()
        os.fsync(handle)


def _seized(path: Path) -> Segment | None:
    """The segment, locked by this process, or None where another holds it or removed it in the meantime."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    with suppress(OSError):  # another process holds it
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(handle).st_nlink and path.exists():
            return Segment(path, handle)
    os.close(handle)
    return None


def _age(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.name
    except OSError:
        return 0.0, path.name


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
