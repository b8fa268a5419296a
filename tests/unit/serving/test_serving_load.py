"""The server under many clients at once, and under those that do not behave."""

import errno
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.moving_square import make_model, save_model
from tests.processes import Running, running
from tests.unit.serving.serving_helpers import (
    HORIZON,
    LIMITS,
    ask,
    head_of,
    locally,
    question,
    raw,
    serving,
)
from tokenwm.serving import app, wire
from tokenwm.serving.client import ServerError, WorldModelClient
from tokenwm.serving.requests import Limits
from tokenwm.serving.server import WorldModelServer

LONG = Limits(max_steps=20000, max_row_steps=10**6, max_batch_rows=4)


def wait_until(condition: Callable[[], Any], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def resident_megabytes(process: int) -> float:
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def is_idle(server: WorldModelServer) -> bool:
    return server.service.batcher.running_seconds == 0 and server.service.batcher.queued_rows == 0


@contextmanager
def serve(folder: Path, *more: str) -> Iterator[tuple[Running, int]]:
    """The verb as a process, and its port."""
    with running("serve", folder, "--port", 0, *more) as server:
        wait_until(lambda: "http://" in server.stdout.read_text() or server.wait(0) is not None, 60)
        yield server, int(server.stdout.read_text().split("http://127.0.0.1:")[1].split()[0])


@pytest.mark.slow
def test_64_callers_at_once_get_what_each_would_get_alone_and_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    """Of different lengths and numbers of candidates, some of whom go away, some are wrong."""
    model = make_model()
    expected = {}
    for number in range(64):
        asked = question(number % 8, 1 + number % 2, 2 + number % 3)
        expected[number] = locally(model, asked, number).frame_tokens.numpy()

    def call(port: int, number: int) -> None:
        asked = question(number % 8, 1 + number % 2, 2 + number % 3)
        body = wire.pack(asked, {})
        if number % 9 == 8:  # killed: it asks, and is gone
            with socket.create_connection(("127.0.0.1", port)) as gone:
                head = head_of("/v1/imagine", len(body))
                gone.sendall(head.encode() + body[: len(body) // (1 + number % 2)])
            return
        with WorldModelClient(port=port) as client:
            if number % 9 == 7:
                for frames, status in [((9,), 400), ((400, 1, 32, 32, 3), 413)]:
                    with pytest.raises(ServerError) as caught:
                        client.encode(np.zeros(frames, dtype=np.uint8))
                    assert caught.value.status == status
            else:
                answer = client.imagine(**asked, seed=number, pixels=[0])
                assert (answer["frame_tokens"] == expected[number]).all(), number

    folder = save_model(tmp_path / "model", model)
    with (
        serve(folder, "--max-megabytes", "1") as (server, port),
        WorldModelClient(port=port) as client,
    ):
        for _ in range(2):
            with ThreadPoolExecutor(64) as pool:
                list(pool.map(call, [port] * 64, range(64)))
        wait_until(lambda: client.metrics()["tokenwm_running_seconds"] == 0)
        threads = len(os.listdir(f"/proc/{server.process.pid}/task"))
        counted = client.metrics()
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    batches, jobs = (counted[f"tokenwm_{n}_total"] for n in ("batches", "batched_requests"))
    assert jobs >= 2 * 50
    assert batches < jobs  # some together
    assert threads <= 8  # nobody's is left
    assert counted["tokenwm_held_bytes"] == 0
    assert not any('status="500"' in name for name in counted)


@pytest.mark.slow
def test_hundreds_of_requests_leave_no_memory_behind(tmp_path: Path) -> None:
    """Of one size: oneDNN keeps code for up to 1,024 sizes that it has met."""
    folder = save_model(tmp_path / "model", make_model())
    asked = question(0)
    many = np.repeat(asked["frames"], 40, axis=0)[:, 0]  # 120 kB
    body = wire.pack({"frames": many}, {})
    with serve(folder) as (server, port), WorldModelClient(port=port) as client:
        assert server.process.pid is not None
        megabytes = []
        for _ in range(4):
            for _ in range(50):
                client.imagine(**asked)
                client.encode(many)
                with pytest.raises(ServerError):
                    client.encode(many[..., :2])
                with socket.create_connection(("127.0.0.1", port)) as gone:
                    gone.sendall(head_of("/v1/encode", len(body)).encode() + body[:-1])
            megabytes.append(resident_megabytes(server.process.pid))
        server.send_signal(signal.SIGINT)
        assert server.wait(20) == 0
    assert megabytes[3] < megabytes[0] + 10, megabytes  # one kind kept: 18 MB


def test_a_short_request_does_not_wait_for_a_long_one_nor_a_late_one_for_its_end() -> None:
    with serving(LONG) as server, ThreadPoolExecutor(2) as pool:

        def be_long() -> float:
            start = time.monotonic()
            with WorldModelClient(port=server.address[1]) as client:
                with pytest.raises(ServerError) as caught:
                    client.imagine(**question(1, 32, 5000), timeout=3)  # far more than 3 s
                assert caught.value.status == 504
            return time.monotonic() - start

        long = pool.submit(be_long)
        wait_until(lambda: server.service.batcher.running_seconds > 0)
        with WorldModelClient(port=server.address[1]) as client:
            client.imagine(**question(0))
            assert client.score(**{k: v for k, v in question(0).items() if k != "actions"}).size
            assert not long.done()
            assert long.result() < 10
            wait_until(lambda: is_idle(server), 2)


def test_what_a_killed_client_asked_for_is_not_computed() -> None:
    with serving(LONG) as server:
        body = wire.pack(question(1, 32, 5000), {})
        with socket.create_connection(server.address) as gone:
            gone.sendall(head_of("/v1/imagine", len(body)).encode() + body)
            wait_until(lambda: server.service.batcher.running_seconds > 0)
        wait_until(lambda: is_idle(server), 5)
        wait_until(
            lambda: server.service.metrics.value("requests_total", path="/v1/imagine", status="499")
        )
        assert server.service.held_bytes == 0


def test_bodies_in_flight_are_bounded_before_they_are_read() -> None:
    limits = replace(LIMITS, max_bytes=2 * LIMITS.max_body_bytes)
    with serving(limits) as server:
        slow = socket.create_connection(server.address)
        slow.sendall(head_of("/v1/encode", 2**20).encode())
        slower = socket.create_connection(server.address)
        slower.sendall(head_of("/v1/encode", 2**20).encode())
        wait_until(lambda: server.service.held_bytes == 2**21)
        status, answer = raw(server, head_of("/v1/encode", 100))
        assert status == 503
        assert "2097152 bytes are held for other requests" in answer["error"]
        with WorldModelClient(port=server.address[1], retries=0) as client:
            with pytest.raises(ServerError) as caught:
                client.imagine(**question(0))
            assert caught.value.status == 503
        threading.Timer(0.5, slow.close).start()
        with WorldModelClient(port=server.address[1]) as client:  # asks again
            assert client.imagine(**question(0))["reward"].shape == (2, HORIZON)
        slower.close()


def test_connections_are_bounded() -> None:
    with serving(replace(LIMITS, max_connections=2)) as server:
        address = server.address
        with socket.create_connection(address), socket.create_connection(address):
            with socket.create_connection(address) as third:
                assert third.recv(100).startswith(b"HTTP/1.1 503 ")
            assert server.service.metrics.value("refused_connections_total") == 1
        wait_until(lambda: ask(server, "/v1/encode", b"")[0] == 400)


def test_a_server_without_free_descriptors_does_not_spin(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def fail(_: object) -> None:
        tries.append(time.monotonic())
        raise OSError(errno.EMFILE, "too many open files")

    with serving() as server:
        monkeypatch.setattr(socket.socket, "accept", fail)
        with socket.create_connection(server.address):
            wait_until(lambda: tries)
            time.sleep(0.5)
        monkeypatch.undo()
        assert len(tries) <= 7
        assert ask(server, "/v1/encode", b"")[0] == 400


@pytest.mark.parametrize("dripped", ["POST /v1/enc", head_of("/v1/encode", 100)])
def test_who_drips_is_not_waited_for(monkeypatch: pytest.MonkeyPatch, dripped: str) -> None:
    monkeypatch.setattr(app, "RECEIVE_SECONDS", 0.5)
    with serving() as server:
        with socket.create_connection(server.address) as slow:
            slow.sendall(dripped.encode())
            start, answer = time.monotonic(), b""
            slow.settimeout(0.1)
            while time.monotonic() - start < 10:
                try:
                    slow.sendall(b"x")
                    part = slow.recv(4096)
                except TimeoutError:
                    continue
                except ConnectionError:
                    break
                answer += part
                if not part:
                    break
        assert time.monotonic() - start < 5
        assert answer.startswith(b"HTTP/1.1 408 ") or dripped == "POST /v1/enc"
        assert server.service.held_bytes == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_command_serves_until_a_signal(tmp_path: Path, number: int) -> None:
    folder = save_model(tmp_path / "model", make_model())
    limits = ["--max-steps", "5000", "--max-row-steps", "1000000", "--max-batch-rows", "4"]

    def ask_much(port: int) -> int | None:
        with WorldModelClient(port=port, retries=0) as client:
            try:
                client.imagine(**question(0, 200, 5000))
            except ServerError as error:
                return error.status
        return 200

    with serve(folder, *limits) as (server, port), ThreadPoolExecutor(6) as pool:
        with WorldModelClient(port=port) as client:
            assert client.imagine(**question(0))["reward"].shape == (2, HORIZON)
            futures = [pool.submit(ask_much, port) for _ in range(6)]  # four begin, two wait
            wait_until(lambda: client.metrics()["tokenwm_batches_total"] == 5)
            wait_until(lambda: client.health()["queued_rows"] == 400)
        start = time.monotonic()
        server.send_signal(number)
        assert [future.result() for future in futures] == [503] * 6
        assert server.wait(20) == 0
        assert time.monotonic() - start < 15
        assert "Traceback" not in server.stderr.read_text()


def test_a_second_signal_ends_the_command_at_once(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "model", make_model())
    with (
        serve(folder, "--max-row-steps", "1000000") as (server, port),
        ThreadPoolExecutor(1) as pool,
    ):

        def ask_much() -> None:
            with WorldModelClient(port=port, retries=0) as client, pytest.raises(ServerError):
                client.imagine(**question(0, 512, 1000))

        asked = pool.submit(ask_much)
        with WorldModelClient(port=port) as client:
            wait_until(lambda: client.health()["running_seconds"] > 0)
        server.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        start = time.monotonic()
        server.send_signal(signal.SIGTERM)
        assert server.wait(20) == -signal.SIGTERM
        assert time.monotonic() - start < 4
        asked.result()
        assert "Traceback" not in server.stderr.read_text()
