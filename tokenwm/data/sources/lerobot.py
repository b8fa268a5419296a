"""LeRobot v2.1 folders (v2.0 differs in its statistics only): parquet + one video per camera.

Rows map onto our steps one to one: row ``t`` holds ``o_t`` and the ``a_t`` chosen after it. The
action of the last row leads nowhere that was recorded and is dropped.
"""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from numpy.typing import NDArray

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.sources import EpisodeFormat, EpisodeRef, SourceDescription
from tokenwm.data.sources.frames import VideoFrames
from tokenwm.data.sources.lerobot_files import LAYOUT, LeRobotMeta, read_columns, read_meta
from tokenwm.data.sources.recording import RecordedSource, Recording
from tokenwm.errors import EpisodeError, RecipeError, SourceError

TERMINATED_COLUMNS = ("next.terminated", "next.done")
"""Columns that say the task ended; the first one a dataset has is used."""

Columns = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig:
    """Options of the LeRobot reader.

    Attributes:
        path: The dataset's folder; relative to the current directory, else to the recipe.
        cameras: Our name of a camera → video feature of the dataset.
        state: Feature with the robot's state, or null.
        action: Feature with the action.
        reward: Feature with the reward, or null.
        episodes: Indices of the episodes to use; null for all.
        state_units: Units of the state in words, stored with the data.
        action_units: Units of the action in words, stored with the data.
        hint: Where the data can be had; shown if it is not there.
        type: Name of this reader.
    """

    records: ClassVar[bool] = False

    path: str
    cameras: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    action: str = "action"
    reward: str | None = None
    episodes: tuple[int, ...] | None = None
    state_units: str = ""
    action_units: str = ""
    hint: str = ""
    type: Literal["lerobot"] = "lerobot"

    def __post_init__(self) -> None:
        if not self.cameras and self.state is None:
            raise RecipeError("cameras is empty and state is null; at least one of them is needed")
        for camera in self.cameras:
            if not NAME_PATTERN.fullmatch(camera):
                raise RecipeError(f"cameras.{camera}: letters, digits, '_' and '-' only")

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "LeRobotSource":
        """Open the dataset.

        Raises:
            SourceError: It is missing, or not laid out as expected.
            RecipeError: A feature the recipe names is not in the dataset, or the rates do not fit.
        """
        places = [Path(self.path).expanduser()]
        if folder is not None:
            places.append(folder / self.path)
        for place in places:
            if place.is_dir():
                return LeRobotSource(self, episode_format, place.resolve())
        looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
        hint = f"{self.hint.strip()}; " if self.hint.strip() else ""
        raise SourceError(f"no dataset at {looked}; {hint}{LAYOUT}")


class LeRobotSource(RecordedSource):
    """The episodes of one LeRobot folder."""

    def __init__(self, config: LeRobotConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.config = config
        self.meta = read_meta(folder)
        _check_features(config, self.meta)
        super().__init__(episode_format, self.meta.rate)
        self._terminated_column = next(
            (name for name in TERMINATED_COLUMNS if name in self.meta.features), None
        )

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes the recipe asks for, in the order of their indices.

        Raises:
            RecipeError: The recipe asks for an episode that is not there.
        """
        known = self.meta.episodes
        wanted = list(known) if self.config.episodes is None else sorted(set(self.config.episodes))
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
            action=columns[config.action],
            state=None if config.state is None else columns[config.state],
            reward=None if config.reward is None else columns[config.reward][:, 0],
            terminated=None if terminated is None else columns[terminated][:, 0],
            timestamps=columns["timestamp"][:, 0],
            frames={
                camera: VideoFrames(
                    path=self.meta.path(self.meta.video_path, ref.index, video_key=feature)
                )
                for camera, feature in config.cameras.items()
            },
            task=self._task_of(columns),
        )

    def describe(self) -> SourceDescription:
        """Names of the dimensions from ``meta/info.json``, units from the recipe."""
        config = self.config
        return SourceDescription(
            state_names=() if config.state is None else self.meta.names(config.state),
            action_names=self.meta.names(config.action),
            state_units=config.state_units,
            action_units=config.action_units,
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
        named = (config.action, "timestamp", config.state, config.reward, self._terminated_column)
        return read_columns(
            self.meta.path(self.meta.data_path, ref.index),
            required=[name for name in named if name is not None],
            optional=["task_index"],
            episode=ref.key,
        )

    def _task_of(self, columns: Columns) -> str:
        if "task_index" not in columns:
            return ""
        return self.meta.tasks.get(int(columns["task_index"][0, 0]), "")


def _check_features(config: LeRobotConfig, meta: LeRobotMeta) -> None:
    """Check that the features a recipe names are there and are of the right kind."""
    named = {"action": config.action, "state": config.state, "reward": config.reward}
    named |= {f"cameras.{camera}": feature for camera, feature in config.cameras.items()}
    for option, feature in named.items():
        if feature is None:
            continue
        if feature not in meta.features:
            near = difflib.get_close_matches(feature, meta.features, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"source.{option} is {feature!r}, which {meta.folder} does not have; {guess}"
                f"its features: {', '.join(meta.features)}"
            )
        dtype = meta.features[feature].get("dtype")
        is_camera = option.startswith("cameras.")
        if is_camera and dtype != "video":
            raise RecipeError(
                f"source.{option}: feature {feature!r} has dtype {dtype!r}; only 'video' is read"
            )
        if not is_camera and dtype in ("video", "image", "string"):
            raise RecipeError(
                f"source.{option}: feature {feature!r} has dtype {dtype!r}; numbers are needed"
            )
