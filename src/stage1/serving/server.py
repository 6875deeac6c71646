"""The server process: sockets, signals, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from stage1.errors import ConfigError, Stage1Error
from stage1.serving.app import make_app
from stage1.serving.keys import read_keys
from stage1.serving.service import Service
from stage1.serving.settings import Settings

# Threads of the workers wait for the interpreter while the loop runs: 5 ms, its default, are most of an answer's time.
_SWITCH_S = 0.0005
_BACKLOG = 4096


class _Protocol(H11Protocol):
    """uvicorn's, for clients that do not end the head of a request either. head_s: in which it must be there."""

    head_s = 10.0
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """A head must be there some seconds after it began; an idle connection is closed by `timeout_keep_alive`."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._unwatch()
        elif self._late is None:
            self._late = self.loop.call_later(self.head_s, self._close)

    def _unwatch(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close(self) -> None:
        self._late = None
        if self.cycle is None or self.cycle.response_complete:
            self.transport.close()


class _Server(uvicorn.Server):
    """uvicorn's, without its way of ending: it raises the signal again, so that the exit code is not 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.remove_signal_handler(number)


def serve(settings: Settings, tell: Callable[[str], None]) -> None:
    """Serve until SIGTERM or SIGINT; then everything that was accepted is answered first.

    tell: gets a line once the address is taken, and one once the first workers are ready.
    Raises ConfigError (address, keys), MissingError, IntegrityError (a bundle), Stage1Error (no worker can start).
    """
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("stage1").setLevel(logging.INFO)
    sys.setswitchinterval(_SWITCH_S)
    _allow_connections()
    asyncio.run(_serve(settings, tell))


def _allow_connections() -> None:
    """As many as the machine allows this process: each is an open file, and the usual limit is 1024."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def _serve(settings: Settings, tell: Callable[[str], None]) -> None:
    keys = None if settings.keys is None else read_keys(settings.keys)
    service = Service(settings, keys)
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        tell(f"listening on {address}")
        config = uvicorn.Config(
            make_app(service),
            http=type("Protocol", (_Protocol,), {"head_s": min(_Protocol.head_s, settings.body_s)}),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=int(settings.body_s + settings.max_deadline_s + 10),
        )
        server = _Server(config)
        starting = asyncio.create_task(_start(service, server, tell))
        try:
            await server.serve(sockets=[listener])
        finally:
            starting.cancel()
            failed: BaseException | None = None
            with contextlib.suppress(asyncio.CancelledError):
                try:
                    await starting
                except Stage1Error as error:
                    failed = error
            await service.stop()
            if failed is not None:
                raise failed


async def _start(service: Service, server: _Server, tell: Callable[[str], None]) -> None:
    """Bundles and workers, while /livez answers; then verify the files again and again. A failure ends the server."""
    try:
        await service.start()
    except BaseException:
        server.should_exit = True
        raise
    for model in service.models.all():
        standing = service.models.standing(model)
        why = "" if standing.reason is None else f" ({standing.reason})"
        tell(f"ready: {model.name} {model.version}, certificate {standing.state.value}{why}")
    await service.verify_forever()


@contextlib.contextmanager
def _listening(settings: Settings) -> Iterator[socket.socket]:
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listener = socket.create_server((settings.host, settings.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"--host {settings.host} --port {settings.port}: cannot listen there ({error.strerror or error}); give"
            " another port, or 0 for any that is free"
        ) from error
    with listener:
        listener.setblocking(False)
        # Connections have it from here. asyncio sets it on sockets that name TCP as their protocol, which those of
        # `create_server` do not: head and body of an answer are two sends, and the second waited 40 ms for the
        # client's acknowledgement of the first.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield listener
