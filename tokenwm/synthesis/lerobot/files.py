"""Parquet and video files of a LeRobot dataset while they are written, and its statistics."""

import json
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
"""Name of a statistic → part of the values below it; LeRobot from 0.4 on normalises by them."""
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
        height: Height of a frame, pixels.
        width: Width of a frame, pixels.
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


def read_column(paths: Sequence[Path], name: str) -> NDArray[Any]:
    """All rows of a column of tables, ``(N,)`` or ``(N, n)``."""
    tables = [pyarrow.parquet.read_table(path, columns=[name]) for path in paths]
    column = pyarrow.concat_tables(tables).column(name).combine_chunks()
    num_rows = len(column)
    if pyarrow.types.is_fixed_size_list(column.type):
        values: NDArray[Any] = column.flatten().to_numpy(zero_copy_only=False)
        return values.reshape(num_rows, -1)
    return np.asarray(column.to_numpy(zero_copy_only=False))


def figures(values: NDArray[Any]) -> dict[str, Any]:
    """LeRobot's statistics of numbers, as plain lists.

    Source: lerobot 0.4, ``datasets/compute_stats.py``. It estimates quantiles from histograms, and
    those of a dataset as the mean of its episodes'; here they are exact.

    Args:
        values: ``(N,)`` or ``(N, n)``.
    """
    numbers = values.reshape(len(values), -1).astype(np.float64)
    functions: dict[str, Callable[..., Any]] = {
        "min": np.min,
        "max": np.max,
        "mean": np.mean,
        "std": np.std,
    }
    parts = {name: function(numbers, axis=0) for name, function in functions.items()}
    quantiles = np.quantile(numbers, list(QUANTILES.values()), axis=0)
    parts |= dict(zip(QUANTILES, quantiles, strict=True))
    return {**{name: part.tolist() for name, part in parts.items()}, "count": [len(values)]}


def count_values(frames: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Counts of each value in each channel of pictures ``(N, H, W, 3)``: ``(3, 256)``."""
    counts = np.zeros((3, 256), dtype=np.int64)
    for image in frames:
        for channel in range(3):
            counts[channel] += np.bincount(image[..., channel].reshape(-1), minlength=256)
    return counts


def picture_figures(counts: NDArray[np.int64], num_frames: int) -> dict[str, Any]:
    """LeRobot's statistics of pictures: per channel, of values in [0, 1], shaped ``(3, 1, 1)``.

    Args:
        counts: ``(3, 256)`` of :func:`count_values`.
        num_frames: Pictures that were counted.
    """
    levels = np.arange(256) / 255
    total = counts[0].sum()
    mean = counts @ levels / total
    variance = (counts * (levels - mean[:, None]) ** 2).sum(axis=1) / total
    ordered = np.cumsum(counts, axis=1)

    def quantile(part: float) -> NDArray[np.float64]:
        """Quantile of all values, between the two nearest in rank as NumPy's."""
        rank = (total - 1) * part
        below, above = (
            np.array([np.searchsorted(row, int(place), side="right") for row in ordered]) / 255
            for place in (np.floor(rank), np.ceil(rank))
        )
        return np.asarray(below + (above - below) * (rank - np.floor(rank)))

    parts = {"min": quantile(0.0), "max": quantile(1.0), "mean": mean, "std": np.sqrt(variance)}
    parts |= {name: quantile(part) for name, part in QUANTILES.items()}
    shaped = {name: part.reshape(3, 1, 1).tolist() for name, part in parts.items()}
    return {**shaped, "count": [num_frames]}


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
