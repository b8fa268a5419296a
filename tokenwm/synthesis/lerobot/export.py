"""Frame shards → a LeRobot folder, so that a robot's own tools can read and train on episodes.

The time alignment is turned back: row ``t`` holds ``o_t`` and ``a_t``. LeRobot has an action in
every row, so the last row repeats the action before it; no row after it says where it led.
"""

import json
from collections.abc import Callable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow
import pyarrow.parquet
from numpy.typing import NDArray

from tokenwm.data.readers.lerobot.meta import DATA_PATHS, SIDECAR, VIDEO_PATHS
from tokenwm.data.shards.manifest import SPLITS
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.stream import stream_episodes
from tokenwm.data.storage.atomic import make_folder_atomically
from tokenwm.errors import ShardError
from tokenwm.synthesis.lerobot.description import card, features, provenance, sidecar
from tokenwm.synthesis.lerobot.files import (
    TableFile,
    VideoFile,
    count_values,
    figures,
    picture_figures,
    read_column,
    task_table,
)

Version = Literal["v2.1", "v3.0"]
VERSIONS: tuple[Version, ...] = ("v3.0", "v2.1")
MAX_TABLE_BYTES = 100 * 2**20
MAX_VIDEO_BYTES = 200 * 2**20
"""In version 3 a file is full when it reaches this; LeRobot's own defaults."""
FILES_PER_CHUNK = 1000

TERMINATED, TRUNCATED, DONE = "next.terminated", "next.truncated", "next.done"
SUCCESS = "next.success"
SYNTHETIC = "synthetic"
SOURCE_COLUMNS = "source_columns"
"""Key in the provenance of imagined episodes: optional columns of the real ones, which are written
of these as well, so that both can be merged."""


def export_lerobot(
    dataset: Path | str,
    out_dir: Path | str,
    *,
    version: Version = "v3.0",
    crf: int = 10,
    synthetic_column: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write all episodes of a dataset as a LeRobot folder.

    Args:
        dataset: Folder of frame shards.
        out_dir: Folder to make; written whole or not at all.
        version: Version of LeRobot's format.
        crf: Quality of the videos, in [0, 51]; smaller is better and larger.
        synthetic_column: Write a column :data:`SYNTHETIC`; LeRobot merges sets with the same
            columns only.
        overwrite: Replace a LeRobot folder that is there.
        progress: Called with (episodes done, episodes in all).

    Returns:
        How many episodes were written.

    Raises:
        ShardError: The dataset is damaged or holds no frames shards, or the folder exists.
    """
    out_dir = Path(out_dir)
    reader = ShardReader(dataset)
    if reader.manifest.kind != "frames":
        raise ShardError(f"{dataset} holds {reader.manifest.kind}; only frame shards are exported")
    is_replaced = overwrite and (out_dir / "meta" / "info.json").is_file()
    if out_dir.exists() and any(out_dir.iterdir()) and not is_replaced:
        raise ShardError(
            f"{out_dir} is not empty; choose another folder, or replace a LeRobot folder with "
            "--overwrite"
        )
    if version not in VERSIONS or not 0 <= crf <= 51:
        raise ShardError(f"version {version!r}, crf {crf}; expected {VERSIONS} and [0, 51]")
    try:
        with make_folder_atomically(out_dir) as folder:
            export = _Export(reader, folder, version, crf, synthetic_column)
            return export.run(progress)
    except OSError as error:
        raise ShardError(f"{out_dir} could not be written: {error}; nothing was kept") from error


def optional_columns(
    reader: ShardReader, metadata: Mapping[str, Mapping[str, Any]] | None = None
) -> tuple[str, ...]:
    """Columns that only some datasets have: ``next.success`` and ``next.done``.

    Args:
        reader: The dataset.
        metadata: Metadata of its episodes, if they were read already.
    """
    keys = reader.keys()
    known = {key: reader.metadata(key) for key in keys} if metadata is None else metadata
    columns = [SUCCESS] if any("success" in values for values in known.values()) else []
    if any("terminated_after_end" in values for values in known.values()) or any(
        reader.arrays(key, ["terminated"])["terminated"].any() for key in keys
    ):
        columns.append(DONE)
    return tuple(columns)


class _Export:
    """The files of one folder while it is written."""

    def __init__(
        self,
        reader: ShardReader,
        folder: Path,
        version: Version,
        crf: int,
        synthetic_column: bool,
    ) -> None:
        self.reader = reader
        self.manifest = reader.manifest
        self.folder = folder
        self.major = int(version[1])
        self.version = version
        self.crf = crf
        self.synthetic_column = synthetic_column
        self.rate = Fraction(self.manifest.control_rate).limit_denominator(1000)
        self.tasks: dict[str, int] = {}
        self.rows: list[dict[str, Any]] = []
        self.figures: list[dict[str, dict[str, Any]]] = []
        self.counts: dict[str, NDArray[np.int64]] = {}
        self.num_rows = 0
        self.features: dict[str, dict[str, Any]] = {}
        self._files: dict[str, tuple[int, TableFile | VideoFile]] = {}
        keys = reader.keys()
        self.metadata = {key: reader.metadata(key) for key in keys}
        optional = self.manifest.provenance.get(SOURCE_COLUMNS, ())
        optional = {*optional, *optional_columns(reader, self.metadata)}
        self.knows_success, self.knows_end = SUCCESS in optional, DONE in optional

    def run(self, progress: Callable[[int, int], None] | None) -> int:
        shards = [
            shard.path for split in SPLITS for shard in self.manifest.shards if shard.split == split
        ]
        count = len(self.metadata)
        try:
            episodes = stream_episodes(self.reader.root, self.manifest, shards)
            for index, episode in enumerate(episodes):
                self._add(index, episode.info.key, episode.arrays)
                if progress is not None:
                    progress(index + 1, count)
        finally:
            for _, file in self._files.values():
                file.close()
        self._write_meta()
        return count

    def _add(self, index: int, key: str, arrays: Mapping[str, NDArray[Any]]) -> None:
        num_rows = len(arrays["action"])
        task = str(self.metadata[key].get("task") or "")
        task_index = self.tasks.setdefault(task, len(self.tasks))
        columns = self._columns(key, arrays)
        columns |= {
            "timestamp": (np.arange(num_rows) / float(self.rate)).astype(np.float32),
            "frame_index": np.arange(num_rows),
            "episode_index": np.full(num_rows, index),
            "index": np.arange(self.num_rows, self.num_rows + num_rows),
            "task_index": np.full(num_rows, task_index),
        }
        row = {"episode_index": index, "tasks": [task], "length": num_rows}
        place, table = self._file("data", TableFile)
        assert isinstance(table, TableFile)
        table.add(columns)
        row |= {"dataset_from_index": self.num_rows, "dataset_to_index": self.num_rows + num_rows}
        row |= {f"data/{name}": value for name, value in place.items()}
        of_episode = {name: figures(values) for name, values in columns.items()}
        for camera in self.manifest.cameras:
            frames = arrays[f"frames.{camera}"]
            row |= self._add_video(f"observation.images.{camera}", frames)
            counts = count_values(frames)
            self.counts[camera] = counts + self.counts.get(camera, 0)
            of_episode[f"observation.images.{camera}"] = picture_figures(counts, num_rows)
        self.num_rows += num_rows
        self.rows.append(
            {**row, "tokenwm/key": key, "tokenwm/metadata": json.dumps(self.metadata[key])}
        )
        self.figures.append(of_episode)
        self.features = self.features or features(self.manifest, columns, self._fps())

    def _columns(self, key: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        metadata = self.metadata[key]
        action = arrays["action"].copy()
        action[-1] = action[-2]
        columns = {"action": action[:, 0] if action.shape[1] == 1 else action}
        if "state" in arrays:
            state = arrays["state"]
            columns["observation.state"] = state[:, 0] if state.shape[1] == 1 else state
        if "reward" in arrays:
            columns["next.reward"] = arrays["reward"]
        if self.knows_end:
            terminated = arrays["terminated"].copy()
            # What the source said about the end in rows that were dropped is said in the last one.
            terminated[-1] = bool(metadata.get("terminated_after_end", False))
            columns[TERMINATED] = terminated
            columns[TRUNCATED] = arrays["truncated"]
            columns[DONE] = terminated | arrays["truncated"]
        if self.knows_success:
            columns[SUCCESS] = np.zeros(len(action), dtype=np.bool_)
            columns[SUCCESS][-2:] = bool(metadata.get("success", False))
        if self.synthetic_column:
            columns[SYNTHETIC] = np.full(len(action), self.reader.is_synthetic(key))
        return columns

    def _add_video(self, feature: str, frames: NDArray[np.uint8]) -> dict[str, Any]:
        height, width = frames.shape[1:3]
        place, video = self._file(
            feature,
            lambda path: VideoFile(path, rate=self.rate, height=height, width=width, crf=self.crf),
        )
        assert isinstance(video, VideoFile)
        start, stop = video.add(frames)
        row: dict[str, Any] = {f"videos/{feature}/{name}": value for name, value in place.items()}
        row[f"videos/{feature}/from_timestamp"] = start
        row[f"videos/{feature}/to_timestamp"] = stop
        return row

    def _file(
        self, name: str, make: Callable[[Path], TableFile | VideoFile]
    ) -> tuple[dict[str, int], TableFile | VideoFile]:
        """The file that an episode goes into, and what stands for it in the path template."""
        number, file = self._files.get(name, (-1, None))
        limit = MAX_TABLE_BYTES if name == "data" else MAX_VIDEO_BYTES
        if file is None or self.major == 2 or file.num_bytes >= limit:
            if file is not None:
                file.close()
            number += 1
            template = (DATA_PATHS if name == "data" else VIDEO_PATHS)[self.major]
            path = template.format(**self._place(number), video_key=name)
            file = make(self.folder / path)
            self._files[name] = (number, file)
        return self._place(number), file

    def _place(self, number: int) -> dict[str, int]:
        chunk = number // FILES_PER_CHUNK
        if self.major == 2:  # a file is an episode
            return {"episode_chunk": chunk, "episode_index": number}
        return {"chunk_index": chunk, "file_index": number % FILES_PER_CHUNK}

    def _fps(self) -> int | float:
        return int(self.rate) if self.rate.denominator == 1 else float(self.rate)

    def _write_meta(self) -> None:
        meta = self.folder / "meta"
        meta.mkdir(exist_ok=True)
        info = {
            "codebase_version": self.version,
            "robot_type": None,
            "total_episodes": len(self.rows),
            "total_frames": self.num_rows,
            "total_tasks": len(self.tasks),
            "chunks_size": FILES_PER_CHUNK,
            "fps": self._fps(),
            "splits": self._splits(),
            "data_path": DATA_PATHS[self.major],
            "video_path": VIDEO_PATHS[self.major] if self.manifest.cameras else None,
            "features": self.features,
            "tokenwm": provenance(self.manifest),
        }
        if self.major == 2:
            info["total_chunks"] = -(-len(self.rows) // FILES_PER_CHUNK)
            info["total_videos"] = len(self.rows) * len(self.manifest.cameras)
            kept = ("episode_index", "tasks", "length", "tokenwm/key", "tokenwm/metadata")
            _write_lines(meta / "episodes.jsonl", [{k: row[k] for k in kept} for row in self.rows])
            tasks = [{"task_index": index, "task": task} for task, index in self.tasks.items()]
            _write_lines(meta / "tasks.jsonl", tasks)
            stats = [{"episode_index": i, "stats": item} for i, item in enumerate(self.figures)]
            _write_lines(meta / "episodes_stats.jsonl", stats)
        else:
            info |= {"data_files_size_in_mb": MAX_TABLE_BYTES >> 20}
            info |= {"video_files_size_in_mb": MAX_VIDEO_BYTES >> 20}
            path = meta / "episodes" / "chunk-000" / "file-000.parquet"
            path.parent.mkdir(parents=True)
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(self._episode_rows()), path)
            pyarrow.parquet.write_table(task_table(list(self.tasks)), meta / "tasks.parquet")
            (meta / "stats.json").write_text(json.dumps(self._whole_figures(), indent=1))
        (meta / "info.json").write_text(json.dumps(info, indent=1))
        keys = [str(row["tokenwm/key"]) for row in self.rows]
        if any(self.reader.is_synthetic(key) for key in keys):
            about = sidecar(self.manifest, {key: self.metadata[key] for key in keys})
            (self.folder / SIDECAR).write_text(json.dumps(about, indent=1))
        (self.folder / "README.md").write_text(card(self.manifest))

    def _whole_figures(self) -> dict[str, dict[str, Any]]:
        """The statistics of every feature over all episodes, a column in memory at a time."""
        tables = sorted((self.folder / "data").glob("**/*.parquet"))
        cameras = {f"observation.images.{camera}": camera for camera in self.manifest.cameras}
        return {
            name: picture_figures(self.counts[cameras[name]], self.num_rows)
            if name in cameras
            else figures(read_column(tables, name))
            for name in self.figures[0]
        }

    def _episode_rows(self) -> list[dict[str, Any]]:
        return [
            {
                **row,
                "meta/episodes/chunk_index": 0,
                "meta/episodes/file_index": 0,
                **{
                    f"stats/{feature}/{name}": value
                    for feature, item in of_episode.items()
                    for name, value in item.items()
                },
            }
            for row, of_episode in zip(self.rows, self.figures, strict=True)
        ]

    def _splits(self) -> dict[str, str]:
        splits, first = {}, 0
        for split in SPLITS:
            count = self.manifest.num_episodes(split)
            if count:
                splits[split] = f"{first}:{first + count}"
            first += count
        return splits


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
