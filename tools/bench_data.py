"""Time preparation and loading of data; floors, and what one would do otherwise, beside them.

    python tools/bench_data.py --recipe data_recipes/pusht.yaml --set source.num_episodes=40 \
        --work /tmp/bench_data --json bench_data.json

The recipe is prepared with one and with two workers, a tokenizer is trained for a few steps, and
its tokens are made; then windows are read. What is timed runs in a process of its own, whose peak
memory is given, too. Files are in the page cache: the floors are those of memory and CPU.

Preparation:
    decode_only    the pictures of the source decoded and nothing else, one process (of a simulator:
                   episodes recorded and nothing else)
    prepare_N      ``tokenwm prepare`` with N workers
Loading, from frame shards and from token shards:
    raw_reads      the byte ranges that the loader reads, in its order, and nothing else
    loader_N       batches of the data module with N workers, windows by offset
    stream_N       the same with ``data.loader: stream``: whole shards, a shuffle buffer
    webdataset     plain webdataset: whole episodes, cut into windows, a shuffle buffer of 1000
    source_files   a map-style dataset over the source: parquet rows, and the window's frames
                   decoded from the video (LeRobot sources only)
From a store: ``tools/bench_remote.py``.
Training: windows per second that the ``small`` configs take, what the loader must give.
Memory: the peak of preparing and of loading a dataset, and one ten times as large.
"""

import argparse
import csv
import itertools
import json
import multiprocessing
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import BATCH_FIELDS, Batch
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import Recipe, load_recipe
from tokenwm.data.shards.manifest import EpisodeInfo, Feature, Manifest, ShardInfo
from tokenwm.data.shards.writer import ShardWriter

REPOSITORY = Path(__file__).parents[1]
PARTS = ("preparation", "training", "loading", "memory")
Figures = dict[str, Any]


def measured(function: Callable[..., Figures], *arguments: Any) -> Figures:
    """Call a function in a fresh process; adds the peak memory of it and of its children."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_call, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    figures: Figures = ours.recv()
    process.join()
    return figures


def _call(result: Connection, function: Callable[..., Figures], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    before = peak_memory()
    figures = function(*arguments)
    figures |= {"peak_memory_bytes": peak_memory(), "memory_before_bytes": before}
    result.send(figures)


def peak_memory() -> int:
    """Of this process, or of the largest of its children."""
    who = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(one).ru_maxrss for one in who) * 1024


# --- preparation ----------------------------------------------------------------------------------


def time_prepare(recipe: Recipe, out: Path, num_workers: int, num_frames: int) -> Figures:
    """``num_frames`` are those of the source, so that the rate can be compared with the floor."""
    shutil.rmtree(out, ignore_errors=True)
    start = time.perf_counter()
    manifest = prepare(recipe, out, num_workers=num_workers)
    seconds = time.perf_counter() - start
    stored = sum(episode.num_steps for episode in manifest.episodes) * len(manifest.cameras)
    rate = num_frames / seconds
    return {"seconds": seconds, "frames_per_second": rate, "stored_frames": stored}


def time_decode(recipe: Recipe) -> Figures:
    """Pictures of the source, as many as its reader has to look at, and nothing else."""
    source = recipe.open_source()
    start = time.perf_counter()
    if recipe.records:
        num_frames = sum(len(source.load(ref).action) for ref in source.episodes())
    else:
        num_frames = sum(decode_video(path) for path in videos_of(recipe))
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "frames_per_second": num_frames / seconds, "frames": num_frames}


def videos_of(recipe: Recipe) -> list[Path]:
    """Videos of the wanted episodes of a LeRobot v2.1 folder."""
    options: Any = recipe.source
    wanted = options.episodes
    found = [
        path
        for feature in options.cameras.values()
        for path in sorted(source_folder(recipe).glob(f"videos/*/{feature}/episode_*.mp4"))
    ]
    return [path for path in found if wanted is None or int(path.stem[8:]) in wanted]


def source_folder(recipe: Recipe) -> Path:
    options: Any = recipe.source
    return Path(options.path)


def decode_video(path: Path) -> int:
    import av

    with av.open(str(path)) as container:
        container.streams.video[0].thread_count = 1
        return sum(1 for _ in container.decode(video=0))


# --- loading --------------------------------------------------------------------------------------


def open_data(
    root: Path | str, num_steps: int, batch_size: int, num_workers: int, **options: Any
) -> EpisodeDataModule:
    options = {"num_workers": num_workers, "verify": False, "seed": 1, **options}
    return EpisodeDataModule(str(root), num_steps, batch_size, **options)


def time_loader(
    root: Path | str,
    num_steps: int,
    batch_size: int,
    num_workers: int,
    options: Figures,
    seconds: float = 3,
    warm_up: int | None = None,
) -> Figures:
    start = time.perf_counter()
    data = open_data(root, num_steps, batch_size, num_workers, **options)
    batches = iter(data.train_dataloader())
    next(batches)
    first = time.perf_counter() - start
    warm_up = 2 + 2 * num_workers if warm_up is None else warm_up
    figures = time_batches(batches, batch_size, warm_up, seconds)
    return {**figures, "seconds_to_first_batch": first}


def time_batches(batches: Iterator[Batch], size: int, warm_up: int, seconds: float = 3) -> Figures:
    for _ in itertools.islice(batches, warm_up):
        pass
    start, done, num_bytes = time.perf_counter(), 0, 0
    while (taken := time.perf_counter() - start) < seconds:
        batch = next(batches)
        num_bytes = num_bytes or bytes_of(batch)
        done += 1
    return rates(done * size, done * num_bytes, taken)


def rates(samples: int, num_bytes: int, seconds: float) -> Figures:
    return {
        "samples_per_second": samples / seconds,
        "bytes_per_second": num_bytes / seconds,
        "us_per_sample": 1e6 * seconds / max(1, samples),
    }


def bytes_of(batch: Batch) -> int:
    """Bytes of the windows as they are stored; tokens are uint16 there."""
    total = 0
    for name in BATCH_FIELDS:
        tensor = getattr(batch, name)
        if tensor is not None:
            total += tensor.numel() * (2 if name.endswith("_tokens") else tensor.element_size())
    return total


def time_raw_reads(root: Path, num_steps: int, batch_size: int) -> Figures:
    """What the loader reads, noted down first, then read with ``preadv`` into one buffer."""
    data = open_data(root, num_steps, batch_size, 0)
    files, noted = data.readers[0]._files, []

    class Noting:
        def read(self, name: str, ranges: Any) -> Any:
            noted.append((name, list(ranges)))
            return files.read(name, ranges)

        def is_checked(self, name: str, *, whole: bool) -> bool:
            return files.is_checked(name, whole=whole)

    data.readers[0]._files = Noting()
    batches = iter(data.train_dataloader())
    for _ in itertools.islice(batches, 1 + len(data.strata[0].windows) // batch_size):
        pass  # once through, so that the headers of all episodes are known
    noted.clear()
    for _ in itertools.islice(batches, 2000 // batch_size + 1):
        pass
    open_files = {name: os.open(root / name, os.O_RDONLY) for name, _ in noted}
    buffer = bytearray(max(size for _, ranges in noted for _, size in ranges))
    views = [
        (open_files[name], memoryview(buffer)[:size], first)
        for name, ranges in noted
        for first, size in ranges
    ]
    num_bytes = sum(len(view) for _, view, _ in views)
    samples = (2000 // batch_size + 1) * batch_size
    start, rounds = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < 2:
        for descriptor, view, first in views:
            os.preadv(descriptor, [view], first)
        rounds += 1
    return rates(samples * rounds, num_bytes * rounds, taken)


def time_webdataset(root: Path, num_steps: int, batch_size: int) -> Figures:
    import webdataset

    data = open_data(root, num_steps, batch_size, 0)
    cameras = [f"frames.{camera}" for camera in data.manifest.cameras]
    wanted = cameras if data.fields == ("frames",) else list(data.fields)
    generator = np.random.default_rng(0)

    def windows(episodes: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for episode in episodes:
            arrays = {name: episode[f"{name}.npy"] for name in wanted}
            length = len(next(iter(arrays.values())))
            starts = np.arange(max(1, length - num_steps + 1))
            generator.shuffle(starts)
            for start in starts:
                yield {name: array[start : start + num_steps] for name, array in arrays.items()}

    def whole(window: dict[str, Any]) -> bool:
        return all(len(array) == num_steps for array in window.values())

    shards = [str(root / shard.path) for shard in data.manifest.shards if shard.split == "train"]
    pipeline = (
        webdataset.WebDataset(shards, shardshuffle=len(shards), seed=0)
        .repeat()
        .decode()
        .compose(windows)
        .select(whole)
        .shuffle(1000)
    )
    batches = iter(DataLoader(pipeline, batch_size=batch_size))
    first = next(batches)
    stored = {"uint16": 2}
    num_bytes = sum(
        tensor.numel() * stored.get(str(tensor.dtype), tensor.element_size())
        for tensor in first.values()
    )
    start, done = time.perf_counter(), 0
    while (taken := time.perf_counter() - start) < 3:
        next(batches)
        done += 1
    return rates(done * batch_size, done * num_bytes, taken)


class SourceWindows(Dataset[dict[str, torch.Tensor]]):
    """What one writes first: every window of every episode, decoded when it is asked for."""

    def __init__(self, recipe: Recipe, num_steps: int) -> None:
        import pyarrow.parquet

        options: Any = recipe.source
        self.size, self.num_steps = recipe.image_size, num_steps
        info = json.loads((source_folder(recipe) / "meta" / "info.json").read_text())
        self.fps = float(info["fps"])
        self.stride = round(self.fps / recipe.control_rate)
        self.episodes: list[tuple[Path, Any]] = []
        self.windows: list[tuple[int, int]] = []
        for path in videos_of(recipe):
            (table,) = source_folder(recipe).glob(f"data/*/{path.stem}.parquet")
            rows = pyarrow.parquet.read_table(table, columns=[options.action])
            action = np.array(rows[options.action].to_pylist(), dtype=np.float32)
            starts = range(len(action) - (num_steps - 1) * self.stride)
            self.windows += [(len(self.episodes), start) for start in starts]
            self.episodes.append((path, action))

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        import av

        episode, first = self.windows[index]
        path, action = self.episodes[episode]
        wanted = [first + step * self.stride for step in range(self.num_steps)]
        frames: list[Any] = []
        height, width = self.size
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            stream.thread_count = 1
            assert stream.time_base is not None
            container.seek(round(wanted[0] / self.fps / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if round(float(frame.time) * self.fps) >= wanted[len(frames)]:
                    small = frame.reformat(width, height, "rgb24", interpolation="AREA")
                    frames.append(torch.from_numpy(small.to_ndarray()))
                    if len(frames) == len(wanted):
                        break
        return {"frames": torch.stack(frames), "action": torch.from_numpy(action[wanted])}


def time_source_files(recipe: Recipe, num_steps: int, batch_size: int) -> Figures:
    dataset = SourceWindows(recipe, num_steps)
    batches = iter(DataLoader(dataset, batch_size, shuffle=True))
    start, done, num_bytes = time.perf_counter(), 0, 0
    while (taken := time.perf_counter() - start) < 5:
        batch = next(batches)
        done, num_bytes = done + 1, num_bytes + batch["frames"].numel()
    return rates(done * batch_size, num_bytes, taken)


# --- memory ---------------------------------------------------------------------------------------


def write_random(folder: Path, num_episodes: int) -> Path:
    """Frame shards of random pictures: 120 steps of 64 × 64 pixels, 1.5 MB an episode."""
    features = {
        "frames.top": Feature(kind="frames", shape=(64, 64, 3), dtype="uint8"),
        "action": Feature(kind="continuous", shape=(2,), dtype="float32"),
    }
    generator = np.random.default_rng(0)
    shards: list[ShardInfo] = []
    episodes: list[EpisodeInfo] = []
    with ShardWriter(folder, "train", max_bytes=2**26) as writer:
        for index in range(num_episodes):
            frames = generator.integers(0, 256, (120, 64, 64, 3), dtype=np.uint8)
            action = np.zeros((120, 2), dtype=np.float32)
            writer.add(f"e{index}", {"frames.top": frames, "action": action}, {})
        shards, episodes = writer.finish()
    manifest = Manifest(
        kind="frames",
        name="random",
        control_rate=10.0,
        features=features,
        shards=shards,
        episodes=episodes,
    )
    manifest.save(folder)
    return folder


def load_all(root: Path) -> Figures:
    """As many windows as the dataset has, so that each byte of it is read about once."""
    data = open_data(root, 1, 64, 0)
    batches = iter(data.train_dataloader())
    for _ in itertools.islice(batches, len(data.strata[0].windows) // 64):
        pass
    return {"bytes": sum(shard.num_bytes for shard in data.manifest.shards)}


def measure_memory(work: Path, num_episodes: int = 10) -> list[Figures]:
    """Peak memory of preparing Push-T and of loading, once and ten times as much."""
    results = []
    for factor in (1, 10):
        recipe = load_recipe(
            REPOSITORY / "data_recipes" / "pusht.yaml",
            [f"source.num_episodes={num_episodes * factor}", "source.max_steps=60"],
        )
        made = measured(time_prepare, recipe, work / "memory", 1, 60 * num_episodes * factor)
        results.append({"what": "prepare", "times": factor, **made})
        shutil.rmtree(work / "random", ignore_errors=True)
        root = write_random(work / "random", 40 * factor)
        results.append({"what": "load", "times": factor, **measured(load_all, root)})
        shutil.rmtree(root)
    return results


# --- training -------------------------------------------------------------------------------------


def tokenwm(*arguments: str) -> None:
    command = [sys.executable, "-m", "tokenwm", *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")


def fit(stage: str, root: Path, run: Path, num_steps: int) -> float:
    """Windows per second of a stage with its ``small`` config."""
    shutil.rmtree(run, ignore_errors=True)
    config = REPOSITORY / "configs" / stage.replace("-", "_") / "small.yaml"
    options = [f"--trainer.max_steps={num_steps}", "--trainer.limit_val_batches=0"]
    options += ["--trainer.log_every_n_steps=10", "--trainer.default_root_dir", str(run)]
    tokenwm(stage, "fit", "--config", str(config), "--data.root", str(root), *options)
    metrics = run / "logs" / "metrics.csv"
    if not metrics.exists():  # too few steps for a line of it
        return 0.0
    with open(metrics) as file:
        rows = list(csv.DictReader(file))
    found = [row["train/windows_per_second"] for row in rows if row["train/windows_per_second"]]
    return float(found[-1]) if found else 0.0


# --- all of it ------------------------------------------------------------------------------------


def measure_loading(
    name: str, root: Path, num_steps: int, batch_size: int, recipe: Recipe
) -> list[Figures]:
    runs: dict[str, tuple[Callable[..., Figures], tuple[Any, ...]]] = {
        "raw_reads": (time_raw_reads, (root, num_steps, batch_size)),
        **{
            f"{way}_{workers}": (time_loader, (root, num_steps, batch_size, workers, options))
            for way, options in (("loader", {}), ("stream", {"loader": "stream"}))
            for workers in (0, 1, 2)
        },
        "webdataset": (time_webdataset, (root, num_steps, batch_size)),
    }
    if not recipe.records and name != "tokens":
        runs["source_files"] = (time_source_files, (recipe, num_steps, batch_size))
    results = []
    for way, (function, arguments) in runs.items():
        figures = measured(function, *arguments)
        results.append({"data": name, "num_steps": num_steps, "way": way, **figures})
        print(json.dumps(results[-1]), file=sys.stderr)
    return results


def measure_preparation(recipe: Recipe, out: Path) -> list[Figures]:
    floor = measured(time_decode, recipe)
    results = [{"way": "decode_only", **floor}]
    for workers in (1, 2):
        figures = measured(time_prepare, recipe, out, workers, floor["frames"])
        results.append({"way": f"prepare_{workers}", **figures})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--recipe", type=Path, default=REPOSITORY / "data_recipes" / "pusht.yaml")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is made")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--steps", type=int, default=130, help="of training, of each stage")
    args = parser.parse_args()
    recipe = load_recipe(args.recipe, args.overrides)
    report: Figures = {
        "what": "data",
        "date": time.strftime("%Y-%m-%d"),
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "recipe": recipe.name,
    }
    frames, tokens, run = (args.work / name for name in ("frames", "tokens", "tokenizer"))
    if "preparation" in args.parts:
        report["preparation"] = measure_preparation(recipe, frames)
    if {"training", "loading"} & set(args.parts):
        prepare(recipe, frames)  # if it is not there yet
        steps = args.steps if "training" in args.parts else 2
        rates_needed = {"frames": fit("tokenizer", frames, run, steps)}
        make = ["tokenize", str(frames), "--tokenizer", str(run), "--out", str(tokens)]
        tokenwm(*make, "--overwrite")
    if "training" in args.parts:
        rates_needed["tokens"] = fit("world-model", tokens, args.work / "world_model", args.steps)
        report["training_windows_per_second"] = rates_needed
    if "loading" in args.parts:
        report["loading"] = [
            *measure_loading("frames", frames, 1, 64, recipe),
            *measure_loading("frames", frames, 6, 12, recipe),
            *measure_loading("tokens", tokens, 6, 12, recipe),
        ]
    if "memory" in args.parts:
        report["memory"] = measure_memory(args.work)
    text = json.dumps(report, indent=2)
    if args.json:
        args.json.write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
