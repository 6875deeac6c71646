"""One POST to an endpoint that may do anything: bounded in time and size, never redirected, the key in no message.

One deadline covers all of it: looking up the name, the first address that answers, the TLS handshake and the reply.
httpx has none: with a timeout of 0.5 s it took 3.2 s for a reply of slow bytes and 2 s for a name that took 2 s.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from stage1.cascade.calls import CallFailed, strict_json
from stage1.cascade.chat import chat_probability, chat_request
from stage1.errors import ConfigError, MissingError
from stage1.runtime.deadline import DeadlineExceeded, DeadlineExecutor

if TYPE_CHECKING:
    from stage1.cascade.config import HttpConfig

_PIECE = 16384
# Bad request, too large, not this kind of content, content that cannot be processed.
_REFUSED_IMAGE = (400, 413, 415, 422)
_MEDIA = ((b"\xff\xd8\xff", "image/jpeg"), (b"\x89PNG\r\n", "image/png"), (b"GIF8", "image/gif"), (b"BM", "image/bmp"))


class Endpoint:
    """An HTTP stage ready to be asked; `ask` may be called from several threads, each call on a connection of its own.

    Raises MissingError where the environment variable of the key is not set, ConfigError where it cannot be a header.
    """

    def __init__(self, config: HttpConfig) -> None:
        self._config = config
        parts = urlsplit(config.url)
        self._secure, self._host = parts.scheme == "https", parts.hostname or ""
        self._port = parts.port or (443 if self._secure else 80)
        self._connector = Connector(self._host, self._port, secure=self._secure)
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._key = _key(config.key_env) if config.key_env else None

    def ask(self, image: bytes) -> float:
        """P(second class) of one image by one request; the number is checked by the caller. Raises CallFailed."""
        kind = media_type(image)
        if self._config.format == "bytes":
            body, content = image, kind
        else:
            text = base64.b64encode(image).decode("ascii")
            chat = self._config.chat
            document = {"image": text} if chat is None else chat_request(chat, f"data:{kind};base64,{text}")
            body, content = json.dumps(document).encode(), "application/json"
        try:
            return self._probability(self._post(body, content))
        except CallFailed as error:
            # Blanked before it is cut: a cut in the middle of the key would leave its first half.
            error.detail = " ".join(self._blanked(error.detail).split())[:200]
            error.args = (error.detail,)
            raise

    def _blanked(self, text: str) -> str:
        """The text without the key, which an endpoint may echo: in any case, or as Python or JSON quote it."""
        if self._key is None:
            return text
        forms = {self._key, repr(self._key)[1:-1], json.dumps(self._key)[1:-1], quote(self._key, safe="")}
        # The longest first: a short form may be part of a longer one.
        return re.sub(
            "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True)), "***", text, flags=re.I
        )

    def _probability(self, answer: bytes) -> float:
        try:
            document: Any = strict_json(answer)
        # RecursionError: 64 KiB of opening brackets.
        except (ValueError, RecursionError) as error:
            raise CallFailed("invalid", f"{len(answer)} bytes that are no JSON") from error
        if self._config.chat is not None:
            return chat_probability(self._config.chat, document)
        if not isinstance(document, dict) or "probability" not in document:
            raise CallFailed("invalid", "JSON without `probability`")
        value: float = document["probability"]
        return value

    def _post(self, body: bytes, content_type: str) -> bytes:
        config = self._config
        connection = self._connection()
        late = threading.Event()
        timer: threading.Timer | None = None
        try:
            try:
                connection.sock = self._connector.connect(config.connect_timeout_s)
            except TimeoutError as error:
                why = f", {error}" if str(error) else ""
                raise CallFailed("timeout", f"no connection within {config.connect_timeout_s:g} s{why}") from error
            timer = _cut_after(config.read_timeout_s, connection.sock, late)
            connection.request("POST", self._path, body, self._headers(content_type))
            answer = self._read(connection.getresponse())
            if late.is_set():
                # Cut in the middle of the head, what is there passes for an answer without a body.
                raise CallFailed("timeout", "")
            return answer
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set() or isinstance(error, TimeoutError):
                raise CallFailed("timeout", f"no whole answer within {config.read_timeout_s:g} s") from error
            if isinstance(error, OSError):
                raise CallFailed("unreachable", error.strerror or type(error).__name__) from error
            raise CallFailed("invalid", f"not an HTTP answer ({type(error).__name__})") from error
        except CallFailed as error:
            if late.is_set():
                raise CallFailed("timeout", f"no whole answer within {config.read_timeout_s:g} s") from error
            raise
        finally:
            if timer is not None:
                timer.cancel()
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        """Not connected yet: http.client would look the name up without any deadline."""
        if self._connector.context is None:
            return http.client.HTTPConnection(self._host, self._port)
        return http.client.HTTPSConnection(self._host, self._port, context=self._connector.context)

    def _read(self, response: http.client.HTTPResponse) -> bytes:
        status, most = response.status, self._config.max_response_bytes
        if 300 <= status < 400:
            raise CallFailed("redirect", f"HTTP {status}; redirects are not followed, give the final url", retry=False)
        if status != 200:
            again = status == 429 or status >= 500
            wait = _seconds(response.getheader("Retry-After"))
            raise CallFailed(
                "http_error", f"HTTP {status}", retry=again, wait_s=wait, of_image=status in _REFUSED_IMAGE
            )
        if (coding := response.getheader("Content-Encoding", "identity").strip().lower()) != "identity":
            # Nobody asked for it, and a few bytes may unpack to any number.
            raise CallFailed("invalid", f"Content-Encoding {coding}; plain JSON is expected", retry=False)
        pieces, size = [], 0
        while size <= most and (response.length is None or response.length <= most):
            piece = response.read1(_PIECE)
            if not piece:
                break
            pieces.append(piece)
            size += len(piece)
        else:
            raise CallFailed("too_large", f"more than {most} bytes (max_response_bytes)", retry=False)
        if response.length:
            raise CallFailed("invalid", f"ends {response.length} bytes early")
        return b"".join(pieces)

    def _headers(self, content_type: str) -> dict[str, str]:
        headers = {"Content-Type": content_type, "Accept": "application/json", "Connection": "close"}
        if self._key is not None:
            name = self._config.key_header
            headers[name] = f"Bearer {self._key}" if name.lower() == "authorization" else self._key
        return headers


def media_type(image: bytes) -> str:
    """By the first bytes; application/octet-stream for what is not known."""
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for start, kind in _MEDIA if image.startswith(start)), "application/octet-stream")


def _key(variable: str) -> str:
    key = os.environ.get(variable, "")
    if not key:
        raise MissingError(f"{variable}: the environment variable with the API key (key_env) is not set")
    if not all(32 < ord(char) < 127 for char in key):
        raise ConfigError(f"{variable}: its value holds spaces, line breaks or letters that no HTTP header takes")
    return key


def _cut_after(seconds: float, connection: socket.socket, late: threading.Event) -> threading.Timer:
    """Closes the connection at the deadline: a socket's own timeout restarts with every byte."""
    connection.settimeout(seconds)

    def cut() -> None:
        late.set()
        with suppress(OSError):  # already closed: there is nothing left to cut
            # Not that of an SSLSocket, which would take the cipher away from under the thread that reads.
            socket.socket.shutdown(connection, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    return timer


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; 0 where it is missing or a date."""
    return float(retry_after) if retry_after is not None and retry_after.isdecimal() and len(retry_after) < 6 else 0.0


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
        self._lookups = DeadlineExecutor(_LOOKUPS)

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
            return self._lookups.call_within(look_up, seconds)
        except DeadlineExceeded as error:
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
