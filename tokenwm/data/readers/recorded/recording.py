"""The recording that every reader gives, and the one way from there to an Episode.

A reader says what lies in its files, at the files' own rate, as a :class:`Recording`. Quality
rules, time alignment, downsampling and pictures are the same for every format and are done here.
"""

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode, Scalar
from tokenwm.data.quality import checks
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.quality.measures import measure_recording
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, SourceDescription
from tokenwm.data.readers.columns.arrays import MAX_ROWS, MAX_WIDTH
from tokenwm.data.readers.columns.columns import (
    AUTO,
    Column,
    RecordedConfig,
    concatenate,
    dimension_names,
    names_of,
    resolve,
)
from tokenwm.data.readers.downsample import (
    Signals,
    actions_per_step,
    downsample,
    downsampling_factor,
    stacked_names,
)
from tokenwm.data.readers.licence import stated_licence
from tokenwm.data.readers.one_episode import costs_one_episode, writable
from tokenwm.data.readers.paths import checksum_of_sizes
from tokenwm.data.readers.pictures.frames import Frames, VideoFrames
from tokenwm.data.readers.pictures.video import FrameResizer, FramesRead
from tokenwm.data.readers.recorded.action_kind import (
    REMEDY,
    ActionKind,
    as_decided,
    decide,
    whole_where_possible,
)
from tokenwm.errors import EpisodeError, RecipeError

DROPPED = "rows_without_picture"
"""Name, in an episode's metadata and figures, of how many rows at its end were dropped."""
MAX_ACTIONS = 2**16
"""Ids where the recipe does not say how many there are; each is counted."""


@dataclass(frozen=True, kw_only=True)
class Recording:
    """One episode as its source holds it: ``N`` observations at the source's own rate.

    Row ``t`` of an action, reward or termination belongs to the action chosen *after* observation
    ``t``. These arrays have ``N`` rows, or ``N - 1`` where the format records nothing after the
    last observation. A format that stores them otherwise shifts them in its reader.

    Attributes:
        num_rows: ``N``, observations.
        action: ``(N, action_dim)`` or ``(N - 1, action_dim)``, real numbers, or ids ``>= 0`` if
            they are whole numbers. A reader gives them as they are recorded, and its source
            decides for all episodes which of the two they are.
        frames: Camera → its ``N`` pictures, read when the episode is made.
        state: ``(N, state_dim)`` numbers, or None.
        reward: ``(N,)`` or ``(N - 1,)`` numbers, or None where none is recorded.
        terminated: ``(N,)`` or ``(N - 1,)`` bool or numbers, above 0 where the task ended; None
            where the format does not say.
        task_state: ``(N, task_state_dim)`` numbers, or None.
        timestamps: ``(N,)`` seconds, or None where the format records no time.
        task: What the robot was asked to do, in words; may be empty.
        metadata: Anything else worth keeping, for example ``success``.
        num_padded: Rows at the end that were added to make a step whole; they are not measured.
    """

    num_rows: int
    action: NDArray[Any]
    frames: Mapping[str, Frames] = field(default_factory=dict)
    state: NDArray[Any] | None = None
    reward: NDArray[Any] | None = None
    terminated: NDArray[Any] | None = None
    task_state: NDArray[Any] | None = None
    timestamps: NDArray[np.floating[Any]] | None = None
    task: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    num_padded: int = 0

    def first(self, num_rows: int) -> "Recording":
        """This recording without the observations from ``num_rows`` on; its metadata says so."""
        arrays = {
            name: array[:num_rows]
            for name in ("action", "state", "reward", "terminated", "task_state", "timestamps")
            if (array := getattr(self, name)) is not None
        }
        metadata = {**self.metadata, DROPPED: self.num_rows - num_rows}
        return replace(self, num_rows=num_rows, metadata=metadata, **arrays)

    def check(self, episode: str) -> None:
        """Check that all arrays are numbers of ``N >= 1`` observations, each row of some width.

        Args:
            episode: Key of the episode, for messages.

        Raises:
            EpisodeError: One is not.
        """
        if not 1 <= self.num_rows <= MAX_ROWS:
            raise EpisodeError(
                f"episode {episode}: {self.num_rows:,} rows; expected 1 to {MAX_ROWS:,}"
            )
        for name, num_axes, belongs_to_action in (
            ("action", 2, True),
            ("state", 2, False),
            ("reward", 1, True),
            ("terminated", 1, True),
            ("task_state", 2, False),
            ("timestamps", 1, False),
        ):
            array = getattr(self, name)
            allowed = (self.num_rows, self.num_rows - 1)[: 1 + belongs_to_action]
            if array is not None and (array.ndim != num_axes or len(array) not in allowed):
                raise EpisodeError(
                    f"episode {episode}: {name} is {array.dtype}{array.shape} for {self.num_rows} "
                    f"observations; expected {num_axes} axes, the first of "
                    f"{' or '.join(map(str, allowed))} rows"
                )
            width = 1 if array is None else math.prod(array.shape[1:])
            if array is not None and (
                array.dtype.kind not in "biuf" or not 1 <= width <= MAX_WIDTH
            ):
                raise EpisodeError(
                    f"episode {episode}: {name} is {array.dtype}{array.shape}; expected 1 to "
                    f"{MAX_WIDTH:,} numbers in a row"
                )

    def without_last_action(self) -> "Recording":
        """This recording with ``N - 1`` actions and rewards.

        What the last row holds beside its observation leads nowhere that was recorded. By
        convention it is often NaN. Its end is kept, as no end if it is NaN.
        """
        last, reward, terminated = self.num_rows - 1, self.reward, self.terminated
        if terminated is not None and len(terminated) > last and np.isnan(terminated[last]):
            terminated = np.append(terminated[:last], False)
        return replace(
            self,
            action=self.action[:last],
            reward=None if reward is None else reward[:last],
            terminated=terminated,
        )


class RecordedSource(ABC):
    """Base of the sources that hold recordings; see :class:`~tokenwm.data.readers.base.Source`.

    A reader says what episodes there are and reads one. Subclasses must be picklable.

    Args:
        config: Options; what they leave open is filled in, see :attr:`config`.
        columns: The columns of the source: one value or picture for every row.
        where: The source, for messages.
        episode_format: The form that episodes are brought into.
        rate: Rows per second of the source, Hz; None where the format does not record it, then rows
            are steps.

    Attributes:
        config: The options, with every column named.
        rate: Rows per second, Hz.
        where: The source, for messages: its path.

    Raises:
        RecipeError: A column is missing or several could be meant, or the control rate does not
            divide the source's rate.
    """

    declares_types: ClassVar[bool] = True
    """True if files say what type a column has; in CSV each file seems to have its own."""
    _gaps: Sequence[Gap] = ()

    def __init__(
        self,
        config: RecordedConfig,
        columns: Mapping[str, Column],
        where: str,
        episode_format: EpisodeFormat,
        rate: float | None,
    ) -> None:
        self.config = resolve(config, columns, where)
        self._inferred = {
            option: getattr(self.config, option)
            for option in ("cameras", "state", "action", "reward")
            if getattr(config, option) == AUTO
        }
        self.columns = columns
        self.where = where
        self.format = episode_format
        self.rate = episode_format.control_rate if rate is None else rate
        self.num_phases = downsampling_factor(self.rate, episode_format.control_rate)

    @property
    def cameras(self) -> dict[str, str]:
        """Our name of a camera → the source's."""
        assert not isinstance(self.config.cameras, str), "filled in when the source was opened"
        return self.config.cameras

    @property
    def inferred(self) -> dict[str, Any]:
        """Options that the recipe leaves open, as they were filled in: for the provenance."""
        inferred = dict(self._inferred)
        if self.config.action_kind == AUTO and not self._real_action():
            inferred["action_kind"] = f"{self.action_kind.kind}: {self.action_kind.why}"
        return {"source_inferred": inferred} if inferred else {}

    @cached_property
    def action_kind(self) -> ActionKind:
        """Decision whether actions are ids or quantities: one for all episodes.

        Raises:
            RecipeError: They are ids, and the recipe wants their mean or sum.
        """
        found = self._decide()
        aggregation = self.format.action_aggregation
        if found.kind == "discrete" and aggregation in ("mean", "sum") and self.num_phases > 1:
            raise RecipeError(
                f"action_aggregation: {aggregation} makes no sense for discrete actions "
                f"({found.why}); use last, first or stack, or {REMEDY}"
            )
        return found

    def _decide(self) -> ActionKind:
        config = self.config
        if config.action_kind != AUTO:
            return ActionKind(kind=config.action_kind, why="the recipe says so")
        if config.num_actions is not None:
            return ActionKind(kind="discrete", why="the recipe gives num_actions")
        real = self._real_action()
        if real:
            return ActionKind(kind="continuous", why=f"{real} holds real numbers")
        refs = self.episodes()
        return decide(self._actions(refs), len(refs))

    def _real_action(self) -> str:
        """A column of the action whose type is that of real numbers; empty if there is none."""
        if not self.declares_types:
            return ""
        names = names_of(self.config.action)
        return next((name for name in names if "float" in self.columns[name].dtype), "")

    def _actions(self, refs: Sequence[EpisodeRef]) -> Iterator[tuple[str, NDArray[Any]]]:
        """The actions of all episodes that can be read, as they are recorded."""
        for ref in refs:
            # Its error is reported when the episode is loaded.
            with contextlib.suppress(EpisodeError), costs_one_episode(ref.key):
                recording = self.read(ref)
                recording.check(ref.key)
                yield ref.key, whole_where_possible(recording.action, recording.num_rows)

    @property
    def numbers(self) -> tuple[str, ...]:
        """The columns of numbers that :meth:`signals` needs, each once."""
        config = self.config
        options = (config.action, config.state, config.reward, config.task_state)
        return tuple(dict.fromkeys(name for option in options for name in names_of(option)))

    def signals(self, arrays: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """The arguments ``action``, ``state``, ``reward``, ``task_state`` of a :class:`Recording`.

        Args:
            arrays: Column → ``(N, ...)``, at least those in :attr:`numbers`.
        """
        config = self.config
        return {
            "action": concatenate(arrays, names_of(config.action)),
            "state": concatenate(arrays, names_of(config.state)) if config.state else None,
            "reward": arrays[config.reward].reshape(-1) if config.reward else None,
            "task_state": (
                concatenate(arrays, names_of(config.task_state)) if config.task_state else None
            ),
        }

    @abstractmethod
    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, in a fixed order."""

    def gaps(self) -> Sequence[Gap]:
        """Differences between what the source declares and what is there; empty if all is there."""
        return self._gaps

    @abstractmethod
    def read(self, ref: EpisodeRef) -> Recording:
        """Read the numbers of one episode; pictures are decoded later, by ``load``.

        Raises:
            EpisodeError: A file is missing or damaged.
        """

    @abstractmethod
    def provenance(self) -> dict[str, Any]:
        """Return the origin of the data: ``source``, ``source_checksum``, what is ``inferred``."""

    def origin(
        self, folder: Path, paths: Iterable[Path], over: str = "names and sizes of the files"
    ) -> dict[str, Any]:
        """The :meth:`provenance` of a source that is some files of a folder."""
        return {
            "source": self.config.path,
            "source_checksum": checksum_of_sizes(folder, paths),
            "source_checksum_over": over,
            **self.inferred,
        }

    def load(self, ref: EpisodeRef) -> Episode:
        """Load, check and convert one episode.

        Raises:
            EpisodeError: A file is missing or damaged, or a quality rule is broken.
        """
        self.action_kind  # noqa: B018 - what is wrong with it is wrong with all episodes
        with costs_one_episode(ref.key):
            recording = self.recording(ref)
            return to_episode(recording, ref, self.format, self.rate, self.config.num_actions)

    def recording(self, ref: EpisodeRef) -> Recording:
        """Read one episode, with actions of the kind that all episodes have.

        Raises:
            EpisodeError: A file is missing or damaged, or its actions are not of this kind.
        """
        recording = self.read(ref)
        recording.check(ref.key)
        recording = recording.without_last_action()
        where = f"episode {ref.key}"
        return replace(recording, action=as_decided(recording.action, self.action_kind, where))

    def licence(self) -> str:
        """The licence as the source states it; empty if it states none."""
        return stated_licence(Path(self.where))

    def describe(self) -> SourceDescription:
        """Names of the dimensions and the licence from the source, units from the recipe."""
        num_stacked = actions_per_step(self.num_phases, self.format.action_aggregation)
        action_names = dimension_names(self.columns, names_of(self.config.action))
        return SourceDescription(
            state_names=dimension_names(self.columns, names_of(self.config.state)),
            action_names=stacked_names(action_names, num_stacked),
            state_units=self.config.state_units,
            action_units=self.config.action_units,
            task_state_names=dimension_names(self.columns, names_of(self.config.task_state)),
            task_state_units=self.config.task_state_units,
            licence=self.licence(),
            num_actions=self.config.num_actions,
            actions_per_step=num_stacked,
        )


def check_numbers(
    recording: Recording,
    ref: EpisodeRef,
    limits: QualityConfig,
    rate: float,
    num_actions: int | None = None,
) -> Signals:
    """Check all that shows without a picture being decoded; see :func:`to_episode`.

    The recording is one without its last action, as :meth:`RecordedSource.recording` gives it.

    Returns:
        The numbers in our types, ``N`` rows each.

    Raises:
        EpisodeError: A quality rule is broken.
    """
    if recording.num_rows - ref.phase < 2:
        raise EpisodeError(f"episode {ref.key}: too short, {recording.num_rows} row(s)")
    recording.check(ref.key)
    if recording.timestamps is not None:
        times = recording.timestamps
        checks.check_timestamps(ref.key, limits, timestamps=times, rate=rate)
    if recording.terminated is not None:
        checks.check_finite(ref.key, "terminated", recording.terminated)
    signals = _signals(recording, ref.key, num_actions)
    # Converted to our types, in which numbers that are too large are infinite.
    checks.check_signals(
        ref.key,
        limits,
        action=signals.action[:-1],
        state=signals.state,
        reward=None if signals.reward is None else signals.reward[:-1],
    )
    if signals.task_state is not None:
        checks.check_finite(ref.key, "task_state", signals.task_state)
    for pictures in recording.frames.values():
        pictures.check(ref.key, recording.num_rows)
    return signals


def to_episode(
    recording: Recording,
    ref: EpisodeRef,
    episode_format: EpisodeFormat,
    rate: float,
    num_actions: int | None = None,
) -> Episode:
    """Check a recording at its own rate, and make it an episode at the control rate.

    Args:
        recording: The episode as the source holds it.
        ref: The episode's key, and the row at which downsampling begins.
        episode_format: The form that the episode is brought into.
        rate: Rows per second of the recording, Hz; a whole multiple of the control rate.
        num_actions: Number of discrete actions; None if the recipe does not say.

    Raises:
        EpisodeError: A quality rule is broken, or pictures are missing or damaged.
        RecipeError: The rates, or the aggregation and the kind of action, do not go together.
    """
    try:
        return _to_episode(recording, ref, episode_format, rate, num_actions)
    except _FewerPicturesError as fewer:
        shorter = recording.first(fewer.num_rows)
        return _to_episode(shorter, ref, episode_format, rate, num_actions)


class _FewerPicturesError(Exception):
    """Pictures end before the rows do, by no more than the recipe allows.

    Attributes:
        num_rows: Rows that have a picture of every camera.
    """

    def __init__(self, num_rows: int) -> None:
        super().__init__(num_rows)
        self.num_rows = num_rows


def _to_episode(
    recording: Recording,
    ref: EpisodeRef,
    episode_format: EpisodeFormat,
    rate: float,
    num_actions: int | None,
) -> Episode:
    factor = downsampling_factor(rate, episode_format.control_rate)
    limits = episode_format.quality
    recording = recording.without_last_action()
    signals = check_numbers(recording, ref, limits, rate, num_actions).beginning_at(ref.phase)
    kept = downsample(signals, factor, episode_format.action_aggregation)
    num_steps = len(kept.action)
    checks.check_num_steps(ref.key, limits, num_steps, episode_format.control_rate)
    truncated = np.zeros(num_steps, dtype=np.bool_)
    truncated[-2] = not kept.terminated[-2]
    metadata: dict[str, Scalar] = {"source_index": ref.index}
    if ref.phase:
        metadata["phase"] = ref.phase
    # An end in the rows after the last kept step is metadata: no step is left to carry it.
    last_kept = ref.phase + (num_steps - 1) * factor
    if recording.terminated is not None and len(recording.terminated) > last_kept:
        rest = recording.terminated[last_kept:]
        metadata["terminated_after_end"] = bool((rest > 0).any())
    read = _read_frames(recording, ref, episode_format, rate, factor)
    episode = Episode(
        key=ref.key,
        frames={camera: frames.kept for camera, frames in read.items()},
        state=kept.state,
        action=kept.action,
        reward=kept.reward,
        terminated=kept.terminated,
        truncated=truncated,
        task_state=kept.task_state,
        control_rate=episode_format.control_rate,
        task=writable(ref.task or recording.task),
        metadata={**metadata, **recording.metadata},
    )
    real = recording.first(recording.num_rows - recording.num_padded).without_last_action()
    measured = measure_recording(
        rate=rate,
        action=real.action,
        state=real.state,
        timestamps=real.timestamps,
        frames=episode.frames,
        frame_rate=episode_format.control_rate,
        source_repeated={camera: frames.repeated for camera, frames in read.items()},
    )
    dropped = recording.metadata.get(DROPPED)
    measured |= {DROPPED: dropped} if dropped else {}
    checks.check_episode(limits, replace(episode, measured=measured))
    # The other phases are the same recording; its measurements are reported once.
    return episode if ref.phase else replace(episode, measured=measured)


def _signals(recording: Recording, key: str, num_actions: int | None) -> Signals:
    """The numbers in our types, with ``N`` rows each: a row that is not recorded is zero."""
    num_rows = recording.num_rows

    def padded(array: NDArray[Any], dtype: type) -> NDArray[Any]:
        rest = [(0, num_rows - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array.astype(dtype), rest)

    action = recording.action
    discrete = action.dtype.kind in "iub"
    if discrete and (action < 0).any():
        raise EpisodeError(
            f"episode {key}: ids of actions are >= 0; the smallest is {action.min()}"
        )
    most = num_actions or MAX_ACTIONS
    if discrete and action.size and action.max() >= most:
        raise EpisodeError(
            f"episode {key}: the action {int(action.max()):,} is no id in [0, {most:,}); if it is, "
            "set source.num_actions to the number of actions; if it is a quantity, set "
            "source.action_kind: continuous"
        )
    reward, state, task_state = recording.reward, recording.state, recording.task_state
    terminated = np.zeros(0) if recording.terminated is None else recording.terminated
    return Signals(
        action=padded(action, np.int64 if discrete else np.float32),
        state=None if state is None else state.astype(np.float32),
        reward=None if reward is None else padded(reward, np.float32),
        terminated=padded(terminated > 0, np.bool_),
        task_state=None if task_state is None else task_state.astype(np.float32),
    )


def _read_frames(
    recording: Recording, ref: EpisodeRef, episode_format: EpisodeFormat, rate: float, factor: int
) -> dict[str, FramesRead]:
    timestamps = recording.timestamps
    if timestamps is None:
        timestamps = np.arange(recording.num_rows) / rate
    frames = {
        camera: pictures.read(
            first=ref.phase,
            step=factor,
            num_rows=recording.num_rows,
            resizer=FrameResizer(*episode_format.image_size, episode_format.resize),
            episode=ref.key,
        )
        for camera, pictures in recording.frames.items()
    }
    fewest = min((len(read.times) for read in frames.values()), default=recording.num_rows)
    if 0 < recording.num_rows - fewest <= episode_format.quality.allow_short_video:
        raise _FewerPicturesError(fewest)
    for camera, read in frames.items():
        pictures = recording.frames[camera]
        where = f"{camera} ({pictures.path})" if isinstance(pictures, VideoFrames) else camera
        checks.check_video_length(
            ref.key, where, num_frames=len(read.times), num_rows=recording.num_rows
        )
        checks.check_frame_times(
            ref.key, where, frame_times=read.times, timestamps=timestamps, rate=rate
        )
    return frames
