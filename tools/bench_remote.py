"""Time reading windows from a store that is far away, and opening manifests of many episodes.

    python tools/bench_remote.py --work /tmp/bench_remote --json bench_remote.json

Push-T episodes are recorded (or ``--data`` names any shards) and put into a local S3 server, which
is reached through a proxy that holds back each new connection and each answer by ``--delay-ms``; it
does not narrow the line. ``--store URL`` takes a store that is there instead (its endpoint and keys
in the environment). What is timed runs in a process of its own, whose peak memory is given, too.

Windows, with ``--workers`` processes each:
    folder_loader   by offset from the local folder, in the page cache: the floor
    folder_stream   the same with ``data.loader: stream``: whole shards, a shuffle buffer
    loader          by offset from the store, by ranges
    cached_cold     the same with a cache that is empty at first; counted from the first batch on
    cached_warm     the same when the cache holds every shard
    stream          ``data.loader: stream`` from the store
Manifests, synthetic ones of ``--manifests`` episodes:
    open_seconds    ``Manifest.load``: read, digest, parse, check
    windows_seconds from there to a dataset of windows and the first places of their order
    added_memory_bytes  peak while doing both, above what the process had before
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import logging
import multiprocessing
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from bench_data import Figures, measured, peak_memory, time_loader

from tokenwm.data.loading.order import ShuffledOrder
from tokenwm.data.loading.windows import WindowDataset
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import (
    MANIFEST_NAME,
    EpisodeInfo,
    Feature,
    Manifest,
    ShardInfo,
    dump_manifest,
)
from tokenwm.data.shards.ranges import copy_of
from tokenwm.data.shards.reader import ShardReader

REPOSITORY = Path(__file__).parents[1]
BUCKET = "s3://bench"

# --- a store that is far away ---------------------------------------------------------------------


async def serve_delayed(port: int, delay: float, tell: Callable[[int], None]) -> None:
    """Pass connections on to a local port; ``tell`` is given the port where they are accepted."""

    async def serve(client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        await asyncio.sleep(delay)  # of the handshake
        server, to_server = await asyncio.open_connection("127.0.0.1", port)
        asked = False  # and not answered yet

        async def pass_on(
            source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool
        ) -> None:
            nonlocal asked
            while data := await source.read(2**18):
                if answers and asked:
                    await asyncio.sleep(delay)
                asked = not answers
                sink.write(data)
                await sink.drain()
            sink.close()

        ways = (pass_on(client, to_server, False), pass_on(server, to_client, True))
        try:
            await asyncio.gather(*ways, return_exceptions=True)
        finally:
            to_server.close()
            to_client.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=256)
    tell(listening.sockets[0].getsockname()[1])
    async with listening:
        await listening.serve_forever()


def run_store(result: Connection, delay: float) -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line per request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    asyncio.run(serve_delayed(port, delay, result.send))


@contextlib.contextmanager
def far_store(delay: float) -> Iterator[str]:
    """The URL of a bucket; the environment names its server from now on."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=run_store, args=(theirs, delay), daemon=True)
    process.start()
    theirs.close()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ours.recv()}",
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        yield BUCKET
    finally:
        process.terminate()
        process.join()


def copy_to_store(folder: Path, url: str) -> str:
    import fsspec

    system, path = fsspec.core.url_to_fs(url)
    system.makedirs(path, exist_ok=True)
    system.put(f"{folder}/", f"{path}/", recursive=True)
    return url


# --- windows --------------------------------------------------------------------------------------


def measure_windows(root: Path, url: str, work: Path, args: argparse.Namespace) -> list[Figures]:
    cache, results = work / "cache", []
    cached = {"cache": str(cache)}
    stream = {"loader": "stream", "shuffle_windows": args.shuffle_windows}
    ways: dict[str, tuple[Path | str, Figures]] = {
        "folder_loader": (root, {}),
        "folder_stream": (root, stream),
        "loader": (url, {}),
        "cached_cold": (url, cached),
        "cached_warm": (url, cached),
        "stream": (url, stream),
    }
    for workers in args.workers:
        for way, (place, options) in ways.items():
            if way == "cached_cold":
                shutil.rmtree(cache, ignore_errors=True)
            if way == "cached_warm":
                fill(url, cache)
            warm_up = 0 if way == "cached_cold" else 2 + 2 * workers
            timed = (place, args.num_steps, args.batch_size, workers, options)
            figures = measured(time_loader, *timed, args.seconds, warm_up)
            results.append({"way": way, "num_workers": workers, **figures})
            print(json.dumps(results[-1]), file=sys.stderr)
    return results


def fill(url: str, cache: Path) -> None:
    """Have every shard copied."""
    reader = ShardReader(url, cache=cache)
    for shard in reader.manifest.shards:
        key = reader.episodes.of_shard(shard.path)[0].key
        while not (cache / copy_of(shard)).exists():
            reader.arrays(key, None, 0, 1)
            time.sleep(0.01)


# --- manifests ------------------------------------------------------------------------------------


def write_manifest(folder: Path, num_episodes: int, per_shard: int = 500) -> Figures:
    """The manifest of a dataset of episodes of 100 steps of 64 × 64 pixels; there are no shards."""
    numbers = Feature(kind="continuous", shape=(2,), dtype="float32")
    features = {
        "frames.top": Feature(kind="frames", shape=(64, 64, 3), dtype="uint8"),
        "state": numbers,
        "action": numbers,
        "reward": Feature(kind="continuous", shape=(), dtype="float32"),
        "terminated": Feature(kind="flag", shape=(), dtype="bool"),
        "truncated": Feature(kind="flag", shape=(), dtype="bool"),
    }
    shards, episodes, size, num_steps = [], [], 1_240_000, 100
    for first in range(0, num_episodes, per_shard):
        count, path = min(per_shard, num_episodes - first), f"train-{first // per_shard:06d}.tar"
        shards.append(
            ShardInfo(
                path=path,
                split="train",
                sha256=hashlib.sha256(path.encode()).hexdigest(),
                num_bytes=count * size,
                num_episodes=count,
                num_steps=count * num_steps,
            )
        )
        episodes += [
            EpisodeInfo(
                key=f"episode_{first + place:08d}",
                split="train",
                shard=path,
                num_steps=num_steps,
                offsets={name: place * size + 1024 * n for n, name in enumerate(features, 2)},
                metadata_offset=place * size + 512,
                crc32=(first + place) * 2654435761 % 2**32,
                synthetic=False,
            )
            for place in range(count)
        ]
    manifest = Manifest(
        kind="frames",
        name="synthetic",
        control_rate=10.0,
        features=features,
        shards=shards,
        episodes=episodes,
    )
    content = dump_manifest(vars(manifest))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_NAME).write_bytes(content)
    return {"bytes": len(content)}


def open_manifest(folder: Path) -> Figures:
    with contextlib.suppress(OSError):  # forget the peak of imports, on Linux
        Path("/proc/self/clear_refs").write_text("5")
    before, start = peak_memory(), time.perf_counter()
    manifest = Manifest.load(folder)
    opened = time.perf_counter()
    reader = ShardReader("memory://nowhere", manifest=manifest)  # shards of a URL are not looked at
    windows = WindowDataset(reader, "train", 6)
    order = ShuffledOrder(len(windows), 0)
    places = [windows.locate(order(place)) for place in range(64)]
    assert len(places) == 64
    return {
        "episodes": len(manifest.episodes),
        "open_seconds": opened - start,
        "windows_seconds": time.perf_counter() - opened,
        "added_memory_bytes": peak_memory() - before,
    }


def measure_manifests(work: Path, counts: list[int]) -> list[Figures]:
    results = []
    for count in counts:
        folder = work / f"manifest-{count}"
        written = measured(write_manifest, folder, count)
        figures = measured(open_manifest, folder)
        results.append({"bytes": written["bytes"], **figures})
        print(json.dumps(results[-1]), file=sys.stderr)
        shutil.rmtree(folder)
    return results


# --- all of it ------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--data", type=Path, help="shards to read; by default Push-T is recorded")
    parser.add_argument("--episodes", type=int, default=60, help="of Push-T")
    parser.add_argument("--max-steps", type=int, default=120, help="of each of them")
    parser.add_argument("--store", metavar="URL", help="a store that is there, and no delay")
    parser.add_argument("--delay-ms", type=float, default=40.0)
    parser.add_argument("--num-steps", type=int, default=6, help="of a window")
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--shuffle-windows", type=int, default=4096, help="of the stream loader")
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2], help="none: no windows")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each timing")
    parser.add_argument("--manifests", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    report: Figures = {
        "what": "remote",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "delay_ms": None if args.store else args.delay_ms,
        "num_steps": args.num_steps,
        "batch_size": args.batch_size,
    }
    if args.workers:
        report |= measure_store(args)
    report["manifests"] = measure_manifests(args.work, args.manifests)
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


def measure_store(args: argparse.Namespace) -> Figures:
    root: Path = args.data or args.work / "pusht"
    if args.data is None:
        sizes = [f"source.num_episodes={args.episodes}", f"source.max_steps={args.max_steps}"]
        prepare(load_recipe(REPOSITORY / "data_recipes" / "pusht.yaml", sizes), root)
    shards = Manifest.load(root).shards
    found: Figures = {"shards": len(shards), "bytes": sum(shard.num_bytes for shard in shards)}
    with contextlib.ExitStack() as stack:
        store: Any = args.store or stack.enter_context(far_store(args.delay_ms / 1000))
        url = copy_to_store(root, f"{store}/{root.name}")
        return {**found, "windows": measure_windows(root, url, args.work, args)}


if __name__ == "__main__":
    main()
