"""Measure `tokenwm play`: one player in a real browser, then many at once; prints JSON.

    python tools/bench_play.py runs/quickstart/world_model --data runs/quickstart/frames

One player: Chromium plays, arrow keys are tapped at odd moments, and the page says how long each
took until the picture that shows its action was drawn. Many players: programs that steer and show
what they are sent, for a minute. CPU milliseconds a step are the server's own, of all its threads,
and tell what a machine that does nothing else would need.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import websockets

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.browser import browsing
from tokenwm.serving.play.messages import unpack


@contextlib.contextmanager
def playing(model: Path, more: list[str]) -> Iterator[tuple[str, int]]:
    """A server of its own: its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "tokenwm", "play", str(model), "--port", "0"]
        command += ["--out", folder, *more]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                found = re.search(r"http://\S+", line)
                if found:
                    yield found[0], process.pid
                    break
        finally:
            process.terminate()
            process.wait()


def cpu_seconds(process: int) -> float:
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def percentiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {
        50: statistics.median(ordered),
        95: ordered[min(len(ordered) - 1, len(ordered) * 95 // 100)],
    }
    return {f"p{share}": round(value, 1) for share, value in at.items()} | {"taps": len(ordered)}


def one_player(address: str, process: int, seconds: float) -> dict[str, Any]:
    with browsing() as page:
        page.open(address)
        page.wait("window.tokenwm && tokenwm.me.frame")
        page.key(" ")
        page.wait("tokenwm.me.frame.step > 3")
        page.evaluate("tokenwm.latencies.length = 0")
        draw = random.Random(0)
        first = page.evaluate("tokenwm.me.frame.step")
        began, cpu = time.monotonic(), cpu_seconds(process)
        while time.monotonic() - began < seconds:
            page.key(draw.choice(["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]))
            time.sleep(draw.uniform(0.4, 0.9))
        taken = time.monotonic() - began
        steps = page.evaluate("tokenwm.me.frame.step") - first
        cpu = cpu_seconds(process) - cpu
        return {
            "decoding": page.evaluate("tokenwm.me.world.decoding"),
            "frames_per_second": round(steps / taken, 2),
            "key_to_picture_ms": percentiles(page.evaluate("tokenwm.latencies")),
            "cpu_ms_per_step": round(1e3 * cpu / max(1, steps), 1),
            "complaints": list(page.problems),
        }


async def steer(url: str, until: float, seed: int) -> int:
    """One player that is a program; returns how many pictures came."""
    draw, count = random.Random(seed), 0
    async with websockets.connect(url, max_size=2**24) as socket:
        welcome, _ = unpack(bytes(await socket.recv(decode=False)))
        ends = [(d["low"], d["high"]) for d in welcome["controls"]["dimensions"]]
        await socket.send(json.dumps({"type": "play", "on": True}))
        while time.monotonic() < until:
            try:
                content = await asyncio.wait_for(
                    socket.recv(decode=False), until - time.monotonic()
                )
            except TimeoutError:
                break
            header, _ = unpack(bytes(content))
            if header["type"] != "frame":
                raise RuntimeError(str(header))
            count += 1
            action = [draw.uniform(*end) for end in ends]
            for message in (
                {"type": "shown", "number": header["number"]},
                {"type": "act", "actions": [action], "number": count},
            ):
                await socket.send(json.dumps(message))
    return count


async def many_players(address: str, count: int, seconds: float) -> list[int]:
    url = address.replace("http", "ws") + "/play"
    until = time.monotonic() + seconds
    return await asyncio.gather(*(steer(url, until, seed) for seed in range(count)))


def health(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{address}/health") as answer:
        told: dict[str, Any] = json.load(answer)
        return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--players", type=int, default=20)
    parser.add_argument("--players-seconds", type=float, default=60.0)
    parser.add_argument("--num-passes", type=int)
    arguments = parser.parse_args()
    more = [] if arguments.data is None else ["--data", arguments.data]
    if arguments.num_passes is not None:
        more += ["--num-passes", str(arguments.num_passes)]
    with playing(arguments.model, more) as (address, process):
        result: dict[str, Any] = {"load_average": os.getloadavg()[0], "cores": os.cpu_count()}
        result["one_player"] = one_player(address, process, arguments.seconds)
        cpu = cpu_seconds(process)
        counts = asyncio.run(many_players(address, arguments.players, arguments.players_seconds))
        cpu = cpu_seconds(process) - cpu
        time.sleep(2.0)
        result["many_players"] = {
            "players": arguments.players,
            "seconds": arguments.players_seconds,
            "frames_per_second": round(sum(counts) / arguments.players_seconds, 2),
            "frames_of_the_least": min(counts),
            "frames_of_the_most": max(counts),
            "cpu_ms_per_frame": round(1e3 * cpu / max(1, sum(counts)), 1),
            "players_left_afterwards": health(address)["players"],
        }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
