"""What Prometheus reads at /metrics; no image content, no keys, and no label that a client can choose."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from stage1.monitoring import Standing, State
from stage1.serving.models import Model

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_IMAGES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("stage1_requests", "Answered requests.", ["route", "status"], registry=registry)
        self.seconds = Histogram(
            "stage1_request_seconds",
            "From the head of a request to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.images = Counter("stage1_images", "Decisions.", ["model", "outcome"], registry=registry)
        self.refused = Counter("stage1_refused", "Requests without an answer.", ["code"], registry=registry)
        self.batches = Histogram(
            "stage1_batch_images", "Images of a worker's batch.", buckets=_IMAGES, registry=registry
        )
        self.batch_seconds = Histogram(
            "stage1_batch_seconds", "From a batch's way to a worker to its answer.", buckets=_SECONDS, registry=registry
        )
        self.waiting = Gauge("stage1_queue_images", "Images that wait for a worker.", registry=registry)
        self.workers = Gauge("stage1_workers", "Workers that are ready.", registry=registry)
        self.deaths = Counter("stage1_worker_deaths", "Workers that died.", registry=registry)
        self.left = Counter("stage1_clients_left", "Requests whose client left before its answer.", registry=registry)
        self.state = Gauge(
            "stage1_certificate_state",
            "1 for the state of each model's certificate.",
            ["model", "version", "state"],
            registry=registry,
        )
        self.pending = Gauge(
            "stage1_store_pending", "Decisions that the database does not have yet.", registry=registry
        )

    def standing(self, model: Model, standing: Standing) -> None:
        for state in State:
            self.state.labels(model.name, model.version, state.value).set(standing.state is state)

    def forget(self, model: Model) -> None:
        """It is not served any more."""
        for state in State:
            self.state.remove(model.name, model.version, state.value)

    def text(self) -> bytes:
        return generate_latest(self.registry)
