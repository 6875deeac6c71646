"""Decisions through a running server into its store and back: each once, with its labels, whatever dies in between."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import sqlite3
import threading
import time

import httpx
import pytest

from stage1.store import open_store


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def server(serving, bundle, place):
    options = ("--store", place / "decisions.sqlite", "--images", place / "images", "--audit-rate", "0.5")
    with serving(bundle, "--workers", "1", *options) as running:
        yield running


def found(server, request_id: str) -> list[dict]:
    return server.client.get(f"/v1/decisions/{request_id}").json()["decisions"]


def test_what_was_answered_is_found_again_as_it_was_answered(server, red, grey):
    answer = server.client.post("/v1/predict", files=[("x", ("a", red)), ("x", ("b", grey))]).json()
    stored = found(server, answer["request_id"])
    assert len(stored) == 2
    for one, kept in zip(answer["answers"], stored, strict=True):
        assert kept["image_digest"] == one["sha256"]
        assert (kept["image_id"], kept["label"], kept["exit"]) == (one["id"], one["label"], one["exit"])
        assert kept["score"] == one["score"]
        assert kept["probabilities"] == list(one["probabilities"].values())
        assert (kept["bundle"], kept["policy"], kept["state"]) == (answer["bundle"], answer["policy"], answer["state"])
        assert kept["propensity"] == 0.5
        assert 0 <= kept["latency_ms"] < 60_000
    newest = server.client.get("/v1/decisions", params={"newest": "true", "limit": 2}).json()["decisions"]
    assert {one["request_id"] for one in newest} == {answer["request_id"]}
    exits = server.client.get("/v1/decisions", params={"exit": "true"}).json()["decisions"]
    assert exits
    assert all(one["exit"] for one in exits)


def test_an_image_that_is_kept_comes_back_and_runs_nothing(server, red):
    digest = server.client.post("/v1/predict", content=red).json()["answers"][0]["sha256"]
    image = server.client.get(f"/v1/images/{digest}")
    assert image.content == red
    assert image.headers["content-type"] == "image/jpeg"
    assert image.headers["x-content-type-options"] == "nosniff"
    for name in ("0" * 64, "..%2f..%2fetc%2fpasswd", "'; drop table", "A" * 64):
        assert server.client.get(f"/v1/images/{name}").status_code == 404


def test_labels_come_back_once_each_and_end_an_audit(server, picture):
    own = picture((210, 70, 60))
    audited = None
    for _ in range(60):  # each is drawn with probability one half
        answer = server.client.post("/v1/predict?id=mine", content=own).json()
        (stored,) = found(server, answer["request_id"])
        if stored["audit"]:
            audited = stored
            break
    assert audited is not None
    assert audited["seq"] in {one["seq"] for one in server.client.get("/v1/audits").json()["decisions"]}
    given = [
        {"request_id": audited["request_id"], "label": "roadwork", "who": "ann"},
        {"image_digest": audited["image_digest"], "label": "roadwork", "who": "ann"},
        {"image_id": "mine", "label": "none", "who": "ben", "note": "a reflection"},
        {"request_id": "' OR 1=1 --", "label": "none"},
        {"request_id": audited["request_id"], "index": 7, "label": "none"},
        {"request_id": audited["request_id"], "label": "zebra"},
    ]
    answered = server.client.post("/v1/feedback", json={"labels": given}).json()
    assert answered["outcomes"] == ["stored", "known", "stored", "unknown image", "unknown image", "unknown class"]
    assert answered["counts"]["stored"] == 2
    labels = found(server, audited["request_id"])[0]["labels"]
    assert [(one["label"], one["who"]) for one in labels] == [("roadwork", "loopback/ann"), ("none", "loopback/ben")]
    assert audited["seq"] not in {one["seq"] for one in server.client.get("/v1/audits").json()["decisions"]}


WRONG = [
    {},
    {"labels": []},
    {"labels": ["x"]},
    {"labels": [{"label": "none"}]},
    {"labels": [{"request_id": "a"}]},
    {"labels": [{"request_id": 1, "label": "none"}]},
    {"labels": [{"request_id": "a", "index": -1, "label": "none"}]},
    {"labels": [{"request_id": "a", "index": True, "label": "none"}]},
    {"labels": [{"request_id": "a\0", "label": "none"}]},
    {"labels": [{"image_digest": "xyz", "label": "none"}]},
    {"labels": [{"request_id": "a", "label": "none", "at": 0}]},
    {"labels": [{"request_id": "a", "label": "x" * 300}]},
    {"labels": [{"request_id": "a", "label": "none", "who": 5}]},
]


@pytest.mark.parametrize("document", WRONG)
def test_a_label_that_makes_no_sense_is_refused_in_one_line(server, document):
    answered = server.client.post("/v1/feedback", json=document)
    assert answered.status_code == 400, answered.text
    assert "\n" not in answered.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", ["after=x", "limit=-1", "limit=99999", "exit=1", "state=void", "after=1e5", "after=²"]
)
def test_a_question_that_makes_no_sense_is_refused(server, query):
    assert server.client.get(f"/v1/decisions?{query}").status_code == 400


@pytest.mark.parametrize("request_id", ["none", "'; DROP TABLE decisions; --", "%00", "..%2f", "a" * 5000])
def test_an_id_that_is_not_kept_is_not_found(server, request_id):
    assert server.client.get(f"/v1/decisions/{request_id}").status_code == 404


def test_a_database_that_is_locked_holds_no_answer_up_and_gets_all_later(server, place, red):
    with contextlib.closing(sqlite3.connect(place / "decisions.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        answers = [server.client.post("/v1/predict", content=red).json() for _ in range(5)]
        pending = [line for line in server.client.get("/metrics").text.splitlines() if line.startswith("stage1_store")]
        assert float(pending[0].rpartition(" ")[2]) >= 5
        label = {"labels": [{"request_id": answers[0]["request_id"], "label": "none"}]}
        refused = server.client.post("/v1/feedback", json=label)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable")
        other.execute("COMMIT")
    for answer in answers:
        assert len(found(server, answer["request_id"])) == 1


def test_nothing_is_answered_that_cannot_be_kept(serving, bundle, tmp_path, red):
    place = tmp_path / "decisions.sqlite"
    with serving(bundle, "--workers", "1", "--store", place) as own:
        first = own.client.post("/v1/predict", content=red)
        assert first.status_code == 200
        # As on a full disk, no file of the server grows any more.
        before = resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, (0, before[1]))
        refused = own.client.post("/v1/predict", content=red)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "store_unavailable"
        assert "answers" not in refused.json()
        resource.prlimit(own.process.pid, resource.RLIMIT_FSIZE, before)
        second = own.client.post("/v1/predict", content=red)
        assert second.status_code == 200
        assert own.stop() == 0
    with open_store(place, record=False) as store:
        kept = [one.event.request_id for one in store.decisions()]
    assert kept == [answer.json()["request_id"] for answer in (first, second)]


def kill_in_load(serving, bundle, place, red: bytes, kills: int) -> tuple[set[str], int]:
    """(ids that were answered, how many servers) of a server that is killed at random under load, again and again."""
    rng = random.Random(11)
    answered: set[str] = set()
    for _ in range(kills):
        with serving(bundle, "--workers", "1", "--store", place) as own:
            stop = threading.Event()

            def ask(address: str = own.address, stop: threading.Event = stop) -> None:
                with httpx.Client(base_url=address, timeout=30) as client:
                    while not stop.is_set():
                        try:
                            found = client.post("/v1/predict", content=red)
                        except httpx.HTTPError:
                            return
                        if found.status_code == 200:
                            answered.add(found.json()["request_id"])

            threads = [threading.Thread(target=ask) for _ in range(3)]
            for thread in threads:
                thread.start()
            enough, end = len(answered) + 8, time.monotonic() + 60
            while len(answered) < enough and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(rng.random() * 0.3)
            os.kill(own.process.pid, signal.SIGKILL)
            stop.set()
            for thread in threads:
                thread.join(30)
    return answered, kills


def check_all_kept_once(place, answered: set[str]) -> None:
    with open_store(place) as store:
        assert store.flush(30)
        kept: list[str] = []
        after = 0
        while page := store.decisions(after=after, limit=5000):
            kept += [one.event.request_id for one in page]
            after = page[-1].seq
        assert len(kept) == len(set(kept))  # none doubled
        assert answered <= set(kept)  # none lost
        assert store.verify().ok
        assert store.counts()["conflicts"] == 0


def test_a_server_that_is_killed_under_load_has_kept_every_answer_once(serving, bundle, tmp_path, red):
    answered, _ = kill_in_load(serving, bundle, tmp_path / "decisions.sqlite", red, kills=2)
    assert len(answered) > 10
    check_all_kept_once(tmp_path / "decisions.sqlite", answered)


@pytest.mark.slow
def test_a_hundred_kills_lose_and_double_nothing(serving, bundle, tmp_path, red):
    answered, kills = kill_in_load(serving, bundle, tmp_path / "decisions.sqlite", red, kills=100)
    print(f"{kills} kills, {len(answered)} answered")
    assert len(answered) > 500
    check_all_kept_once(tmp_path / "decisions.sqlite", answered)


def test_a_server_that_stops_has_brought_everything_to_its_database(serving, bundle, tmp_path, red):
    place = tmp_path / "decisions.sqlite"
    with serving(bundle, "--workers", "1", "--store", place) as own:
        ids = {own.client.post("/v1/predict", content=red).json()["request_id"] for _ in range(20)}
        assert own.stop() == 0
    with open_store(place, record=False) as store:
        assert {one.event.request_id for one in store.decisions()} == ids
