"""The server under callers that behave, and under those that do not."""

import http.client
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.uses.moving_square import make_episode, make_model, save_model
from tokenwm.cli.main import main
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.uses.serving import wire
from tokenwm.uses.serving.batching import Batcher, DeadlineError, QueueFullError
from tokenwm.uses.serving.client import WorldModelClient
from tokenwm.uses.serving.requests import Limits
from tokenwm.uses.serving.server import WorldModelServer

CONTEXT, HORIZON = 3, 4
LIMITS = Limits(max_body_bytes=2**20, max_rows=64, max_steps=20, timeout=60.0)


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    """For comparisons; the server has one of its own."""
    return make_model()


@pytest.fixture(scope="module")
def server() -> Iterator[WorldModelServer]:
    with WorldModelServer(make_model(), ("127.0.0.1", 0), LIMITS) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


@pytest.fixture
def client(server: WorldModelServer) -> Iterator[WorldModelClient]:
    one = WorldModelClient(port=server.server_port)
    yield one
    one.close()


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


def test_imagining_over_the_wire_is_imagining(
    client: WorldModelClient, model: TokenWorldModel
) -> None:
    asked = question(1)
    answer = client.imagine(**asked, seed=5, pixels=[0, 3])
    expected = locally(model, asked, 5)
    assert (answer["frame_tokens"] == expected.frame_tokens.numpy()).all()
    for name in ("reward", "termination_probability", "frame_nll", "frame_entropy"):
        wanted = getattr(expected, name).numpy()
        np.testing.assert_allclose(answer[name], wanted, atol=1e-5, rtol=1e-5)
    assert (answer["states"] == model.decode_states(expected.state_tokens)).all()
    assert (answer["frames"] == model.decode_frames(expected, steps=[0, 3]).numpy()).all()
    greedy = client.imagine(**asked, temperature=0)
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    wanted = model.imagine(context, asked["actions"], sampling=SamplingConfig(temperature=0))
    assert (greedy["frame_tokens"] == wanted.frame_tokens.numpy()).all()


def test_encoding_and_scoring(client: WorldModelClient, model: TokenWorldModel) -> None:
    asked = question(2)
    frames = asked["frames"][0]
    tokens = model.tokenizer.encode_frames(torch.from_numpy(frames))
    assert (client.encode(frames) == tokens.numpy()).all()
    nll = client.score(asked["frames"], asked["past_actions"], asked["states"])
    assert nll.shape == (1, CONTEXT - 1)
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    np.testing.assert_allclose(nll, model.score(context).numpy(), atol=1e-5)
    # What did not happen is less likely.
    wrong = asked["frames"].copy()
    wrong[:, -1] = 255 - wrong[:, -1]
    assert client.score(wrong, asked["past_actions"], asked["states"])[0, -1] > nll[0, -1]


def test_scores_are_those_of_decoding_step_by_step(model: TokenWorldModel) -> None:
    from tokenwm.imagination.decode import prefill, score_frame
    from tokenwm.transformer.world_model import Tokens

    asked = question(3)
    tokens = model.context(asked["frames"], asked["past_actions"], asked["states"]).tokens
    assert tokens.state is not None
    first = Tokens(tokens.frame[:, :2], tokens.state[:, :2], tokens.action[:, :2])
    with torch.no_grad():
        logits = score_frame(
            model.world_model,
            prefill(model.world_model, first),
            tokens.action[:, 1],
            tokens.frame[:, 2],
            tokens.state[:, 2],
        )
    nll = -logits.log_softmax(-1).gather(-1, tokens.frame[:, 2, :, None]).mean()
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    assert float(model.score(context)[0, 1]) == pytest.approx(float(nll), abs=1e-5)


@pytest.mark.slow
def test_64_callers_at_once_get_what_each_would_get_alone(
    server: WorldModelServer, model: TokenWorldModel
) -> None:
    """Of different lengths and numbers of candidates, some of whom go away in the middle."""
    batches, jobs = server.batcher.num_batches, server.batcher.num_jobs

    def call(number: int) -> dict[str, Any]:
        asked = question(number % 8, 1 + number % 2, 2 + number % 3)
        if number % 9 == 8:  # killed: it asks, and is gone
            body = wire.pack(asked, {})
            with socket.create_connection(("127.0.0.1", server.server_port)) as gone:
                head = f"POST /v1/imagine HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
                gone.sendall(head.encode() + body[: len(body) // (1 + number % 2)])
            return {}
        one = WorldModelClient(port=server.server_port)
        try:
            return one.imagine(**asked, seed=number)
        finally:
            one.close()

    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(call, range(64)))
    for number, answer in enumerate(answers):
        if answer:
            asked = question(number % 8, 1 + number % 2, 2 + number % 3)
            expected = locally(model, asked, number).frame_tokens.numpy()
            assert (answer["frame_tokens"] == expected).all(), number
    assert server.batcher.num_jobs - jobs >= 57
    assert server.batcher.num_batches - batches < server.batcher.num_jobs - jobs  # some together
    deadline = time.monotonic() + 30
    while threading.active_count() > 8 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert threading.active_count() <= 8  # nobody's thread is left
    assert server.batcher.queued_rows == 0


def raw(server: WorldModelServer, head: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(head.encode() + body)
        response = http.client.HTTPResponse(connection)
        response.begin()
        return response.status, json.loads(response.read())


def huge_shape() -> bytes:
    header = {"frames": {"dtype": "U8", "shape": [2**40], "data_offsets": [0, 2**40]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not in the safetensors format"),
        (b"\x80\x04\x95pickle", "not in the safetensors format"),
        (huge_shape(), "not in the safetensors format"),
        (wire.pack({}, {}), "arrays missing: ['actions', 'frames', 'past_actions', 'states']"),
        (wire.pack(question(0) | {"extra": np.zeros(1)}, {}), "unknown: ['extra']"),
        (wire.pack(question(0), {"warmth": 1}), "unknown: ['warmth']"),
        (wire.pack(question(0), {"temperature": -1}), "temperature=-1; a number in [0, 1e+06]"),
        (wire.pack(question(0), {"temperature": "hot"}), "temperature='hot'"),
        (wire.pack(question(0), {"seed": True}), "seed=True"),
        (wire.pack(question(0), {"pixels": [4]}), "pixels=[4]; a list of steps in [0, 4)"),
        (wire.pack(question(0), {"timeout": 61}), "timeout=61; a number in [0, 60]"),
        (wire.pack(question(0, 65), {}), "65 rows asked; at most 64 are imagined"),
        (wire.pack(question(0, 1, 21), {}), "21 actions; 1 to 20 each are allowed"),
        (
            wire.pack(question(0) | {"frames": np.zeros((1, 3, 4))}, {}),
            "frames has shape (1, 3, 4)",
        ),
        (wire.pack(question(0) | {"actions": np.zeros((1, 4, 3))}, {}), "actions has shape"),
        (
            wire.pack(question(0) | {"actions": np.full((1, 4, 2), np.nan)}, {}),
            "only finite values can be binned",
        ),
    ],
)
def test_wrong_requests_are_told_what_is_wrong(
    server: WorldModelServer, body: bytes, message: str
) -> None:
    head = f"POST /v1/imagine HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    status, answer = raw(server, head, body)
    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(
    ("head", "status", "message"),
    [
        ("POST /v1/imagine HTTP/1.1\r\n\r\n", 411, "Content-Length is missing"),
        ("POST /v1/imagine HTTP/1.1\r\nContent-Length: -5\r\n\r\n", 411, "no number"),
        (
            f"POST /v1/imagine HTTP/1.1\r\nContent-Length: {2**40}\r\n\r\n",
            413,
            "the body has 1099511627776 bytes; at most 1048576 are read",
        ),
        ("POST /v1/dream HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 404, "/v1/imagine"),
        ("GET /etc/passwd HTTP/1.1\r\n\r\n", 404, "use /health or /metrics"),
    ],
)
def test_what_is_no_request_is_refused(
    server: WorldModelServer, head: str, status: int, message: str
) -> None:
    got, answer = raw(server, head)
    assert got == status
    assert message in answer["error"]


def test_health_and_metrics(server: WorldModelServer, client: WorldModelClient) -> None:
    assert client.health() == {"status": "ok"}
    client.imagine(**question(0))
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'tokenwm_requests_total{path="/v1/imagine",status="200"}' in text
    assert "tokenwm_queued_rows 0" in text
    for line in text.splitlines():
        assert line.startswith("# TYPE ") or float(line.rsplit(" ", 1)[1]) >= 0


def test_a_server_that_is_not_there_is_an_error_of_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(TokenwmError, match=f"no answer from 127.0.0.1:{port}"):
        WorldModelClient(port=port).health()


class Slow:
    """Computes by doubling, and waits until it is let go."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.began = threading.Event()
        self.batches: list[list[int]] = []

    def __call__(self, asked: list[int]) -> list[int]:
        self.began.set()
        self.gate.wait(20)
        self.batches.append(list(asked))
        if 13 in asked:
            raise TokenwmError("unlucky")
        return [2 * number for number in asked]


def test_what_waits_together_is_computed_together() -> None:
    slow = Slow()
    batcher = Batcher(slow, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(8) as pool:
        first = pool.submit(batcher.submit, "a", 1, 5, 1, 20)
        slow.began.wait(20)
        waiting = []
        for key, rows, length, number in [
            ("a", 1, 3, 2),  # the next batch's first
            ("b", 1, 3, 3),  # another key
            ("a", 2, 3, 4),  # fits
            ("a", 1, 4, 5),  # longer than the first
            ("a", 2, 2, 13),  # too many rows for this batch
            (None, 1, 1, 7),  # alone
        ]:
            waiting.append(pool.submit(batcher.submit, key, rows, length, number, 20))
            while batcher.queued_rows < sum((1, 1, 2, 1, 2, 1)[: len(waiting)]):
                time.sleep(0.001)
        slow.gate.set()
        assert first.result() == 2
        for future, expected in zip(waiting, [4, 6, 8, 10, None, 14], strict=True):
            if expected is None:
                with pytest.raises(TokenwmError, match="unlucky"):
                    future.result()
            else:
                assert future.result() == expected
    assert slow.batches == [[1], [2, 4], [3], [5, 13], [5], [13], [7]]
    batcher.close()


def test_a_full_queue_and_a_deadline_are_errors() -> None:
    slow = Slow()
    batcher = Batcher(slow, max_rows=4, max_queued_rows=2)
    with ThreadPoolExecutor(4) as pool:
        running = pool.submit(batcher.submit, "a", 1, 1, 1, 20)
        slow.began.wait(20)
        late = pool.submit(batcher.submit, "a", 2, 1, 2, 0.2)
        while batcher.queued_rows < 2:
            time.sleep(0.001)
        with pytest.raises(QueueFullError, match="2 rows are waiting and at most 2 may"):
            batcher.submit("a", 1, 1, 3, 20)
        with pytest.raises(DeadlineError, match="no result within 0.2 s"):
            late.result()
        assert batcher.queued_rows == 0
        slow.gate.set()
        assert running.result() == 2
    batcher.close()
    assert slow.batches == [[1]]  # what nobody waits for is not computed
    assert not batcher.is_alive


def test_the_command_says_when_it_cannot_listen(
    tmp_path: Path, model: TokenWorldModel, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save_model(tmp_path / "model", model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(folder), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert f"cannot listen on 127.0.0.1:{port}" in error
    assert "choose another --port" in error


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path, model: TokenWorldModel) -> None:
    folder = save_model(tmp_path / "model", model)
    command = [sys.executable, "-m", "tokenwm", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        line = ""
        while "http://" not in line and running.poll() is None:
            line += running.stdout.readline()
        port = int(line.split("http://127.0.0.1:")[1].split()[0])
        client = WorldModelClient(port=port)
        assert client.imagine(**question(0))["reward"].shape == (2, HORIZON)
        client.close()
        running.send_signal(signal.SIGINT)
        assert running.wait(20) == 0


def test_a_request_that_is_given_up_does_not_stop_the_others() -> None:
    """Requests hold arrays, which do not compare."""
    gate = threading.Event()
    began = threading.Event()

    def compute(asked: list[Any]) -> list[Any]:
        began.set()
        gate.wait(20)
        return [2 * array for array in asked]

    batcher = Batcher(compute, max_rows=4, max_queued_rows=20)
    with ThreadPoolExecutor(8) as pool:
        futures = [pool.submit(batcher.submit, "a", 1, 1, np.arange(3), 20)]
        began.wait(20)
        for length, timeout in [(3, 20.0), (4, 20.0), (4, 0.2), (4, 0.2)]:
            futures.append(pool.submit(batcher.submit, "a", 1, length, np.arange(3), timeout))
            while batcher.queued_rows < len(futures) - 1:
                time.sleep(0.001)
        for late in futures[3:]:
            with pytest.raises(DeadlineError):
                late.result()
        gate.set()
        for future in futures[:3]:
            assert (future.result() == 2 * np.arange(3)).all()
    assert batcher.is_alive
    batcher.close()


def test_a_client_goes_on_after_the_server_closed_its_connection(
    server: WorldModelServer, client: WorldModelClient
) -> None:
    assert client.health() == {"status": "ok"}
    assert client._connection.sock is not None
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.health() == {"status": "ok"}


def test_a_client_is_told_that_its_request_is_too_large(client: WorldModelClient) -> None:
    with pytest.raises(TokenwmError, match=r"413: the body has \d+ bytes; at most 1048576"):
        client.encode(np.zeros((4000, 1, 32, 32, 3), dtype=np.uint8))
    assert client.health() == {"status": "ok"}


@pytest.mark.parametrize(
    "head",
    [
        "GET /health HTTP/1.1\r\nContent-Length: 25\r\n\r\nGET /metrics HTTP/1.1\r\n\r\n",
        "POST /v1/encode HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n",
        f"POST /v1/encode HTTP/1.1\r\nContent-Length: {'9' * 5000}\r\n\r\n",
    ],
    ids=["body of a GET", "chunks", "a long length"],
)
def test_what_is_not_read_does_not_become_the_next_request(
    server: WorldModelServer, head: str
) -> None:
    with socket.create_connection(("127.0.0.1", server.server_port), timeout=20) as connection:
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("path", "arrays", "options", "message"),
    [
        ("imagine", question(0), {"pixels": [1, 1]}, "each step once"),
        ("imagine", question(0, 64, 20), {"pixels": list(range(20))}, "at most 1048576 are sent"),
        ("score", {"past_actions": np.zeros((1, 2000, 2))}, {}, "at most 4096 are scored at once"),
        ("score", question(0), {"seed": 1}, "unknown: ['seed']"),
    ],
)
def test_answers_stay_within_limits(
    server: WorldModelServer, path: str, arrays: Any, options: Any, message: str
) -> None:
    body = wire.pack(arrays, options)
    head = f"POST /v1/{path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n\r\n"
    status, answer = raw(server, head, body)
    assert status == 400
    assert message in answer["error"]


def test_limits_are_checked() -> None:
    with pytest.raises(TokenwmError, match="limits must be at least 1"):
        Limits(max_rows=0)
    with pytest.raises(TokenwmError, match="timeout"):
        Limits(timeout=float("nan"))
