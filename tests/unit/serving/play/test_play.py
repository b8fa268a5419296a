"""The page's server: what a socket is told, and whom it refuses. What runs in the page is tested in
``test_play_browser.py``."""

import gc
import json
import socket
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from tests.moving_square import SQUARE, make_model, save_model, write_squares
from tests.table_world import REACH, make_table
from tokenwm.cli.main import main
from tokenwm.data.shards.reader import ShardReader
from tokenwm.serving.app import Guard
from tokenwm.serving.play.app import FILES, PlayService
from tokenwm.serving.play.beginnings import from_png, png
from tokenwm.serving.play.messages import MOST_CHARACTERS, unpack
from tokenwm.serving.play.player import UNSEEN
from tokenwm.serving.play.stage import PlayLimits, Stage

SOCKET = "ws://localhost:8610/play"
Told = tuple[dict[str, Any], list[bytes]]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayService]:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"train": (9,), "test": (18, 18)})
    stage = Stage(
        make_table(),
        ShardReader(folder),
        out=tmp_path_factory.mktemp("out"),
        limits=PlayLimits(max_players=3, max_upload_bytes=2**16),
    )
    yield PlayService(stage)
    stage.close()


@pytest.fixture
def client(service: PlayService) -> TestClient:
    app = Guard(service.app(), service.metrics)
    return TestClient(app, base_url="http://localhost:8610")


class Browser:
    """A page without a browser: it shows everything at once unless told otherwise."""

    def __init__(self, socket: WebSocketTestSession) -> None:
        self.socket = socket
        self.welcome = self.hear("welcome")
        self.first = self.frame()

    def say(self, kind: str, **fields: Any) -> None:
        self.socket.send_text(json.dumps({"type": kind, **fields}))

    def hear(self, kind: str) -> Told:
        while True:
            told = unpack(self.socket.receive_bytes())
            if told[0]["type"] == "frame":
                self.say("shown", number=told[0]["number"])
            if told[0]["type"] == kind:
                return told

    def frame(self, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> Told:
        while not where((told := self.hear("frame"))[0]):
            pass
        return told

    def ask(self, kind: str, **fields: Any) -> Told:
        self.say(kind, **fields)
        return self.frame()


@pytest.fixture
def page(client: TestClient) -> Iterator[Browser]:
    with client.websocket_connect(SOCKET) as socket:
        yield Browser(socket)


def place(picture: bytes) -> tuple[float, float]:
    """Corner of the square."""
    rows, columns = np.nonzero(from_png(picture, 1)[0][..., 0] > 200)
    assert len(rows) == SQUARE**2
    return float(columns.min()), float(rows.min())


def test_a_page_begins_with_a_recorded_step(page: Browser, service: PlayService) -> None:
    header, pictures = page.welcome
    assert header["controls"]["table"] and header["controls"]["down"] and header["saves"]
    assert header["decoding"] == "2 passes" and header["rate"] == 10.0
    assert header["trust"]["doubt"]["rare"] > header["trust"]["doubt"]["usual"] > 0
    assert [start["episode"] for start in header["starts"]] == ["test_0", "test_1"]
    assert header["episodes"] == {"test_0": 18, "test_1": 18, "train_0": 9}
    known = service.stage.recordings
    assert known is not None and pictures[1] == png(known.reader.frames("test_1", 4, 5)[0])
    header, pictures = page.first
    assert (header["step"], header["episode"], header["first_step"]) == (0, "test_0", 4)
    assert header["truth"] and pictures[0] == pictures[1] == page.welcome[1][0]
    assert header["held"] == header["state"]  # it stands still


def test_actions_move_the_robot_and_undo_brings_it_back(page: Browser) -> None:
    x, y = page.first[0]["state"][0]
    target = [24.0 if x < 12 else 0.0, y]
    page.say("act", actions=[target], number=7)
    shown = [page.ask("step") for _ in range(4)]
    assert [header["step"] for header, _ in shown] == [1, 2, 3, 4]
    assert all(header["act"] == 7 and header["taken"] == [target] for header, _ in shown)
    moved = [place(pictures[0])[0] - x for _, pictures in shown]
    side = np.sign(target[0] - x)
    assert 4 * (REACH - 1) - 1 <= side * moved[-1] <= 4 * (REACH + 1) + 1
    assert all(abs(place(pictures[0])[1] - y) < 1 for _, pictures in shown)
    header, pictures = page.ask("back", to=2)
    assert (header["step"], pictures) == (2, shown[1][1])
    again = [page.ask("step") for _ in range(2)]
    assert [pictures for _, pictures in again] == [pictures for _, pictures in shown[2:]]
    page.ask("luck", seed=1)
    assert page.ask("step")[0]["seed"] == 1


def test_two_futures_follow_their_own_actions(page: Browser) -> None:
    _, y = page.first[0]["state"][0]
    assert page.ask("compare", on=True, keep=0)[0]["futures"] == 2
    page.say("act", actions=[[0.0, y], [24.0, y]], number=1)
    for _ in range(3):
        header, pictures = page.ask("step")
    left, right = (place(picture)[0] for picture in pictures[:2])
    assert left < right and header["taken"] == [[0.0, y], [24.0, y]]
    assert len(header["doubt"]) == len(header["surprise"]) == 2
    header, _ = page.ask("compare", on=False, keep=1)
    assert header["futures"] == 1 and header["held"] == [[24.0, y]]
    assert place(page.ask("step")[1][0])[0] > left


def test_undo_into_a_comparison_steers_both_futures_again(page: Browser) -> None:
    page.ask("compare", on=True, keep=0)
    page.ask("step")
    assert len(page.ask("compare", on=False, keep=1)[0]["held"]) == 1
    page.ask("step")
    header, _ = page.ask("back", to=1)
    assert header["futures"] == 2 and len(header["held"]) == 2
    for wrong in (-5, 2):
        page.say("compare", on=False, keep=wrong)
        assert page.hear("note")[0]["text"] == f"there is no future {wrong}; 0 to 1"
    header, _ = page.ask("step")
    assert header["futures"] == 2 and len(header["held"]) == 2


def test_recorded_actions_and_what_really_happened(page: Browser, service: PlayService) -> None:
    known = service.stage.recordings
    assert known is not None
    done = known.reader.arrays("test_0", ["action"])["action"]
    assert page.ask("follow", on=True)[0]["can_follow"]
    header, pictures = page.ask("step")
    assert header["taken"] == [done[4].tolist()]
    assert pictures[-1] == png(known.reader.frames("test_0", 5, 6)[0])
    page.say("play", on=True)
    assert "the recorded episode ends here" in page.hear("note")[0]["text"]
    last = page.ask("follow", on=False)[0]
    assert (last["step"], last["playing"], last["can_follow"]) == (13, False, False)


def test_time_goes_on_by_itself_until_it_is_stopped(page: Browser, service: PlayService) -> None:
    (player,) = service.players
    page.say("play", on=True)
    page.frame(lambda header: header["step"] >= 4)
    page.say("play", on=False)
    page.frame(lambda header: not header["playing"])
    page.say("look", episode="test_0", step=0)  # behind what had begun
    page.hear("look")
    stopped = player.session.step_number
    time.sleep(0.3)
    assert player.session.step_number == stopped
    page.say("step")
    page.frame(lambda header: header["step"] == stopped + 1)


def test_a_slow_page_gets_fewer_pictures_and_never_a_queue(
    client: TestClient, service: PlayService
) -> None:
    with client.websocket_connect(SOCKET) as socket:
        page = Browser(socket)
        (player,) = service.players
        for number in range(6):
            page.say("step")
            while player.session.step_number <= number:
                time.sleep(0.005)
        page.say("look", episode="test_0", step=0)  # its answer comes behind the pictures
        told: list[dict[str, Any]] = []
        while not told or told[-1]["type"] != "look":
            told.append(unpack(socket.receive_bytes())[0])
        assert [header["step"] for header in told[:-1]] == [1, 2][:UNSEEN]
        page.say("shown", number=told[-2]["number"])
        assert unpack(socket.receive_bytes())[0]["step"] == 6


def test_an_uploaded_picture_is_a_beginning(page: Browser) -> None:
    frames = np.full((1, 32, 32, 3), 90, dtype=np.uint8)
    frames[0, 4:12, 16:24] = (230, 90, 40)
    page.socket.send_bytes(b"[16, 4]\n" + png(frames))
    header, pictures = page.frame()
    assert (header["episode"], header["truth"], pictures) == (None, False, [png(frames)])
    assert header["held"] == [[16.0, 4.0]]
    assert abs(place(page.ask("step")[1][0])[0] - 16.0) <= 2.0
    for content, message in (
        (b"[16, 4]\nGIF89a", "cannot be read"),
        (b"{}\n" + png(frames), "a list of numbers"),
        (b"\xff\xfe", "a line of JSON"),
        (b"[16]\n" + png(frames), r"states"),
        (b"0" * (2**16 + 1), "65537 bytes; at most 65536"),
    ):
        page.socket.send_bytes(content)
        assert message in page.hear("note")[0]["text"]
    assert page.ask("back", to=0)[1] == [png(frames)]


def test_a_played_episode_is_saved(page: Browser, service: PlayService) -> None:
    page.say("save")
    assert "nothing was imagined yet" in page.hear("note")[0]["text"]
    page.ask("step")
    page.say("save")
    path = Path(page.hear("saved")[0]["path"])
    assert path.is_file() and service.stage.out in path.parents
    assert np.load(path)["image_top"].shape == (2, 32, 32, 3)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("[" * 10_000, "no JSON"),
        ("[]", "unknown type"),
        ('{"type": "fly"}', "unknown type"),
        ('{"type": ["step"]}', "unknown type"),
        ('{"type": "step", "more": 1}', "has the fields"),
        ('{"type": "back", "to": true}', "to is no int"),
        ('{"type": "back", "to": 1e400}', "to is no int"),
        ('{"type": "luck", "seed": 1' + "0" * 30 + "}", "too large"),
        ('{"type": "back", "to": 1}', "step 1 is not one of 0 to 0"),
        ('{"type": "begin", "episode": "no", "step": 0}', "no episode"),
        ('{"type": "look", "episode": "test_0", "step": 18}', "no step 18"),
        ('{"type": "act", "actions": [[1, NaN]], "number": 1}', "no lists of finite numbers"),
        ('{"type": "act", "actions": [[1]], "number": 1}', "the robot's has 2"),
        ('{"type": "act", "actions": [], "number": 1}', "no lists of finite numbers"),
        ('{"type": "compare", "on": false, "keep": 3}', "there is no future 3"),
        ("x" * (MOST_CHARACTERS + 1), "at most 65536"),
    ],
    ids=range(17),
)
def test_a_wrong_message_is_told_and_nothing_breaks(page: Browser, text: str, message: str) -> None:
    page.socket.send_text(text)
    assert message in page.hear("note")[0]["text"]
    assert page.ask("step")[0]["step"] == 1


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Host": "evil.example", "Origin": "http://evil.example"},
    ],
    ids=["another page", "no page", "another name for this machine"],
)
def test_foreign_pages_cannot_play(
    client: TestClient, service: PlayService, headers: dict[str, str]
) -> None:
    with (
        pytest.raises(WebSocketDisconnect) as caught,
        client.websocket_connect(SOCKET, headers=headers),
    ):
        pass
    assert caught.value.code == 1008 and not service.players
    assert client.get("/", headers=headers).status_code in (403, 421)


def test_players_are_limited_and_those_who_vanish_leave_nothing(
    client: TestClient, service: PlayService
) -> None:
    sockets = [client.websocket_connect(SOCKET) for _ in range(4)]
    for one in sockets[:3]:
        page = Browser(one.__enter__())
        page.say("play", on=True)
    worlds = [weakref.ref(player.session) for player in service.players]
    assert len(worlds) == 3 == client.get("/health").json()["players"]
    with sockets[3] as refused, pytest.raises(WebSocketDisconnect) as caught:
        refused.receive_bytes()
    assert (caught.value.code, caught.value.reason) == (
        1013,
        "3 people play already; try again later",
    )
    for one in sockets[:3]:
        one.__exit__(None, None, None)
    end = time.monotonic() + 30
    while service.players or any(world() is not None for world in worlds):
        assert time.monotonic() < end, worlds
        time.sleep(0.01)
        gc.collect()
    assert service.stage.worker._work_queue.qsize() == 0


def test_nobody_who_is_silent_keeps_the_model_busy(
    client: TestClient, service: PlayService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service.stage, "limits", PlayLimits(idle_seconds=1.0))
    with client.websocket_connect(SOCKET) as socket:
        page = Browser(socket)
        page.say("play", on=True)
        (player,) = service.players
        player._last_word -= 10.0
        told = page.hear("note")[0]  # it says what it has shown, which is not steering
        assert told["text"] == "nobody steered for a while: paused" and not player.is_playing


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    for path in FILES:
        answer = client.get(path)
        assert answer.status_code == 200
        assert "http:" not in answer.text and "https:" not in answer.text.replace('"https:"', "")
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert client.get("/play.py").status_code == 404


def test_without_recordings_a_picture_is_the_only_beginning() -> None:
    service = PlayService(Stage(make_table(), None))
    app = Guard(service.app(), service.metrics)
    client = TestClient(app, base_url="http://localhost")
    with client.websocket_connect(SOCKET) as socket:
        header, pictures = unpack(socket.receive_bytes())
        assert (header["starts"], header["episodes"], pictures) == ([], {}, [])
        assert header["trust"]["doubt"]["rare"] is None and not header["saves"]
        for text, message in (
            ('{"type": "step"}', "begin at a recorded step, or upload a picture"),
            ('{"type": "begin", "episode": "x", "step": 0}', "there are no recordings"),
        ):
            socket.send_text(text)
            assert message in unpack(socket.receive_bytes())[0]["text"]
        socket.send_bytes(b"[1, 2]\n" + png(np.zeros((1, 40, 40, 3), dtype=np.uint8)))
        assert unpack(socket.receive_bytes())[0]["state"] == [[1.0, 2.0]]
    service.close()


def test_the_command_says_when_it_cannot_listen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_model()
    folder = save_model(tmp_path / "model", model)
    write_squares(tmp_path / "squares", {"test": (6,)})  # too short to measure anything
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        data = str(tmp_path / "squares")
        assert main(["play", str(folder), "--data", data, "--port", port]) == 1
    assert f"cannot listen on 127.0.0.1:{port}" in capsys.readouterr().err
