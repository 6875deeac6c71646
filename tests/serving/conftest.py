"""A bundle made in milliseconds, and `stage1 serve` of it as its users have it: a process of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra serve is not installed")
import httpx

# Test folders are no packages (importmode=importlib), so the neighbour's builders are loaded by their path.
_SPEC = importlib.util.spec_from_file_location("bundle_parts", Path(__file__).parents[1] / "bundle" / "conftest.py")
assert _SPEC is not None
assert _SPEC.loader is not None
bundle_parts = importlib.util.module_from_spec(_SPEC)
sys.modules[_SPEC.name] = bundle_parts  # dataclasses look their module up
_SPEC.loader.exec_module(bundle_parts)

RED, BLUE, GREY = (200, 60, 60), (60, 60, 200), (120, 120, 120)
_LONGEST = 60.0  # a busy machine; nothing here measures speed


def write_bundle(folder: Path, *, name: str = "tiny", runtime: str | None = None, **options: Any) -> Path:
    """A bundle of two classes, made for the runtime that is installed, or for another."""
    parts = bundle_parts.make_parts(folder / "run", **options)
    parts.facts["name"] = name
    parts.facts["versions"] = {"onnxruntime": runtime or version("onnxruntime")}
    return parts.write(folder / "bundle")


class Server:
    """`stage1 serve` until `stop`. client: speaks to it."""

    def __init__(self, *arguments: str | Path, environment: dict[str, str] | None = None, wait: bool = True) -> None:
        command = [sys.executable, "-m", "stage1.cli", "serve", *map(str, arguments), "--port", "0"]
        command += [] if "--store" in arguments else ["--store", "none"]
        self.process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "", **(environment or {})},
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.errors: list[str] = []
        self._readers = [
            threading.Thread(target=self._read_lines, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        first = self._line()
        assert first.startswith("listening on "), (first, self.errors)
        self.address = first.removeprefix("listening on ")
        self.client = httpx.Client(base_url=self.address, timeout=_LONGEST)
        if wait:
            self.said = self._line()
            assert self.said.startswith("ready: "), (self.said, self.errors)

    def _read_lines(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        self.errors.extend(self.process.stderr)

    def _line(self) -> str:
        return self._lines.get(timeout=_LONGEST)

    def worker_pids(self) -> list[int]:
        """The processes below the server."""
        found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        tasks = Path(f"/proc/{self.process.pid}/task")
        for task in tasks.iterdir():
            with contextlib.suppress(OSError):
                found += (task / "children").read_text().split()
        return sorted({int(pid) for pid in found})

    def ready(self) -> dict[str, Any]:
        """/readyz once it says that all workers answer."""
        until = time.monotonic() + _LONGEST
        while time.monotonic() < until:
            document: dict[str, Any] = self.client.get("/readyz").json()
            if document["ready"]:
                return document
            time.sleep(0.05)
        raise AssertionError(f"not ready: {document}, {self.errors}")

    def stop(self, number: int = signal.SIGTERM) -> int:
        """The exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        code = self.process.wait(_LONGEST)
        for reader in self._readers:
            reader.join(_LONGEST)
        self.client.close()
        return code


@contextlib.contextmanager
def serving(*arguments: str | Path, **options: Any) -> Iterator[Server]:
    server = Server(*arguments, **options)
    try:
        yield server
    finally:
        server.stop(signal.SIGKILL) if server.process.poll() is None else None


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("served"))


@pytest.fixture(scope="session")
def red() -> bytes:
    return bundle_parts.picture(RED)


@pytest.fixture(scope="session")
def blue() -> bytes:
    return bundle_parts.picture(BLUE, kind="PNG")


@pytest.fixture(scope="session")
def grey() -> bytes:
    return bundle_parts.picture(GREY)


@pytest.fixture(name="serving", scope="session")
def _serving():
    return serving


@pytest.fixture(name="write_bundle", scope="session")
def _write_bundle():
    return write_bundle


@pytest.fixture(name="picture", scope="session")
def _picture():
    return bundle_parts.picture
