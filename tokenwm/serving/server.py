"""An HTTP server that imagines, scores and encodes for other processes.

Every connection has a thread (:mod:`tokenwm.serving.handler`); one worker computes, and
requests that wait together and fit together are imagined together
(:mod:`tokenwm.serving.batching`). Each gets what it would get alone.
"""

import contextlib
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from http.server import ThreadingHTTPServer
from typing import Any

from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import answers, requests, wire
from tokenwm.serving.batching import Batcher, QueueFullError
from tokenwm.serving.handler import Handler
from tokenwm.serving.metrics import Metrics
from tokenwm.serving.requests import Arrays, Limits, Request

logger = logging.getLogger(__name__)

ACCEPT_PAUSE = 0.1
"""Seconds to wait when no connection can be accepted: no descriptor is free."""
GRACE_SECONDS = 5.0
"""What has begun is given so long when the server stops, and writing answers as long again."""


class WorldModelServer(ThreadingHTTPServer):
    """Serves one world model; ``serve_forever`` and ``shutdown`` as in :mod:`http.server`.

    ========================  =========================================================
    ``POST /v1/imagine``      futures of candidates, see :class:`ImagineRequest`
    ``POST /v1/score``        likelihood of what happened
    ``POST /v1/encode``       tokens of frames
    ``GET /health``           JSON; 200 as long as requests are computed
    ``GET /metrics``          counters in Prometheus's text format
    ========================  =========================================================

    Bodies are safetensors; errors are JSON ``{"error": message}``, see docs/serving.md.

    Args:
        model: The world model; nobody else may use it meanwhile. Its ``max_rows`` is lowered to
            the limits' ``max_batch_rows``.
        address: Host and port; port 0 takes a free one.
        limits: What is accepted.
    """

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(
        self, model: TokenWorldModel, address: tuple[str, int], limits: Limits | None = None
    ) -> None:
        self.model, self.limits, self.metrics = model, limits or Limits(), Metrics()
        model.max_rows = min(model.max_rows, self.limits.max_batch_rows)
        self.batcher = Batcher(
            partial(answers.compute, model, metrics=self.metrics),
            max_rows=self.limits.max_batch_rows,
            max_queued_rows=self.limits.max_queued_rows,
            metrics=self.metrics,
        )
        self._lock = threading.Lock()
        self._bytes = self._answering = 0
        self._connections = threading.BoundedSemaphore(self.limits.max_connections)
        super().__init__(address, Handler)

    def server_close(self) -> None:
        """Stop listening; refuse what waits; finish what has begun, within seconds."""
        super().server_close()
        self.batcher.close(GRACE_SECONDS)
        end = time.monotonic() + GRACE_SECONDS
        while self._answering and time.monotonic() < end:
            time.sleep(0.02)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""
        logger.debug("connection of %s broke off", client_address, exc_info=True)

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection."""
        try:
            return super().get_request()
        except OSError:  # no descriptor is free; trying again at once would keep a core busy
            time.sleep(ACCEPT_PAUSE)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, or refuse it."""
        if self._connections.acquire(blocking=False):
            try:
                return super().process_request(request, client_address)
            except RuntimeError:  # no thread can be started
                self._connections.release()
        self.metrics.add("refused_connections_total")
        body = json.dumps({"error": "too many connections; try again later"})
        head = f"Retry-After: 1\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
        with contextlib.suppress(OSError):
            request.settimeout(1.0)
            request.sendall(f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n{body}".encode())
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._connections.release()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While a request is answered: the server does not stop without waiting for it."""
        with self._lock:
            self._answering += 1
        try:
            yield
        finally:
            with self._lock:
                self._answering -= 1

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """While so many bytes are held for a request.

        Raises:
            QueueFullError: There is no room for them.
        """
        with self._lock:
            if self._bytes + num_bytes > self.limits.max_bytes:
                raise QueueFullError(
                    f"{self._bytes} bytes are held for other requests and {num_bytes} more would "
                    f"be above {self.limits.max_bytes}; try again later"
                )
            self._bytes += num_bytes
        try:
            yield
        finally:
            with self._lock:
                self._bytes -= num_bytes

    def parse(self, path: str, body: bytes) -> tuple[Request, float]:
        """A request, checked, and the seconds that it may take.

        Raises:
            TokenwmError: It is wrong.
        """
        arrays, options = wire.unpack(body)
        most = self.limits.timeout
        timeout = float(requests.number_option(options, "timeout", most, 0.0, most))
        return requests.parse(path, self.model, arrays, options, self.limits), timeout

    def answer(self, request: Request, timeout: float, is_wanted: Callable[[], bool]) -> Arrays:
        """Have a request computed; see :meth:`Batcher.submit`.

        Raises:
            TokenwmError: There is no room for it, or it was not computed in time.
        """
        return dict(
            self.batcher.submit(
                request.key, request.size, request.length, request, timeout, is_wanted
            )
        )

    def health(self) -> dict[str, Any]:
        """What runs and waits, what the model takes and what is accepted.

        Raises:
            TokenwmError: Nothing is computed any more.
        """
        if not self.batcher.is_alive:
            raise TokenwmError("the worker has stopped; see the server's log and start it again")
        vocabulary = self.model.vocabulary
        state = vocabulary.state
        return {
            "status": "ok",
            "running_seconds": round(self.batcher.running_seconds, 3),
            "queued_rows": self.batcher.queued_rows,
            "model": {
                "frame_shape": list(self.model.tokenizer.frame_shape),
                "tokens_per_frame": vocabulary.tokens_per_frame,
                "action_dimensions": vocabulary.action.num_dimensions,
                "state_dimensions": 0 if state is None else state.num_dimensions,
                "has_reward": vocabulary.has_reward,
                "control_rate": self.model.control_rate,
            },
            "limits": vars(self.limits),
        }

    def metrics_text(self) -> str:
        """Counters, histograms and gauges in Prometheus's text format."""
        row_tokens, passes = (self.metrics.value(n) for n in ("row_tokens_total", "passes_total"))
        return self.metrics.text(
            {
                "queued_rows": self.batcher.queued_rows,
                "running_seconds": self.batcher.running_seconds,
                "held_bytes": self._bytes,
                "tokens_per_pass": row_tokens / max(1.0, passes),
            }
        )
