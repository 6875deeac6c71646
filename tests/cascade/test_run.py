"""Every image is answered once, whatever the stages do; the record can be gone on with; nothing is asked twice."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from stage1.cascade import fixed_rules, header, open_cascade, open_log, read_answers, recorded, run_cascade
from stage1.cascade.runner import Tally
from stage1.cascade.stages import Cascade
from stage1.cli import app
from stage1.errors import ConfigError, IntegrityError, MissingError, Stage1Error
from stage1.inference import Input

from ..limits import ends_within

MODULE = """
import time
import numpy as np
asked = []
def by_length(data):
    asked.append(data)
    if data.startswith(b"hang"):
        time.sleep(30)
    if data.startswith(b"boom"):
        raise RuntimeError("boom\\nsecond line")
    if data.startswith(b"bye"):
        raise SystemExit(3)
    if data.startswith(b"nan"):
        return float("nan")
    return len(data) / 100
def sure(data):
    return np.float32(0.75)
def counts(data):
    return np.array(0.25)
not_a_function = 3
"""
BROKEN = {
    "broken_raises": "raise RuntimeError('no GPU\\nhere')",
    "broken_exits": "raise SystemExit(0)",
    "broken_syntax": "def f(x:",
}


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    # A module of its own for each test: what is imported once stays imported.
    name = f"stages_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    (tmp_path / "name").write_text(name)
    return tmp_path


def cascade(folder: Path, first: dict | None = None, second: dict | None = None, **top: object) -> Cascade:
    module = (folder / "name").read_text()
    stages = [
        {
            "name": "first",
            "callable": f"{module}:by_length",
            "exit": {"below": 0.1, "above": 0.9},
            "calls": {"retries": 0, "timeout_s": 0.3, "breaker_failures": 99},
            **(first or {}),
        },
        {
            "name": "second",
            "callable": f"{module}:sure",
            "calls": {"retries": 0, "breaker_failures": 99},
            **(second or {}),
        },
    ]
    for stage in stages:
        stage["callable"] = stage["callable"].replace("MODULE", module)
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump({"classes": ["none", "roadwork"], "stages": stages, **top}))
    return open_cascade(path)


def asked(folder: Path) -> list[bytes]:
    import sys

    return sys.modules[(folder / "name").read_text()].asked


def run(opened: Cascade, images: dict[str, bytes], path: Path, rules: object = "fixed") -> Tally:
    chosen = fixed_rules(opened.config) if rules == "fixed" else None
    head = header(opened.digest, None if chosen is None else [rule.to_document() for rule in chosen], opened.names)
    with open_log(path, head) as (done, sink):
        inputs = [Input(name, data) for name, data in images.items()]
        return run_cascade(opened, inputs, sink, rules=chosen, done=[answer.image for answer in done])


def by_name(path: Path) -> dict:
    return {answer.image: answer for answer in read_answers(path)[1]}


def test_exits_defers_and_answers(folder):
    images = {"short": b"x", "long": b"x" * 95, "middle": b"x" * 50, "middle2": b"x" * 40}
    tally = run(cascade(folder), images, folder / "a.jsonl")
    found = by_name(folder / "a.jsonl")
    assert {name: (found[name].label, found[name].answered_by, found[name].fallback) for name in images} == {
        "short": ("none", "first", False),
        "long": ("roadwork", "first", False),
        "middle": ("roadwork", "second", False),
        "middle2": ("roadwork", "second", False),
    }
    assert found["middle"].probability == 0.75
    assert [call.stage for call in found["middle"].calls] == ["first", "second"]
    assert (tally.answered, tally.fallbacks, tally.by) == (4, 0, {"first": 2, "second": 2})


def test_a_stage_that_fails_is_stood_in_for_by_the_one_before(folder):
    opened = cascade(
        folder,
        first={"callable": "MODULE:sure"},
        second={"callable": "MODULE:by_length", "calls": {"retries": 0, "timeout_s": 0.3, "breaker_failures": 99}},
    )
    images = {name: name.encode() for name in ("hang", "boom", "bye", "nan", "fine")}
    with ends_within(20):  # the call that hangs would hang for longer
        tally = run(opened, images, folder / "a.jsonl")
    found = by_name(folder / "a.jsonl")
    outcomes = {name: found[name].calls[1].outcome for name in images}
    assert outcomes == {"hang": "timeout", "boom": "failed", "bye": "failed", "nan": "invalid", "fine": "answered"}
    for name in ("hang", "boom", "bye", "nan"):
        assert (found[name].label, found[name].probability, found[name].answered_by) == ("roadwork", 0.75, "first")
        assert found[name].fallback
    assert not found["fine"].fallback
    assert found["boom"].calls[1].detail == "RuntimeError: boom second line"
    assert tally.failed["second"] == {"timeout": 1, "failed": 2, "invalid": 1}


def test_a_callable_by_name_that_raises_or_says_nan_by_the_command_line(folder):
    second = {"callable": "MODULE:by_length", "calls": {"retries": 1, "backoff_s": 0.0, "timeout_s": 0.3}}
    cascade(folder, first={"callable": "MODULE:sure"}, second=second)
    for name in ("boom", "nan", "hang", "bye", "fine"):
        (folder / f"{name}.jpg").write_bytes(name.encode())
    images = [str(path) for path in sorted(folder.glob("*.jpg"))]
    result = CliRunner().invoke(app, ["cascade", "run", str(folder / "cascade.yaml"), *images])
    assert result.exit_code == 0, result.output
    found = {Path(line["image"]).stem: line for line in map(json.loads, result.stdout.splitlines())}
    assert {name: (line["calls"][1]["outcome"], line["calls"][1]["attempts"]) for name, line in found.items()} == {
        "boom": ("failed", 2),
        "nan": ("invalid", 2),
        "hang": ("timeout", 2),
        "bye": ("failed", 2),
        "fine": ("answered", 1),
    }
    assert {name: line["answered_by"] for name, line in found.items()} == {
        "boom": "first",
        "nan": "first",
        "hang": "first",
        "bye": "first",
        "fine": "second",
    }
    assert all(line["probability"] == 0.75 and line["fallback"] for name, line in found.items() if name != "fine")
    assert "second: 2 failed, 1 invalid, 1 timeout" in result.stderr


def test_a_first_stage_that_fails_leaves_it_to_the_next(folder):
    run(cascade(folder), {"boom": b"boom"}, folder / "a.jsonl")
    answer = by_name(folder / "a.jsonl")["boom"]
    assert (answer.answered_by, answer.label, answer.fallback) == ("second", "roadwork", False)


@pytest.mark.parametrize("default, label", [(0.5, "none"), (0.9, "roadwork")])
def test_where_no_stage_answers_the_default_does(folder, default, label):
    opened = cascade(folder, second={"callable": "MODULE:by_length"}, default_probability=default)
    run(opened, {"boom": b"boom"}, folder / "a.jsonl")
    answer = by_name(folder / "a.jsonl")["boom"]
    assert (answer.answered_by, answer.label, answer.probability) == ("default", label, default)


def test_an_image_that_cannot_be_read_is_named_and_the_rest_answered(folder):
    opened = cascade(folder)
    rules = fixed_rules(opened.config)
    answers = []

    class Sink:
        def write(self, answer):
            answers.append(answer)

    inputs = [Input("gone.jpg", folder / "gone.jpg"), Input("ok", b"x"), Input("ok", b"x"), Input("b\udcff", b"x" * 50)]
    tally = run_cascade(opened, inputs, Sink(), rules=rules)
    found = {answer.image: answer for answer in answers}
    assert found["gone.jpg"].error == "No such file or directory"
    assert found["gone.jpg"].answered_by == "default"
    assert (tally.answered, tally.skipped) == (3, 1)
    assert json.loads(found["b\udcff"].to_line())["image"] == "b\\udcff"


def test_numbers_of_numpy_are_numbers(folder):
    opened = cascade(folder, second={"callable": "MODULE:counts"})
    run(opened, {"middle": b"x" * 50}, folder / "a.jsonl")
    assert by_name(folder / "a.jsonl")["middle"].probability == 0.25


# ---- stopping


@pytest.mark.parametrize("calls", [{"per_minute": 1}, {"retries": 10, "backoff_s": 60.0, "backoff_max_s": 60.0}, {}])
def test_ctrl_c_waits_for_no_budget_no_retry_and_no_call(tmp_path, calls):
    (tmp_path / "stages_of_ctrl_c.py").write_text(
        "import time\ndef half(data):\n    return 0.5\ndef slow(data):\n    print('asked', flush=True)\n   "
        " time.sleep(60 if data == b'hang' else 0)\n    return 'no number'\ndef quick(data):\n    print('asked',"
        " flush=True)\n    return 0.75\n"
    )
    second = {
        "name": "second",
        "callable": "stages_of_ctrl_c:quick" if "per_minute" in calls else "stages_of_ctrl_c:slow",
        "calls": {"timeout_s": 60, **calls},
    }
    first = {"name": "first", "callable": "stages_of_ctrl_c:half", "exit": {"above": 0.9}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"classes": ["a", "b"], "stages": [first, second]}))
    for index in range(6):
        (tmp_path / f"{index}.jpg").write_bytes(b"hang" if not calls else b"x" * (index + 1))
    command = [sys.executable, "-m", "stage1.cli", "cascade", "run", "c.yaml", ".", "--output", "a.jsonl"]
    with (
        subprocess.Popen(
            command,
            cwd=tmp_path,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            # A suite started in the background of a shell hands down that Ctrl-C is ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process,
        contextlib.ExitStack() as at_end,
    ):
        at_end.callback(process.kill)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("asked")
        answered = 1 if "per_minute" in calls else 0
        with ends_within(60):
            while len(read_answers(tmp_path / "a.jsonl")[1]) < answered:
                time.sleep(0.05)
        time.sleep(0.2)  # into the wait for the next attempt
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=40)  # what it was waiting for is a minute away
    assert process.returncode == 130
    assert told == "interrupted; run the same command to go on\n"
    assert len(read_answers(tmp_path / "a.jsonl")[1]) == answered


# ---- the record


def test_going_on_asks_only_what_is_missing(folder):
    images = {f"image {index}": b"x" * (40 + index) for index in range(10)}
    path = folder / "a.jsonl"
    opened = cascade(folder)
    run(opened, dict(list(images.items())[:6]), path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # killed while it wrote the sixth
    before = len(asked(folder))
    tally = run(opened, images, path)
    assert (tally.answered, tally.skipped) == (5, 5)
    assert len(asked(folder)) - before == 5
    assert sorted(by_name(path)) == sorted(images)
    assert len(path.read_text().splitlines()) == 11


def test_a_record_of_other_stages_or_rules_is_not_mixed(folder):
    path = folder / "a.jsonl"
    run(cascade(folder), {"a": b"x"}, path)
    with pytest.raises(ConfigError, match="other exit rules"):
        run(cascade(folder, first={"exit": {"below": 0.2}}), {"b": b"x"}, path)
    with pytest.raises(ConfigError, match="other stages"):
        run(cascade(folder, second={"callable": "MODULE:counts"}), {"b": b"x"}, path)


def test_two_writers_of_one_record(folder):
    opened = cascade(folder)
    head = header(opened.digest, None, opened.names)
    with (
        open_log(folder / "a.jsonl", head),
        pytest.raises(Stage1Error, match="another process"),
        open_log(folder / "a.jsonl", head),
    ):
        raise AssertionError("two writers")


def test_a_full_disk_is_one_line_and_the_record_goes_on(folder):
    images = {f"image {index}": b"x" * (40 + index) for index in range(30)}
    path, opened = folder / "a.jsonl", cascade(folder)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(
        signal.SIGXFSZ, signal.SIG_IGN
    )  # Python's own default; a write past the limit is an OSError
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
        with pytest.raises(Stage1Error, match=r"a\.jsonl: cannot be written"):
            run(opened, images, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.stat().st_size == 3000  # cut in the middle of a line
    held = len(read_answers(path)[1])
    tally = run(opened, images, path)
    assert (tally.answered, tally.skipped) == (30 - held, held)
    assert sorted(by_name(path)) == sorted(images)


def test_a_record_is_a_regular_file(folder):
    opened = cascade(folder)
    with pytest.raises(ConfigError, match="no regular file"):
        run(opened, {"a": b"x"}, Path("/dev/full"))


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line[: len(line) // 2],
        lambda line: line.replace('"outcome": "answered"', '"outcome": "great"'),
        lambda line: line.replace('"probability": 0.01', '"probability": 1.7'),
        lambda line: line.replace('"probability": 0.01', '"probability": NaN'),
        lambda line: line.replace('"calls"', '"cals"'),
        lambda line: line + "\n" + line,
        lambda line: "[]",
    ],
)
def test_a_damaged_record_is_named_by_line(folder, change):
    path = folder / "a.jsonl"
    run(cascade(folder), {"a": b"x"}, path)
    head, line = path.read_text().splitlines()
    assert change(line) != line
    path.write_text(f"{head}\n{change(line)}\n")
    with pytest.raises(IntegrityError, match=r"a\.jsonl: line [23]"):
        read_answers(path)


def test_a_record_from_before_waiting_was_told_apart_is_read(folder):
    path = folder / "a.jsonl"
    run(cascade(folder), {"a": b"x"}, path)
    text = path.read_text()
    (waited,) = re.findall(r', "waited_ms": [0-9.e-]+', text)
    path.write_text(text.replace(waited, ""))
    (answer,) = read_answers(path)[1]
    assert [call.waited_ms for call in answer.calls] == [0.0]
    assert run(cascade(folder), {"a": b"x", "b": b"y"}, path).skipped == 1


def test_other_files_are_no_record(folder):
    (folder / "a.jsonl").write_text('{"schema_version": 1}\n')
    with pytest.raises(IntegrityError, match="not a file of cascade answers"):
        read_answers(folder / "a.jsonl")
    with pytest.raises(MissingError):
        read_answers(folder / "b.jsonl")


def test_asking_every_stage_decides_nothing(folder):
    opened = cascade(folder)
    run(opened, {"short": b"x", "boom": b"boom"}, folder / "a.jsonl", rules=None)
    found = by_name(folder / "a.jsonl")
    assert [call.stage for call in found["short"].calls] == ["first", "second"]
    assert found["short"].label is None
    arrays = recorded(list(found.values()), opened.names, opened.config.classes)
    assert arrays.outcome.tolist() == [["answered", "answered"], ["failed", "answered"]] or arrays.outcome.tolist() == [
        ["failed", "answered"],
        ["answered", "answered"],
    ]


# ---- opening


@pytest.mark.parametrize(
    "target, words",
    [
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("MODULE:nothing", "has no 'nothing'"),
        ("MODULE:not_a_function", "is int"),
    ],
)
def test_a_callable_that_is_none(folder, target, words):
    with pytest.raises(ConfigError, match=words) as caught:
        cascade(folder, second={"callable": target})
    assert "'second'" in str(caught.value)


@pytest.mark.parametrize("name", BROKEN)
def test_a_module_that_does_anything_while_it_is_imported(folder, name):
    (folder / f"{name}.py").write_text(BROKEN[name] + "\n")
    with pytest.raises(ConfigError, match="'second'.*cannot import") as caught:
        cascade(folder, second={"callable": f"{name}:f"})
    assert "\n" not in str(caught.value)


def test_a_bundle_of_other_classes_and_none_at_all(folder, bundle_folder):
    document = {
        "classes": ["roadwork", "none"],
        "stages": [
            {"name": "first", "bundle": str(bundle_folder), "exit": "own"},
            {"name": "second", "callable": "json:loads"},
        ],
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError, match="none, roadwork, the cascade roadwork, none"):
        open_cascade(folder / "c.yaml")
    document["stages"][0]["bundle"] = "nowhere"
    (folder / "c.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(MissingError, match="nowhere"):
        open_cascade(folder / "c.yaml")


def test_a_bundles_own_exits_count(folder, bundle_folder, picture):
    document = {
        "classes": ["none", "roadwork"],
        "stages": [
            {"name": "first", "bundle": str(bundle_folder), "exit": "own"},
            {"name": "second", "callable": f"{(folder / 'name').read_text()}:sure"},
        ],
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(document))
    opened = open_cascade(folder / "c.yaml")
    images = {
        "red": picture((200, 60, 60)),
        "blue": picture((60, 60, 200)),
        "grey": picture((120, 120, 120)),
        "cut": picture()[:200],
    }
    run(opened, images, folder / "a.jsonl")
    found = by_name(folder / "a.jsonl")
    rows = {row.path: row for row in opened.bundles[0].predict(list(images.values()))}
    for place, name in enumerate(images):
        row = rows[f"#{place}"]
        assert found[name].answered_by == ("first" if row.exit else "second")
        assert not row.exit or found[name].label == row.label
    assert found["cut"].calls[0].outcome == "broken_image"
    assert {found["red"].label, found["blue"].label} == {"roadwork", "none"}
