"""A connection to the server: requests are received, answered and counted."""

import io
import json
import logging
import select
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any

from tokenwm.errors import TokenwmError
from tokenwm.serving import wire
from tokenwm.serving.batching import DeadlineError, UnavailableError, UnwantedError
from tokenwm.serving.requests import PARSERS

if TYPE_CHECKING:
    from tokenwm.serving.server import WorldModelServer

logger = logging.getLogger(__name__)

RECEIVE_SECONDS = 30.0
"""How long a client may be silent between requests and take for a head, and again for a body."""
SEND_SECONDS = 60.0
"""How long it may take to read an answer."""
DISCARD_SECONDS = 5.0
"""How long a body that is refused is read on, so that its sender gets to read the refusal."""
PART_BYTES = 2**20
"""How much is read or written at a time."""
JSON = "application/json"
CLIENT_GONE = 499
"""Counted where the client did not wait for its answer, as nginx does."""
GETS = ("/health", "/metrics")


class _Refusal(TokenwmError):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class _Incoming(io.RawIOBase):
    """What a client sends, up to a deadline (:func:`time.monotonic`), however it is dripped."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection, self.deadline = connection, 0.0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)


class Handler(BaseHTTPRequestHandler):
    """Answers the requests of one connection, one after another, on a thread of its own."""

    server: "WorldModelServer"
    protocol_version = "HTTP/1.1"
    default_request_version = "HTTP/1.0"  # else a line that cannot be read gets no status
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    _discard_body = False

    def setup(self) -> None:
        """Read with a deadline."""
        super().setup()
        self.rfile.close()
        self.incoming = _Incoming(self.connection)
        self.rfile = io.BufferedReader(self.incoming)

    def handle_one_request(self) -> None:
        """Wait for a request and answer it."""
        self.path = ""  # of a request that cannot be read
        self.incoming.deadline = time.monotonic() + RECEIVE_SECONDS
        super().handle_one_request()

    def do_GET(self) -> None:
        """Say how the server is."""
        self._respond(self._get)

    def do_POST(self) -> None:
        """Compute."""
        self._respond(self._post)

    def do_PUT(self) -> None:
        """Refuse."""
        self._respond(self._refuse_method)

    do_HEAD = do_DELETE = do_PATCH = do_OPTIONS = do_PUT

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse what :mod:`http.server` cannot read."""
        status = HTTPStatus(code)
        self.close_connection = True
        self._count(code)
        self._send(status, JSON, _error(message or status.phrase), {})

    def _get(self) -> tuple[str, bytes]:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that is not read must not become a request
        if self.path == "/health":
            try:
                return JSON, json.dumps(self.server.health()).encode()
            except TokenwmError as error:
                raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        if self.path == "/metrics":
            return "text/plain; version=0.0.4", self.server.metrics_text().encode()
        raise _Refusal(HTTPStatus.NOT_FOUND, f"GET {self.path}: use {' or '.join(GETS)}")

    def _post(self) -> tuple[str, bytes]:
        limit = self.server.limits.max_body_bytes
        length = self.headers.get("Content-Length", "")
        self.close_connection, keep_alive = True, self.close_connection
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing or no number")
        self._discard_body = True
        if len(length) > 18 or int(length) > limit:
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length} bytes; at most {limit} are read",
            )
        with self.server.holding(int(length)):
            self._discard_body = False
            self.server.metrics.add("received_bytes_total", int(length))
            # Nobody keeps the body once it is unpacked.
            body = [self._receive(int(length))]
            self.close_connection = keep_alive
            if self.path not in PARSERS:
                raise _Refusal(
                    HTTPStatus.NOT_FOUND, f"POST {self.path}: use one of {', '.join(PARSERS)}"
                )
            request, timeout = self.server.parse(self.path, body.pop())
            with self.server.holding(request.num_pixel_bytes):
                arrays = self.server.answer(request, timeout, self._is_wanted)
                return wire.MEDIA_TYPE, wire.pack(arrays, {})

    def _refuse_method(self) -> tuple[str, bytes]:
        self.close_connection = True
        message = f"{self.command} {self.path}: GET {' or '.join(GETS)}, POST {', '.join(PARSERS)}"
        raise _Refusal(HTTPStatus.METHOD_NOT_ALLOWED, message, Allow="GET, POST")

    def _receive(self, length: int) -> bytes:
        self.incoming.deadline = time.monotonic() + RECEIVE_SECONDS
        try:
            body = self.rfile.read(length)
        except TimeoutError as error:
            raise _Refusal(
                HTTPStatus.REQUEST_TIMEOUT, f"no {length} bytes within {RECEIVE_SECONDS:g} s"
            ) from error
        if len(body) < length:
            raise _Refusal(HTTPStatus.BAD_REQUEST, "the body ends before its Content-Length")
        return body

    def _is_wanted(self) -> bool:
        """Whether the client still waits: it neither closed its connection nor its half of it."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN)
        if not poll.poll(0):
            return True
        try:
            return bool(self.connection.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _respond(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        start, kind = time.perf_counter(), JSON
        status, headers = HTTPStatus.OK, dict[str, str]()
        with self.server.answering():
            try:
                kind, body = answer()
            except UnwantedError:
                self._count(CLIENT_GONE, start)
                self.close_connection = True
                return
            except (TokenwmError, ValueError) as error:
                status, headers = _refusal(error)
                body = _error(str(error))
            except OSError:  # the client has gone
                self._count(CLIENT_GONE, start)
                raise
            except Exception:
                logger.exception("a request could not be computed")
                status = HTTPStatus.INTERNAL_SERVER_ERROR
                body = _error("internal error; see the server's log")
            self._count(status.value, start)
            self._send(status, kind, body, headers)
            if self._discard_body:
                self._discard()

    def _count(self, status: int, start: float | None = None) -> None:
        path = self.path if self.path in (*PARSERS, *GETS) else "other"
        self.server.metrics.add("requests_total", path=path, status=str(status))
        if start is not None:
            seconds = time.perf_counter() - start
            self.server.metrics.observe("request_seconds", seconds, path=path)

    def _send(self, status: HTTPStatus, kind: str, body: bytes, headers: dict[str, str]) -> None:
        end = time.monotonic() + SEND_SECONDS
        self.connection.settimeout(SEND_SECONDS)
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command == "HEAD":
            return
        for first in range(0, len(body), PART_BYTES):
            self.connection.settimeout(max(0.001, end - time.monotonic()))
            self.wfile.write(memoryview(body)[first : first + PART_BYTES])
        self.server.metrics.add("sent_bytes_total", len(body))

    def _discard(self) -> None:
        """Read on for a while: who closes on unread data takes back the answer, too."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        self.incoming.deadline = time.monotonic() + DISCARD_SECONDS
        while self.rfile.read1(PART_BYTES):
            pass

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are counted, not logged."""
        logger.debug(format, *args)


def _refusal(error: Exception) -> tuple[HTTPStatus, dict[str, str]]:
    """Status and headers that an error is answered with."""
    if isinstance(error, _Refusal):
        return error.status, error.headers
    if isinstance(error, UnavailableError):
        return HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}
    if isinstance(error, DeadlineError):
        return HTTPStatus.GATEWAY_TIMEOUT, {}
    return HTTPStatus.BAD_REQUEST, {}


def _error(message: str) -> bytes:
    return json.dumps({"error": message}).encode()
