"""The server under callers that behave, and under those that do not."""

import http.client
import json
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.moving_square import make_model, save_model
from tests.unit.serving.serving_helpers import (
    CONTEXT,
    ask,
    locally,
    question,
    raw,
    serving,
)
from tokenwm.cli.main import main
from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import wire
from tokenwm.serving.client import ServerError, WorldModelClient
from tokenwm.serving.requests import Limits
from tokenwm.serving.server import WorldModelServer


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    """For comparisons; the server has one of its own."""
    return make_model()


@pytest.fixture(scope="module")
def server() -> Iterator[WorldModelServer]:
    with serving() as running:
        yield running


@pytest.fixture
def client(server: WorldModelServer) -> Iterator[WorldModelClient]:
    one = WorldModelClient(port=server.address[1])
    yield one
    one.close()


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


def test_without_rewards_none_are_answered() -> None:
    model = make_model(has_reward=False)
    with serving(model=model) as one, WorldModelClient(port=one.address[1]) as asking:
        assert asking.health()["model"]["has_reward"] is False
        answer = asking.imagine(**question(1), pixels=[0])
        assert set(answer) == {
            "frame_tokens",
            "termination_probability",
            "frame_nll",
            "frame_entropy",
            "states",
            "frames",
        }


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
    from tokenwm.imagination.decode import next_frame_logits, prefill

    asked = question(3)
    tokens = model.context(asked["frames"], asked["past_actions"], asked["states"]).tokens
    assert tokens.state is not None
    first = tokens.steps(slice(2))
    with torch.no_grad():
        logits = next_frame_logits(
            model.world_model,
            prefill(model.world_model, first),
            tokens.action[:, 1],
            tokens.frame[:, 2],
            tokens.state[:, 2],
        )
    nll = -logits.log_softmax(-1).gather(-1, tokens.frame[:, 2, :, None]).mean()
    context = model.context(asked["frames"], asked["past_actions"], asked["states"])
    assert float(model.score(context)[0, 1]) == pytest.approx(float(nll), abs=1e-5)


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
    status, answer = ask(server, "/v1/imagine", body)
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
        ("PUT /v1/imagine HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405, "POST /v1/imagine"),
        ("BREW /coffee HTTP/1.1\r\n\r\n", 501, "BREW"),
        ("nonsense\r\n\r\n", 400, "nonsense"),
        ("GET /health FTP/9\r\n\r\n", 400, "FTP/9"),
        (f"GET /{'x' * 70000} HTTP/1.1\r\n\r\n", 414, "URI"),
    ],
)
def test_what_is_no_request_is_refused(
    server: WorldModelServer, head: str, status: int, message: str
) -> None:
    got, answer = raw(server, head)
    assert got == status
    assert message in answer["error"]
    assert f'status="{status}"' in server.service.metrics_text()


def test_health_and_metrics(server: WorldModelServer, client: WorldModelClient) -> None:
    health = client.health()
    assert health["status"] == "ok"
    assert health["running_seconds"] == health["queued_rows"] == 0
    assert health["model"]["frame_shape"] == [1, 32, 32, 3]
    assert health["model"]["action_dimensions"] == health["model"]["state_dimensions"] == 2
    assert health["model"]["actions_per_step"] == 1
    assert health["model"]["has_reward"] is True
    assert health["limits"]["max_steps"] == 20
    client.imagine(**question(0))  # a counter is there from its first count on
    before = client.metrics()
    client.imagine(**question(0))
    after = client.metrics()
    assert after["tokenwm_imagined_steps_total"] - before["tokenwm_imagined_steps_total"] == 8
    assert after["tokenwm_passes_total"] > before["tokenwm_passes_total"]
    assert 1 <= after["tokenwm_tokens_per_pass"] <= 64
    count = 'tokenwm_request_seconds_count{path="/v1/imagine"}'
    assert after[count] == before[count] + 1
    assert after['tokenwm_queue_wait_seconds_bucket{le="+Inf"}'] > 0
    assert after["tokenwm_received_bytes_total"] > before["tokenwm_received_bytes_total"]
    connection = http.client.HTTPConnection("127.0.0.1", server.address[1], timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    assert 'tokenwm_requests_total{path="/v1/imagine",status="200"}' in text
    assert "tokenwm_queued_rows 0" in text
    for line in text.splitlines():
        assert (
            line.startswith(("# HELP tokenwm_", "# TYPE tokenwm_"))
            or float(line.rsplit(" ", 1)[1]) >= 0
        )


def test_a_server_that_is_not_there_is_an_error_of_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with (
        WorldModelClient(port=port) as client,
        pytest.raises(ServerError, match=f"no answer from 127.0.0.1:{port}") as caught,
    ):
        client.health()
    assert caught.value.status is None


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


def test_a_client_goes_on_after_the_server_closed_its_connection(
    server: WorldModelServer, client: WorldModelClient
) -> None:
    assert client.health()["status"] == "ok"
    assert client._connection.sock is not None
    client._connection.sock.shutdown(socket.SHUT_RDWR)
    assert client.health()["status"] == "ok"


def test_a_client_is_told_that_its_request_is_too_large(client: WorldModelClient) -> None:
    with pytest.raises(ServerError, match=r"413: the body has \d+ bytes; at most 1048576"):
        client.encode(np.zeros((4000, 1, 32, 32, 3), dtype=np.uint8))
    assert client.health()["status"] == "ok"


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
    with socket.create_connection(server.address, timeout=20) as connection:
        connection.sendall(head.encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.count(b"HTTP/1.1 ") == 1


def observed(num_steps: int) -> dict[str, Any]:
    asked = question(0)
    return {
        "frames": asked["frames"][:, :num_steps],
        "past_actions": asked["past_actions"][:, : max(0, num_steps - 1)],
        "states": asked["states"][:, :num_steps],
    }


@pytest.mark.parametrize(
    ("path", "arrays", "options", "message"),
    [
        ("imagine", question(0), {"pixels": [1, 1]}, "each step once"),
        ("imagine", question(0, 64, 20), {"pixels": list(range(20))}, "at most 1048576 are sent"),
        ("score", observed(0) | {"frames": np.zeros((1, 300, 1))}, {}, "at most 4096 are scored"),
        ("score", question(0), {}, "unknown: ['actions']"),
        ("score", observed(1), {}, "frames has 1 step; at least 2 are needed"),
        ("score", observed(0), {}, "frames has 0 steps; 1 to 20 are allowed"),
        ("imagine", observed(0) | {"actions": np.zeros((1, 4, 2))}, {}, "frames has 0 steps"),
        ("encode", {"frames": np.zeros((0, 1, 32, 32, 3), np.uint8)}, {}, "frames has no row"),
        ("encode", {"frames": np.zeros(10, np.uint8)}, {}, "frames has shape (10,)"),
        ("imagine", question(0), {"seed": 1.5}, "seed=1.5; a whole number"),
        ("imagine", question(0), {"top_k": 2.5}, "top_k=2.5; a whole number"),
        ("score", observed(3), {"seed": 1}, "unknown: ['seed']"),
    ],
)
def test_answers_stay_within_limits(
    server: WorldModelServer, path: str, arrays: Any, options: Any, message: str
) -> None:
    body = wire.pack(arrays, options)
    status, answer = ask(server, f"/v1/{path}", body)
    assert status == 400
    assert message in answer["error"]


def test_limits_are_checked() -> None:
    with pytest.raises(TokenwmError, match="limits must be at least 1"):
        Limits(max_rows=0)
    with pytest.raises(TokenwmError, match="timeout"):
        Limits(timeout=float("nan"))
    with pytest.raises(TokenwmError, match="max_bytes=1 has no room"):
        Limits(max_bytes=1)
