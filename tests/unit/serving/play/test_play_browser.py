"""The page in a real browser: keys, pointer and undo do what they say, and a closed tab is gone."""

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.browser import CHROMIUM, PATIENCE, Page, browsing
from tests.moving_square import write_squares
from tests.table_world import make_table
from tokenwm.data.shards.reader import ShardReader
from tokenwm.serving.play.app import PlayService
from tokenwm.serving.play.stage import Stage
from tokenwm.serving.server import GuardedServer

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")

PICTURE = "tokenwm.stage.figures[0].children[0].toDataURL()"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlayService]:
    folder = tmp_path_factory.mktemp("squares")
    write_squares(folder, {"test": (18, 18)})
    service = PlayService(Stage(make_table(), ShardReader(folder)))
    yield service


@pytest.fixture(scope="module")
def address(service: PlayService) -> Iterator[str]:
    server = GuardedServer(service, ("127.0.0.1", 0))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.address[1]}/"
    server.stop()
    thread.join()


@pytest.fixture(scope="module")
def page(address: str) -> Iterator[Page]:
    with browsing() as page:
        page.open(address)
        page.wait("window.tokenwm && tokenwm.me.frame")
        yield page


def step(page: Page, key: str = ".") -> int:
    before: int = page.evaluate("tokenwm.me.frame.step")
    page.key(key)
    page.wait(f"tokenwm.me.frame.step !== {before}")
    number: int = page.evaluate("tokenwm.me.frame.step")
    return number


def test_keys_and_pointer_move_the_robot_and_undo_returns_the_same_pixels(page: Page) -> None:
    page.evaluate("document.querySelectorAll('#gallery button')[1].click()")
    page.wait("tokenwm.me.frame.episode === 'test_1' && tokenwm.me.frame.step === 0")
    state = "tokenwm.me.frame.state[0]"
    # To the middle by pointer, so that there is room on every side.
    box = page.evaluate(
        "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        "(tokenwm.stage.figures[0].getBoundingClientRect())"
    )
    page.click(*box)
    page.wait("Math.abs(tokenwm.me.held[0][0] - 12) < 0.2")
    for _ in range(9):
        step(page)
    assert abs(page.evaluate(f"{state}[0]") - 12.0) < 3.0
    assert abs(page.evaluate(f"{state}[1]") - 12.0) < 1.0
    for key, dimension, sign in (
        ("ArrowRight", 0, 1),
        ("ArrowLeft", 0, -1),
        ("ArrowUp", 1, -1),
        ("ArrowDown", 1, 1),
    ):
        start = page.evaluate("tokenwm.me.frame.step")
        held = f"tokenwm.me.held[0][{dimension}]"
        before, place = page.evaluate(held), page.evaluate(f"{state}[{dimension}]")
        pixels = page.evaluate(PICTURE)
        page.key(key, "down")
        page.wait(f"{sign} * ({held} - {before}) > 5")
        page.key(key, "up")
        for _ in range(2):
            step(page)
        assert sign * (page.evaluate(f"{state}[{dimension}]") - place) > 2.0, key
        assert page.evaluate(PICTURE) != pixels
        for _ in range(2):
            step(page, "Backspace")
        assert page.evaluate("tokenwm.me.frame.step") == start
        assert page.evaluate(PICTURE) == pixels
        page.evaluate(f"document.querySelectorAll('.dimension input')[{dimension}].value = 12")
        page.evaluate(
            f"document.querySelectorAll('.dimension input')[{dimension}]"
            ".dispatchEvent(new Event('input'))"
        )
        page.wait(f"{held} === 12")
    assert page.problems == ()


def test_everything_is_labelled_and_fits_on_a_phone(page: Page, tmp_path: Path) -> None:
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, [role=meter], dialog, section')]"
        ".filter(e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length"
        " || e.getAttribute('aria-labelledby'))).map(e => e.outerHTML)"
    )
    assert unnamed == []
    page(
        "Emulation.setDeviceMetricsOverride",
        width=360,
        height=740,
        deviceScaleFactor=1,
        mobile=True,
    )
    page.wait("document.documentElement.clientWidth === 360")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    bottom = "document.getElementById('play').getBoundingClientRect().bottom"
    assert page.evaluate(bottom) < 740  # picture and play button on one screen
    page("Emulation.clearDeviceMetricsOverride")
    assert page.screenshot(tmp_path / "page.png").stat().st_size > 10_000


@pytest.mark.parametrize("is_killed", [False, True], ids=["left", "killed"])
def test_a_page_that_is_gone_leaves_nothing(
    page: Page, service: PlayService, address: str, is_killed: bool
) -> None:
    page.open(address)
    page.wait("window.tokenwm && tokenwm.me.frame")
    page.key(" ")
    page.wait("tokenwm.me.frame.playing")
    assert service.players
    page.kill() if is_killed else page.open("about:blank")
    end = time.monotonic() + PATIENCE
    while service.players:
        assert time.monotonic() < end
        time.sleep(0.02)
