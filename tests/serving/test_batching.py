"""The queue counts images: what fits together goes together, what is accepted comes out once, the rest is refused."""

from __future__ import annotations

import asyncio
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stage1.serving.batching import ALONE_AFTER, GIVEN_UP_AFTER, Queue, Ticket
from stage1.serving.refusal import Refusal

FAR = 1e9


@pytest.fixture(scope="module")
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


class Kept:
    """A queue, and the tickets that it said are over."""

    def __init__(self, size: int = 100, batch: int = 4, workers: int = 1) -> None:
        self.over: list[Ticket] = []
        self.queue = Queue(size, batch, self.over.extend)
        self.queue.count_worker(workers)

    def put(self, loop, images: int, bundle: str = "a", deadline: float = FAR, kind: str = "images") -> Ticket:
        blobs = [b"%d" % index for index in range(images)]
        ticket = Ticket(bundle, kind, blobs, [""] * images, deadline, loop.create_future())
        self.queue.put(ticket)
        return ticket


def row(job) -> dict:
    return {"of": job.blob}


def test_a_batch_is_what_waits_up_to_its_size_shared_among_workers(loop):
    kept = Kept(batch=4)
    kept.put(loop, 6)
    assert [len(kept.queue.take(0)) for _ in range(3)] == [4, 2, 0]
    shared = Kept(batch=4, workers=2)
    shared.put(loop, 6)
    assert [len(shared.queue.take(0)) for _ in range(3)] == [3, 2, 1]


def test_bundles_and_kinds_do_not_mix_and_none_is_left_behind(loop):
    kept = Kept(batch=8)
    for bundle, kind in (("a", "images"), ("b", "images"), ("a", "tensors"), ("a", "images")):
        kept.put(loop, 2, bundle, kind=kind)
    batches = [kept.queue.take(0) for _ in range(3)]
    assert [len(batch) for batch in batches] == [4, 2, 2]
    for batch in batches:
        assert len({(job.ticket.bundle, job.ticket.kind) for job in batch}) == 1


def test_room_counts_images_and_comes_back_when_a_client_leaves(loop):
    kept = Kept(size=5)
    first = kept.put(loop, 4)
    with pytest.raises(Refusal, match="4 images wait") as refused:
        kept.put(loop, 2)
    assert refused.value.status == 503
    assert refused.value.headers["Retry-After"]
    kept.queue.leave(first)
    assert kept.queue.waiting == 0
    second = kept.put(loop, 5)
    batch = kept.queue.take(0)
    assert {job.ticket for job in batch} == {second}  # nothing of who left is begun


def test_what_cannot_be_answered_in_time_is_refused_before_it_waits(loop):
    kept = Kept()
    kept.put(loop, 4)
    kept.queue.answered(kept.queue.take(0), [{}] * 4, 4.0)  # a second each
    kept.put(loop, 1, deadline=time.monotonic() + 2)
    with pytest.raises(Refusal, match="more than its deadline leaves"):
        kept.put(loop, 1, deadline=time.monotonic() + 2)
    kept.put(loop, 1, deadline=time.monotonic() + 20)


def test_a_ticket_whose_deadline_has_passed_is_refused_and_not_begun(loop):
    kept = Kept()
    ticket = kept.put(loop, 3, deadline=time.monotonic() + 0.01)
    time.sleep(0.02)
    assert kept.queue.take(0) == []
    assert kept.over == [ticket]
    assert ticket.refusal is not None
    assert ticket.refusal.code == "deadline"
    assert kept.queue.waiting == 0


def test_an_image_that_ends_workers_is_tried_alone_and_given_up_the_others_are_answered(loop):
    kept = Kept(batch=4)
    bomb, good = kept.put(loop, 1), kept.put(loop, 3)
    deaths = 0
    sizes: list[int] = []
    while kept.queue.waiting:
        batch = kept.queue.take(0)
        sizes.append(len(batch))
        if any(job.ticket is bomb for job in batch):
            deaths += 1
            kept.queue.not_answered(batch, "it died")
        else:
            kept.queue.answered(batch, [row(job) for job in batch], 0.1)
    assert deaths == GIVEN_UP_AFTER == 3
    assert sizes[:ALONE_AFTER] == [4, 4]
    assert sizes[ALONE_AFTER] == 1
    assert bomb.rows[0]["error"].startswith("no answer: it died, 3 times")
    assert [one["of"] for one in good.rows] == [b"0", b"1", b"2"]
    assert set(kept.over) == {bomb, good}


def test_a_closed_queue_takes_nothing_and_answers_what_waits(loop):
    kept = Kept()
    kept.put(loop, 5)
    kept.queue.close()
    with pytest.raises(Refusal, match="stopping"):
        kept.put(loop, 1)
    sizes = []
    while (batch := kept.queue.take(0)) is not None:
        sizes.append(len(batch))
        kept.queue.answered(batch, [row(job) for job in batch], 0.1)
    assert sizes == [4, 1]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.integers(1, 5), st.sampled_from("ab")),
        st.tuples(st.just("take"), st.booleans(), st.just("")),
        st.tuples(st.just("leave"), st.integers(0, 5), st.just("")),
    ),
    max_size=40,
)


@settings(deadline=None, max_examples=60)
@given(STEPS, st.integers(1, 6), st.integers(1, 3))
def test_every_image_that_was_taken_in_comes_out_exactly_once(loop, steps, batch, workers):
    kept = Kept(size=12, batch=batch, workers=workers)
    taken: list[Ticket] = []
    left: set[int] = set()
    for step, value, bundle in steps:
        if step == "put":
            try:
                taken.append(kept.put(loop, value, bundle))
            except Refusal as refusal:
                assert refusal.code == "queue_full"  # noqa: PT017
        elif step == "leave" and value < len(taken) and not taken[value].over:
            left.add(id(taken[value]))
            kept.queue.leave(taken[value])
        elif step == "take" and (jobs := kept.queue.take(0)):
            if value:
                kept.queue.answered(jobs, [row(job) for job in jobs], 0.0)
            else:
                kept.queue.not_answered(jobs, "it died")
        assert 0 <= kept.queue.waiting <= 12 + batch
    kept.queue.close()
    while (jobs := kept.queue.take(0)) is not None:
        kept.queue.answered(jobs, [row(job) for job in jobs], 0.0)
    assert kept.queue.waiting == kept.queue.running == 0
    assert len(kept.over) == len(set(map(id, kept.over))) == len(taken) - len(left)
    for ticket in kept.over:
        for blob, filled in zip(ticket.blobs, ticket.rows, strict=True):
            assert filled["of"] == blob if "of" in filled else filled["error"].startswith("no answer")
