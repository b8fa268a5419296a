"""Synthetic recordings: small LeRobot v2.1 folders with real parquet files and H.264 videos."""

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from numpy.typing import NDArray

from tokenwm.data.recipes.recipe import Recipe, parse_recipe

BRIGHTNESS_STEP = 4
"""Frame t of a synthetic video has brightness ``10 + 4·t`` everywhere: a picture tells its time."""


class LeRobotFolder:
    """Writes a LeRobot v2.1 dataset, and breaks single files of it for tests of bad input."""

    def __init__(self, folder: Path, fps: int = 30, cameras: tuple[str, ...] = ("front",)) -> None:
        self.folder = folder
        self.fps = fps
        self.cameras = cameras
        self.lengths: dict[int, int] = {}
        self.features: dict[str, dict[str, Any]] = {}

    def add(self, index: int, num_rows: int, **changes: Any) -> None:
        """Add an episode; ``changes`` replace columns, None removes one."""
        times = np.arange(num_rows)
        columns: dict[str, Any] = {
            "observation.state": np.stack([0.1 * times, -0.1 * times], axis=1).astype(np.float32),
            "action": np.stack([times, 2 * times, 0 * times + index], axis=1).astype(np.float32),
            "timestamp": (times / self.fps).astype(np.float32),
            "frame_index": times,
            "task_index": np.zeros(num_rows, dtype=np.int64),
        }
        columns |= {name.replace("__", "."): value for name, value in changes.items()}
        columns = {name: np.asarray(value) for name, value in columns.items() if value is not None}
        table = pyarrow.table({name: to_arrow(values) for name, values in columns.items()})
        path = self.parquet(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(table, path)
        for name, values in columns.items():
            width = 1 if values.ndim == 1 else values.shape[1]
            names = [f"{name}_{i}" for i in range(width)] if width > 1 else None
            self.features[name] = {"dtype": values.dtype.name, "shape": [width], "names": names}
        for camera in self.cameras:
            write_video(self.video(index, camera), num_rows, self.fps)
        self.lengths[index] = num_rows
        self.write_meta()

    def write_meta(self, **changes: Any) -> None:
        videos = {
            f"observation.images.{camera}": {"dtype": "video", "shape": [48, 64, 3]}
            for camera in self.cameras
        }
        info = {
            "codebase_version": "v2.1",
            "fps": self.fps,
            "chunks_size": 1000,
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
            "episode_{episode_index:06d}.mp4",
            "features": {**self.features, **videos},
        } | changes
        meta = self.folder / "meta"
        meta.mkdir(parents=True, exist_ok=True)
        (meta / "info.json").write_text(json.dumps(info))
        (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "wave"}) + "\n")
        lines = [
            json.dumps({"episode_index": index, "tasks": ["push the block"], "length": length})
            for index, length in self.lengths.items()
        ]
        (meta / "episodes.jsonl").write_text("\n".join(lines) + "\n")

    def parquet(self, index: int) -> Path:
        return self.folder / "data" / "chunk-000" / f"episode_{index:06d}.parquet"

    def video(self, index: int, camera: str = "front") -> Path:
        name = f"observation.images.{camera}"
        return self.folder / "videos" / "chunk-000" / name / f"episode_{index:06d}.mp4"

    def recipe(self, **changes: Any) -> Recipe:
        """A recipe for this folder: 10 Hz, 16 × 16 px; ``changes`` replace top-level keys."""
        source: dict[str, Any] = {
            "type": "lerobot",
            "path": str(self.folder),
            "cameras": {camera: f"observation.images.{camera}" for camera in self.cameras},
            "state": "observation.state",
        }
        source |= changes.pop("source", {})
        values = {"name": "synthetic", "source": source, "control_rate": 10}
        values |= {"image_size": [16, 16], "splits": {"val": 0.2, "test": 0.2}, "licence": "MIT"}
        return parse_recipe(values | changes)


def write_video(
    path: Path,
    num_frames: int,
    fps: int,
    *,
    images: NDArray[np.uint8] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> None:
    """Write an H.264 video of ``images``, else of 48 × 64 px with rising brightness."""
    if images is None:
        levels = 10 + BRIGHTNESS_STEP * (np.arange(num_frames) % 60)
        images = np.broadcast_to(levels[:, None, None, None], (num_frames, 48, 64, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        coding = codec_options or {"crf": "8", "preset": "fast"}
        stream = container.add_stream("libx264", rate=fps, options=coding)
        stream.width, stream.height, stream.pix_fmt = images.shape[2], images.shape[1], "yuv420p"
        stream.codec_context.time_base = Fraction(1, fps)
        for image in images:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def to_arrow(values: NDArray[Any]) -> pyarrow.Array:
    if values.ndim == 1:
        return pyarrow.array(values)
    flat = pyarrow.array(values.reshape(-1))
    return pyarrow.FixedSizeListArray.from_arrays(flat, values.shape[1])


@pytest.fixture
def lerobot(tmp_path: Path) -> LeRobotFolder:
    """An empty LeRobot folder at 30 Hz with one camera."""
    return LeRobotFolder(tmp_path / "source")


@pytest.fixture
def make_lerobot(tmp_path: Path) -> Callable[..., LeRobotFolder]:
    """Makes LeRobot folders with other rates or cameras."""

    def make(**options: Any) -> LeRobotFolder:
        return LeRobotFolder(tmp_path / "other", **options)

    return make


@pytest.fixture
def make_video() -> Callable[..., None]:
    """The function that writes synthetic videos."""
    return write_video
