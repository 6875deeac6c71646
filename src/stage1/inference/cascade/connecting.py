"""A connection within one deadline: the name looked up, an address that answers, and the TLS handshake, all of it together."""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any

from stage1.inference.cascade.waiting import Overdue, Waiting

# A lookup that hangs gives up after half a minute or so; more than this many at once say that the resolver is gone.
_LOOKUPS = 16
_Addresses = list[tuple[Any, Any, int, str, Any]]


class Connector:
    """Opens connections to one host and port; may be used from several threads."""

    def __init__(self, host: str, port: int, *, secure: bool) -> None:
        self._host, self._port = host, port
        self.context: ssl.SSLContext | None = None
        if secure:
            self.context = ssl.create_default_context()
            self.context.set_alpn_protocols(["http/1.1"])
        self._lookups: Waiting[_Addresses] = Waiting(_LOOKUPS)

    def connect(self, seconds: float) -> socket.socket:
        """A connected socket, encrypted where that was asked for. Raises TimeoutError after `seconds`, OSError."""
        until = time.monotonic() + seconds
        addresses = self._addresses(seconds)
        failure: OSError = OSError(f"{self._host} has no address")
        for place, (family, kind, protocol, _, address) in enumerate(addresses):
            # An address that swallows packets must not use up the time of those after it.
            share = (until - time.monotonic()) / (len(addresses) - place)
            if share <= 0:
                raise TimeoutError
            try:
                return self._encrypted(_opened(family, kind, protocol, address, share), until)
            except OSError as error:
                failure = error
        raise failure

    def _addresses(self, seconds: float) -> _Addresses:
        def look_up() -> _Addresses:
            return socket.getaddrinfo(self._host, self._port, 0, socket.SOCK_STREAM)

        try:
            return self._lookups.call(look_up, seconds)
        except Overdue as error:
            raise TimeoutError(f"no address of {self._host} ({error})") from error
        except UnicodeError as error:
            raise OSError(0, f"{self._host} is no host name") from error

    def _encrypted(self, plain: socket.socket, until: float) -> socket.socket:
        if self.context is None:
            return plain
        try:
            # The timeout of a handshake is one for the whole of it, however slowly its bytes come.
            plain.settimeout(max(until - time.monotonic(), 1e-3))
            return self.context.wrap_socket(plain, server_hostname=self._host)
        except BaseException:
            plain.close()
            raise


def _opened(family: Any, kind: Any, protocol: int, address: Any, seconds: float) -> socket.socket:
    opened = socket.socket(family, kind, protocol)
    try:
        opened.settimeout(seconds)
        opened.connect(address)
        opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        opened.close()
        raise
    return opened
