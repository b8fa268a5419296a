"""LeRobot folders of versions 2.0, 2.1 and 3.0: parquet for numbers, videos or images for cameras.

Rows map onto our steps one to one: row ``t`` holds ``o_t`` and the ``a_t`` chosen after it. The
action of the last row leads nowhere that was recorded and is dropped.
"""

import contextlib
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
import pyarrow

from tokenwm.data.episode import Scalar
from tokenwm.data.quality import checks
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Recognised, SourceDescription
from tokenwm.data.readers.columns.columns import Column, RecordedConfig, names_of
from tokenwm.data.readers.lerobot.clips import LeRobotClips
from tokenwm.data.readers.lerobot.episodes import LAYOUT, EpisodeRow, Part
from tokenwm.data.readers.lerobot.files import LeRobotFiles, to_array, to_arrays, to_images
from tokenwm.data.readers.lerobot.meta import read_meta
from tokenwm.data.readers.one_episode import costs_one_episode
from tokenwm.data.readers.pictures.frames import (
    TIFF,
    ArrayFrames,
    EncodedFrames,
    Frames,
    VideoFrames,
    decode_image,
)
from tokenwm.data.readers.pictures.video import first_picture, holds_depth
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.errors import EpisodeError, RecipeError

TERMINATED_COLUMNS = ("next.terminated", "next.done")
"""Columns that say the task ended; the first one a dataset has is used."""

LOOKED_AT = 8
"""Episodes in which a picture is looked for that tells what a camera records."""
SUCCESS = "next.success"
TIME, ORDER, TASK = "timestamp", "frame_index", "task_index"


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(RecordedConfig):
    """Options of the LeRobot reader; columns are the features of ``meta/info.json``.

    Attributes:
        episodes: Indices of the episodes to use; null for all.
    """

    episodes: tuple[int, ...] | None = None
    type: Literal["lerobot"] = "lerobot"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """A folder with ``meta/info.json``.

        Raises:
            SourceError: ``meta/`` is damaged.
        """
        if not (path / "meta" / "info.json").is_file():
            return None
        meta = read_meta(path)
        first, last = min(meta.episodes), max(meta.episodes)
        gaps = last - first + 1 - len(meta.episodes)
        facts = {
            "format": f"LeRobot {meta.version}",
            "robot": meta.robot,
            "indices": f"{first} to {last}" + (f", {gaps} missing" if gaps else ""),
        }
        if meta.splits:
            facts["splits"] = ", ".join(
                f"{name} {part.start} to {part.stop - 1}" for name, part in meta.splits.items()
            )
        return Recognised(config=cls(path=str(path)), rate=meta.rate, facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "LeRobotSource":
        """Open the dataset; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        return LeRobotSource(self, episode_format, self.find(folder, LAYOUT))


class LeRobotSource(RecordedSource):
    """The episodes of one LeRobot folder."""

    def __init__(self, config: LeRobotConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.meta = read_meta(folder)
        self._gaps = self.meta.gaps
        self._wanted = config.episodes
        self._files = LeRobotFiles(folder)
        self._clips = LeRobotClips(self.meta)
        columns = {n: self._without_depth(n, c) for n, c in self.meta.columns().items()}
        super().__init__(config, columns, str(folder), episode_format, self.meta.rate)
        self._terminated_column = next(
            (name for name in TERMINATED_COLUMNS if name in self.columns), None
        )

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes the recipe asks for, in the order of their indices.

        Raises:
            RecipeError: The recipe asks for an episode that is not there.
        """
        known = self.meta.episodes
        wanted = list(known) if self._wanted is None else sorted(set(self._wanted))
        missing = [index for index in wanted if index not in known]
        if missing:
            raise RecipeError(
                f"source.episodes asks for {missing}; {self.meta.folder} has episodes "
                f"{min(known)} to {max(known)}"
            )
        return [
            EpisodeRef(
                key=f"episode_{index:06d}",
                index=index,
                num_rows=known[index].length,
                task="; ".join(known[index].tasks),
                split=self.meta.split(index),
            )
            for index in wanted
        ]

    def read(self, ref: EpisodeRef) -> Recording:
        """Read the rows of one episode, and say where its pictures are.

        Raises:
            EpisodeError: A file is missing or damaged, or not as long as ``meta/`` says, or it is
                not known which pictures are those of the episode.
        """
        row = self.meta.episodes[ref.index]
        if row.problem:
            raise EpisodeError(f"episode {ref.key}: {row.problem}")
        named = [*self.numbers, *names_of(self._terminated_column)]
        named += [name for name in (TIME, SUCCESS) if name in self.columns]
        images = [name for name in self.cameras.values() if self.columns[name].dtype != "video"]
        path = self._files.find(self.meta.data_path, row.data)
        table = self._files.read_rows(
            path,
            required=[*named, *images],
            optional=[ORDER, TASK],
            episode=ref.key,
            index=ref.index if self.meta.many_per_file else None,
            num_rows=row.length,
        )
        where = f"episode {ref.key}: {path}"
        extra = [name for name in (ORDER, TASK) if name in table.column_names]
        columns = to_arrays(table, [*named, *extra], where)
        for name in extra:
            checks.check_finite(ref.key, name, columns[name])
        if ORDER in columns and (np.diff(columns[ORDER][:, 0].astype(np.int64)) != 1).any():
            raise EpisodeError(f"{where}: rows are missing or out of order, see {ORDER!r}")
        done = columns.get(self._terminated_column or "")
        metadata: dict[str, Scalar] = {}
        if SUCCESS in columns:
            metadata["success"] = bool((columns[SUCCESS] > 0).any())
        if ref.index in self.meta.synthetic:
            metadata["synthetic"] = True
        return Recording(
            num_rows=row.length,
            **self.signals(columns),
            terminated=None if done is None else done[:, 0],
            timestamps=columns[TIME][:, 0] if TIME in columns else None,
            frames={
                camera: self._images(table, name, where)
                if name in images
                else self._video(ref, row, name)
                for camera, name in self.cameras.items()
            },
            task=self.meta.tasks.get(int(columns[TASK][0, 0]), "") if TASK in columns else "",
            metadata=metadata,
        )

    def _without_depth(self, name: str, column: Column) -> Column:
        """The column, marked as unusable if its pictures are depth maps that nobody flagged.

        Two episodes decide that agree, since one may be odd.
        """
        if column.dtype not in ("video", "image") or column.kind != "pictures":
            return column
        notes: list[str] = []
        for index, row in itertools.islice(self.meta.episodes.items(), LOOKED_AT):
            with contextlib.suppress(EpisodeError), costs_one_episode(f"episode_{index:06d}"):
                notes.append(self._why_depth(name, column, index, row))
                if notes.count(notes[-1]) == 2:
                    break
        # Empty where files are missing or damaged; their episodes are left out later.
        note = max(notes, key=notes.count, default="")
        return replace(column, kind="other", note=note) if note else column

    def _why_depth(self, name: str, column: Column, index: int, row: EpisodeRow) -> str:
        """Return why an episode's first picture is taken for depth; empty if it is not."""
        where = f"episode {index}"
        if column.dtype == "video":
            pixels = av.VideoFormat(first_picture(self._video_path(row, name, where), where).pixels)
        else:
            table = self._files.read_rows(
                self._files.find(self.meta.data_path, row.data),
                required=[name],
                optional=[],
                episode=where,
                index=index if self.meta.many_per_file else None,
                num_rows=row.length,
            )
            content = to_images(table.slice(0, 1), name, where)[0]
            if content.startswith(TIFF):
                return "TIFF, as depth maps are, and not read"
            pixels = decode_image(content, where).format
        return f"depth, of the pixel format {pixels.name}" if holds_depth(pixels) else ""

    def _images(self, table: Any, name: str, where: str) -> Frames:
        """Pictures in the table: encoded, or as numbers."""
        kind = table.column(name).type
        lists = (
            pyarrow.types.is_list,
            pyarrow.types.is_large_list,
            pyarrow.types.is_fixed_size_list,
        )
        if not any(is_list(kind) for is_list in lists):
            return EncodedFrames(images=to_images(table, name, where), name=name)
        numbers = to_array(table, name, where)
        declared = self.columns[name].shape
        if numbers.ndim == 2:
            return ArrayFrames(images=numbers, name=name, row_shape=declared)
        # Lists in lists have a shape of their own, which meta/ may give in another order: (3, H, W)
        # there and (H, W, 3) in the table.
        found = numbers.shape[1:]
        if sorted(n for n in found if n > 1) != sorted(n for n in declared if n > 1):
            raise EpisodeError(
                f"{where}: {name!r} has rows of shape {found}; meta/info.json says {declared}"
            )
        return ArrayFrames(images=numbers, name=name)

    def _video(self, ref: EpisodeRef, row: EpisodeRow, feature: str) -> VideoFrames:
        path = self._video_path(row, feature, f"episode {ref.key}")
        if not self.meta.many_per_file:
            return VideoFrames(path=path)
        part = row.videos[feature]
        return VideoFrames(path=path, times=self._clips.times(ref, feature, part, path))

    def _video_path(self, row: EpisodeRow, feature: str, where: str) -> Path:
        part = row.videos.get(feature, Part(values={})) if self.meta.many_per_file else row.data
        if not part.values:
            raise EpisodeError(f"{where}: meta/episodes names no video of {feature} for it")
        only = sum(about.get("dtype") == "video" for about in self.meta.features.values()) == 1
        return self._files.find(self.meta.video_path, part, video_key=feature, only=only)

    def describe(self) -> SourceDescription:
        """Names and units, and how many actions our own export put side by side."""
        about, count = super().describe(), self.meta.actions_per_step
        is_whole = names_of(self.config.action) == ("action",)
        if not is_whole or math.prod(self.columns["action"].shape) % count:
            return about
        return replace(about, actions_per_step=about.actions_per_step * count)

    def provenance(self) -> dict[str, Any]:
        """The path as the recipe gives it, and a SHA-256 over the files in ``meta/``."""
        return {
            "source": self.config.path,
            "source_checksum": self.meta.checksum(),
            "source_checksum_over": "meta/, names and sizes of tables and videos",
            **self.inferred,
        }
