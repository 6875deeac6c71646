"""What every protocol asks of the server: images in, decisions out, stored before they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from starlette.requests import Request
from starlette.types import Receive

from stage1.errors import ConfigError, Stage1Error
from stage1.inference.predictor import DEFER
from stage1.monitoring import Standing, State
from stage1.serving.batching import Queue, RowDocument, Ticket
from stage1.serving.keys import EVERYBODY, Holder, Keys, require_local
from stage1.serving.limits import Intake, Rate
from stage1.serving.metrics import Metrics
from stage1.serving.models import Model, Models, opened
from stage1.serving.recording import Recorder, drawn
from stage1.serving.refusal import Refusal, image_status
from stage1.serving.settings import Settings
from stage1.serving.traffic import Traffic
from stage1.serving.workers import Pool
from stage1.store import DecisionEvent, ImageStore, open_store

log = logging.getLogger("stage1.serving")


@dataclass(frozen=True, slots=True)
class Asked:
    """One image as it came. name: the client's own, "" for none. slice: value of the slicing attribute, "" unknown."""

    data: bytes
    name: str = ""
    slice: str = ""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The model that is asked. None: the only one; its latest version."""

    name: str | None = None
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Decided:
    """One image as it is answered. digest: sha256 of its bytes. row: as `stage1 predict` has it, but for what the
    state of the certificate changes: `exit`, `decision`, `reason`.
    """

    asked: Asked
    index: int
    digest: str
    row: RowDocument


@dataclass(frozen=True, slots=True)
class Answer:
    """All images of a request, with what they were answered under."""

    request_id: str
    model: Model
    state: State
    reason: str | None
    decided: tuple[Decided, ...]


class Service:
    """Models, workers and everything that a request meets on its way."""

    def __init__(self, settings: Settings, keys: Keys | None) -> None:
        self.settings, self._keys = settings, keys
        self.metrics = Metrics()
        self.traffic = Traffic(time.time())
        self.models = Models(settings, self._on_change)
        self.intake = Intake(settings.max_bytes, settings.body_s)
        self.rate = Rate(settings.per_minute)
        self.recorder: Recorder | None = None
        self._pool: Pool | None = None
        self._loading = asyncio.Lock()
        self._loop = asyncio.get_running_loop()
        self._drains: set[asyncio.Task[None]] = set()

    # ---- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the store, verify the bundles and start the workers. Raises Stage1Error where one cannot be."""
        settings = self.settings
        if settings.store is not None:
            store = await asyncio.to_thread(open_store, settings.store, settings.spool)
            images = None if settings.images is None else ImageStore(settings.images)
            self.recorder = Recorder(store, images, self._loop)
        for folder in self.settings.bundles:
            model, standing = await asyncio.to_thread(opened, folder, self.settings)
            if model.key in {other.key for other in self.models.all()}:
                raise ConfigError(f"{folder}: {model.name} {model.version} is given twice")
            self.models.add(model, standing)
        self._pool = self._new_pool([*self.models.all()])
        await self._pool.start()

    async def stop(self) -> None:
        """Answer what waits, end the workers, bring decisions to the database."""
        pools = [] if self._pool is None else [self._pool]
        for pool in pools:
            await pool.drain()
        for task in list(self._drains):
            await task
        if self.recorder is not None and not await asyncio.to_thread(self.recorder.close):
            log.warning("decisions wait in the spool; the next start brings them to the database")

    async def verify_forever(self) -> None:
        """The bundles' files again and again, in a thread."""
        while True:
            await asyncio.sleep(self.settings.verify_every_s)
            await asyncio.to_thread(self.models.verify_again)

    async def load(self, name: str, folder: Path) -> Model:
        """Serve another bundle under a name: its workers warm up beside the old ones, then take over; what the old
        ones have is answered by them. Raises Refusal (409: another load is going on), Stage1Error (not fit to serve).
        """
        if self._loading.locked():
            raise Refusal(409, "loading", "another bundle is being loaded; try again", retry_after=5)
        async with self._loading:
            old = self.models.find(name)
            model, standing = await asyncio.to_thread(opened, folder, self.settings)
            if model.name != name:
                raise ConfigError(f"the bundle is called {model.name!r}, not {name!r}")
            others = [other for other in self.models.all() if other.name != name]
            usable = [other for other in others if not self.models.unusable(other)]
            pool = self._new_pool([*usable, model])
            await pool.start()
            gone = [other for other in self.models.all() if other.name == name and other.key != model.key]
            before, self._pool = self._pool, pool
            self.models.replace(model, standing)
            for other in gone:
                self.metrics.forget(other)
            log.info("%s: %s serves, %s is ended", name, model.version, old.version)
            if before is not None:
                drain = self._loop.create_task(before.drain())
                self._drains.add(drain)
                drain.add_done_callback(self._drains.discard)
            return model

    def _new_pool(self, models: Sequence[Model]) -> Pool:
        queue = Queue(self.settings.queue_images, self.settings.batch_images, self._settle)
        bundles = {model.digest: model.folder for model in models}
        return Pool(
            bundles,
            self.settings,
            queue,
            on_gone=self.models.gone,
            on_batch=self._on_batch,
            on_death=self.metrics.deaths.inc,
        )

    # ---- questions about it --------------------------------------------------------------------------------------

    @property
    def queue(self) -> Queue | None:
        return None if self._pool is None else self._pool.queue

    @property
    def pool(self) -> Pool | None:
        return self._pool

    async def answering(self) -> int:
        """How many workers answer just now."""
        return 0 if self._pool is None else await self._pool.answering()

    def holder(self, request: Request, scope: str) -> Holder:
        """Who asks. Raises Refusal: 401 without a known key, 403 where it does not open this, or a page asks."""
        if self._keys is None:
            require_local(request.headers.get("host", ""), request.headers.get("origin"))
            return EVERYBODY
        given = request.headers.get("x-api-key", "")
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if not given and kind.lower() == "bearer":
            given = token.strip()
        holder = self._keys.holder(given)
        if holder is None:
            raise Refusal(401, "no_key", "send a key that is known: Authorization: Bearer KEY, or X-Api-Key: KEY")
        if not holder.may(scope):
            raise Refusal(403, "not_allowed", f"this key has no scope {scope!r}")
        return holder

    def deadline(self, given_ms: float | None) -> float:
        """time.monotonic() at which an answer is of no use any more. Raises Refusal (400)."""
        seconds = self.settings.deadline_s if given_ms is None else given_ms / 1000.0
        if not 0 < seconds <= self.settings.max_deadline_s:
            raise Refusal(400, "bad_request", f"deadline: give milliseconds up to {self.settings.max_deadline_s:g} s")
        return time.monotonic() + seconds

    # ---- decisions -----------------------------------------------------------------------------------------------

    async def decide(
        self,
        request: Request,
        holder: Holder,
        wanted: Wanted,
        images: Sequence[Asked],
        deadline: float,
        *,
        kind: str = "images",
        doubt: str | None = None,
    ) -> Answer:
        """The decisions for the images of one request, in their order, stored.

        kind: "tensors" where `data` are float32 tensors. doubt: why the certificate does not cover these images: they
        defer. Raises Refusal; one image alone that cannot be read is a refusal, of several it is a row with `error`.
        """
        began = time.time()
        request_id: str = request.state.request_id
        if not images:
            raise Refusal(400, "no_images", "no image in the request")
        if len(images) > self.settings.max_images:
            raise Refusal(413, "too_many_images", f"{len(images)} images; at most {self.settings.max_images} a request")
        self.rate.take(holder.name, len(images))
        # From here to the queue nothing is awaited: the workers asked are those that hold this model.
        model = self.models.find(wanted.name, wanted.version)
        rows = await self._rows(request, model, images, deadline, kind)
        standing = self.models.standing(model)
        if len(rows) == 1 and rows[0] is not None and rows[0].get("error") is not None:
            status, code = image_status(rows[0]["error"])
            raise Refusal(status, code, rows[0]["error"])
        state, reason = _answered_under(standing, doubt)
        decided = tuple(
            Decided(asked, index, hashlib.sha256(asked.data).hexdigest(), _under(row, state, reason))
            for index, (asked, row) in enumerate(zip(images, rows, strict=True))
        )
        answer = Answer(request_id, model, state, reason, decided)
        await self._keep(answer, began)
        exits = sum(bool(one.row["exit"]) for one in decided)
        self.traffic.count(exits, len(decided) - exits, 1000 * (time.time() - began), time.time())
        for one in decided:
            outcome = "error" if one.row.get("error") else "exit" if one.row["exit"] else "defer"
            self.metrics.images.labels(model.name, outcome).inc()
        return answer

    async def _rows(
        self, request: Request, model: Model, images: Sequence[Asked], deadline: float, kind: str
    ) -> list[RowDocument | None]:
        if self._pool is None:
            raise Refusal(503, "not_ready", "the server is starting; try again", retry_after=1)
        if self.models.unusable(model):
            return [None] * len(images)
        queue = self._pool.queue
        ticket = Ticket(
            model.digest,
            kind,
            [one.data for one in images],
            [one.slice for one in images],
            deadline,
            self._loop.create_future(),
        )
        queue.put(ticket)
        left = self._loop.create_task(_until_left(request.receive))
        try:
            seconds = max(0.0, deadline - time.monotonic())
            await asyncio.wait({ticket.future, left}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not ticket.future.done() and not left.done():
                raise Refusal(503, "deadline", "not answered within its deadline; try again", retry_after=1)
            if not ticket.future.done():
                queue.leave(ticket)
                self.metrics.left.inc()
                raise Refusal(499, "client_left", "the client left before its answer")
            ticket.future.result()
            return ticket.rows
        finally:
            left.cancel()
            if not ticket.future.done():
                queue.leave(ticket)

    async def _keep(self, answer: Answer, began: float) -> None:
        """Store the decisions; nothing is answered that is not stored."""
        if self.recorder is None:
            return
        latency_ms = round(1000 * (time.time() - began), 3)
        rate = self.settings.audit_rate
        events = [_event(answer, one, began, max(0.0, latency_ms), rate) for one in answer.decided]
        await self.recorder.record(events, [one.asked.data for one in answer.decided])

    # ---- from threads --------------------------------------------------------------------------------------------

    def _settle(self, tickets: list[Ticket]) -> None:
        if tickets:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                self._loop.call_soon_threadsafe(_settle_all, tickets)

    def _on_batch(self, images: int, seconds: float) -> None:
        self.metrics.batches.observe(images)
        self.metrics.batch_seconds.observe(seconds)

    def _on_change(self, model: Model, standing: Standing) -> None:
        self.metrics.standing(model, standing)
        log.info(
            "%s %s: %s%s",
            model.name,
            model.version,
            standing.state.value,
            "" if standing.reason is None else f" ({standing.reason})",
        )


def new_request_id() -> str:
    """The server's own: what a client sends is kept beside it and trusted for nothing."""
    return uuid4().hex


def _settle_all(tickets: list[Ticket]) -> None:
    for ticket in tickets:
        ticket.settle()


async def _until_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _answered_under(standing: Standing, doubt: str | None) -> tuple[State, str | None]:
    if doubt is None or standing.state is State.VOID:
        return standing.state, standing.reason
    return State.VOID, doubt


def _under(row: RowDocument | None, state: State, reason: str | None) -> RowDocument:
    """The row as the state lets it be answered: under VOID it defers, and says why. None: no model was asked."""
    if row is None:
        row = {"label": None, "probability": None, "exit": False, "decision": DEFER, "error": None}
    if state is State.VOID:
        return {**row, "exit": False, "decision": DEFER, "reason": f"the certificate is void: {reason}"}
    return row


def _event(answer: Answer, one: Decided, began: float, latency_ms: float, rate: float) -> DecisionEvent:
    row, model = one.row, answer.model
    return DecisionEvent(
        request_id=answer.request_id,
        index=one.index,
        image_digest=one.digest,
        image_id=one.asked.name,
        model=model.name,
        version=model.version,
        bundle_digest=model.digest,
        policy_id=model.policy_id,
        state=answer.state.value,
        reason=row.get("error") or row.get("reason") or answer.reason or "",
        label=row["label"] or "",
        exit=row["exit"],
        score=row.get("score"),
        probabilities=tuple(row.get("probabilities") or ()),
        latency_ms=latency_ms,
        received_at=began,
        audit=drawn(answer.request_id, one.index, rate),
        propensity=rate,
    )


def fit_to_load(error: Stage1Error) -> Refusal:
    """A bundle that was refused, to the administrator who asked for it: with the folder, which they named."""
    return Refusal(409, "not_loaded", str(error))
