"""An HTTP server that imagines, scores and encodes for other processes.

Every connection has a thread; one worker computes, and requests that wait together and fit together
are imagined together (:mod:`tokenwm.uses.serving.batching`). Each gets what it would get alone.
"""

import json
import logging
import socket
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.uses.serving import requests, wire
from tokenwm.uses.serving.batching import Batcher, DeadlineError, QueueFullError
from tokenwm.uses.serving.requests import Arrays, ImagineRequest, Limits

logger = logging.getLogger(__name__)

SOCKET_TIMEOUT = 30.0
"""Seconds that a client may be silent in the middle of a request."""
DISCARD_SECONDS = 5.0
"""How long a body that is too large is read on, so that its sender gets to read the refusal."""
WRITE_BYTES = 2**20
"""How much of an answer is written at a time."""


class _Refusal(TokenwmError):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


class WorldModelServer(ThreadingHTTPServer):
    """Serves one world model; ``serve_forever`` and ``shutdown`` as in :mod:`http.server`.

    ========================  =========================================================
    ``POST /v1/imagine``      futures of candidates, see :class:`ImagineRequest`
    ``POST /v1/score``        likelihood of what happened
    ``POST /v1/encode``       tokens of frames
    ``GET /health``           JSON; 200 as long as requests are computed
    ``GET /metrics``          counters in Prometheus's text format
    ========================  =========================================================

    Bodies are safetensors; errors are JSON ``{"error": message}`` with 400 (wrong), 404, 411, 413
    (too large), 500 (a defect), 503 (too much is waiting; ``Retry-After``) or 504 (not in time).

    Args:
        model: The world model; nobody else may use it meanwhile.
        address: Host and port; port 0 takes a free one.
        limits: What is accepted.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, model: TokenWorldModel, address: tuple[str, int], limits: Limits | None = None
    ) -> None:
        self.model, self.limits = model, limits or Limits()
        self.batcher = Batcher(
            self._compute,
            max_rows=self.limits.max_rows,
            max_queued_rows=self.limits.max_queued_rows,
        )
        self.answers: Counter[tuple[str, int]] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.lock = threading.Lock()
        super().__init__(address, _Handler)

    def server_close(self) -> None:
        """Stop listening and computing."""
        super().server_close()
        self.batcher.close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""
        logger.debug("connection of %s broke off", client_address, exc_info=True)

    def _compute(self, asked: list[Any]) -> list[Arrays]:
        if isinstance(asked[0], ImagineRequest):
            return requests.imagine(self.model, asked)
        answer, arrays, options = asked[0]
        return [answer(self.model, arrays, options, self.limits)]

    def answer(self, path: str, body: bytes) -> bytes:
        """The body of a 200.

        Raises:
            TokenwmError: The request is wrong, does not fit, or was not computed in time.
        """
        arrays, options = wire.unpack(body)
        timeout = float(
            requests.number_option(
                options, "timeout", self.limits.timeout, 0.0, self.limits.timeout
            )
        )
        if path == "/v1/imagine":
            asked = requests.parse_imagine(self.model, arrays, options, self.limits)
            size, steps = len(asked.actions), asked.actions.shape[1]
            result = self.batcher.submit(asked.key, size, steps, asked, timeout)
        else:
            answer = {"/v1/score": requests.score, "/v1/encode": requests.encode}[path]
            size = max((len(array) for array in arrays.values() if array.ndim), default=1)
            result = self.batcher.submit(None, size, 1, (answer, arrays, options), timeout)
        return wire.pack(result, {})

    def metrics(self) -> str:
        """Counters in Prometheus's text format."""
        lines = ["# TYPE tokenwm_requests_total counter"]
        with self.lock:
            for (path, status), count in sorted(self.answers.items()):
                lines.append(f'tokenwm_requests_total{{path="{path}",status="{status}"}} {count}')
            lines.append("# TYPE tokenwm_request_seconds_total counter")
            for path, seconds in sorted(self.seconds.items()):
                lines.append(f'tokenwm_request_seconds_total{{path="{path}"}} {seconds:.6f}')
        figures = {
            "batches_total": self.batcher.num_batches,
            "batched_requests_total": self.batcher.num_jobs,
            "batched_rows_total": self.batcher.num_rows,
        }
        for name, value in figures.items():
            lines += [f"# TYPE tokenwm_{name} counter", f"tokenwm_{name} {value}"]
        lines += ["# TYPE tokenwm_queued_rows gauge"]
        lines += [f"tokenwm_queued_rows {self.batcher.queued_rows}"]
        return "\n".join(lines) + "\n"


class _Handler(BaseHTTPRequestHandler):
    server: WorldModelServer
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_TIMEOUT
    disable_nagle_algorithm = True  # or every answer waits 40 ms for an acknowledgement
    _discard_body = False
    POSTS: ClassVar = ("/v1/imagine", "/v1/score", "/v1/encode")

    def do_GET(self) -> None:
        self._respond(self._get)

    def do_POST(self) -> None:
        self._respond(self._post)

    def _get(self) -> tuple[str, bytes]:
        if "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that is not read must not become a request
        if self.path == "/health":
            if not self.server.batcher.is_alive:
                raise _Refusal(HTTPStatus.SERVICE_UNAVAILABLE, "the worker has stopped")
            return "application/json", json.dumps({"status": "ok"}).encode()
        if self.path == "/metrics":
            return "text/plain; version=0.0.4", self.server.metrics().encode()
        raise _Refusal(HTTPStatus.NOT_FOUND, f"GET {self.path}: use /health or /metrics")

    def _post(self) -> tuple[str, bytes]:
        limit = self.server.limits.max_body_bytes
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise _Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing or no number")
        if len(length) > 18 or int(length) > limit:
            self.close_connection = True
            self._discard_body = True
            raise _Refusal(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the body has {length} bytes; at most {limit} are read",
            )
        body = self.rfile.read(int(length))
        if self.path not in self.POSTS:
            raise _Refusal(
                HTTPStatus.NOT_FOUND, f"POST {self.path}: use one of {', '.join(self.POSTS)}"
            )
        if len(body) < int(length):
            raise _Refusal(HTTPStatus.BAD_REQUEST, "the body ends before its Content-Length")
        return wire.MEDIA_TYPE, self.server.answer(self.path, body)

    def _respond(self, answer: Callable[[], tuple[str, bytes]]) -> None:
        start, status, kind, extra = time.perf_counter(), HTTPStatus.OK, "application/json", {}
        try:
            kind, body = answer()
        except (TokenwmError, ValueError) as error:
            status = HTTPStatus.BAD_REQUEST
            if isinstance(error, _Refusal):
                status = error.status
            elif isinstance(error, QueueFullError):
                status, extra = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}
            elif isinstance(error, DeadlineError):
                status = HTTPStatus.GATEWAY_TIMEOUT
            body = json.dumps({"error": str(error)}).encode()
        except OSError:  # the client has gone
            raise
        except Exception:
            logger.exception("a request could not be computed")
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            body = json.dumps({"error": "internal error; see the server's log"}).encode()
        known = self.path if self.path in (*self.POSTS, "/health", "/metrics") else "other"
        with self.server.lock:
            self.server.answers[known, status.value] += 1
            self.server.seconds[known] += time.perf_counter() - start
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in extra.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        for first in range(0, len(body), WRITE_BYTES):  # the time-out is of each part
            self.wfile.write(memoryview(body)[first : first + WRITE_BYTES])
        if self._discard_body:
            self._discard()

    def _discard(self) -> None:
        """Read on for a while: who closes on unread data takes back the answer, too."""
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + DISCARD_SECONDS
        self.connection.settimeout(DISCARD_SECONDS)
        while time.monotonic() < deadline and self.rfile.read1(WRITE_BYTES):
            pass

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug(format, *args)
