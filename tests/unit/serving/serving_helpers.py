"""A server that runs, questions for it, and connections that are not its client's."""

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Collection, Iterator
from typing import Any

import numpy as np

from tests.moving_square import make_episode, make_model
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import wire
from tokenwm.serving.requests import Limits
from tokenwm.serving.server import WorldModelServer

CONTEXT, HORIZON = 3, 4
LIMITS = Limits(max_body_bytes=2**20, max_rows=64, max_steps=20, timeout=60.0)


@contextlib.contextmanager
def serving(
    limits: Limits = LIMITS, model: TokenWorldModel | None = None, hosts: Collection[str] = ()
) -> Iterator[WorldModelServer]:
    running = WorldModelServer(model or make_model(), ("127.0.0.1", 0), limits, hosts)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    try:
        yield running
    finally:
        running.stop()
        thread.join()


def question(seed: int, num_candidates: int = 2, horizon: int = HORIZON) -> dict[str, Any]:
    episode = make_episode(CONTEXT, seed)
    candidates = np.random.default_rng(seed).uniform(-3, 3, (num_candidates, horizon, 2))
    return {
        "frames": episode["frames.top"][None, :, None],
        "past_actions": episode["action"][None, : CONTEXT - 1],
        "states": episode["state"][None],
        "actions": candidates.astype(np.float32),
    }


def locally(model: TokenWorldModel, asked: dict[str, Any], seed: int) -> Any:
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    return model.imagine(context, asked["actions"], seed=seed)


def raw(server: WorldModelServer, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Ask in these very bytes; ``Host`` is added."""
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(with_host(head).encode() + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def with_host(head: str) -> str:
    return head if "Host:" in head else head.replace("\r\n", "\r\nHost: localhost\r\n", 1)


def ask(server: WorldModelServer, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    return raw(server, head_of(path, len(body)), body)


def head_of(path: str, length: int, more: str = "") -> str:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {wire.MEDIA_TYPE}\r\n"
        f"{more}Content-Length: {length}\r\n\r\n"
    )
