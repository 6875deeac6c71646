"""`stage1 store`: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest
from sqlalchemy import text

from stage1.store import ImageStore, open_store
from stage1.store.database import Database

from ..command_line import stage1
from .made import decision, label


@pytest.fixture
def filled(store, place):
    photo = b"a photo"
    store.record([decision(image_digest=ImageStore("kept").put(photo)), decision("r2")])
    store.label([label()])
    store.close()
    return place


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_verify_says_ok_and_against_what(filled):
    done = stage1("store", "verify", filled)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ok  ")
    assert "3 entries" in done.stdout
    assert "compared with itself alone" in done.stdout
    [head] = [
        line.split()[1] for line in stage1("store", "info", filled).stdout.splitlines() if line.startswith("head")
    ]
    assert "it holds the noted head" in stage1("store", "verify", filled, "--head", head).stdout
    assert stage1("store", "verify", filled, "--head", "0" * 63 + "1").returncode == 5
    assert stage1("store", "verify", filled, "--head", "latest").returncode == 2


def test_verify_names_the_first_fault_and_exits_with_5(filled):
    database = Database(filled)
    with database.writing() as connection:
        connection.execute(text("UPDATE decisions SET label = 'roadwork' WHERE seq = 2"))
    database.close()
    done = stage1("store", "verify", filled)
    assert done.returncode == 5
    assert done.stdout.splitlines()[0].startswith("CHANGED  ")
    assert done.stdout.splitlines()[0].endswith("entry 2: its decision was changed")
    document = json.loads(stage1("store", "verify", filled, "--json").stdout)
    assert document["faults"] == [{"entry": 2, "what": "its decision was changed"}]


def test_delete_erases_the_images_too(filled):
    done = stage1(
        *("store", "delete", filled, "--request", "r1", "--who", "ana", "--why", "asked for", "--images", "kept")
    )
    assert done.stdout == "erased: 1 decisions, 1 labels, 0 refused doubles, 1 images\n"
    assert list(ImageStore("kept")._all()) == []
    assert stage1("store", "verify", filled).returncode == 0


def test_export_writes_a_file(filled, tmp_path):
    done = stage1("store", "export", filled, "--what", "labels", "-o", "labels.parquet")
    assert done.stdout == "labels.parquet: 1 labels\n"
    assert stage1("store", "export", filled, "--what", "all", "-o", "x.parquet").returncode == 2


def test_prune_by_age(filled):
    for path in (path for _, path, _ in ImageStore("kept")._all()):
        os.utime(path, (time.time() - 7200,) * 2)
    assert stage1("store", "prune", "kept", "--older-than", "3h").stdout.startswith("removed 0 images")
    assert stage1("store", "prune", "kept", "--older-than", "1.5h").stdout.startswith("removed 1 images (7 bytes)")
    for words in (["kept"], ["kept", "--keep", "ten"], ["kept", "--older-than", "3 weeks"]):
        assert stage1("store", "prune", *words).returncode == 2
    assert stage1("store", "prune", "nowhere", "--keep", "1GB").returncode == 3


def test_a_store_that_is_not_there_is_not_made(tmp_path):
    done = stage1("store", "verify", tmp_path / "no.db")
    assert (done.returncode, done.stdout) == (3, "")
    assert list(tmp_path.iterdir()) == []


def test_a_missing_extra_is_named(tmp_path):
    with open_store(tmp_path / "a.db"):
        pass
    code = "import sys; sys.modules['sqlalchemy'] = None; sys.argv = ['stage1', 'store', 'info', sys.argv[1]];"
    code += "from stage1.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a.db")], capture_output=True, text=True)
    assert done.returncode == 3, done.stderr
    assert "pip install 'stage1-pro[serve]'" in done.stderr
