"""LeRobot v2.1 folders (v2.0 differs in its statistics only): parquet + one video per camera.

Rows map onto our steps one to one: row ``t`` holds ``o_t`` and the ``a_t`` chosen after it. The
action of the last row leads nowhere that was recorded and is dropped.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from numpy.typing import NDArray

from tokenwm.data.sources import EpisodeFormat, EpisodeRef, Recognised
from tokenwm.data.sources.columns import RecordedConfig, concatenate, names_of
from tokenwm.data.sources.frames import VideoFrames
from tokenwm.data.sources.lerobot_files import LAYOUT, read_columns, read_meta
from tokenwm.data.sources.recording import RecordedSource, Recording
from tokenwm.errors import EpisodeError, RecipeError

TERMINATED_COLUMNS = ("next.terminated", "next.done")
"""Columns that say the task ended; the first one a dataset has is used."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(RecordedConfig):
    """Options of the LeRobot reader; columns are the features of ``meta/info.json``.

    Attributes:
        episodes: Indices of the episodes to use; null for all.
        type: Name of this reader.
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
        facts = {"format": f"LeRobot {meta.version}", "robot": meta.robot}
        return Recognised(config=cls(path=str(path)), rate=meta.rate, facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "LeRobotSource":
        """Open the dataset.

        Raises:
            SourceError: It is missing, or not laid out as expected.
            RecipeError: A feature the recipe names is not in the dataset, or the rates do not fit.
        """
        return LeRobotSource(self, episode_format, self.find(folder, LAYOUT))


class LeRobotSource(RecordedSource):
    """The episodes of one LeRobot folder."""

    def __init__(self, config: LeRobotConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.meta = read_meta(folder)
        super().__init__(config, self.meta.columns(), str(folder), episode_format, self.meta.rate)
        self._wanted = config.episodes
        self._terminated_column = next(
            (name for name in TERMINATED_COLUMNS if name in self.meta.features), None
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
            )
            for index in wanted
        ]

    def read(self, ref: EpisodeRef) -> Recording:
        """Read one parquet file, and name its videos.

        Raises:
            EpisodeError: The file is missing or damaged, or not as long as ``meta/`` says.
        """
        config = self.config
        columns = self._read_columns(ref)
        num_rows = len(columns["timestamp"])
        if ref.num_rows is not None and num_rows != ref.num_rows:
            raise EpisodeError(
                f"episode {ref.key}: the parquet file has {num_rows} rows, meta/episodes.jsonl "
                f"says {ref.num_rows}; they must be equal"
            )
        terminated = self._terminated_column
        return Recording(
            num_rows=num_rows,
            action=concatenate(columns, names_of(config.action)),
            state=concatenate(columns, names_of(config.state)) if config.state else None,
            reward=None if config.reward is None else columns[config.reward][:, 0],
            terminated=None if terminated is None else columns[terminated][:, 0],
            timestamps=columns["timestamp"][:, 0],
            frames={
                camera: VideoFrames(
                    path=self.meta.path(self.meta.video_path, ref.index, video_key=feature)
                )
                for camera, feature in self.cameras.items()
            },
            task=self._task_of(columns),
        )

    def provenance(self) -> dict[str, Any]:
        """The path as the recipe gives it, and a SHA-256 over the files in ``meta/``."""
        return {
            "source": self.config.path,
            "source_checksum": self.meta.checksum(),
            "source_checksum_over": "meta/",
        }

    def _read_columns(self, ref: EpisodeRef) -> Columns:
        config = self.config
        named = (*names_of(config.action), "timestamp", *names_of(config.state))
        named += (*names_of(config.reward), *names_of(self._terminated_column))
        return read_columns(
            self.meta.path(self.meta.data_path, ref.index),
            required=named,
            optional=["task_index"],
            episode=ref.key,
        )

    def _task_of(self, columns: Columns) -> str:
        if "task_index" not in columns:
            return ""
        return self.meta.tasks.get(int(columns["task_index"][0, 0]), "")
