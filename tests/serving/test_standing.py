"""Every transition of a certificate's state through a running server: in answers, /readyz and /metrics."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time

import httpx
import pytest

from stage1.monitoring import State
from stage1.serving.models import Models, opened
from stage1.serving.settings import Settings


@pytest.fixture(scope="module")
def places(tmp_path_factory, write_bundle, bundle):
    """A folder with a second version of the model, one of another name, and one that is damaged."""
    folder = tmp_path_factory.mktemp("places")
    write_bundle(folder / "second", seed=4)
    write_bundle(folder / "other", name="other")
    shutil.copytree(folder / "second" / "bundle", folder / "damaged")
    with open(folder / "damaged" / "thresholds.json", "a") as file:
        file.write(" ")
    shutil.copytree(bundle, folder / "first")
    return folder


@pytest.fixture(scope="module")
def server(serving, places):
    with serving(places / "first", "--workers", "2", "--load-from", places, "--verify-every", "0.3") as running:
        yield running


def state_by_metrics(server) -> str:
    lines = server.client.get("/metrics").text.splitlines()
    (found,) = [line for line in lines if line.startswith("stage1_certificate_state{") and line.endswith(" 1.0")]
    return found.partition('state="')[2].partition('"')[0]


def seen(server, red) -> tuple[str, str | None, dict]:
    """(state, reason, the decision), the same everywhere."""
    answer = server.client.post("/v1/predict", content=red).json()
    ready = server.ready()["models"][0]
    assert ready["state"] == answer["state"] == state_by_metrics(server)
    assert ready["reason"] == answer["reason"]
    assert server.client.get("/v1/policy").json()["state"] == answer["state"]
    return answer["state"], answer["reason"], answer["answers"][0]


def load(server, name: str, bundle: str) -> httpx.Response:
    return server.client.post(f"/v1/models/{name}/load", json={"bundle": bundle})


def until_state(server, state: str) -> None:
    end = time.monotonic() + 30
    while time.monotonic() < end:
        if server.client.get("/readyz").json()["models"][0]["state"] == state:
            return
        time.sleep(0.05)
    raise AssertionError(f"never {state}")


def test_valid_degraded_and_back_then_void_and_back_by_a_verified_bundle_alone(server, red):
    assert seen(server, red)[:2] == ("VALID", None)
    address = "/v1/models/tiny/conditions"
    doubt = {"name": "drift", "state": "DEGRADED", "reason": "brightness moved"}
    assert server.client.post(address, json=doubt).json()["state"] == "DEGRADED"
    state, reason, decision = seen(server, red)
    assert (state, reason) == ("DEGRADED", "brightness moved")
    assert decision["exit"]  # the policy's own decision: this condition asks for no more
    assert server.client.delete(f"{address}/drift").json()["state"] == "VALID"
    assert seen(server, red)[0] == "VALID"

    gone = {"name": "camera", "state": "VOID", "reason": "other lenses since Monday"}
    assert server.client.post(address, json=gone).json()["state"] == "VOID"
    state, reason, decision = seen(server, red)
    assert (state, reason) == ("VOID", "other lenses since Monday")
    assert (decision["decision"], decision["exit"], decision["label"]) == ("defer", False, "roadwork")
    assert "other lenses since Monday" in decision["reason"]
    refused = server.client.delete(f"{address}/camera")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "stays")
    assert server.client.post(address, json={**doubt, "name": "camera"}).json()["state"] == "VOID"
    assert seen(server, red)[0] == "VOID"

    assert load(server, "tiny", "second/bundle").status_code == 200
    assert seen(server, red)[:2] == ("VALID", None)


BAD_LOADS = {
    "damaged": (409, "not_loaded", "damaged"),
    "of another name": (409, "not_loaded", "other/bundle"),
    "not there": (409, "not_loaded", "nothing"),
    "no bundle": (409, "not_loaded", "."),
    "outside": (403, "outside", "../.."),
    "absolute": (403, "outside", "/etc"),
    "no text": (400, "bad_request", None),
    "a zero byte": (400, "bad_request", "a\0b"),
}


@pytest.mark.parametrize("status, code, folder", BAD_LOADS.values(), ids=BAD_LOADS)
def test_what_is_not_fit_is_not_loaded_and_the_old_one_goes_on(server, red, status, code, folder):
    before = server.client.get("/v1/models").json()
    answered = load(server, "tiny", folder)
    assert (answered.status_code, answered.json()["error"]["code"]) == (status, code), answered.text
    assert server.client.get("/v1/models").json() == before
    assert server.client.post("/v1/predict", content=red).status_code == 200


def test_no_model_of_this_name_is_loaded(server):
    assert load(server, "none", "second/bundle").status_code == 404


def test_a_bundle_is_swapped_under_load_without_a_failed_request(server, red):
    stop = threading.Event()
    found: list[tuple[int, str]] = []

    def ask() -> None:
        with httpx.Client(base_url=server.address, timeout=60) as client:
            while not stop.is_set():
                answered = client.post("/v1/predict", files=[("x", ("a", red))] * 2)
                found.append((answered.status_code, answered.json().get("version", "")))
                assert all(one["exit"] for one in answered.json()["answers"])

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    before = server.client.get("/v1/models").json()["models"][0]["version"]
    folder = "first" if before != server.client.get("/v1/policy").json()["version"] else "second/bundle"
    other = load(server, "tiny", "first").json()
    if other["version"] == before:
        other = load(server, "tiny", folder).json()
    time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert {status for status, _ in found} == {200}
    assert {version for _, version in found} == {before, other["version"]} != {before}
    assert len(server.worker_pids()) <= 4
    end = time.monotonic() + 30
    while len(server.worker_pids()) != 2 and time.monotonic() < end:
        time.sleep(0.05)
    assert len(server.worker_pids()) == 2
    assert state_by_metrics(server) == "VALID"  # of one version alone


def test_files_that_change_void_the_certificate_and_every_image_defers(server, places, red):
    load(server, "tiny", "first")
    thresholds = places / "first" / "thresholds.json"
    before = thresholds.read_bytes()
    thresholds.write_bytes(before.replace(b"lo", b"lO", 1))
    until_state(server, "VOID")
    state, reason, decision = seen(server, red)
    assert state == "VOID"
    assert reason.startswith("verification failed: thresholds.json: changed")
    assert str(places) not in reason
    assert (decision["decision"], decision["label"]) == ("defer", None)
    assert server.ready()["ready"]  # it answers: every image defers
    for pid in server.worker_pids():
        os.kill(pid, signal.SIGKILL)
    assert seen(server, red)[0] == "VOID"
    thresholds.write_bytes(before)
    time.sleep(0.5)
    assert seen(server, red)[0] == "VOID"  # a file that is back is no verified bundle
    assert load(server, "tiny", "first").status_code == 200
    assert seen(server, red)[0] == "VALID"


# ---- what a server knows at its start ----------------------------------------------------------------------------


def test_what_is_void_from_the_start_defers_and_says_why(serving, write_bundle, tmp_path, red):
    runtime = write_bundle(tmp_path / "runtime", name="runtime", runtime="1.0.0")
    nothing = write_bundle(tmp_path / "nothing", name="nothing", n=60)
    with serving(runtime, nothing, "--workers", "1") as server:
        answers = {
            name: server.client.post("/v1/predict", params={"model": name}, content=red).json()
            for name in ("runtime", "nothing")
        }
        assert server.said.startswith("ready: nothing")
        assert "VOID" in server.said
    assert {answer["state"] for answer in answers.values()} == {"VOID"}
    assert "certified with 1.0.0" in answers["runtime"]["reason"]
    assert answers["nothing"]["reason"] == "nothing is certified: every image defers"
    for answer in answers.values():
        assert (answer["answers"][0]["decision"], answer["answers"][0]["label"]) == ("defer", "roadwork")


def test_a_runtime_that_is_accepted_degrades_and_time_that_is_over_voids(serving, write_bundle, tmp_path, red):
    folder = write_bundle(tmp_path, runtime="1.0.0")
    accepted = Settings(bundles=(folder,), accept_runtime=True, valid_until=time.time() + 3600)
    seen_states = []
    models = Models(accepted, lambda model, standing: seen_states.append(standing.state))
    models.add(*opened(folder, accepted))
    assert seen_states == [State.DEGRADED]
    assert models.standing(models.find()).reason.endswith("accepted by the operator")
    with serving(folder, "--workers", "1", "--accept-runtime", "--valid-until", "2020-01-01") as server:
        state, reason, decision = seen(server, red)
        assert (state, decision["decision"]) == ("VOID", "defer")
        assert reason.startswith("the certificate's time is over")
        conditions = server.client.get("/v1/policy").json()["conditions"]
        assert [(one["name"], one["state"]) for one in conditions] == [("runtime", "DEGRADED"), ("expired", "VOID")]
