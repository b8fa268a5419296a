"""Videos whose pictures carry their own number, and LeRobot v3.0 folders that refer to them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

FPS = 30
BLOCKS, SIZE = 4, 64
TEMPLATE = "chunk-{chunk_index:03d}/file-{file_index:03d}"


def numbered(number: int) -> NDArray[np.uint8]:
    """A picture ``(SIZE, SIZE, 3)`` of 4 × 4 dark and bright blocks: the bits of a number."""
    bits = (number >> np.arange(BLOCKS**2)) & 1
    grid = np.where(bits, 225, 25).astype(np.uint8).reshape(BLOCKS, BLOCKS)
    grey = np.kron(grid, np.ones((SIZE // BLOCKS, SIZE // BLOCKS), np.uint8))
    return np.repeat(grey[:, :, None], 3, axis=2)


def numbers_of(frames: NDArray[np.uint8]) -> list[int]:
    """The numbers of pictures ``(N, H, W, 3)``, whatever size they have been made."""
    count, height, width, _ = frames.shape
    blocks = frames.reshape(count, BLOCKS, height // BLOCKS, BLOCKS, width // BLOCKS, 3)
    bits = blocks.mean(axis=(2, 4, 5)).reshape(count, BLOCKS**2) > 128
    return [int(value) for value in (bits << np.arange(BLOCKS**2)).sum(axis=1)]


@dataclass(kw_only=True)
class Film:
    """One video file.

    Attributes:
        numbers: What its pictures show, in order.
        ticks: When each is shown, in periods; None for one after the other from 0.
        keys: Pictures that are key frames beside those of the encoder.
        options: Of the encoder.
        container: Options of the container.
        edited: Whether the container has an edit list, which makes up for reordered pictures.
    """

    numbers: Sequence[int]
    ticks: Sequence[int] | None = None
    keys: Sequence[int] = ()
    options: Mapping[str, str] = field(default_factory=lambda: {"g": "250", "bf": "0"})
    container: Mapping[str, str] = field(default_factory=dict)
    fps: int = FPS

    def write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(path), "w", options=dict(self.container)) as container:
            options = {"crf": "16", "preset": "ultrafast", "sc_threshold": "0", **self.options}
            stream = container.add_stream("libx264", rate=self.fps, options=options)
            stream.width = stream.height = SIZE
            stream.pix_fmt = "yuv420p"
            stream.codec_context.time_base = Fraction(1, self.fps)
            for index, number in enumerate(self.numbers):
                frame = av.VideoFrame.from_ndarray(numbered(number), format="rgb24")
                frame.pts = index if self.ticks is None else self.ticks[index]
                frame.time_base = Fraction(1, self.fps)
                if index in self.keys:
                    frame.pict_type = av.video.frame.PictureType.I
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))


LATE = {"options": {"bf": "2", "g": "20"}, "container": {"use_editlist": "0"}}
"""A film with reordered pictures that the container does not make up for: it begins at 2 / FPS."""


@dataclass(kw_only=True)
class Take:
    """One episode: rows, and its clip in a file, in periods; None for no time.

    Attributes:
        rows: Rows of its table.
        start: From.
        stop: To; None where ``start`` is given means ``start + rows``.
        file: Number of its video file; None for none.
    """

    rows: int
    start: float | None
    stop: float | None = None
    file: int | None = 0


def write_takes(folder: Path, takes: Sequence[Take], films: Sequence[Film], **info: Any) -> None:
    """Write a folder with one camera ``top``; the takes are episodes 0, 1, …"""
    feature = "observation.images.top"
    start = 0
    tables, rows = [], []
    for index, take in enumerate(takes):
        steps = np.arange(take.rows)
        tables.append(
            pyarrow.table(
                {
                    "observation.state": (steps + 0.5 * index).astype(np.float32),
                    "action": np.sin(steps + index).astype(np.float32),
                    "timestamp": (steps / FPS).astype(np.float32),
                    "frame_index": steps,
                    "episode_index": np.full(take.rows, index),
                    "task_index": np.zeros(take.rows, np.int64),
                }
            )
        )
        stop = take.stop
        if stop is None and take.start is not None:
            stop = take.start + take.rows
        rows.append(
            {
                "episode_index": index,
                "tasks": ["push"],
                "length": take.rows,
                "data/chunk_index": 0,
                "data/file_index": 0,
                "dataset_from_index": start,
                "dataset_to_index": start + take.rows,
                f"videos/{feature}/chunk_index": None if take.file is None else 0,
                f"videos/{feature}/file_index": take.file,
                f"videos/{feature}/from_timestamp": None
                if take.start is None
                else take.start / FPS,
                f"videos/{feature}/to_timestamp": None if stop is None else stop / FPS,
            }
        )
        start += take.rows
    values: dict[str, Any] = {"chunk_index": 0, "file_index": 0}
    for path, table in (
        (folder / "data" / f"{TEMPLATE.format(**values)}.parquet", pyarrow.concat_tables(tables)),
        (
            folder / "meta" / "episodes" / f"{TEMPLATE.format(**values)}.parquet",
            pyarrow.Table.from_pylist(rows),
        ),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
    for number, film in enumerate(films):
        values = {"chunk_index": 0, "file_index": number}
        film.write(folder / "videos" / feature / f"{TEMPLATE.format(**values)}.mp4")
    about = {
        "codebase_version": "v3.0",
        "fps": FPS,
        "total_episodes": len(takes),
        "total_frames": start,
        "data_path": f"data/{TEMPLATE}.parquet",
        "video_path": "videos/{video_key}/" + f"{TEMPLATE}.mp4",
        "features": {
            "observation.state": {"dtype": "float32", "shape": [1]},
            "action": {"dtype": "float32", "shape": [1]},
            "timestamp": {"dtype": "float32", "shape": [1]},
            "frame_index": {"dtype": "int64", "shape": [1]},
            "episode_index": {"dtype": "int64", "shape": [1]},
            "task_index": {"dtype": "int64", "shape": [1]},
            feature: {"dtype": "video", "shape": [SIZE, SIZE, 3]},
        },
    }
    (folder / "meta" / "info.json").write_text(json.dumps({**about, **info}))
