"""The application (ASGI): requests are guarded, received, checked, computed and answered.

A page with a websocket is one more route: the guard watches over its handshake as well.
"""

import asyncio
import contextlib
import ipaddress
import logging
import re
import secrets
import socket
import time
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPMethod, HTTPStatus
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HTTPRequest
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import answers, wire
from tokenwm.serving.batching import (
    Batcher,
    DeadlineError,
    QueueFullError,
    UnavailableError,
    UnwantedError,
)
from tokenwm.serving.metrics import Metrics
from tokenwm.serving.openapi import describe
from tokenwm.serving.requests import PATHS, Limits, Request, parse

access_log = logging.getLogger("tokenwm.serving.access")

RECEIVE_SECONDS = 30.0
"""Time that a client may be silent between requests or take for a head, and again for a body."""
MAX_URI_BYTES = 8192
CLIENT_GONE = 499
"""Counted where the client did not wait for its answer, as nginx does."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
GETS = ("/health", "/metrics", "/openapi.json")
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")


class Refusal(TokenwmError):
    """An answer other than 200."""

    def __init__(self, status: HTTPStatus, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers


class TooManyConnectionsError(UnavailableError):
    """There is no room for another connection."""

    def __init__(self) -> None:
        super().__init__("too many connections; try again later")


class Service:
    """One world model, the worker that computes with it, and what is counted and held.

    Args:
        model: The world model; nobody else may use it meanwhile. Its ``max_rows`` is lowered to
            the limits' ``max_batch_rows``.
        limits: Limits of requests.
    """

    def __init__(self, model: TokenWorldModel, limits: Limits) -> None:
        self.model, self.limits, self.metrics = model, limits, Metrics()
        model.max_rows = min(model.max_rows, limits.max_batch_rows)
        self.batcher = Batcher(
            partial(answers.compute, model, metrics=self.metrics),
            max_rows=limits.max_batch_rows,
            max_queued_rows=limits.max_queued_rows,
            metrics=self.metrics,
        )
        self.held_bytes = 0
        self._packing = ThreadPoolExecutor(2, "packing")  # megabytes, which would hold up the loop

    def app(self) -> Starlette:
        """Return the routes; :class:`Guard` goes in front."""
        app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/metrics", self._metrics),
                Route("/openapi.json", self._openapi),
                *(Route(path, self._compute, methods=["POST"]) for path in PATHS),
            ],
            exception_handlers={
                kind: _handle
                for kind in (HTTPException, TokenwmError, ValueError, ClientDisconnect, Exception)
            },
        )
        app.router.redirect_slashes = False
        return app

    def close(self, grace: float = 0.0) -> None:
        """See :meth:`Batcher.close`."""
        self.batcher.close(grace)

    @contextlib.contextmanager
    def holding(self, num_bytes: int) -> Iterator[None]:
        """Hold so many bytes for a request; from the event loop only.

        Raises:
            QueueFullError: There is no room for them.
        """
        if self.held_bytes + num_bytes > self.limits.max_bytes:
            raise QueueFullError(
                f"{self.held_bytes} bytes are held for other requests and {num_bytes} more would "
                f"be above {self.limits.max_bytes}; try again later"
            )
        self.held_bytes += num_bytes
        try:
            yield
        finally:
            self.held_bytes -= num_bytes

    async def _compute(self, http: HTTPRequest) -> Response:
        length = _content_length(http.headers, self.limits.max_body_bytes)
        in_thread = partial(asyncio.get_running_loop().run_in_executor, self._packing)
        with self.holding(length):
            self.metrics.add("received_bytes_total", length)
            parts = await _receive(http)
            request = await in_thread(self._parse, http.scope["path"], parts)
            with self.holding(request.num_pixel_bytes):
                result = await self.batcher.submit(
                    request.key,
                    request.size,
                    request.length,
                    request,
                    request.timeout,
                    _disconnected(http),
                )
                body = await in_thread(wire.pack, result, {})
        return Response(body, media_type=wire.MEDIA_TYPE)

    def _parse(self, path: str, parts: list[bytes]) -> Request:
        body = b"".join(parts)
        parts.clear()  # nobody keeps the body once it is unpacked
        return parse(path, self.model, *wire.unpack(body), self.limits)

    async def _health(self, _: HTTPRequest) -> Response:
        if not self.batcher.is_alive:
            message = "the worker has stopped; see the server's log and start it again"
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, message)
        vocabulary = self.model.vocabulary
        state = vocabulary.state
        return JSONResponse(
            {
                "status": "ok",
                "running_seconds": round(self.batcher.running_seconds, 3),
                "queued_rows": self.batcher.queued_rows,
                "model": {
                    "frame_shape": list(self.model.tokenizer.frame_shape),
                    "tokens_per_frame": vocabulary.tokens_per_frame,
                    "action_dimensions": vocabulary.action.num_dimensions,
                    "actions_per_step": vocabulary.actions_per_step,
                    "state_dimensions": 0 if state is None else state.num_dimensions,
                    "has_reward": vocabulary.has_reward,
                    "control_rate": self.model.control_rate,
                },
                "limits": vars(self.limits),
            }
        )

    def metrics_text(self) -> str:
        """Return counters, histograms and gauges in Prometheus's text format."""
        tokens, passes = (self.metrics.value(n) for n in ("row_tokens_total", "passes_total"))
        return self.metrics.text(
            {
                "queued_rows": self.batcher.queued_rows,
                "running_seconds": self.batcher.running_seconds,
                "held_bytes": self.held_bytes,
                "tokens_per_pass": tokens / max(1.0, passes),
            }
        )

    async def _metrics(self, _: HTTPRequest) -> Response:
        return Response(self.metrics_text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _openapi(self, _: HTTPRequest) -> Response:
        return JSONResponse(describe(self.model, self.limits))


class Guard:
    """A wrapper around the app: checks who may ask, gives request ids, counts, logs.

    Args:
        app: The app that answers requests.
        metrics: Counters and histograms.
        hosts: Names that the server goes by, besides loopback, this machine's name and any IP
            address. A foreign name in ``Host`` is a web page whose name was pointed at this machine
            (DNS rebinding), a foreign ``Origin`` a web page that posts here.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, hosts: Collection[str] = ()) -> None:
        self.app, self.metrics = app, metrics
        self.hosts = {name.lower() for name in (*LOOPBACK, socket.gethostname(), *hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request or a websocket's handshake."""
        start, headers = time.perf_counter(), Headers(scope=scope)
        given = headers.get("X-Request-ID", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        path = scope["path"] if scope["path"] in (*PATHS, *GETS) else "other"
        status = num_bytes = 0

        async def answer(message: Message) -> None:
            nonlocal status, num_bytes
            if message["type"] == "http.response.start":
                status = message["status"]
                head = MutableHeaders(scope=message)
                head["X-Request-ID"] = request_id
                if _must_close(scope, headers):
                    head["Connection"] = "close"
                self.metrics.add("requests_total", path=path, status=str(status))
            num_bytes += len(message.get("body", b""))
            await send(message)

        try:
            self._check(scope, headers)
        except TokenwmError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": str(error)})
            else:
                await _refuse(None, error)(scope, receive, answer)
        else:
            await self.app(scope, receive, answer)
        finally:
            seconds = time.perf_counter() - start
            self.metrics.observe("request_seconds", seconds, path=path)
            self.metrics.add("sent_bytes_total", num_bytes)
            client, method = (scope.get("client") or ("-",))[0], scope.get("method", "WEBSOCKET")
            access_log.info(
                "%s %s %s %s %d %d bytes %.3f s",
                *(request_id, client, method, scope["raw_path"].decode("ascii", "replace")[:200]),
                *(status, num_bytes, seconds),
            )

    def _check(self, scope: Scope, headers: Headers) -> None:
        if scope.get("method", "GET") not in HTTPMethod.__members__:
            message = f"{scope['method']} is no method of HTTP"
            raise Refusal(HTTPStatus.NOT_IMPLEMENTED, message)
        if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_URI_BYTES:
            status = HTTPStatus.REQUEST_URI_TOO_LONG
            raise Refusal(status, f"{status.phrase}: more than {MAX_URI_BYTES} bytes")
        if scope["state"].get("is_spare") and scope.get("method") != "GET":
            self.metrics.add("refused_connections_total")
            raise TooManyConnectionsError
        host, origin = headers.get("Host", "localhost"), headers.get("Origin")
        name = _name(host)
        if name not in self.hosts and not _is_address(name):
            raise Refusal(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this server does not go by the name {name!r}; --allow-host {name} if it should",
            )
        if origin is None or origin.partition("://")[2].lower() == host.lower():
            return
        name = _name(origin.partition("://")[2])
        if name not in self.hosts:
            raise Refusal(
                HTTPStatus.FORBIDDEN,
                f"pages of {origin} may not ask this server; --allow-host {name} if they should",
            )


def _name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def _must_close(scope: Scope, headers: Headers) -> bool:
    """True if the connection must end: an unread body could be read as the next request."""
    has_body = "Content-Length" in headers or "Transfer-Encoding" in headers
    is_odd = has_body and scope["method"] != "POST" or "Transfer-Encoding" in headers
    return is_odd or bool(scope["state"].get("is_spare"))


def _content_length(headers: Headers, limit: int) -> int:
    length = headers.get("Content-Length", "")
    if not length.isdecimal() or "Transfer-Encoding" in headers:
        raise Refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing or no number")
    if int(length) > limit:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body has {length} bytes; at most {limit} are read",
        )
    given = headers.get("Content-Type", "")
    if given.partition(";")[0].strip().lower() != wire.MEDIA_TYPE:
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"Content-Type is {given!r}; send {wire.MEDIA_TYPE}, which no web page can unasked",
        )
    return int(length)


async def _receive(http: HTTPRequest) -> list[bytes]:
    try:
        async with asyncio.timeout(RECEIVE_SECONDS):
            return [part async for part in http.stream()]
    except TimeoutError:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT,
            f"the body did not come within {RECEIVE_SECONDS:g} s",
            Connection="close",
        ) from None


async def _disconnected(http: HTTPRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass


async def _handle(http: HTTPRequest, error: Exception) -> Response:
    return _refuse(http, error)  # Starlette would run what is not async in another thread


def _refuse(http: HTTPRequest | None, error: Exception) -> Response:
    """Return the answer to a request that failed."""
    status, headers, message = HTTPStatus.BAD_REQUEST, dict[str, str](), str(error)
    if isinstance(error, UnwantedError | ClientDisconnect):
        return Response(status_code=CLIENT_GONE)
    if isinstance(error, HTTPException):
        status, headers = HTTPStatus(error.status_code), dict(error.headers or {})
        if http is not None:
            message = (
                f"{http.method} {http.scope['path']}: use {' or '.join(GETS)}"
                if http.method in ("GET", "HEAD")
                else f"{http.method} {http.scope['path']}: use one of POST {', POST '.join(PATHS)}"
            )
    elif isinstance(error, Refusal):
        status, headers = error.status, error.headers
    elif isinstance(error, UnavailableError):
        status, headers = HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": "1"}
    elif isinstance(error, DeadlineError):
        status = HTTPStatus.GATEWAY_TIMEOUT
    elif not isinstance(error, TokenwmError | ValueError):
        status, message = HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the server's log"
    return JSONResponse({"error": message}, status, headers)
