"""A headless Chromium, driven over its DevTools protocol: enough to press keys and look."""

import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
PATIENCE = 60.0
"""Seconds to wait for anything; no test asserts how long it took."""
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Backspace": 8}


class Page:
    """One tab."""

    def __init__(self, socket: ClientConnection, process: subprocess.Popen[bytes]) -> None:
        self.socket, self.numbers, self.process = socket, itertools.count(1), process
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session: str | None = attached["sessionId"]
        self("Page.enable")
        self("Runtime.enable")
        self("Log.enable")

    session: str | None = None
    problems: tuple[str, ...] = ()

    def __call__(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self.numbers)
        asked: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self.session is not None:
            asked["sessionId"] = self.session
        self.socket.send(json.dumps(asked))
        while True:
            answer = json.loads(self.socket.recv(timeout=PATIENCE))
            self._note(answer)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _note(self, event: dict[str, Any]) -> None:
        """Keep what the page complains about."""
        if event.get("method") == "Runtime.exceptionThrown":
            details = event["params"]["exceptionDetails"]
            self.problems += (str(details.get("exception", {}).get("description", details)),)
        if event.get("method") == "Log.entryAdded":
            self.problems += (event["params"]["entry"]["text"],)

    def open(self, address: str) -> None:
        self("Page.navigate", url=address)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        answer = self(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({condition})"):
            if time.monotonic() > end:
                raise TimeoutError(f"{condition} did not come true; {self.problems}")
            time.sleep(0.02)

    def key(self, name: str, kind: str = "press", *, shift: bool = False) -> None:
        code = KEYS.get(name, ord(name[0].upper()))
        modifiers = 8 if shift else 0
        for event in {"press": ("keyDown", "keyUp"), "down": ("keyDown",), "up": ("keyUp",)}[kind]:
            self(
                "Input.dispatchKeyEvent",
                type=event,
                key=name,
                code=name,
                windowsVirtualKeyCode=code,
                modifiers=modifiers,
            )

    def click(self, x: float, y: float) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )

    def kill(self) -> None:
        """End the browser and all its processes, without a word to anybody."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def screenshot(self, path: Path) -> Path:
        path.write_bytes(base64.b64decode(self("Page.captureScreenshot")["data"]))
        return path


@contextlib.contextmanager
def browsing(width: int = 1280, height: int = 800) -> Iterator[Page]:
    """A page in a browser of its own, which is gone afterwards."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    CHROMIUM,
                    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run"),
                    *("--disable-background-networking", "--disable-dev-shm-usage"),
                    *(f"--user-data-dir={profile}", "--remote-debugging-port=0"),
                    f"--window-size={width},{height}",
                    "about:blank",
                ],
                stdout=subprocess.DEVNULL,
                stderr=output,
                start_new_session=True,
            )
        try:
            with connect(_address(log, process), max_size=2**26) as socket:
                yield Page(socket, process)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _address(log: Path, process: subprocess.Popen[bytes]) -> str:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        found = re.search(r"DevTools listening on (ws://\S+)", log.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.05)
    raise RuntimeError(f"Chromium did not start: {log.read_text(errors='replace')[-2000:]}")
