"""The parts of the detector: the monotone map, the policies in numpy, the configuration, calls with a deadline."""

from __future__ import annotations

import gc
import json
import math
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.calibration import FittedMap, Isotonic
from stage1.calibration.binary import Beta, Platt
from stage1.calibration.scaling import Temperature
from stage1.errors import ConfigError, IntegrityError, MissingError
from stage1.inference.views import ViewOutputs, look
from stage1.policy import CalibratedPolicy, GatePolicy, ScrcPolicy, SoftmaxPolicy
from stage1.policy.gate_model import GateModel
from stage1.runtime.crops import ViewPolicy, cut
from stage1.runtime.preprocessing import Preprocessing
from stage1.scores import Scores
from stage1.storage.files import read_yaml
from stage1.streetvision.bare_session import Outputs
from stage1.streetvision.classifier import ABOVE_HALF, on_side, remap
from stage1.streetvision.deadline import Lane, Late
from stage1.streetvision.looks import ALONE, views_of
from stage1.streetvision.sealed import SealedBundle
from stage1.streetvision.settings import CONFIG_VARIABLE, Settings, load_settings, load_stage2
from stage1.streetvision.verdict import judge
from stage1.views import Learned, Pool, Sequence, Step, ViewsDocument

PROBABILITY = st.floats(0.0, 1.0)
THRESHOLD = st.floats(1e-6, 1 - 1e-6)

# ---- the map ---------------------------------------------------------------------------------------------------------


@given(PROBABILITY, THRESHOLD)
def test_the_map_turns_exactly_at_the_threshold(p, threshold):
    answer = remap(p, threshold)
    assert 0.0 <= answer <= 1.0
    assert (answer > 0.5) == (p > threshold)
    # What a client that narrows to 32 bits sees.
    assert (float(np.float32(answer)) > 0.5) == (p > threshold)


@given(PROBABILITY, PROBABILITY, THRESHOLD)
def test_the_map_never_falls(p, q, threshold):
    low, high = sorted((p, q))
    assert remap(low, threshold) <= remap(high, threshold) + 1e-15


@given(THRESHOLD)
def test_the_map_is_exactly_one_half_at_the_threshold_and_keeps_the_ends(threshold):
    assert remap(threshold, threshold) == 0.5
    assert (remap(0.0, threshold), remap(1.0, threshold)) == (0.0, 1.0)


@given(PROBABILITY)
def test_a_threshold_of_one_half_changes_nothing(p):
    assert remap(p, 0.5) == pytest.approx(p, abs=1e-7)


def test_the_map_is_linear_in_log_odds_between_its_knots():
    def logit(p):
        return math.log(p / (1 - p))

    threshold, grid = 0.8, np.linspace(0.81, 0.999, 9)
    slopes = np.diff([logit(remap(p, threshold)) for p in grid]) / np.diff([logit(p) for p in grid])
    assert slopes == pytest.approx(12 / (12 - logit(threshold)))
    below = np.linspace(0.01, 0.79, 9)
    slopes = np.diff([logit(remap(p, threshold)) for p in below]) / np.diff([logit(p) for p in below])
    assert slopes == pytest.approx(12 / (12 + logit(threshold)))


@given(PROBABILITY)
def test_an_exit_keeps_its_side(answer):
    assert on_side(answer, True) >= ABOVE_HALF
    assert on_side(answer, False) <= 0.5


# ---- the policies in numpy -------------------------------------------------------------------------------------------

BORDER = st.one_of(st.none(), st.floats(-8, 8))
COUNTS = {"n": 50, "n_classes": 2}


@st.composite
def maps(draw):
    kind = draw(st.sampled_from(["none", "temperature", "platt", "beta", "isotonic"]))
    number = st.floats(0.05, 3)
    if kind == "temperature":
        return FittedMap(Temperature(slope=draw(number), **COUNTS))
    if kind == "platt":
        return FittedMap(Platt(slope=draw(number), shift=draw(st.floats(-3, 3)), smoothing=True, **COUNTS))
    if kind == "beta":
        return FittedMap(Beta(a=draw(number), b=draw(number), c=draw(st.floats(-3, 3)), **COUNTS))
    if kind == "isotonic":
        values = sorted(draw(st.lists(st.floats(0.01, 0.99), min_size=2, max_size=6)))
        return FittedMap(Isotonic(curves=((tuple(np.linspace(-5, 5, len(values)).tolist()), tuple(values)),), **COUNTS))
    return None


@st.composite
def gates(draw):
    source = draw(st.sampled_from(["gate", "meta", "constant"]))
    names = (
        ("margin", "entropy", "gate", "view_spread", "margin*gate", "margin*view_spread") if source == "meta" else ()
    )
    numbers = [
        st.lists(values, min_size=len(names), max_size=len(names))
        for values in (st.floats(-2, 2), st.floats(0.1, 3), st.floats(-2, 2))
    ]
    means, scales, weights = (tuple(draw(column)) for column in numbers)
    chosen = draw(maps())
    return GateModel(
        source, names, means, scales, weights, draw(st.floats(-2, 2)), chosen and chosen.map, "drawn", 50, 0.9
    )


@st.composite
def policies(draw):
    kind = draw(st.sampled_from(["softmax", "gate", "refused gate", "scrc"]))
    lo, hi = draw(BORDER), draw(BORDER)
    lo, hi = (min(lo, hi), max(lo, hi)) if lo is not None and hi is not None else (lo, hi)
    classes = ("none", "roadwork")
    if kind == "softmax":
        return SoftmaxPolicy(lo, hi, classes, True)
    if kind == "scrc":
        floors = tuple(draw(st.one_of(st.just(-math.inf), st.floats(-4, 4))) for _ in range(2))
        return ScrcPolicy(
            draw(st.sampled_from("IT")),
            draw(st.sampled_from(["softmax", "gate"])),
            draw(st.one_of(st.just(-math.inf), st.floats(-1, 5))),
            floors,
            classes,
            draw(st.booleans()),
            0.5,
            {"miss_rate": 0.1},
        )
    return GatePolicy(draw(gates()), lo, hi, classes, True, None, "gate" if kind == "gate" else "softmax")


def scores_of(seed: int, scale: float) -> Scores:
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, scale, (40, 2))
    logits[:8] = np.round(logits[:8])  # ties with each other and with round thresholds
    logits[8] = 0.0
    return Scores(logits=logits, gate=rng.normal(0, scale, 40), extra={"view_spread": rng.exponential(1.0, 40)})


@settings(max_examples=300, deadline=None)
@given(policies(), maps(), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 3.0, 40.0, 1000.0]))
def test_the_policies_in_numpy_say_what_those_of_stage1_policy_say(policy, frozen, seed, scale):
    full = policy if frozen is None else CalibratedPolicy(policy, frozen)
    document = json.loads(json.dumps(full.to_document()))
    sealed = SealedBundle(
        folder="memory",
        manifest={"classes": ["none", "roadwork"], "policy_file": "policy.json"},
        model=b"",
        policy=document,
        certificate={},
        calibration=None if frozen is None else json.loads(json.dumps(frozen.to_document())),
        views={},
    )
    scores = scores_of(seed, scale)
    ours, theirs = judge(sealed)(scores), full.decide(scores)
    np.testing.assert_array_equal(ours.exit, theirs.exit)
    np.testing.assert_array_equal(ours.label, theirs.label)
    np.testing.assert_allclose(ours.probability, theirs.probability, atol=1e-12)
    # An image alone gets what it gets among others.
    alone = judge(sealed)(scores.take([3]))
    assert (alone.exit[0], alone.label[0]) == (theirs.exit[3], theirs.label[3])


# ---- views in numpy --------------------------------------------------------------------------------------------------

POOLS = ("whole", "mean", "topk:1", "topk:3", "topk:99", "lse:0.5", "lse:8", "noisy_or", "max", "learned")


def aggregator_of(name: str, views: int, rng: np.random.Generator) -> Pool | Learned:
    return Learned(True, tuple(rng.normal(0, 1, views).tolist()), 0.3) if name == "learned" else Pool(name)


def sequence_of(policy: ViewPolicy, rng: np.random.Generator) -> Sequence:
    steps = []
    for seen in range(1, policy.count + 1):
        low, high = sorted(rng.normal(0, 3, 2).tolist())
        steps.append(
            Step(
                aggregator_of(str(rng.choice(POOLS)), seen, rng),
                float(rng.uniform(0.2, 2)),
                float(rng.normal()),
                low if rng.random() < 0.7 else None,
                high if rng.random() < 0.7 else None,
                (low - 0.5, low - 0.2) if rng.random() < 0.3 else None,
            )
        )
    order = tuple(rng.permutation(policy.count).tolist())
    return Sequence(order, tuple(steps), {"views": 1.0, "coverage": 0.5, "coverage_all": 0.5, "tolerance": 0.01})


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(POOLS),
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.sampled_from([0.1, 3.0, 60.0]),
    st.floats(-60, 60),
)
def test_the_views_in_numpy_say_what_those_of_stage1_aggregation_say(name, adaptive, seed, scale, middle):
    rng = np.random.default_rng(seed)
    policy = ViewPolicy(grid=(2, 2), scales=(0.7,))
    frozen = ViewsDocument(
        policy, aggregator_of(name, policy.count, rng), sequence_of(policy, rng) if adaptive else None
    )
    document = json.loads(json.dumps(frozen.to_document()))
    views = views_of(document, {"digest": "d"}, "d")
    per_view = rng.normal(middle, scale, (policy.count, 2))
    spec = Preprocessing(size=8)
    image = rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)
    tensors = cut(image, policy, spec)
    asked: list[int] = []

    def run(batch):
        # Which view it is, told by its pixels: the session knows no more.
        found = [int(np.flatnonzero((tensors == view).all(axis=(1, 2, 3)))[0]) for view in batch]
        asked.extend(found)
        return Outputs(per_view[found], None)

    ours = views.look(image, spec, run)
    theirs, used, _ = frozen.aggregate(per_view[None])
    np.testing.assert_allclose(ours.logits, theirs, rtol=1e-12, atol=1e-12)
    if adaptive:
        assert asked == list(frozen.sequence.order[: used[0]])
    else:
        assert asked == [0] if name == "whole" else list(range(policy.count))
    outputs = ViewOutputs(per_view[None].astype(np.float32), None, np.array([[20, 24]]))
    trace = look(outputs, frozen, spec)
    assert ours.extra["view_spread"] == pytest.approx(trace.spread, rel=1e-3, abs=1e-4)
    assert views.adds_nothing(20, 24, spec) == bool(trace.small[0])


def test_views_that_the_certificate_does_not_speak_of_are_refused():
    document = ViewsDocument(ViewPolicy(grid=(2, 2)), Pool("mean")).to_document()
    for certified, digest in ((None, "d"), ({"digest": "other"}, "d"), ({"digest": "d"}, None)):
        with pytest.raises(IntegrityError, match="not what the certificate is of"):
            views_of(document if digest else None, certified, digest)
    assert views_of(None, None, None) is ALONE
    document["aggregator"]["name"] = "median"
    with pytest.raises(ConfigError, match="'median'"):
        views_of(document, {"digest": "d"}, "d")
    del document["aggregator"]
    with pytest.raises(IntegrityError, match="not one that a run writes"):
        views_of(document, {"digest": "d"}, "d")


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["detector.yaml", "detector.json"])
def test_a_file_is_read_and_its_bundle_lies_beside_it(tmp_path, name, monkeypatch):
    (tmp_path / name).write_text(json.dumps({"bundle": "the bundle", "threads": 3}))
    found = load_settings(tmp_path / name)
    assert found == Settings(bundle=str(tmp_path / "the bundle"), threads=3)
    monkeypatch.setenv(CONFIG_VARIABLE, str(tmp_path / name))
    assert load_settings(None) == found


def test_a_name_without_ending_and_a_bundle_folder_are_found(tmp_path, monkeypatch):
    (tmp_path / "detector.yaml").write_text("bundle: here")
    monkeypatch.chdir(tmp_path)
    assert load_settings("detector").bundle == "here"
    assert load_settings(str(tmp_path)) == Settings(bundle=str(tmp_path))


def test_decision_threshold_may_be_the_file_of_the_reward_command(tmp_path):
    (tmp_path / "reward.json").write_text(json.dumps({"decision_threshold": 0.625}))
    (tmp_path / "d.yaml").write_text("bundle: b\ndecision_threshold: reward.json\n")
    assert load_settings(tmp_path / "d.yaml").decision_threshold == 0.625


BAD = {
    "twice": ("bundle: b\nbundle: c", ConfigError, "'bundle' stands twice"),
    "a misspelt word of two keys": (
        "bundle: b\ntreshold: 1",
        ConfigError,
        "'treshold'; did you mean 'decision_threshold' or 'stage2_threshold'",
    ),
    "a misspelt key": (
        "bundle: b\ndecision_treshold: 1",
        ConfigError,
        r"'decision_treshold'; did you mean 'decision_threshold'\?",
    ),
    "cascade and stage2": ("bundle: b\ncascade: c\nstage2: m:f", ConfigError, "stage2: 'm:f' beside `cascade`"),
    "cascade and threshold": (
        "bundle: b\ncascade: c\ndecision_threshold: 0.5",
        ConfigError,
        "decision_threshold: 0.5 beside `cascade`",
    ),
    "cascade true": ("bundle: b\ncascade: true", ConfigError, "cascade: True"),
    "unknown key": ("bundle: b\ndeadline: 3", ConfigError, "'deadline'; did you mean 'deadline_s'"),
    "the client's key": ("bundle: b\nweights: w", ConfigError, "unknown key 'weights'; did you mean"),
    "no bundle": ("threads: 1", ConfigError, "`bundle` is missing"),
    "threshold 1": (
        "bundle: b\ndecision_threshold: 1.0",
        ConfigError,
        r"decision_threshold: 1.0; a number in \(0, 1\)",
    ),
    "threshold NaN": ("bundle: b\ndecision_threshold: .nan", ConfigError, "decision_threshold: nan"),
    "threshold file": ("bundle: b\ndecision_threshold: none.json", MissingError, "none.json: no such file"),
    "stage 2 threshold": ("bundle: b\nstage2_threshold: -1", ConfigError, "stage2_threshold: -1"),
    "fallback -1": ("bundle: b\nfallback_answer: -1", ConfigError, "fallback_answer: -1"),
    "deadline 9": ("bundle: b\ndeadline_s: 9", ConfigError, r"deadline_s: 9; a number in \[0.01, 8\]"),
    "threads 0": ("bundle: b\nthreads: 0", ConfigError, "threads: 0"),
    "threads true": ("bundle: b\nthreads: true", ConfigError, "threads: True"),
    "bundle 3": ("bundle: 3", ConfigError, "bundle: 3"),
    "stage2 7": ("bundle: b\nstage2: 7", ConfigError, "stage2: 7"),
    "a list": ("- bundle", ConfigError, "a mapping of keys"),
    "no YAML": ("bundle: [", ConfigError, "cannot be read"),
    "an object": ("bundle: !!python/object/apply:os.getcwd []", ConfigError, "cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_configuration_is_one_line_that_names_the_key(tmp_path, case):
    text, kind, words = BAD[case]
    (tmp_path / "d.yaml").write_text(text)
    with pytest.raises(kind, match=words) as caught:
        load_settings(tmp_path / "d.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["d.yaml", "d.json"])
@pytest.mark.parametrize("data", [b"\x00\xff", b"bundle: caf\xe9", b"\xff\xfe{\x00", b"\x00"], ids=repr)
def test_what_is_no_text_is_one_line(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        load_settings(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_json_with_a_key_twice_is_refused_as_yaml_is(tmp_path):
    (tmp_path / "d.json").write_text('{"bundle": "b", "threads": 1, "threads": 4}')
    with pytest.raises(ConfigError, match="key 'threads' stands twice"):
        load_settings(tmp_path / "d.json")
    (tmp_path / "reward.json").write_text('{"decision_threshold": 0.4, "decision_threshold": 0.6}')
    (tmp_path / "e.json").write_text('{"bundle": "b", "decision_threshold": "reward.json"}')
    with pytest.raises(ConfigError, match="reward.json holds none"):
        load_settings(tmp_path / "e.json")


def test_the_pages_configuration_names_every_key():
    page = (Path(__file__).parents[2] / "docs" / "CLIENT.md").read_text(encoding="utf-8")
    keys = set().union(*(read_yaml(block) for block in re.findall(r"```yaml\n(.*?)```", page, flags=re.S)))
    assert keys == {field.name for field in fields(Settings)}


def test_no_configuration_and_no_such_file(tmp_path, monkeypatch):
    monkeypatch.delenv(CONFIG_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match="config_name: none"):
        load_settings(None)
    with pytest.raises(MissingError, match="no such file"):
        load_settings(tmp_path / "nothing.yaml")


def test_without_pyyaml_the_error_says_so_and_json_still_works(tmp_path):
    (tmp_path / "d.yaml").write_text("bundle: b")
    (tmp_path / "d.json").write_text(json.dumps(asdict(Settings(bundle="b"))))
    code = (
        "import sys; sys.modules['yaml'] = None\n"
        "from stage1.errors import MissingError\n"
        "from stage1.streetvision.settings import load_settings\n"
        "print(load_settings(sys.argv[2]).threads)\n"
        "try: load_settings(sys.argv[1])\n"
        "except MissingError as error: print(error)\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path / "d.yaml"), str(tmp_path / "d.json")]
    threads, error = subprocess.run(run, capture_output=True, text=True, check=True).stdout.splitlines()
    assert threads == "1"
    assert "PyYAML is not installed" in error


@pytest.mark.parametrize(
    "name, words",
    [
        ("nocolon", "module:attribute"),
        (":f", "module:attribute"),
        ("math:", "module:attribute"),
        ("no_such_module_x:f", "cannot import 'no_such_module_x'"),
        ("math:no.such", "has no 'no.such'"),
        ("math:pi", "is float"),
    ],
)
def test_a_stage_2_that_is_not_there_is_one_line_at_the_start(name, words):
    with pytest.raises(ConfigError, match=words):
        load_stage2(name)


# ---- deadlines -------------------------------------------------------------------------------------------------------


def test_a_lane_gives_results_and_errors_through():
    assert Lane(lambda x: x + 1).call(1, time.monotonic() + 10) == 2
    with pytest.raises(ZeroDivisionError):
        Lane(lambda x: 1 / x).call(0, time.monotonic() + 10)


def test_a_lane_is_late_at_the_deadline_and_free_again_when_the_call_returns():
    release = threading.Event()
    lane = Lane(lambda wait: release.wait(20) if wait else True, slots=2)
    for _ in range(2):
        with pytest.raises(Late, match="before the deadline"):
            lane.call(True, time.monotonic() + 0.02)
    start = time.monotonic()
    with pytest.raises(Late, match="2 earlier calls"):
        lane.call(False, time.monotonic() + 0.2)
    assert 0.15 < time.monotonic() - start < 5.0
    threading.Timer(0.1, release.set).start()
    assert lane.call(False, time.monotonic() + 20)


def test_200_calls_at_once_wait_for_the_slots_and_all_get_their_result():
    lane = Lane(lambda x: time.sleep(0.01) or x, slots=16)
    with ThreadPoolExecutor(200) as pool:
        found = list(pool.map(lambda x: lane.call(x, time.monotonic() + 60), range(200)))
    assert found == list(range(200))


def test_a_lane_without_a_thread_keeps_its_slot(monkeypatch):
    lane = Lane(lambda x: x, slots=1)

    def none_left(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    with pytest.raises(RuntimeError, match="can't start"):
        lane.call(1, time.monotonic() + 10)
    monkeypatch.undo()
    assert lane.call(1, time.monotonic() + 10) == 1


def test_one_slot_serves_any_number_of_calls_in_a_row():
    lane = Lane(lambda x: x, slots=1)
    assert [lane.call(x, time.monotonic() + 10) for x in range(200)] == list(range(200))


def test_a_lane_uses_no_more_threads_than_calls_at_once_and_they_end_with_it():
    def lanes() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "stage1-lane"}

    before = lanes()  # of detectors in other tests, which may end meanwhile
    lane = Lane(lambda x: x)
    assert [lane.call(x, time.monotonic() + 10) for x in range(50)] == list(range(50))
    assert len(lanes() - before) == 1
    del lane
    gc.collect()
    end = time.monotonic() + 10
    while lanes() - before and time.monotonic() < end:
        time.sleep(0.01)
    assert not lanes() - before


def test_a_call_that_hangs_does_not_hold_up_the_end_of_the_process():
    code = (
        "import time\nfrom stage1.streetvision.deadline import Lane, Late\n"
        "try: Lane(time.sleep).call(60, time.monotonic() + 0.05)\nexcept Late: print('late')\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=True)
    assert run.stdout == "late\n"
