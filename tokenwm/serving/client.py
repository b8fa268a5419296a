"""The caller's side of :mod:`tokenwm.serving.server`; needs neither torch nor a model."""

import http.client
import json
import time
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.serving import wire

Arrays = dict[str, NDArray[Any]]

BUSY = 503
"""Status of a server that has no room now."""
DECISIONS = ("accepted", "rejected", "unknown")
"""Verdicts by their number in an answer."""
LONGEST_WAIT = 10.0
"""Seconds before asking again, at most, whatever the server says."""


class ServerError(TokenwmError):
    """The server refused, or there is none.

    Attributes:
        status: HTTP status of its answer (docs/serving.md); None if there was no answer.
    """

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class WorldModelClient:
    """One connection to a server; one per thread. A context manager that closes it.

    Args:
        host: Name or address of the server.
        port: Its port.
        timeout: Seconds to wait for an answer.
        retries: How often to ask again while the server has no room (503), each time after as
            many seconds as it says, at most 10.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8600,
        *,
        timeout: float = 90.0,
        retries: int = 3,
    ) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def imagine(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        actions: NDArray[Any],
        states: NDArray[Any] | None = None,
        **options: Any,
    ) -> Arrays:
        """Imagine the futures of candidate action sequences.

        Args:
            frames: ``(B, C, cameras, H, W, 3)`` uint8, observed.
            past_actions: ``(B, C - 1, A)`` in the units of the data.
            actions: ``(B * n, steps, A)``, ``n`` candidates for every row.
            states: ``(B, C, state_dim)``, if the model has a state.
            **options: ``seed``, ``temperature``, ``top_k``, ``top_p``, ``pixels`` (a list of the
                steps whose frames are wanted), ``timeout`` (seconds).

        Returns:
            ``frame_tokens``, ``termination_probability``, ``frame_nll``, ``frame_entropy``, and
            ``reward``, ``states`` and ``frames`` if there are any; ``(B * n, steps, ·)`` each.

        Raises:
            ServerError: The server refused, or did not answer in time.
        """
        arrays = {"frames": frames, "past_actions": past_actions, "actions": actions}
        return self._post("/v1/imagine", arrays | _given(states=states), options)

    def score(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        states: NDArray[Any] | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """``(B, C - 1)`` nats per token of each observed frame after the first."""
        arrays = {"frames": frames, "past_actions": past_actions} | _given(states=states)
        return self._post("/v1/score", arrays, options)["frame_nll"]

    def encode(self, frames: NDArray[np.uint8], **options: Any) -> NDArray[np.uint16]:
        """``(N, cameras, H, W, 3)`` uint8 → ``(N, K)`` tokens."""
        return self._post("/v1/encode", {"frames": frames}, options)["frame_tokens"]

    def rank(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        chunks: NDArray[Any],
        states: NDArray[Any] | None = None,
        goal: NDArray[np.uint8] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Rank action chunks from one state, by the predicted reward or by a goal.

        Args:
            frames: ``(1, C, cameras, H, W, 3)`` uint8, observed.
            past_actions: ``(1, C - 1, A)`` in the units of the data.
            chunks: ``(K, steps, A)``.
            states: ``(1, C, state_dim)``, if the model has a state.
            goal: ``(cameras, H, W, 3)`` uint8, a picture of what is wanted.
            **options: ``limits`` (a dictionary of hard limits, docs/deciding.md), ``least`` (a
                future fails where reward, or minus the distance to the goal, is below it),
                ``num_futures``, ``max_failure_probability``, ``temperature``, ``seed``,
                ``timeout`` (seconds).

        Returns:
            ``order`` ``(K,)`` best first, ``scores`` ``(K,)``, ``failure_probability`` ``(K,)``,
            NaN where it is not known, and lists: ``decision`` (``accepted``, ``rejected`` or
            ``unknown``) and ``reasons``.

        Raises:
            ServerError: The server refused, or did not answer in time.
        """
        arrays = {"frames": frames, "past_actions": past_actions, "actions": chunks}
        answer: dict[str, Any] = self._post(
            "/v1/rank", arrays | _given(states=states, goal=goal), options
        )
        return _told(answer)

    def verify(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        chunk: NDArray[Any],
        states: NDArray[Any] | None = None,
        goal: NDArray[np.uint8] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Judge one action chunk ``(steps, A)``: as :meth:`rank`, by drawn futures.

        Returns:
            ``decision``, ``reason`` and ``failure_probability``, None where it is not known.

        Raises:
            ServerError: The server refused, or did not answer in time.
        """
        arrays = {"frames": frames, "past_actions": past_actions, "actions": chunk[None]}
        answer = _told(self._post("/v1/verify", arrays | _given(states=states, goal=goal), options))
        probability = float(answer["failure_probability"][0])
        return {
            "decision": answer["decision"][0],
            "reason": answer["reasons"][0],
            "failure_probability": None if np.isnan(probability) else probability,
        }

    def plan(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        states: NDArray[Any] | None = None,
        goal: NDArray[np.uint8] | None = None,
        **options: Any,
    ) -> dict[str, Any]:
        """Look for actions, by the predicted reward or towards a goal.

        Args:
            frames: As in :meth:`rank`, and so are the others.
            past_actions: See there.
            states: See there.
            goal: See there.
            **options: ``horizon``, ``num_candidates``, ``num_rounds``, ``seconds`` (of the search,
                at most 1), ``limits``, ``seed``, ``timeout``.

        Returns:
            ``actions`` ``(horizon, A)``, ``expected_return``, ``decision`` (``rejected`` if the
            plan breaks a limit, else ``accepted``) and ``reason``.

        Raises:
            ServerError: The server refused, or did not answer in time.
        """
        arrays = {"frames": frames, "past_actions": past_actions}
        arrays |= _given(states=states, goal=goal)
        answer = _told(self._post("/v1/plan", arrays, options))
        return {
            "actions": answer["actions"],
            "expected_return": float(answer["expected_return"][0]),
            "decision": answer["decision"][0],
            "reason": answer["reasons"][0],
        }

    def health(self) -> dict[str, Any]:
        """The server's description of itself, from ``/health``."""
        result: dict[str, Any] = json.loads(self._ask("GET", "/health", None))
        return result

    def metrics(self) -> dict[str, float]:
        """The server's counters, by name with labels as Prometheus writes them."""
        lines = self._ask("GET", "/metrics", None).decode().splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
        return {name: float(value) for name, value in pairs}

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, arrays: Arrays, options: dict[str, Any]) -> Arrays:
        return wire.unpack(self._ask("POST", path, wire.pack(arrays, options)))[0]

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        for attempt in range(self._retries + 1):
            response, answer = self._ask_once(method, path, body)
            if response.status != BUSY or attempt == self._retries:
                break
            time.sleep(_seconds_to_wait(response))
        if response.status != 200:
            try:
                message = json.loads(answer)["error"]
            except (ValueError, KeyError, TypeError):
                message = answer[:200].decode(errors="replace")
            status = response.status
            raise ServerError(f"{method} {path}: {status}: {message}", status)
        return answer

    def _ask_once(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            try:
                return self._exchange(method, path, body)
            except ConnectionError:  # the server closes idle connections; asking again is harmless
                self._connection.close()
                return self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            where = f"{self._connection.host}:{self._connection.port}"
            raise ServerError(f"{method} {path}: no answer from {where}: {error!r}") from error

    def _exchange(
        self, method: str, path: str, body: bytes | None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        try:
            self._connection.request(method, path, body, {"Content-Type": wire.MEDIA_TYPE})
        except ConnectionError:
            # A server that refuses a body answers before it has read it, and closes.
            if self._connection.sock is None:
                raise
            response = http.client.HTTPResponse(self._connection.sock, method=method)
            response.begin()
            answer = response.read()
            self._connection.close()
            return response, answer
        response = self._connection.getresponse()
        return response, response.read()


def _seconds_to_wait(response: http.client.HTTPResponse) -> float:
    given = response.getheader("Retry-After", "")
    return min(LONGEST_WAIT, float(given) if given.isdecimal() else 1.0)


def _told(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with words in place of their numbers and bytes."""
    return {
        **answer,
        "decision": [DECISIONS[number] for number in answer["decision"]],
        "reasons": json.loads(answer["reasons"].tobytes()),
    }


def _given(**arrays: NDArray[Any] | None) -> Arrays:
    return {name: array for name, array in arrays.items() if array is not None}
