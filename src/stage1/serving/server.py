"""The server process: sockets, signals, start and stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator

import uvicorn

from stage1.errors import ConfigError, Stage1Error
from stage1.serving.app import make_app
from stage1.serving.keys import read_keys
from stage1.serving.service import Service
from stage1.serving.settings import Settings

# Threads of the workers wait for the interpreter while the loop runs: 5 ms, its default, are most of an answer's time.
_SWITCH_S = 0.0005
_BACKLOG = 4096


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
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    for noisy in ("uvicorn.error", "uvicorn.access"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    sys.setswitchinterval(_SWITCH_S)
    asyncio.run(_serve(settings, tell))


async def _serve(settings: Settings, tell: Callable[[str], None]) -> None:
    keys = None if settings.keys is None else read_keys(settings.keys)
    service = Service(settings, keys)
    with _listening(settings) as listener:
        host, port = listener.getsockname()[:2]
        address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        tell(f"listening on {address}")
        config = uvicorn.Config(
            make_app(service),
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
        yield listener
