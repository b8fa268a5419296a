"""Writes LeRobot datasets of both versions with the format's own libraries, pyarrow and av."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from tests.unit.data.conftest import to_arrow, write_video


@dataclass
class WrittenEpisode:
    """What was written: columns ``(N, ...)`` and pictures ``(N, H, W, 3)`` per video feature."""

    index: int
    columns: dict[str, NDArray[Any]]
    videos: dict[str, NDArray[np.uint8]] = field(default_factory=dict)
    task: int = 0

    @property
    def length(self) -> int:
        return len(self.columns["action"])


def write_lerobot(
    folder: Path,
    episodes: Sequence[WrittenEpisode],
    *,
    version: str,
    fps: int = 30,
    tasks: Sequence[str] = ("wave",),
    per_data_file: int = 2,
    per_video_file: int = 3,
    per_row_group: int = 10,
    codec_options: Mapping[str, str] | None = None,
) -> None:
    """Write a dataset; the three counts apply to version 3 only."""
    tables = []
    start = 0
    for episode in episodes:
        columns = {
            **episode.columns,
            "timestamp": (np.arange(episode.length) / fps).astype(np.float32),
            "frame_index": np.arange(episode.length),
            "episode_index": np.full(episode.length, episode.index),
            "index": np.arange(start, start + episode.length),
            "task_index": np.full(episode.length, episode.task),
        }
        start += episode.length
        tables.append(pyarrow.table({name: to_arrow(value) for name, value in columns.items()}))
    features: dict[str, Any] = {
        name: {"dtype": value.dtype.name, "shape": list(value.shape[1:]) or [1], "names": None}
        for name, value in columns.items()
    }
    for name, images in episodes[0].videos.items():
        features[name] = {"dtype": "video", "shape": list(images.shape[1:])}
    info = {
        "codebase_version": version,
        "robot_type": "arm",
        "fps": fps,
        "features": features,
        "total_episodes": len(episodes),
        "total_frames": start,
        "chunks_size": 1000,
    }
    options = dict(codec_options or {"crf": "6", "preset": "ultrafast"})
    (folder / "meta").mkdir(parents=True)
    if version == "v3.0":
        info |= {
            "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
            "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
        }
        rows = _write_data(folder, episodes, tables, per_data_file, per_row_group)
        _write_videos(folder, episodes, rows, per_video_file, fps, options)
        path = folder / "meta" / "episodes" / "chunk-000" / "file-000.parquet"
        path.parent.mkdir(parents=True)
        for row, episode in zip(rows, episodes, strict=True):
            row["tasks"] = [tasks[episode.task]]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        table = {"task_index": list(range(len(tasks))), "__index_level_0__": list(tasks)}
        pyarrow.parquet.write_table(pyarrow.table(table), folder / "meta" / "tasks.parquet")
    else:
        info |= {
            "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
            "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/"
            "episode_{episode_index:06d}.mp4",
        }
        for episode, rows_ in zip(episodes, tables, strict=True):
            values: dict[str, Any] = {"episode_chunk": 0, "episode_index": episode.index}
            path = folder / info["data_path"].format(**values)
            path.parent.mkdir(parents=True, exist_ok=True)
            pyarrow.parquet.write_table(rows_, path)
            for name, images in episode.videos.items():
                path = folder / info["video_path"].format(**values, video_key=name)
                write_video(path, len(images), fps, images=images, codec_options=options)
        lines = [
            {"episode_index": e.index, "length": e.length, "tasks": [tasks[e.task]]}
            for e in episodes
        ]
        _write_lines(folder / "meta" / "episodes.jsonl", lines)
        named = [{"task_index": i, "task": task} for i, task in enumerate(tasks)]
        _write_lines(folder / "meta" / "tasks.jsonl", named)
    (folder / "meta" / "info.json").write_text(json.dumps(info))


def _write_data(
    folder: Path,
    episodes: Sequence[WrittenEpisode],
    tables: Sequence[pyarrow.Table],
    per_file: int,
    per_row_group: int,
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    start = 0
    for number, first in enumerate(range(0, len(episodes), per_file)):
        path = folder / "data" / "chunk-000" / f"file-{number:03d}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        table = pyarrow.concat_tables(tables[first : first + per_file])
        pyarrow.parquet.write_table(table, path, row_group_size=per_row_group)
        for episode in episodes[first : first + per_file]:
            rows.append(
                {
                    "episode_index": episode.index,
                    "length": episode.length,
                    "data/chunk_index": 0,
                    "data/file_index": number,
                    "dataset_from_index": start,
                    "dataset_to_index": start + episode.length,
                    "stats/action/mean": [0.0],
                }
            )
            start += episode.length
    return rows


def _write_videos(
    folder: Path,
    episodes: Sequence[WrittenEpisode],
    rows: list[dict[str, Any]],
    per_file: int,
    fps: int,
    options: dict[str, str],
) -> None:
    for name in episodes[0].videos:
        for number, first in enumerate(range(0, len(episodes), per_file)):
            images = [e.videos[name] for e in episodes[first : first + per_file]]
            path = folder / "videos" / name / "chunk-001" / f"file-{number:03d}.mp4"
            whole = np.concatenate(images)
            write_video(path, len(whole), fps, images=whole, codec_options=options)
            shown = 0
            for row, part in zip(rows[first : first + per_file], images, strict=True):
                prefix = f"videos/{name}"
                row |= {f"{prefix}/chunk_index": 1, f"{prefix}/file_index": number}
                row[f"{prefix}/from_timestamp"] = shown / fps
                shown += len(part)
                row[f"{prefix}/to_timestamp"] = shown / fps


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
