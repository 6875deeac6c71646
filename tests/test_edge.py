"""The edge of the process: closed and full streams, limits of memory, and errors that nobody foresaw."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stage1.cli.edge import guarded, outcome
from stage1.errors import DataError, MissingError
from stage1.extras import import_failure

STAGE1 = f"{sys.executable} -m stage1.cli"


def shell(command: str, tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    "command, code, words",
    [
        ("config show >&-", 1, "stdout"),
        ("config schema > /dev/full", 1, "No space left"),
        ("config show <&-", 0, ""),
        ("run none.yaml >&- <&-", 3, "none.yaml"),
        ("run none.yaml 2>&-", 3, ""),
    ],
)
def test_closed_and_full_streams(command, code, words, tmp_path):
    result = shell(f"{STAGE1} {command}", tmp_path)
    assert result.returncode == code, result.stderr
    lines = result.stderr.splitlines()
    assert len(lines) == (1 if words else 0), result.stderr
    assert words in result.stderr


def test_a_reader_that_leaves_early_is_no_error(tmp_path):
    result = shell(f"set -o pipefail; {STAGE1} config schema | head -1", tmp_path)
    assert (result.returncode, result.stderr) == (0, "")


def test_too_little_memory_is_never_a_package_that_is_not_installed(tmp_path):
    pytest.importorskip("torch", reason="the extra train is not installed")
    code = (
        "from stage1.cli.edge import guarded; from stage1.extras import load; import sys; sys.exit(guarded(lambda:"
        " load('torch', 'x')))"
    )
    result = shell(f'ulimit -v 700000; {sys.executable} -c "{code}"', tmp_path, OMP_NUM_THREADS="1")
    assert result.returncode == 1, result.stderr
    assert "not installed" not in result.stderr
    assert "cannot be loaded" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_library_that_cannot_be_mapped_is_said_of_the_package_that_needs_it():
    chain = ModuleNotFoundError("No module named '_part'", name="_part")
    chain.__context__ = ImportError("libx.so: failed to map segment from shared object")
    for error in (chain, ImportError("libx.so: failed to map segment from shared object", name="_part")):
        found = import_failure(error)
        assert not isinstance(found, MissingError)
        assert "cannot be loaded" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        KeyError("x"),
        RecursionError("deep\nand deeper"),
        AssertionError(),
        RuntimeError("a\nb"),
        EOFError(),
        SystemError("x"),
    ],
)
def test_what_nobody_foresaw_is_one_line_and_its_details_are_kept(error, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("STAGE1_TRACEBACK", raising=False)

    def command() -> None:
        raise error

    assert guarded(command) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"error: unexpected {type(error).__name__}")
    written = list((tmp_path / "state" / "stage1").iterdir())
    assert len(written) == 1
    assert str(written[0]) in lines[0]
    assert "in command" in written[0].read_text()
    monkeypatch.setenv("STAGE1_TRACEBACK", "1")
    assert guarded(command) == 1
    assert "Traceback" in capsys.readouterr().err


def test_each_kind_has_its_code(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", "/proc/none")  # no folder there: the one for temporary files
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert outcome(DataError("two\nlines")) == ("two lines", 2)
    assert outcome(MissingError("gone"))[1] == 3
    assert outcome(MemoryError())[0].startswith("out of memory")
    assert outcome(FileNotFoundError(2, "No such file", "a.txt")) == ("a.txt: No such file", 1)
    assert str(tmp_path) in outcome(ZeroDivisionError("x"))[0]
    assert len(outcome(DataError("x" * 10_000))[0]) < 2100


def test_an_interruption_keeps_its_code(capsys):
    def command() -> None:
        raise KeyboardInterrupt

    assert guarded(command) == 130
    assert capsys.readouterr().err == "interrupted; run the same command to go on\n"


def test_the_variable_of_tracebacks_is_no_key_of_the_config(monkeypatch):
    from stage1.config import load_config

    monkeypatch.setenv("STAGE1_TRACEBACK", "1")
    load_config()


def test_rows_that_a_damaged_table_claims_and_does_not_hold_are_said(tmp_path, monkeypatch):
    from stage1.inference.inputs import iterate_inputs

    pq.write_table(pa.table({"image": ["a.png", "b.png"]}), tmp_path / "t.parquet")
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda self, **options: iter(()))
    with pytest.raises(DataError, match="0 of its 2 rows"):
        list(iterate_inputs([str(tmp_path / "t.parquet")]))


def test_no_name_in_a_message_steers_the_terminal():
    line, _ = outcome(DataError("caf\x1b[2J\0\x9b1m.csv: \udce9 日本"))
    assert line == "caf?[2J??1m.csv: \udce9 日本"
