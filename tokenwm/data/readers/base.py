"""Sources of episodes: one reader per format, all giving :class:`~tokenwm.data.episode.Episode`.

A reader is a module here with two classes: a frozen dataclass of its options (the keys under
``source:`` in a recipe) with a method ``open``, and the source itself. It is named once, in
``SOURCES``.
"""

import difflib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from tokenwm.data.episode import Episode
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.downsample import Aggregation
from tokenwm.data.readers.one_episode import costs_one_episode
from tokenwm.data.readers.pictures.video import Resize
from tokenwm.errors import EpisodeError, RecipeError, TokenwmError

SOURCES: dict[str, str] = {
    "lerobot": "tokenwm.data.readers.lerobot.reader:LeRobotConfig",
    "robomimic": "tokenwm.data.readers.hdf5.robomimic:RobomimicConfig",
    "minari": "tokenwm.data.readers.hdf5.minari:MinariConfig",
    "dreamer": "tokenwm.data.readers.dreamer.reader:DreamerConfig",
    "videos": "tokenwm.data.readers.videos.reader:VideosConfig",
    "rlds": "tokenwm.data.readers.rlds.reader:RldsConfig",
    "gymnasium": "tokenwm.data.readers.simulator.reader:GymnasiumConfig",
}
"""``source.type`` → ``module:class`` of its options; imported when used, readers are heavy."""


@dataclass(frozen=True, kw_only=True)
class EpisodeFormat:
    """The form into which every source brings its episodes.

    Attributes:
        control_rate: Steps per second of the result, Hz.
        action_aggregation: How the actions between two kept steps become one.
        image_size: ``(height, width)`` of frames, pixels.
        resize: Cut to the aspect ratio (``crop``) or not (``stretch``).
        quality: Limits of the quality rules.
    """

    control_rate: float
    action_aggregation: Aggregation
    image_size: tuple[int, int]
    resize: Resize
    quality: QualityConfig


PHASE = "_phase"
"""Text that follows the key of a recording in the keys of its other phases."""


def recording_of(key: str) -> str:
    """The key of the recording that an episode is a phase of; its own if it is the first phase."""
    return key.rpartition(PHASE)[0] or key


@dataclass(frozen=True, kw_only=True)
class EpisodeRef:
    """One episode of a source, not loaded yet; small, so that it can be sent to another process.

    Attributes:
        key: Name in the dataset; letters, digits, ``_`` and ``-``.
        index: Number of the episode in its source.
        num_rows: Rows the source declares, at its own rate; None if unknown.
        task: What the robot was asked to do; may be empty.
        phase: Row at which downsampling begins, in ``[0, num_phases)`` of the source.
        split: ``train``, ``val`` or ``test`` if the source says which one it is for; else empty.
    """

    key: str
    index: int
    num_rows: int | None = None
    task: str = ""
    phase: int = 0
    split: str = ""


@dataclass(frozen=True, kw_only=True)
class SourceDescription:
    """Facts about a source's numbers, known before an episode is loaded.

    Attributes:
        state_names: One name per state dimension, or empty.
        action_names: One name per action dimension, or empty.
        state_units: Units of the state in words, or empty.
        action_units: Units of the action in words, or empty.
        task_state_names: One name per dimension of the task state, or empty.
        task_state_units: Its units: one for all dimensions or one per dimension, with commas.
        num_actions: Number of discrete actions; None if continuous or unknown.
        actions_per_step: The source's actions that an action of the dataset holds side by side.
        licence: Licence that the data states; empty if none.
    """

    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()
    state_units: str = ""
    action_units: str = ""
    task_state_names: tuple[str, ...] = ()
    task_state_units: str = ""
    num_actions: int | None = None
    actions_per_step: int = 1
    licence: str = ""


@dataclass(frozen=True, kw_only=True)
class Gap:
    """A difference between what a dataset declares and what is there.

    Gaps are of the dataset as a whole; an episode that is listed and cannot be used has a reason of
    its own, see :class:`~tokenwm.errors.EpisodeError`.

    Attributes:
        text: What is declared where, and what is there: one sentence without a full stop.
        num_missing: Episodes that are not there, as far as that is known; each counted once over
            all gaps.
    """

    text: str
    num_missing: int = 0


class Source(Protocol):
    """A place episodes come from. Must be picklable, worker processes load from a copy.

    Attributes:
        num_phases: Rows of the source per step of the result: at how many rows an episode can begin
            so that each time other rows are kept. 1 where nothing is left out.
    """

    num_phases: int

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, in a fixed order."""

    def gaps(self) -> Sequence[Gap]:
        """Differences between what the source declares and what is there; empty if all is there."""

    def load(self, ref: EpisodeRef) -> Episode:
        """Load, check and convert one episode.

        Raises:
            EpisodeError: This episode breaks a rule; the others may be fine.
        """

    def describe(self) -> SourceDescription:
        """Names and units of the numbers."""

    def provenance(self) -> dict[str, Any]:
        """Return the origin of the data: JSON values, with ``source`` and ``source_checksum``."""


@runtime_checkable
class LoadsTogether(Protocol):
    """A source that can load several episodes at once.

    Attributes:
        num_together: How many at most.
    """

    num_together: int

    def load_together(self, refs: Sequence[EpisodeRef]) -> list[Episode | EpisodeError]:
        """Load some: each the same as by itself, or why it cannot be used."""


def load_one(source: Source, ref: EpisodeRef) -> Episode | EpisodeError:
    """An episode, or the reason why it cannot be used, whatever that is.

    Raises:
        TokenwmError: The source, or the recipe, is not as it should be.
    """
    try:
        with costs_one_episode(ref.key, passing=TokenwmError):
            return source.load(ref)
    except EpisodeError as error:
        return error


def load_each(source: Source, refs: Sequence[EpisodeRef]) -> Iterator[Episode | EpisodeError]:
    """Load episodes in order, several at once where the source can; a bad one is its error."""
    together = source.num_together if isinstance(source, LoadsTogether) else 1
    for start in range(0, len(refs), together):
        group = refs[start : start + together]
        if isinstance(source, LoadsTogether) and len(group) > 1:
            yield from source.load_together(group)
        else:
            yield load_one(source, group[0])


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """A path that a reader recognised, by names and headers alone.

    Attributes:
        config: Options with which the reader opens it.
        rate: Rows per second, Hz; None where the format does not record it.
        facts: What else is plain, in words: name of the fact → the fact.
    """

    config: "SourceConfig"
    rate: float | None
    facts: Mapping[str, str] = field(default_factory=dict)


class SourceConfig(Protocol):
    """Options of one reader: a frozen dataclass whose fields are the keys under ``source:``.

    Attributes:
        records: Whether the source is a simulator, of which as much is recorded as is asked for
            (``num_episodes`` episodes of ``max_steps``), and not a set of recordings.
    """

    records: ClassVar[bool]

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """Say what a file or folder is if it is of this reader's format; None if it is not.

        Reads names and headers only. A damaged dataset of the format is a SourceError.
        """

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> Source:
        """Make the source; ``folder`` is where the recipe lies, for relative paths.

        Raises:
            SourceError: The data is missing or not laid out as expected.
            RecipeError: The options do not fit the data.
        """


def source_config_class(name: Any) -> type[SourceConfig]:
    """Class of the options of a reader.

    Raises:
        RecipeError: There is no reader of this name.
    """
    if not isinstance(name, str) or name not in SOURCES:
        near = difflib.get_close_matches(str(name), SOURCES, n=1)
        remedy = f"; did you mean {near[0]!r}?" if near else ""
        raise RecipeError(f"source.type is {name!r}; known: {', '.join(SOURCES)}{remedy}")
    module, _, attribute = SOURCES[name].partition(":")
    config_class: type[SourceConfig] = getattr(importlib.import_module(module), attribute)
    return config_class


def recognise(path: Path) -> list[Recognised]:
    """Ask every reader whether a file or folder is of its format.

    Args:
        path: A file or folder that exists.

    Returns:
        What the readers that know it say; none, or more than one, is possible.

    Raises:
        SourceError: It is of a known format and damaged.
    """
    answers = (source_config_class(name).recognise(path) for name in SOURCES)
    return [answer for answer in answers if answer is not None]
