"""What the operator of a server sets, checked before anything starts."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from stage1.errors import ConfigError

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one server.

    bundles: folders, each a model under the name in its bundle.json. workers: processes that decode and run, 0: one per
    core. batch_images: most images of a worker's batch. queue_images: most images that wait. deadline_s: of a request
    that names none; a request may ask for at most max_deadline_s. body_s: in which the body of a request must be there.
    image_s: seconds that a worker may take for an image before it is ended. max_bytes: of a request's body.
    max_images: of a request. per_minute: images per key, None: no limit. keys: file of API keys (keys.py); without it
    only loopback is served. store: URL or path of the event store, None: decisions are not kept. spool: its folder.
    images: folder in which image files are kept, None: they are not. audit_rate: probability with which a label is
    asked for, of every decision. valid_until: epoch seconds after which the certificate counts as expired.
    accept_runtime: serve although the runtime is another than the certified one, as DEGRADED. load_from: folder below
    which bundles may be loaded while serving, None: none. verify_every_s: the bundles' files are verified again so
    often. log: a line of JSON per request on stderr. trace: OpenTelemetry spans, by its API alone.
    """

    bundles: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 0
    batch_images: int = 8
    queue_images: int = 512
    deadline_s: float = 10.0
    max_deadline_s: float = 60.0
    body_s: float = 30.0
    image_s: float = 30.0
    max_bytes: int = 64 * MIB
    max_images: int = 64
    per_minute: int | None = None
    keys: Path | None = None
    store: str | None = None
    spool: Path | None = None
    images: Path | None = None
    audit_rate: float = 0.0
    valid_until: float | None = None
    accept_runtime: bool = False
    load_from: Path | None = None
    verify_every_s: float = 300.0
    device: str | None = None
    log: bool = False
    trace: bool = False

    def __post_init__(self) -> None:
        if not self.bundles:
            raise ConfigError("serve: no bundle; give the folder of one or several")
        if self.workers < 0:
            raise ConfigError(f"--workers {self.workers}: give 0 (one per core) or more")
        for name in ("batch_images", "queue_images", "max_bytes", "max_images"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{_option(name)} {getattr(self, name)}: give 1 or more")
        for name in ("deadline_s", "max_deadline_s", "body_s", "image_s", "verify_every_s"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{_option(name)} {getattr(self, name)}: give seconds above 0")
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"--port {self.port}: give 0 (any that is free) to 65535")
        if self.deadline_s > self.max_deadline_s:
            raise ConfigError(f"--deadline {self.deadline_s:g}: above --max-deadline {self.max_deadline_s:g}")
        if self.max_images > self.queue_images:
            raise ConfigError(f"--max-images {self.max_images}: above --queue {self.queue_images}, so never taken")
        if self.per_minute is not None and self.per_minute < 1:
            raise ConfigError(f"--per-minute {self.per_minute}: give 1 or more")
        if not 0.0 <= self.audit_rate <= 1.0:
            raise ConfigError(f"--audit-rate {self.audit_rate}: give a probability from 0 to 1")
        if self.store is None and (self.images is not None or self.audit_rate):
            raise ConfigError("--store none: images and audits belong to stored decisions; give a store")
        if self.keys is None and not is_loopback(self.host):
            raise ConfigError(f"--host {self.host}: others can reach it; give --keys FILE, or serve 127.0.0.1")


def _option(name: str) -> str:
    named = {"queue_images": "queue", "batch_images": "batch", "verify_every_s": "verify-every"}
    return "--" + named.get(name, name.removesuffix("_s").replace("_", "-"))


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens on `host`.

    >>> [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")]
    [True, True, True, False, False]
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
