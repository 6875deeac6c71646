"""A PostgreSQL server of the tests' own: Debian's binaries, a folder of its own, a free port on loopback."""

from __future__ import annotations

import ctypes
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg
import pytest


def binaries() -> Path | None:
    """The folder with initdb and postgres, where this machine has one."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists() and (place / "initdb").exists()), None)


def _account() -> dict[str, int]:
    """PostgreSQL refuses to run as root."""
    if os.getuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            account = pwd.getpwnam(name)
            return {"user": account.pw_uid, "group": account.pw_gid}
    pytest.skip("this is root, there is no account postgres or nobody, and PostgreSQL does not run as root")


def _dies_with_the_tests() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGQUIT)  # PR_SET_PDEATHSIG


class Server:
    def __init__(self, programs: Path, folder: Path, port: int, account: dict[str, int]) -> None:
        self._programs, self._folder, self._account, self.port = programs, folder, account, port
        self._process: subprocess.Popen[bytes] | None = None
        self._schemas = 0

    def start(self) -> None:
        command = [
            str(self._programs / "postgres"),
            *("-D", str(self._folder / "data"), "-h", "127.0.0.1", "-p", str(self.port), "-k", ""),
            *("-c", "fsync=off", "-c", "max_connections=50", "-c", "shared_buffers=16MB"),
        ]
        with open(self._folder / "log", "ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd="/", preexec_fn=_dies_with_the_tests, **self._account
            )
        end = time.monotonic() + 30
        while True:
            try:
                self._ask("SELECT 1")
                return
            except psycopg.OperationalError:
                if self._process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((self._folder / "log").read_text()) from None
                time.sleep(0.05)

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT: fast shutdown; SIGQUIT: as a crash, the next start recovers."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(30)
            self._process = None

    def schema(self) -> str:
        """The URL of a new empty schema, which costs less than a database."""
        self._schemas += 1
        name = f"store_{self._schemas}"
        self._ask(f"CREATE SCHEMA {name}")
        return self.schema_url(name)

    def schema_url(self, name: str) -> str:
        return f"postgresql://stage1@127.0.0.1:{self.port}/postgres?options=-csearch_path%3D{name}"

    def _ask(self, question: str) -> None:
        address = f"postgresql://stage1@127.0.0.1:{self.port}/postgres"
        with psycopg.connect(address, autocommit=True, connect_timeout=5) as connection:
            connection.execute(question)


@contextmanager
def running_server() -> Iterator[Server]:
    """Skips, with the reason, where there is no PostgreSQL on this machine."""
    programs = binaries()
    if programs is None:
        pytest.skip("no PostgreSQL server on this machine (Debian: apt-get install postgresql)")
    account = _account()
    folder = Path(tempfile.mkdtemp(prefix="stage1-pg-"))  # below tmp_path no other account could go
    try:
        if account:
            os.chown(folder, account["user"], account["group"])
        setup = [programs / "initdb", "-D", folder / "data", "-U", "stage1", "-A", "trust", "-E", "UTF8", "-N"]
        subprocess.run(
            [*map(str, setup), "--locale=C"],
            check=True,
            capture_output=True,
            cwd="/",
            env={"PATH": os.environ["PATH"]},
            **account,
        )
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = Server(programs, folder, port, account)
        server.start()
        try:
            yield server
        finally:
            server.stop(signal.SIGQUIT)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
