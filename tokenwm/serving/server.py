"""A server that imagines, scores and encodes for other processes over HTTP (uvicorn).

One event loop receives and answers (:mod:`tokenwm.serving.app`), one worker computes
(:mod:`tokenwm.serving.batching`). Here is what uvicorn lacks: deadlines for heads, for answers that
are not read and for bodies that were refused, a bound on connections, errors in JSON.
"""

import asyncio
import contextlib
import errno
import json
import logging
import signal
import socket
import sys
import time
from collections.abc import Collection
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import Any, Protocol

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import app
from tokenwm.serving.app import Guard, Service
from tokenwm.serving.metrics import Metrics
from tokenwm.serving.requests import Limits

logger = logging.getLogger(__name__)

SEND_SECONDS = 60.0
"""Time that a client may take to read an answer."""
DISCARD_SECONDS = 5.0
"""Time for which a refused body is read on, so that its sender gets to read the refusal."""
SPARE_CONNECTIONS = 16
"""Connections beyond the limit that may only GET, so that a full server can be watched."""
SPARE_SECONDS = 1.0
"""Time that such a connection may take to ask."""
MAX_HEAD_BYTES = 65536
ACCEPT_PAUSE = 0.5
"""Seconds to wait when no descriptor is free; asyncio itself tries again after a second."""
GRACE_SECONDS = 5.0
"""Time for running work when the server stops, and as much again for writing answers."""


class _Listener(socket.socket):
    """A listening socket; asyncio may try as often as its backlog when no descriptor is free."""

    pause_until = 0.0

    def accept(self) -> tuple[socket.socket, Any]:
        if time.monotonic() < self.pause_until:
            raise BlockingIOError
        try:
            return super().accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self.pause_until = time.monotonic() + ACCEPT_PAUSE
            raise


class HasConnections(Protocol):
    """Limits with a bound on connections."""

    @property
    def max_connections(self) -> int:
        """Open at a time."""
        ...


class Guarded(Protocol):
    """A service that can be served: an app, its limits and what it counts.

    Attributes:
        metrics: Counters.
        limits: Limits, of which ``max_connections`` is used here.
    """

    metrics: Metrics

    @property
    def limits(self) -> HasConnections:
        """The limits."""
        ...

    def app(self) -> Any:
        """Return the routes."""
        ...

    def close(self, grace: float = 0.0) -> None:
        """Stop computing, after ``grace`` seconds."""
        ...


class Connection(H11Protocol):
    """One connection, with deadlines."""

    def __init__(self, *args: Any, service: Guarded, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.service = service
        self.head = b""
        self.is_spare = self.is_refused = False
        self.waiting_since = time.monotonic()
        self.writing_since: float | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept a connection, keep it for a GET, or refuse it."""
        super().connection_made(transport)
        over = len(self.connections) - self.service.limits.max_connections
        self.is_spare = over > 0
        self.app_state = {**self.app_state, "is_spare": self.is_spare}
        if over > SPARE_CONNECTIONS:
            self._refuse_connection()

    def data_received(self, data: bytes) -> None:
        """Read what the client sends, unless it was refused already."""
        if not self.is_refused:
            self.head = data[:100]
            super().data_received(data)

    def send_400_response(self, msg: str) -> None:
        """Refuse what h11 cannot read, with the exception that is being handled as the reason."""
        error, status = sys.exception(), HTTPStatus.BAD_REQUEST
        text = str(error or msg)
        if getattr(error, "error_status_hint", 400) == 431:
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
            if b"\n" not in self.head:
                status = HTTPStatus.REQUEST_URI_TOO_LONG
            text = f"{status.phrase}: more than {MAX_HEAD_BYTES} bytes"
        elif text == "bad Content-Length":
            status, text = HTTPStatus.LENGTH_REQUIRED, "Content-Length is no number"
        elif "request line" in text:
            text = f"{text}: {self.head.splitlines()[0].decode('ascii', 'replace')!r}"
        self.service.metrics.add("requests_total", path="other", status=str(status.value))
        self._refuse(status, text)

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.waiting_since = time.monotonic()
        super().on_response_complete()

    def shutdown(self) -> None:
        """Close the connection once the current answer is sent."""
        if self.is_refused:
            self.transport.close()
        else:
            super().shutdown()

    def check(self, now: float) -> None:
        """Close the connection if a deadline has passed."""
        if self.transport.get_write_buffer_size():
            self.writing_since, self.waiting_since = self.writing_since or now, now
            if now - self.writing_since > SEND_SECONDS:
                self.transport.abort()
            return
        self.writing_since = None
        if (
            self._is_answering()
            and not self.is_refused
            or now - self.waiting_since < self._patience()
        ):
            return
        if self.is_spare and not self.is_refused:
            self._refuse_connection()
        else:
            self.transport.abort()

    def _is_answering(self) -> bool:
        cycle: Any = self.cycle  # None before the first request
        return cycle is not None and not cycle.response_complete

    def _patience(self) -> float:
        if self.is_refused or self.conn.their_state is h11.SEND_BODY:
            return DISCARD_SECONDS
        return SPARE_SECONDS if self.is_spare else app.RECEIVE_SECONDS

    def _refuse_connection(self) -> None:
        self.service.metrics.add("refused_connections_total")
        message = str(app.TooManyConnectionsError())
        self._refuse(HTTPStatus.SERVICE_UNAVAILABLE, message, "Retry-After: 1\r\n")

    def _refuse(self, status: HTTPStatus, message: str, header: str = "") -> None:
        """Answer without the app; stay open to discard input: closing now could lose the answer."""
        if self._is_answering():
            return self.transport.abort()
        body = json.dumps({"error": message})
        self.transport.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n{header}\r\n{body}".encode()
        )
        with contextlib.suppress(OSError):  # the client has just gone
            self.transport.write_eof()
        self.is_refused, self.waiting_since = True, time.monotonic()


class GuardedServer(uvicorn.Server):
    """A server of one service, with what uvicorn lacks.

    Args:
        service: What is served.
        address: Host and port; port 0 takes a free one.
        hosts: Names that the server goes by, besides its host and those of :class:`Guard`.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(
        self, service: Guarded, address: tuple[str, int], hosts: Collection[str] = ()
    ) -> None:
        family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
        with socket.create_server(address, family=family, backlog=128) as listening:
            self.socket = _Listener(fileno=listening.detach())
        self.address: tuple[str, int] = self.socket.getsockname()[:2]
        self.guarded = service
        self.routes = service.app()
        super().__init__(
            uvicorn.Config(
                Guard(self.routes, service.metrics, (address[0], *hosts)),
                http=partial(Connection, service=service),  # type: ignore[arg-type]
                loop="asyncio",
                lifespan="off",
                log_config=None,
                log_level="error",  # strangers' mistakes are counted, not logged
                access_log=False,
                server_header=False,
                # A message is held whole before anybody sees it, compressed or not.
                ws_max_size=getattr(service.limits, "max_upload_bytes", 0) + MAX_HEAD_BYTES,
                ws_max_queue=4,
                ws_per_message_deflate=False,
                h11_max_incomplete_event_size=MAX_HEAD_BYTES,
            )
        )

    def serve_forever(self) -> None:
        """Serve until :meth:`stop` or, on the main thread, SIGINT or SIGTERM."""
        self.run(sockets=[self.socket])

    def stop(self) -> None:
        """Stop soon; from any thread."""
        self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal; a second one ends the process at once."""
        if self.should_exit:
            signal.signal(sig, signal.SIG_DFL)
            signal.raise_signal(sig)
        self.stop()

    async def on_tick(self, counter: int) -> bool:
        """Look after the deadlines of all connections, ten times a second."""
        now = time.monotonic()
        for connection in list(self.server_state.connections):
            if isinstance(connection, Connection) and not connection.transport.is_closing():
                connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop listening; refuse what waits; finish what has begun, within seconds."""
        logger.warning("stopping; a signal now ends it at once")
        closing = asyncio.create_task(asyncio.to_thread(self.guarded.close, GRACE_SECONDS))
        asyncio.get_running_loop().call_later(2 * GRACE_SECONDS, self._abort)
        await super().shutdown(sockets)
        await closing

    def _abort(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


class WorldModelServer(GuardedServer):
    """A server of one world model.

    ========================  =========================================================
    ``POST /v1/imagine``      futures of candidates
    ``POST /v1/score``        likelihood of what happened
    ``POST /v1/encode``       tokens of frames
    ``POST /v1/rank``         action chunks, best first
    ``POST /v1/verify``       may this chunk be carried out?
    ``POST /v1/plan``         what to do next
    ``GET /health``           JSON; 200 as long as requests are computed
    ``GET /metrics``          counters in Prometheus's text format
    ``GET /openapi.json``     a description of all of them
    ========================  =========================================================

    Bodies are safetensors; errors are JSON ``{"error": message}``, see docs/serving.md.

    Args:
        model: The world model; nobody else may use it meanwhile. Its ``max_rows`` is lowered to
            the limits' ``max_batch_rows``.
        address: Host and port; port 0 takes a free one.
        limits: Limits of requests.
        hosts: Names that the server goes by, besides its host and those of :class:`Guard`.

    Raises:
        OSError: It cannot listen there.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        address: tuple[str, int],
        limits: Limits | None = None,
        hosts: Collection[str] = (),
    ) -> None:
        self.service = Service(model, limits or Limits())
        super().__init__(self.service, address, hosts)
