"""Parquet and video files of a LeRobot dataset while they are written, and its statistics."""

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

KEY_FRAME_EVERY = 2
"""Frames; as LeRobot does, so that training can read any frame without decoding many."""


class TableFile:
    """A parquet file that grows by episodes, each a row group of its own.

    Args:
        path: Where to.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._writer: pyarrow.parquet.ParquetWriter | None = None

    def add(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append rows: ``(N,)`` becomes a column of values, ``(N, n)`` one of fixed-size lists."""
        table = pyarrow.table({name: to_arrow(values) for name, values in columns.items()})
        if self._writer is None:
            self._writer = pyarrow.parquet.ParquetWriter(self.path, table.schema)
        self._writer.write_table(table)

    @property
    def num_bytes(self) -> int:
        """Size so far."""
        return self.path.stat().st_size

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.close()


class VideoFile:
    """An H.264 video that grows by episodes; an episode begins with a key frame.

    Args:
        path: Where to.
        rate: Frames per second.
        height: Of a frame, pixels.
        width: Of a frame, pixels.
        crf: x264's constant rate factor, in [0, 51]; smaller is better and larger.
    """

    def __init__(self, path: Path, *, rate: Fraction, height: int, width: int, crf: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rate = rate
        self.num_frames = 0
        self._container = av.open(str(path), "w")
        options = {"crf": str(crf), "g": str(KEY_FRAME_EVERY), "bf": "0"}
        stream = self._container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = width, height
        # Chroma at half the resolution, which every decoder can, needs even sizes.
        stream.pix_fmt = pixel_format(height, width)
        stream.codec_context.time_base = 1 / rate
        stream.codec_context.thread_count = 1  # more threads give other bytes
        self._stream = stream

    def add(self, frames: NDArray[np.uint8]) -> tuple[float, float]:
        """Append frames ``(N, H, W, 3)``; returns when they begin and end, seconds."""
        start = self.num_frames
        for index, image in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = self.num_frames, 1 / self.rate
            if index == 0:
                frame.pict_type = av.video.frame.PictureType.I
            self._container.mux(self._stream.encode(frame))
            self.num_frames += 1
        return float(start / self.rate), float(self.num_frames / self.rate)

    @property
    def num_bytes(self) -> int:
        """Size so far; 0 before the encoder gave anything."""
        return self.path.stat().st_size if self.path.exists() else 0

    def close(self) -> None:
        """Finish the file."""
        self._container.mux(self._stream.encode(None))
        self._container.close()


def pixel_format(height: int, width: int) -> str:
    """``yuv420p``, or ``yuv444p`` where a size is odd."""
    return "yuv420p" if height % 2 == 0 and width % 2 == 0 else "yuv444p"


def to_arrow(values: NDArray[Any]) -> pyarrow.Array:
    """``(N,)`` as values, ``(N, n)`` as fixed-size lists."""
    if values.ndim == 1:
        return pyarrow.array(values)
    flat = pyarrow.array(np.ascontiguousarray(values).reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


def figures(values: NDArray[Any], *, is_picture: bool) -> dict[str, Any]:
    """LeRobot's statistics of one feature over one episode, as plain lists.

    Args:
        values: ``(N,)`` or ``(N, n)`` numbers, or pictures ``(N, H, W, 3)`` uint8.
        is_picture: Figures are then per channel, of values in [0, 1], shaped ``(3, 1, 1)``.
    """
    if is_picture:
        numbers = values.reshape(-1, 3)
        low, high = numbers.min(axis=0) / 255, numbers.max(axis=0) / 255
        mean = numbers.mean(axis=0) / 255
        # In two steps: the pictures of an episode as float64 would be eight times their size.
        square = np.mean([np.square(image / 255).mean(axis=(0, 1)) for image in values], axis=0)
        parts = [low, high, mean, np.sqrt(np.maximum(square - mean**2, 0))]
        parts = [part.reshape(3, 1, 1) for part in parts]
    else:
        numbers = values.reshape(len(values), -1).astype(np.float64)
        parts = [f(axis=0) for f in (numbers.min, numbers.max, numbers.mean, numbers.std)]
    names = ("min", "max", "mean", "std")
    return {
        **{name: part.tolist() for name, part in zip(names, parts, strict=True)},
        "count": [len(values)],
    }


def merged(episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Statistics of one feature over several episodes."""
    count = np.array([e["count"][0] for e in episodes], dtype=np.float64)
    stacked = {
        name: np.array([e[name] for e in episodes]) for name in ("min", "max", "mean", "std")
    }
    weights = (count / count.sum()).reshape(-1, *[1] * (stacked["mean"].ndim - 1))
    mean = (weights * stacked["mean"]).sum(axis=0)
    variance = (weights * (stacked["std"] ** 2 + (stacked["mean"] - mean) ** 2)).sum(axis=0)
    return {
        "min": stacked["min"].min(axis=0).tolist(),
        "max": stacked["max"].max(axis=0).tolist(),
        "mean": mean.tolist(),
        "std": np.sqrt(variance).tolist(),
        "count": [int(count.sum())],
    }


def task_table(tasks: Sequence[str]) -> pyarrow.Table:
    """``meta/tasks.parquet`` of version 3: a pandas table whose index is the task in words."""
    index = "__index_level_0__"
    about = {
        "index_columns": [index],
        "column_indexes": [],
        "columns": [
            {"name": "task_index", "field_name": "task_index", "pandas_type": "int64",
             "numpy_type": "int64", "metadata": None},
            {"name": None, "field_name": index, "pandas_type": "unicode",
             "numpy_type": "object", "metadata": None},
        ],
        "pandas_version": "2.0.0",
    }  # fmt: skip
    table = pyarrow.table({"task_index": list(range(len(tasks))), index: list(tasks)})
    return table.replace_schema_metadata({"pandas": json.dumps(about)})
