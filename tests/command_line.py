"""The command line in the process of the tests: its words, exit code and two streams, without a start of Python.

A new interpreter with torch costs 3 to 4 s of CPU. Tests whose subject is the process itself (closed streams, signals,
what is imported) start one: `tests/runs/conftest.py` has `stage1` for them.
"""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from pathlib import Path
from unittest import mock

from stage1.cli import main


def stage1(
    *arguments: str | Path, environment: dict[str, str] | None = None, cwd: str | Path = ".", input: str = ""
) -> subprocess.CompletedProcess[str]:
    """`stage1 ARGUMENTS` as its entry point runs it; input: what stands on stdin."""
    words = ["stage1", *map(str, arguments)]
    stdin, stdout, stderr = (io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8") for text in (input, "", ""))
    with (
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ, environment or {}),
        mock.patch.multiple(sys, argv=words, stdin=stdin, stdout=stdout, stderr=stderr),
        warnings.catch_warnings(),
    ):
        try:
            main()
        except SystemExit as end:
            code = end.code
    texts = []
    for stream in (stdout, stderr):
        stream.flush()
        texts.append(stream.buffer.getvalue().decode())
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, *texts)
