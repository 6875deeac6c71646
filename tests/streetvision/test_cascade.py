"""A cascade inside the detector: the answers of `stage1 cascade run`, under the client's deadline."""

from __future__ import annotations

import io
import json
import logging
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from stage1.cascade import fixed_rules, open_cascade, run_cascade
from stage1.cascade.runner import Tally
from stage1.errors import ConfigError, IntegrityError, MissingError, Stage1Error
from stage1.inference import Input
from stage1.runtime.crops import ViewPolicy
from stage1.runtime.images import picture_pixels
from stage1.storage.files import digest_bytes
from stage1.streetvision import Stage1Detector
from stage1.streetvision.classifier import ABOVE_HALF, png
from stage1.streetvision.sealed_cascade import seal_cascade
from stage1.views import Pool, ViewsDocument

from ..cascade.server import Handler, green, misbehave, serving
from ..cascade.test_show import write_cascade, write_images
from ..command_line import stage1
from ..limits import ends_within
from ..runs.conftest import one_line_error
from .bundles import make_bundle

DOUBTFUL = Image.new("RGB", (16, 16), (122, 120, 120))
CLEAR = Image.new("RGB", (16, 16), (200, 60, 60))
CALLS = {"retries": 0, "breaker_failures": 99}
BAND = {"below": 0.15, "above": 0.85}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("first"))


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("larger"), views=ViewsDocument(ViewPolicy(grid=(2, 2)), Pool("mean")))


def http(url: str, **keys: object) -> dict:
    return {"name": "server", "http": {"url": url, "format": "bytes", **keys}, "calls": CALLS}


def detector_of(
    folder: Path, bundle: Path, *later: dict, exit: object = BAND, keys: dict | None = None, **top: object
) -> Stage1Detector:
    """A detector around `bundle` with the later stages of a cascade file that is written, frozen and named beside
    it.
    """
    first = {"name": "first", "bundle": os.path.relpath(bundle, folder), "exit": exit}
    path = folder / "cascade.yaml"
    path.write_text(yaml.safe_dump({"classes": ["none", "roadwork"], "stages": [first, *later], **top}))
    opened = open_cascade(path)
    seal_cascade(opened, path, fixed_rules(opened.config), folder / "stages.json")
    return Stage1Detector(config_name=str(configuration(folder, bundle, **(keys or {}))))


def configuration(folder: Path, bundle: Path, **keys: object) -> Path:
    path = folder / "detector.yaml"
    path.write_text(json.dumps({"bundle": str(bundle), "cascade": "stages.json", **keys}))
    return path


class Kept:
    def __init__(self) -> None:
        self.answers: list = []

    def write(self, answer: object) -> None:
        self.answers.append(answer)


def pictures(n: int = 80, seed: int = 3) -> list[Image.Image]:
    """Colours from clear to doubtful, with a green that follows nothing; some of them turned."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(n):
        lean = rng.normal(0, 30)
        base = np.array([120 + lean, rng.uniform(60, 190), 120 - lean]) + rng.normal(0, 12, (12, 9 + index % 7, 3))
        image = Image.fromarray(np.clip(base, 0, 255).astype(np.uint8))
        if index % 4 == 0:
            image.getexif()[0x0112] = 6
        found.append(image)
    return found


def uneven(handler: Handler, body: bytes) -> None:
    """By the bytes of the image: a fifth is refused, a fifth comes back as garbage."""
    fate = digest_bytes(body)[0]
    if fate in "012":
        handler.say("busy", 500)
    elif fate in "345":
        handler.say("\x00<html>")
    else:
        handler.say(json.dumps({"probability": green(body)}))


# ---- the same answers as `stage1 cascade run` -----------------------------------------------------------------------


@pytest.mark.parametrize("exit", ["own", BAND], ids=["own", "thresholds"])
@pytest.mark.parametrize("middle", [None, "own", {"below": 0.3, "above": 0.7}], ids=["two", "own", "thresholds"])
def test_every_answer_is_that_of_the_cascade(tmp_path, bundle, larger, exit, middle):
    between = [] if middle is None else [{"name": "larger", "bundle": str(larger), "exit": middle, "answer_above": 0.4}]
    with serving(uneven) as server:
        detector = detector_of(tmp_path, bundle, *between, http(server.url()) | {"answer_above": 0.6}, exit=exit)
        opened, sink = open_cascade(tmp_path / "cascade.yaml"), Kept()
        files = {str(index): png(picture_pixels(image)) for index, image in enumerate(pictures())}
        tally = run_cascade(
            opened, [Input(name, data) for name, data in files.items()], sink, rules=fixed_rules(opened.config)
        )
        assert isinstance(tally, Tally)
        expected = {answer.image: answer for answer in sink.answers}
        asked_before = len(server.requests)
        stages = set()
        for index, image in enumerate(pictures()):
            found, whole = detector.answer(image), expected[str(index)]
            assert found.stage == whole.answered_by
            assert (found.value > 0.5) == (whole.label == "roadwork")
            assert found.value >= ABOVE_HALF or found.value <= 0.5
            assert (found.by == "stage1") == (whole.fallback and whole.answered_by == "first")
            failed = [call.stage for call in whole.calls if call.probability is None]
            assert all(name in (found.trouble or "") for name in failed)
            assert (found.trouble is None) == (not failed)
            stages.add((found.stage, whole.fallback))
        # Not one request more or less than there.
        assert len(server.requests) == 2 * asked_before
    assert {("first", False), ("server", False)} <= stages
    assert (("larger" if middle else "first"), True) in stages


def test_an_answer_lies_on_the_side_of_its_stages_answer_above(tmp_path, bundle):
    with serving(misbehave) as server:
        for border, roadwork in ((0.5, True), (0.75, False), (0.8, False), (0.0, True), (1.0, False)):
            detector = detector_of(tmp_path, bundle, http(server.url("/ok")) | {"answer_above": border})
            answer = detector.answer(DOUBTFUL)
            assert (answer.by, answer.stage) == ("stage2", "server")
            assert (answer.value > 0.5) is roadwork
        assert detector_of(tmp_path, bundle, http(server.url("/ok")))(DOUBTFUL) == pytest.approx(0.75)


def test_what_is_sent_is_the_picture_upright_without_loss(tmp_path, bundle):
    with serving(misbehave) as server:
        detector = detector_of(tmp_path, bundle, http(server.url("/ok")), exit={"below": 0.0})
        image = pictures(1)[0]
        detector(image)
        ((_, headers, body),) = server.requests
    assert headers["Content-Type"] == "image/png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(body))), picture_pixels(image))


# ---- faults, and the deadline ---------------------------------------------------------------------------------------

SLOW = ("hang", "drip", "drip-head", "continue")
FAULTS = (
    *SLOW,
    "garbage",
    "empty",
    "nan",
    "infinity",
    "large",
    "negative",
    "text",
    "true",
    "null",
    "digits",
    "list",
    "missing",
    "deep",
    "twice",
    "huge",
    "huge-chunked",
    "cut",
    "half-closed",
    "close",
    "gzip",
    "no-http",
    "redirect",
    "500",
    "503",
    "404",
    "429",
)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_fails_leaves_stage_1s_answer(tmp_path, bundle, fault, caplog):
    with serving(misbehave) as server:
        # Its own timeouts would let it hang for ten seconds and more; the detector's deadline does not.
        # The other faults are known at once: their deadline is one that a busy machine does not reach.
        deadline = {"deadline_s": 0.4 if fault in SLOW else 8.0}
        detector = detector_of(tmp_path, bundle, http(server.url(f"/{fault}")), keys=deadline)
        with caplog.at_level(logging.WARNING, "stage1.streetvision"), ends_within(60):
            answer = detector.answer(DOUBTFUL)
        assert (answer.by, answer.stage) == ("stage1", "first")
        assert answer.value == pytest.approx(answer.stage1.probability)
        assert answer.trouble.startswith("server: ")
        assert "\n" not in answer.trouble
        if fault in SLOW:
            assert answer.trouble == "server: no result before the deadline"
        else:
            assert "deadline" not in answer.trouble
        assert detector.counts["stage2_failed"] == 1
        assert detector.answer(CLEAR).by == "exit"


def test_nothing_listens(tmp_path, bundle):
    with serving(misbehave) as gone:
        url = gone.url()
    answer = detector_of(tmp_path, bundle, http(url)).answer(DOUBTFUL)
    assert answer.by == "stage1"
    assert "unreachable" in answer.trouble


def test_a_stage_in_the_middle_that_hangs_leaves_time_for_the_last(tmp_path, bundle):
    with serving(misbehave) as server:
        middle = http(server.url("/hang")) | {"name": "middle", "exit": BAND}
        detector = detector_of(tmp_path, bundle, middle, http(server.url("/ok")), keys={"deadline_s": 2.0})
        answer = detector.answer(DOUBTFUL)
        assert (answer.by, answer.stage) == ("stage2", "server")
        assert answer.trouble == "middle: no result before the deadline"


def test_retries_stop_when_nobody_waits(tmp_path, bundle):
    with serving(misbehave) as server:
        stage = http(server.url("/503")) | {
            "calls": {"retries": 10, "backoff_s": 0.2, "backoff_max_s": 0.2, "breaker_failures": 99}
        }
        detector = detector_of(tmp_path, bundle, stage, keys={"deadline_s": 0.15})
        assert detector.answer(DOUBTFUL).by == "stage1"
        time.sleep(0.6)
        made = len(server.requests)
        assert 1 <= made <= 4
        time.sleep(0.4)
        assert len(server.requests) == made


def test_retries_within_the_deadline_find_an_answer(tmp_path, bundle):
    def second_time(handler: Handler, body: bytes) -> None:
        again = len(handler.server.requests) > 1
        handler.say('{"probability": 0.1}' if again else "no", 200 if again else 503)

    with serving(second_time) as server:
        stage = http(server.url()) | {"calls": {"retries": 2, "backoff_s": 0.01}}
        answer = detector_of(tmp_path, bundle, stage).answer(DOUBTFUL)
    assert (answer.by, answer.value, answer.trouble) == ("stage2", pytest.approx(0.1), None)


def test_the_breaker_keeps_the_answers_fast_while_a_server_is_down(tmp_path, bundle):
    with serving(misbehave) as server:
        stage = http(server.url("/hang"), read_timeout_s=0.05) | {
            "calls": {"retries": 0, "breaker_failures": 3, "breaker_pause_s": 60}
        }
        detector = detector_of(tmp_path, bundle, stage)
        troubles = [detector.answer(DOUBTFUL).trouble for _ in range(6)]
        assert len(server.requests) == 3
    assert ["breaker_open" in trouble for trouble in troubles] == [False] * 3 + [True] * 3


def test_a_spent_budget_is_not_waited_for(tmp_path, bundle):
    with serving(misbehave) as server:
        stage = http(server.url("/ok")) | {"calls": {"per_minute": 2, "when_over": "wait"}}
        detector = detector_of(tmp_path, bundle, stage)
        with ends_within(20):  # the budget's next call is a minute away
            answers = [detector.answer(DOUBTFUL) for _ in range(5)]
        assert len(server.requests) == 2
    assert [answer.by for answer in answers] == ["stage2"] * 2 + ["stage1"] * 3
    assert "over_budget" in answers[-1].trouble


def test_hanging_calls_are_bounded_and_end_by_themselves(tmp_path, bundle):
    with serving(misbehave) as server:
        detector = detector_of(tmp_path, bundle, http(server.url("/hang")), keys={"deadline_s": 0.05})
        for _ in range(20):
            with ends_within(60):
                assert detector.answer(DOUBTFUL).by == "stage1"
        assert len(server.requests) <= 20
        # Its timeout of ten seconds was cut to the deadline's length: the calls are gone soon after.
        # While the server holds them (twenty seconds): so it is not the server that ends them.
        with ends_within(15):
            while detector._cascade._later[0]._executor._free._value < 16:
                time.sleep(0.02)


def test_a_picture_that_cannot_be_read_has_the_cascades_default(tmp_path, bundle):
    stream = io.BytesIO()
    Image.effect_noise((300, 300), 60).convert("RGB").save(stream, "JPEG")
    for default, value in ((0.5, 0.5), (0.9, 0.9), (0.2, 0.2)):
        with serving(misbehave) as server:
            detector = detector_of(tmp_path, bundle, http(server.url("/ok")), default_probability=default)
            broken = Image.open(io.BytesIO(stream.getvalue()[:3000]))
            answer = detector.answer(broken)
            assert server.requests == []
        assert (answer.by, answer.value) == ("fallback", pytest.approx(value))
        assert answer.trouble.startswith("first: truncated: ")
        assert detector.fallback_answer == pytest.approx(value)


def test_a_bundle_that_cannot_answer_leaves_it_to_the_next_stage(tmp_path, bundle, monkeypatch):
    with serving(misbehave) as server:
        detector = detector_of(tmp_path, bundle, http(server.url("/ok")))
        monkeypatch.setattr(detector._bundle, "answer", lambda rgb: 1 / 0)
        answer = detector.answer(DOUBTFUL)
    assert (answer.by, answer.stage, answer.stage1) == ("stage2", "server", None)
    assert answer.trouble.startswith("first: ZeroDivisionError")


def test_a_bundle_that_hangs_uses_up_the_deadline(tmp_path, bundle, monkeypatch):
    with serving(misbehave) as server:
        detector = detector_of(tmp_path, bundle, http(server.url("/ok")), keys={"deadline_s": 0.2})
        released = threading.Event()
        monkeypatch.setattr(detector._bundle, "answer", lambda rgb: released.wait(120))
        with ends_within(60):
            assert detector.answer(DOUBTFUL).by == "fallback"
        released.set()
        assert server.requests == []


MODULE = """
import time
import numpy as np
def sure(data):
    assert data.startswith(b"\\x89PNG")
    return np.float32(0.75)
def hangs(data):
    time.sleep(3)
def raises(data):
    raise SystemExit("no\\nGPU")
def large(data):
    return 1.7
number = 3
"""


@pytest.mark.parametrize(
    "name, by, words",
    [
        ("sure", "stage2", None),
        ("hangs", "stage1", "timeout"),
        ("raises", "stage1", "failed"),
        ("large", "stage1", "invalid"),
    ],
)
def test_a_callable_beside_the_cascade_file_takes_the_bytes(tmp_path, bundle, name, by, words):
    module = f"stage_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    stage = {"name": "function", "callable": f"{module}:{name}", "calls": CALLS | {"timeout_s": 0.3}}
    answer = detector_of(tmp_path, bundle, stage).answer(DOUBTFUL)
    assert answer.by == by
    assert answer.trouble is None if words is None else words in answer.trouble
    assert "\n" not in (answer.trouble or "")


# ---- what is refused ------------------------------------------------------------------------------------------------


def refused(folder: Path, bundle: Path, kind: type[Stage1Error], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        Stage1Detector(config_name=str(configuration(folder, bundle)))
    assert "\n" not in str(caught.value)


def edited(folder: Path, **changes: object) -> None:
    path = folder / "stages.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_another_bundle_than_the_cascades_first_stage_is_refused_by_name(tmp_path, bundle, larger):
    with serving(misbehave) as server:
        first = detector_of(tmp_path, bundle, http(server.url("/ok"))).bundle_digest
    refused(tmp_path, larger, ConfigError, f"its first stage 'first' is bundle {first[:12]}, this detector's is ")


def test_another_bundle_in_a_later_stage_is_refused_by_name(tmp_path, bundle, larger):
    detector_of(tmp_path, bundle, {"name": "larger", "bundle": str(larger)})
    document = json.loads((tmp_path / "stages.json").read_text())
    assert document["stages"][1]["bundle"]["folder"] == os.path.relpath(larger, tmp_path)
    content = {name: value for name, value in document.items() if name not in ("schema_version", "digest")}
    content["stages"][1]["bundle"]["folder"] = str(bundle)
    edited(tmp_path, **content, digest=digest_bytes(json.dumps(content, sort_keys=True).encode()))
    refused(tmp_path, bundle, IntegrityError, "stage 'larger': .* is bundle .*, the cascade was made with")


def test_a_changed_file_a_newer_one_and_other_files_are_refused(tmp_path, bundle):
    with serving(misbehave) as server:
        detector_of(tmp_path, bundle, http(server.url("/ok")))
    whole = (tmp_path / "stages.json").read_text()
    edited(tmp_path, default_probability=0.9)
    refused(tmp_path, bundle, IntegrityError, "was changed after it was written")
    (tmp_path / "stages.json").write_text(whole)
    edited(tmp_path, schema_version=2)
    refused(tmp_path, bundle, IntegrityError, "schema_version 2")
    (tmp_path / "stages.json").write_text((tmp_path / "cascade.yaml").read_text())
    refused(tmp_path, bundle, ConfigError, "is no JSON; give the file that `stage1 streetvision cascade` makes")
    (tmp_path / "stages.json").write_bytes(b"\x00\xff")
    refused(tmp_path, bundle, ConfigError, "is no JSON")
    (tmp_path / "stages.json").write_text('{"name": "cascade"}')
    refused(tmp_path, bundle, ConfigError, "is not a file of")
    (tmp_path / "stages.json").unlink()
    refused(tmp_path, bundle, MissingError, "stages.json: no such file")


def test_a_key_that_is_not_set_is_one_line_at_the_start(tmp_path, bundle, monkeypatch):
    monkeypatch.setenv("OUR_KEY", "secret-1")
    with serving(misbehave) as server:
        detector = detector_of(tmp_path, bundle, http(server.url("/echo"), key_env="OUR_KEY"))
        answer = detector.answer(DOUBTFUL)
        assert answer.by == "stage1"
        assert "secret-1" not in answer.trouble + (tmp_path / "stages.json").read_text()
        assert server.requests[0][1]["Authorization"] == "Bearer secret-1"
    monkeypatch.delenv("OUR_KEY")
    refused(tmp_path, bundle, MissingError, "OUR_KEY")


def test_a_first_stage_that_is_no_bundle_is_refused(tmp_path, bundle):
    path = tmp_path / "cascade.yaml"
    stages = [{"name": "root", "callable": "math:sqrt", "exit": BAND}, {"name": "last", "bundle": str(bundle)}]
    path.write_text(yaml.safe_dump({"classes": ["none", "roadwork"], "stages": stages}))
    opened = open_cascade(path)
    with pytest.raises(ConfigError, match="stage 'root' is no bundle"):
        seal_cascade(opened, path, fixed_rules(opened.config), tmp_path / "stages.json")


def test_a_deadline_shorter_than_a_stages_timeouts_is_said_at_the_start(tmp_path, bundle, caplog):
    with serving(misbehave) as server, caplog.at_level(logging.WARNING, "stage1.streetvision"):
        detector_of(tmp_path, bundle, http(server.url("/ok"), connect_timeout_s=1, read_timeout_s=2))
        assert caplog.records == []
        detector_of(tmp_path, bundle, http(server.url("/ok")))
    assert "stage 'server' may take 12 s for one attempt, deadline_s is 4" in caplog.text


# ---- the certificate in force ---------------------------------------------------------------------------------------


def test_certified_thresholds_of_an_evaluation_are_in_force_in_the_detector(tmp_path, bundle):
    table = write_images(tmp_path, 720)
    with serving(lambda handler, body: handler.say(json.dumps({"probability": green(body)}))) as server:
        path = write_cascade(tmp_path / "cascade.yaml", bundle, server.url())
        document = {**yaml.safe_load(path.read_text()), "classes": ["none", "roadwork"]}
        path.write_text(yaml.safe_dump(document))
        open_ = stage1("streetvision", "cascade", path, "--output", tmp_path / "stages.json")
        one_line_error(open_, 2, "exit: auto leaves thresholds open")
        made = stage1("cascade", "evaluate", path, "--table", table, "--output", tmp_path / "evaluated", "--quiet")
        assert made.returncode == 0, made.stderr
        frozen = stage1(
            "streetvision", "cascade", path, "--certified", tmp_path / "evaluated", "--output", tmp_path / "stages.json"
        )
        assert frozen.returncode == 0, frozen.stderr
        certificate = json.loads((tmp_path / "evaluated" / "cascade.json").read_text())["certificate"]
        assert frozen.stdout.startswith(certificate["statement"])
        detector = Stage1Detector(config_name=str(configuration(tmp_path, bundle)))
        assert detector.statement == certificate["statement"]
        assert [rule.to_document() for rule in detector._cascade._rules] == certificate["rules"]
        rows = [line.split(",") for line in table.read_text().splitlines()[1:]]
        test = [(tmp_path / image, label == "roadwork") for image, label, role in rows if role == "val_test"]
        answers = [(detector.answer(Image.open(name)), label) for name, label in test]
        asked = len(server.requests)
        recorded = stage1(
            "cascade", "run", path, *(name for name, _ in test), "--certified", tmp_path / "evaluated", "--quiet"
        )
        assert len(server.requests) - asked == sum(answer.by == "stage2" for answer, _ in answers)
    theirs = {line["image"]: line for line in map(json.loads, recorded.stdout.splitlines())}
    for (name, _), (answer, _) in zip(test, answers, strict=True):
        whole = theirs[str(name)]
        assert (answer.stage, answer.value > 0.5) == (whole["answered_by"], whole["label"] == "roadwork")
    wrong = {
        label: sum((answer.value > 0.5) != label for answer, of in answers if of == label) for label in (True, False)
    }
    ran = json.loads((tmp_path / "evaluated" / "cascade.json").read_text())["test"]
    assert (wrong[True], wrong[False]) == (ran["misses"], ran["false_exits"])
    assert {answer.by for answer, _ in answers} == {"exit", "stage2"}
    checked = stage1("streetvision", "check", tmp_path / "detector.yaml", "--count", "2", "--quiet")
    assert f"the whole cascade: {certificate['statement']}" in checked.stdout
