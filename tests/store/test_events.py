"""Whatever is put into an event is refused with a line that names the field, or comes back as it was."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stage1.errors import DataError
from stage1.store import DecisionEvent, LabelEvent
from stage1.store.events import canonical, decision_content, decision_of, is_decision

from .made import decision, label

REFUSED = {
    "a NUL byte": ({"image_id": "a\0b"}, "image_id"),
    "half a character": ({"reason": "\ud83d"}, "reason"),
    "too long an id": ({"request_id": "r" * 201}, "request_id"),
    "no id": ({"request_id": ""}, "request_id"),
    "a number for a text": ({"label": 3}, "label"),
    "a score that is not a number": ({"score": math.nan}, "score"),
    "an infinite probability": ({"probabilities": (0.5, math.inf)}, "probabilities"),
    "a text for a number": ({"latency_ms": "3"}, "latency_ms"),
    "a truth for a number": ({"score": True}, "score"),
    "a number for a truth": ({"exit": 1}, "exit"),
    "a negative index": ({"index": -1}, "index"),
    "an index of 2^31": ({"index": 2**31}, "index"),
    "a truth for an index": ({"index": True}, "index"),
    "a state that there is not": ({"state": "valid"}, "state"),
    "a digest in capitals": ({"image_digest": "A" * 64}, "image_digest"),
    "a propensity of two": ({"propensity": 2.0}, "propensity"),
    "a number beyond all floats": ({"score": 10**400}, "score"),
}


@pytest.mark.parametrize("changed, field", REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_stored_is_refused_by_name(changed, field):
    with pytest.raises(DataError, match=rf"^{field}: "):
        decision(**changed)


@pytest.mark.parametrize("named", [{"image_id": ""}, {"request_id": "r1", "index": 1.0}, {"image_digest": "abc"}])
def test_a_label_that_cannot_be_stored_is_refused(named):
    with pytest.raises(DataError):
        label(**named)


def test_numbers_of_numpy_are_taken():
    import numpy as np

    event = decision(score=np.float32(0.5), probabilities=np.array([0.25, 0.75]))
    assert (event.score, event.probabilities) == (0.5, (0.25, 0.75))
    assert type(event.score) is float


def test_every_field_is_in_the_content():
    """A field that the digest leaves out could be changed unseen."""
    base = decision_content(decision())
    assert set(base) == {field.name for field in dataclasses.fields(DecisionEvent)}
    changed = decision_content(decision("r2", 1, exit=False))
    assert {name for name in base if base[name] != changed[name]} == {
        "request_id",
        "index",
        "image_digest",
        "image_id",
        "exit",
    }


def test_a_content_of_another_program_is_no_decision():
    content = canonical(decision_content(decision()))
    assert is_decision(content)
    for other in (b"[]", b"{}", b"{", b'{"a":1}', content.replace(b'"index":0', b'"index":0.0'), content + b" "):
        assert not is_decision(other)


anything = st.one_of(
    st.text(st.characters(), max_size=12),
    st.text(st.sampled_from("\0\ud800'\";%_\\\u202e\U0001f6a7é\n\t\r/.-"), max_size=8),
    st.sampled_from(
        ["' OR '1'='1", "'; DROP TABLE decisions; --", "../../etc/passwd", "%00", "\u0000", "Ω≈ç√∫", "x" * 300]
    ),
)
numbers = st.floats() | st.integers(-(2**70), 2**70) | st.none()
contents = st.fixed_dictionaries(
    {},
    optional={
        "image_id": anything,
        "model": anything,
        "version": anything,
        "policy_id": anything,
        "reason": anything,
        "label": anything,
        "score": numbers,
        "probabilities": st.lists(numbers, max_size=4),
        "latency_ms": numbers,
        "received_at": numbers,
        "propensity": numbers,
        "index": st.integers(-1, 2**31),
    },
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(st.tuples(anything, contents), max_size=12))
def test_refused_or_stored_as_it_was(store, made):
    events: dict[tuple[str, int], DecisionEvent] = {}
    for request_id, changed in made:
        try:
            event = decision(f"{len(request_id)}{request_id}", **{**changed, "index": changed.get("index", 0)})
        except DataError:
            continue
        events.setdefault((event.request_id, event.index), event)
    known = {(found.event.request_id, found.event.index) for found in store.decisions(limit=10**6)}
    store.record(list(events.values()))
    for (request_id, index), event in events.items():
        assert decision_of(decision_content(event)) == event
        [found] = [each for each in store.find(request_id) if each.event.index == index]
        assert (request_id, index) in known or found.event == event
    assert store.trouble == ""


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(anything, anything, anything, anything)
def test_labels_of_any_text_are_refused_or_have_an_outcome(store, name, who, note, image_id):
    store.record([decision()])
    try:
        event = LabelEvent(label=name, who=who, at=1.0, note=note, image_id=image_id, request_id="r1")
    except DataError:
        return
    [outcome] = store.label([event])
    assert outcome in ("stored", "known") if not image_id else outcome == "unknown image"


@pytest.mark.parametrize("asked", ["' OR '1'='1", "r_", "r%", "\0", "\ud800", "", "x" * 500, "R1"])
def test_no_id_asks_for_more_than_itself(store, asked):
    store.record([decision("r1")])
    assert store.find(asked) == []
    assert store.find_image(asked) == []
    if asked and asked not in ("\0", "\ud800", "x" * 500):  # those are refused
        assert store.delete(image_digest=asked, who="ana", why="asked for").decisions == 0
    assert len(store.find("r1")) == 1
