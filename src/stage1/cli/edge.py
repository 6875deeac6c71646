"""The edge of the process: streams that are closed, and every error as one line on stderr with its exit code."""

from __future__ import annotations

import errno
import os
import platform
import sys
import tempfile
import time
import traceback
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.core import TyperGroup

from stage1.errors import Stage1Error
from stage1.version import __version__

TRACEBACK = "STAGE1_TRACEBACK"
"""Set to anything: errors also show where they were raised. Not a key of the config."""

_LONGEST = 2000  # characters: names in a message may be as long as a damaged file makes them


class Group(TyperGroup):
    """The commands; an end of file that nobody expected is an error as any other, not the user's wish to leave.

    The help of a command is its docstring, in which a paragraph may be wrapped: it is shown as one line.
    """

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        _unwrap(self)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except EOFError as error:
            raise RuntimeError(f"EOFError: {error or 'the input ends too early'}") from error


def _unwrap(command: Any) -> None:
    """Join the lines of each paragraph in the help of `command` and of those below it; Typer keeps them apart."""
    if command.help:
        command.help = "\n\n".join(part.replace("\n", " ") for part in command.help.split("\n\n"))
    for below in getattr(command, "commands", {}).values():
        _unwrap(below)


def guarded(command: Callable[[], object]) -> int:
    """Run `command` and return the exit code; what goes wrong is one line on stderr. Results are flushed before."""
    _open_streams()
    try:
        try:
            command()
            code = 0
        except SystemExit as end:
            # Typer makes exits of its own of Ctrl-C (130, without a word) and of a reader of stdout that went away (1).
            if isinstance(end.__context__, BrokenPipeError):
                raise BrokenPipeError from end
            if end.code == 130:
                raise KeyboardInterrupt from end
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _abandon_stdout()  # the reader of stdout went away (`| head`): not an error
        return 0
    except KeyboardInterrupt:
        _say("interrupted; run the same command to go on")
        return 130
    except BaseException as error:
        line, code = outcome(error)
        _say(f"error: {line}")
        if os.environ.get(TRACEBACK):
            _say("".join(traceback.format_exception(error)).rstrip())
        try:
            sys.stdout.flush()
        except OSError:
            _abandon_stdout()  # else Python complains once more at its exit
        return code


def outcome(error: BaseException) -> tuple[str, int]:
    """The line that says what went wrong, and the exit code. For what nobody foresaw, the details go to a file."""
    if isinstance(error, Stage1Error):
        return _one_line(error) or type(error).__name__, error.exit_code
    if isinstance(error, MemoryError):
        return (
            f"out of memory ({_one_line(error)[:200] or 'an allocation failed'}); give the process more, or less to do",
            1,
        )
    if isinstance(error, ImportError):
        from stage1.extras import import_failure

        known = import_failure(error)
        return _one_line(known), known.exit_code
    if isinstance(error, OSError) and (error.filename is not None or error.errno in (errno.ENOSPC, errno.EBADF)):
        where = error.filename if error.filename is not None else "stdin or stdout"
        return f"{os.fsdecode(where) if isinstance(where, bytes) else where}: {error.strerror or _one_line(error)}", 1
    kind = type(error).__name__
    first = str(error).strip().splitlines()
    what = f"{kind}: {first[0].strip()[:300]}" if first else kind
    return f"unexpected {what}. Nothing was foreseen for this; details: {_written(error)}", 1


def _written(error: BaseException) -> str:
    """The file with the traceback: in the user's folder for state, else in the one for temporary files."""
    text = "\n".join(
        [
            f"stage1-pro {__version__}, Python {platform.python_version()}, {platform.platform()}",
            f"arguments: {sys.argv[1:]!r}",
            "".join(traceback.format_exception(error)),
        ]
    ).encode("utf-8", "backslashreplace")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stage1"
    for folder in (state, Path(tempfile.gettempdir())):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=time.strftime("error-%Y%m%d-%H%M%S-"), suffix=".txt", dir=folder)
            with open(handle, "wb") as stream:
                stream.write(text)
            return name
        except OSError:
            continue
    return f"set {TRACEBACK}=1 to see them (no folder to write them to)"


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).splitlines()).strip()
    # Names of files are in it: none of them may steer the terminal. Odd bytes (half characters) are escaped too.
    text = "".join("?" if unicodedata.category(char) == "Cc" else char for char in text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}.."


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        return  # nobody listens


def _open_streams() -> None:
    """Closed standard streams get a descriptor that fails when it is used: else the next file opened is stdout."""
    for number, mode in ((0, os.O_WRONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
    if sys.stdin is None:
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    # Names of files may hold bytes that are no text in this locale: shown escaped (valid in JSON), never an error.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")


def _abandon_stdout() -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
