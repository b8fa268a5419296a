"""The server's edges: who may ask, what is no request, what must stay reachable."""

import asyncio
import contextlib
import errno
import http.client
import json
import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import schemathesis
import websockets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket

from tests.unit.serving.serving_helpers import LIMITS, head_of, question, raw, serving
from tokenwm.cli.main import main
from tokenwm.serving import wire
from tokenwm.serving.requests import PATHS
from tokenwm.serving.server import SPARE_CONNECTIONS, WorldModelServer


@pytest.fixture(scope="module")
def server() -> Iterator[WorldModelServer]:
    with serving(hosts=("robots.example",)) as running:
        yield running


ENCODE = wire.pack({"frames": question(0)["frames"][0]}, {})


@pytest.mark.parametrize(
    ("more", "status"),
    [
        (f"Content-Length: {len(ENCODE) + 1}\r\n", 400),
        ("Content-Length: 5, 6\r\n", 400),
        ("Origin: http://evil.example\r\n", 403),
        ("Origin: null\r\n", 403),
        ("Origin: http://203.0.113.9\r\n", 403),
        ("Content-Type: text/plain\r\n", 415),
        ("", 415),
    ],
    ids=["two lengths", "a list", "foreign", "null", "address", "text", "no type"],
)
def test_requests_that_a_proxy_or_a_page_could_smuggle_in_are_refused(
    server: WorldModelServer, more: str, status: int
) -> None:
    kind = "" if status == 415 else f"Content-Type: {wire.MEDIA_TYPE}\r\n"
    length = f"Content-Length: {len(ENCODE)}\r\n\r\n"
    got, answer = raw(server, f"POST /v1/encode HTTP/1.1\r\n{kind}{more}{length}", ENCODE)
    assert got == status, answer
    assert set(answer) == {"error"}


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("evil.example", 421),
        ("localhost.evil.example:8600", 421),
        ("[::1", 421),
        ("localhost:8600", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("192.168.1.5", 200),
        ("Robots.example:443", 200),
    ],
)
def test_only_names_of_the_server_are_answered(
    server: WorldModelServer, host: str, status: int
) -> None:
    assert raw(server, f"GET /health HTTP/1.1\r\nHost: {host}\r\n\r\n")[0] == status


@pytest.mark.parametrize("origin", ["http://localhost:3000", "https://robots.example", "same"])
def test_pages_of_the_server_itself_may_ask(server: WorldModelServer, origin: str) -> None:
    host = "10.1.2.3:8600"
    origin = f"http://{host}" if origin == "same" else origin
    head = f"GET /health HTTP/1.1\r\nHost: {host}\r\nOrigin: {origin}\r\n\r\n"
    assert raw(server, head)[0] == 200


def test_a_question_mark_is_no_other_path(server: WorldModelServer) -> None:
    assert raw(server, "GET /health?x=1 HTTP/1.1\r\n\r\n")[1]["model"]["has_reward"] is True
    assert raw(server, "GET /health/ HTTP/1.1\r\n\r\n")[0] == 404


def test_idle_connections_do_not_lock_out_those_that_watch() -> None:
    with serving(replace(LIMITS, max_connections=2)) as server, contextlib.ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(socket.create_connection(server.address))
        for path in ("/health", "/metrics"):
            connection = http.client.HTTPConnection(*server.address, timeout=20)
            connection.request("GET", path)
            response = connection.getresponse()
            assert (response.status, response.headers["Connection"]) == (200, "close")
            connection.close()
        status, answer = raw(server, head_of("/v1/encode", len(ENCODE)), ENCODE)
        assert status == 503
        assert "too many connections" in answer["error"]
        assert server.service.metrics.value("refused_connections_total") == 1
        for _ in range(SPARE_CONNECTIONS + 1):  # nor is there room without end
            stack.enter_context(socket.create_connection(server.address))
        assert raw(server, "GET /health HTTP/1.1\r\n\r\n")[0] == 503


def test_a_client_that_leaves_while_it_is_refused_does_not_end_the_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    with serving(replace(LIMITS, max_connections=1)) as server:
        monkeypatch.setattr("asyncio.selector_events._SelectorSocketTransport.write_eof", fail)
        with (
            socket.create_connection(server.address),
            socket.create_connection(server.address, timeout=20) as spare,
        ):
            assert spare.recv(100).startswith(b"HTTP/1.1 503 ")
        monkeypatch.undo()
        assert raw(server, "GET /health HTTP/1.1\r\n\r\n")[0] == 200


def test_every_answer_has_a_request_id_and_a_line_in_the_log(
    server: WorldModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "tokenwm.serving.access")
    ids = []
    for asked in (None, "robot-7", "a\tb", "x" * 65):
        connection = http.client.HTTPConnection(*server.address, timeout=20)
        connection.request("GET", "/health?x", headers={"X-Request-ID": asked} if asked else {})
        response = connection.getresponse()
        response.read()
        ids.append(response.headers["X-Request-ID"])
        connection.close()
    assert ids[1] == "robot-7"
    assert all(len(one) == 16 for one in (ids[0], *ids[2:]))
    lines = [record.getMessage() for record in caplog.records]
    assert any(line.startswith("robot-7 127.0.0.1 GET /health 200 ") for line in lines)


def test_a_websocket_is_one_more_route_behind_the_same_guard() -> None:
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(await websocket.receive_text())
        await websocket.close()

    async def talk(server: WorldModelServer) -> str:
        where = f"ws://127.0.0.1:{server.address[1]}/echo"
        async with websockets.connect(where) as connection:
            await connection.send("push")
            answer = str(await connection.recv())
        with pytest.raises(websockets.InvalidStatus):
            await websockets.connect(where, origin=websockets.Origin("http://evil.example"))
        return answer

    with serving() as server:
        server.routes.routes.append(WebSocketRoute("/echo", echo))
        assert asyncio.run(talk(server)) == "push"
        assert raw(server, "GET /health HTTP/1.1\r\n\r\n")[0] == 200


def test_without_the_extra_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tokenwm.serving.server", None)
    assert main(["serve", "nowhere"]) == 1
    assert "pip install 'tokenwm[serve]'" in capsys.readouterr().err


def bodies() -> st.SearchStrategy[bytes]:
    """Whole requests, with options right and wrong, damaged ones, and anything."""
    options = st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers() | st.floats(),
            "temperature": st.floats(0, 2) | st.text(),
            "top_k": st.integers(-1, 40),
            "top_p": st.floats(),
            "pixels": st.lists(st.integers(-1, 4), max_size=4),
            "timeout": st.floats(-1, 0) | st.just(60),
        },
    )
    whole = question(0, 1, 2)
    arrays = st.sampled_from([set(), {"actions"}, {"frames"}, {"past_actions", "states"}])
    built = st.builds(
        lambda left, options: wire.pack({n: a for n, a in whole.items() if n not in left}, options),
        arrays,
        options,
    )
    damaged = st.builds(lambda body, cut: body[: len(body) - cut], built, st.integers(0, 99))
    frames = st.just(ENCODE)
    return st.just(wire.pack(whole, {})) | frames | built | damaged | st.binary(max_size=64)


schemathesis.openapi.media_type(wire.MEDIA_TYPE, bodies())


@schemathesis.serializer(wire.MEDIA_TYPE)
def as_it_is(_: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def test_answers_are_as_the_description_says() -> None:
    with serving() as server:
        where = f"http://127.0.0.1:{server.address[1]}"
        schema = schemathesis.openapi.from_url(f"{where}/openapi.json")
        seen: dict[str, set[int]] = {}
        for result in schema.get_all_operations():
            operation = result.ok()

            @settings(
                max_examples=25,
                deadline=None,
                derandomize=True,
                database=None,
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy())
            def ask(case: schemathesis.Case) -> None:
                response = case.call(base_url=where)
                seen.setdefault(case.path, set()).add(response.status_code)
                case.validate_response(
                    response, excluded_checks=[schemathesis.checks.positive_data_acceptance]
                )

            ask()
    assert {path: 200 in statuses for path, statuses in seen.items()} == dict.fromkeys(
        [*PATHS, "/health", "/metrics"], True
    )
    assert all(400 in seen[path] for path in PATHS)
