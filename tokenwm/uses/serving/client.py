"""The caller's side of :mod:`tokenwm.uses.serving.server`; needs neither torch nor a model."""

import http.client
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.uses.serving import wire

Arrays = dict[str, NDArray[Any]]


class WorldModelClient:
    """One connection to a server; one per thread.

    Args:
        host: Where the server is.
        port: Its port.
        timeout: Seconds to wait for an answer.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8600, *, timeout: float = 90.0) -> None:
        self._connection = http.client.HTTPConnection(host, port, timeout=timeout)

    def imagine(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        actions: NDArray[Any],
        states: NDArray[Any] | None = None,
        **options: Any,
    ) -> Arrays:
        """Futures of candidates.

        Args:
            frames: ``(B, C, cameras, H, W, 3)`` uint8, observed.
            past_actions: ``(B, C - 1, A)`` in the units of the data.
            actions: ``(B * n, steps, A)``, ``n`` candidates for every row.
            states: ``(B, C, state_dim)``, if the model has a state.
            **options: ``seed``, ``temperature``, ``top_k``, ``top_p``, ``pixels`` (a list of the
                steps whose frames are wanted), ``timeout`` (seconds).

        Returns:
            ``frame_tokens``, ``reward``, ``termination_probability``, ``frame_nll``,
            ``frame_entropy``, and ``states`` and ``frames`` if there are any;
            ``(B * n, steps, ·)`` each.

        Raises:
            TokenwmError: The server refused, or did not answer in time.
        """
        arrays = {"frames": frames, "past_actions": past_actions, "actions": actions}
        return self._post("/v1/imagine", arrays | _given(states), options)

    def score(
        self,
        frames: NDArray[np.uint8],
        past_actions: NDArray[Any],
        states: NDArray[Any] | None = None,
        **options: Any,
    ) -> NDArray[np.float32]:
        """``(B, C - 1)`` nats per token of each observed frame after the first."""
        arrays = {"frames": frames, "past_actions": past_actions} | _given(states)
        return self._post("/v1/score", arrays, options)["frame_nll"]

    def encode(self, frames: NDArray[np.uint8], **options: Any) -> NDArray[np.uint16]:
        """``(N, cameras, H, W, 3)`` uint8 → ``(N, K)`` tokens."""
        return self._post("/v1/encode", {"frames": frames}, options)["frame_tokens"]

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        result: dict[str, Any] = json.loads(self._ask("GET", "/health", None))
        return result

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, arrays: Arrays, options: dict[str, Any]) -> Arrays:
        return wire.unpack(self._ask("POST", path, wire.pack(arrays, options)))[0]

    def _ask(self, method: str, path: str, body: bytes | None) -> bytes:
        try:
            try:
                status, answer = self._exchange(method, path, body)
            except ConnectionError:  # the server closes idle connections; asking again is harmless
                self._connection.close()
                status, answer = self._exchange(method, path, body)
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            where = f"{self._connection.host}:{self._connection.port}"
            raise TokenwmError(f"{method} {path}: no answer from {where}: {error!r}") from error
        if status != 200:
            try:
                message = json.loads(answer)["error"]
            except (ValueError, KeyError, TypeError):
                message = answer[:200].decode(errors="replace")
            raise TokenwmError(f"{method} {path}: {status}: {message}")
        return answer

    def _exchange(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        try:
            self._connection.request(method, path, body, {"Content-Type": wire.MEDIA_TYPE})
        except ConnectionError:
            # A server that refuses a body answers before it has read it, and closes.
            if self._connection.sock is None:
                raise
            response = http.client.HTTPResponse(self._connection.sock, method=method)
            response.begin()
        else:
            response = self._connection.getresponse()
        return response.status, response.read()


def _given(states: NDArray[Any] | None) -> Arrays:
    return {} if states is None else {"states": states}
