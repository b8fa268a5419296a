"""A survey of a file or folder of recordings."""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.quality import checks
from tokenwm.data.readers.base import SOURCES, EpisodeFormat, EpisodeRef, Gap, Recognised, recognise
from tokenwm.data.readers.columns.columns import (
    AmbiguousColumnsError,
    NoPlainColumnError,
    RecordedConfig,
)
from tokenwm.data.readers.one_episode import costs_one_episode
from tokenwm.data.readers.recorded.recording import RecordedSource, check_numbers, to_episode
from tokenwm.data.recipes.first_look import Layout, layout_mismatch, layout_of, usual_layout
from tokenwm.data.shards.manifest import MANIFEST_NAME
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError, SourceError
from tokenwm.pages.words import few

GOOD_RATES = (5.0, 15.0)
"""Hz; slower and much is missed between two steps, faster and two frames hardly differ."""
UNKNOWN_RATE = 10.0
"""Hz, where the format records none."""
IMAGE_SIZE = (64, 64)
_Candidates = dict[str, tuple[str, ...]]
"""Option of the recipe → columns."""
LEVELS_ABOVE = 4
"""Folders above a path of which it could be a part: ``videos/CAMERA/chunk-000/FILE`` is so deep."""
LOOKED_BELOW = 100
"""Files and folders of a folder that are looked at for datasets in them."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The contents of a source.

    Attributes:
        source: The opened source, every column named.
        rate: Rows per second, Hz; None where the format does not record it.
        facts: Facts about the source in words: name → fact.
        licence: The licence as the data states it; empty if it states none.
        refs: All episodes.
        looked_into: Keys of the episodes whose numbers were read.
        num_rows: Rows of the episodes looked into.
        ranges: ``state``, ``action``, ``reward`` → ``(2, width)`` smallest and largest value.
        tasks: Task in words → number of episodes.
        ambiguous: Option of the recipe → columns that could be meant; one was taken, of the state
            all.
        unclear: Option that must be chosen, since no column is plainly it → columns that could be
            it; all were looked into.
        problems: Key of an episode → why it would be left out.
        gaps: Parts that the source declares but does not hold.
    """

    source: RecordedSource
    rate: float | None
    facts: Mapping[str, str]
    licence: str
    refs: Sequence[EpisodeRef]
    looked_into: Sequence[str]
    num_rows: int
    ranges: Mapping[str, NDArray[np.float64]]
    tasks: Mapping[str, int]
    ambiguous: Mapping[str, Sequence[str]]
    unclear: Mapping[str, Sequence[str]]
    problems: Mapping[str, str]
    gaps: Sequence[Gap] = ()

    @property
    def control_rate(self) -> float:
        """The control rate that the starter recipe proposes, Hz."""
        return self.source.format.control_rate


def survey(path: Path | str, *, num_episodes: int = 100) -> Survey:
    """Look into a file or folder of recordings.

    Args:
        path: The file or folder to look into.
        num_episodes: Read the numbers of this many episodes, evenly spread; 0 for all.

    Raises:
        SourceError: It does not exist, no reader knows it, several do, or it is damaged.
        RecipeError: Nothing in it could be the action, or neither pictures nor a state.
    """
    path = Path(path).expanduser()
    found = _recognised(path)
    source, ambiguous, unclear = _open(found)
    refs = list(source.episodes())
    looked = refs
    if 0 < num_episodes < len(refs):
        looked = [refs[i] for i in np.linspace(0, len(refs) - 1, num_episodes).round().astype(int)]
    figures = _Figures()
    for ref in looked:
        figures.add(source, ref)
    figures.leave_out_the_odd()
    return Survey(
        source=source,
        rate=found.rate,
        facts={name: fact for name, fact in found.facts.items() if fact},
        licence=source.licence(),
        refs=refs,
        looked_into=[ref.key for ref in looked],
        num_rows=sum(item.num_rows for item in figures.seen.values()),
        ranges=figures.ranges,
        tasks=Counter(item.task for item in figures.seen.values()),
        ambiguous=ambiguous,
        unclear=unclear,
        problems=figures.problems,
        gaps=source.gaps(),
    )


@dataclass(frozen=True, kw_only=True)
class _Seen:
    """Figures of one usable episode.

    Attributes:
        layout: Shapes and types of its numbers.
        num_rows: Rows.
        task: The task in words.
        ranges: ``state``, ``action``, ``reward`` → ``(2, width)`` smallest and largest value.
    """

    layout: Layout
    num_rows: int
    task: str
    ranges: Mapping[str, NDArray[np.float64]]


class _Figures:
    """Figures gathered while recordings pass by."""

    def __init__(self) -> None:
        self.seen: dict[str, _Seen] = {}
        self.problems: dict[str, str] = {}

    def add(self, source: RecordedSource, ref: EpisodeRef) -> None:
        """Look into an episode."""
        try:
            with costs_one_episode(ref.key):
                self.seen[ref.key] = self._look_into(source, ref)
        except EpisodeError as error:
            self.problems[ref.key] = str(error)

    def _look_into(self, source: RecordedSource, ref: EpisodeRef) -> _Seen:
        recording, num_actions = source.recording(ref), source.config.num_actions
        signals = check_numbers(recording, ref, source.format.quality, source.rate, num_actions)
        if not self.seen:
            # One episode is enough to see that the pictures are of a kind we can decode.
            to_episode(recording, ref, source.format, source.rate, num_actions)
        numbers = {"state": signals.state, "action": signals.action, "reward": signals.reward}
        known = {name: array for name, array in numbers.items() if array is not None}
        return _Seen(
            layout=layout_of(known),
            num_rows=recording.num_rows,
            task=ref.task or recording.task,
            ranges={
                name: _range(array if name == "state" else array[:-1])
                for name, array in known.items()
            },
        )

    def leave_out_the_odd(self) -> None:
        """Take episodes whose numbers differ from the usual ones for problems, as ``prepare``."""
        usual = usual_layout(item.layout for item in self.seen.values())
        for key, item in list(self.seen.items()):
            problem = layout_mismatch(key, item.layout, usual or {})
            if problem is not None:
                self.problems[key] = str(problem)
                del self.seen[key]

    @property
    def ranges(self) -> dict[str, NDArray[np.float64]]:
        """``state``, ``action``, ``reward`` → ``(2, width)`` over all usable episodes."""
        every = [item.ranges for item in self.seen.values()]
        names = every[0] if every else ()
        return {name: _range(np.concatenate([ranges[name] for ranges in every])) for name in names}


def _range(values: NDArray[Any]) -> NDArray[np.float64]:
    """``(2, width)`` smallest and largest value of ``(N, ...)``."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    return np.stack([rows.min(axis=0), rows.max(axis=0)])


def _recognised(path: Path) -> Recognised:
    if not path.exists():
        raise SourceError(f"{path} does not exist")
    refuse_pointer(path, SourceError)
    found = recognise(path)
    if not found and (path / MANIFEST_NAME).is_file():
        raise SourceError(
            f"{path} holds {MANIFEST_NAME}, so it looks like a dataset of tokenwm, not recordings; "
            f"`tokenwm info {path}` says what it holds"
        )
    if not found or all(is_videos(item) for item in found):
        _check_level(path, found)
    if not found:
        readable = ", ".join(name for name in SOURCES if name != "gymnasium")
        raise SourceError(
            f"{path} is of no format that a reader knows: {readable}; see "
            "docs/formats.md for what each looks like"
        )
    if len(found) > 1:
        kinds = ", ".join(str(getattr(item.config, "type", "?")) for item in found)
        raise SourceError(
            f"{path} could be one of {kinds}; write a recipe with the right source.type"
        )
    return found[0]


def _check_level(path: Path, found: Sequence[Recognised]) -> None:
    """Say where a dataset lies, of a folder that is none itself or only a folder with videos.

    Raises:
        SourceError: It is a part of a LeRobot folder, or files or folders in it are datasets of a
            format that says more, or Git LFS pointers.
    """
    for above in path.resolve().parents[:LEVELS_ABOVE]:
        if (above / "meta" / "info.json").is_file():
            raise SourceError(f"{path} is a part of the LeRobot folder {above}; name that one")
    below = sorted(path.iterdir())[:LOOKED_BELOW] if path.is_dir() else []
    inside: list[str] = []
    for item in below:
        try:
            kinds = [kind for kind in recognise(item) if not (is_videos(kind) and found)]
        except SourceError as error:
            inside.append(f"{item.name} ({error})")
            continue
        inside += [f"{item.name} ({kind.facts.get('format', 'a dataset')})" for kind in kinds[:1]]
    if inside:
        raise SourceError(
            f"{path} is no dataset itself, but holds {len(inside)}: {few(inside)}; name one of "
            f"them, for example {path / inside[0].partition(' (')[0]}"
        )
    for item in below:
        if not found:
            refuse_pointer(item, SourceError)


def is_videos(found: Recognised) -> bool:
    """True if something is recognised only as a folder with videos in it."""
    return getattr(found.config, "type", "") == "videos"


def _open(found: Recognised) -> tuple[RecordedSource, _Candidates, _Candidates]:
    """Open a source; where several columns could be meant, take what loses nothing, and say so.

    Returns:
        The source; ``ambiguous`` and ``unclear`` of a :class:`Survey`.
    """
    config = found.config
    ambiguous: _Candidates = {}
    unclear: _Candidates = {}
    while True:
        try:
            source = config.open(
                EpisodeFormat(
                    control_rate=propose_control_rate(found.rate),
                    action_aggregation="last",
                    image_size=IMAGE_SIZE,
                    resize="crop",
                    quality=checks.QualityConfig(),
                ),
                None,
            )
        except (AmbiguousColumnsError, NoPlainColumnError) as error:
            if not error.candidates:
                raise
            assert isinstance(config, RecordedConfig)
            several = isinstance(error, AmbiguousColumnsError)
            (ambiguous if several else unclear)[error.option] = error.candidates
            takes_one = several and error.option != "state"
            chosen: Any = error.candidates[0] if takes_one else error.candidates
            config = dataclasses.replace(config, **{error.option: chosen})
            continue
        if not isinstance(source, RecordedSource):
            raise SourceError(f"{type(source).__name__} holds no recordings")
        return source, ambiguous, unclear


def propose_control_rate(rate: float | None) -> float:
    """A control rate that divides the source's and suits most tasks, near 10 Hz."""
    if rate is None:
        return UNKNOWN_RATE
    low, high = GOOD_RATES
    rates = [rate / n for n in range(1, 1 + int(max(1.0, rate / low)))]
    good = [r for r in rates if low <= r <= high and math.isclose(r, round(r, 2))]
    return min(good, key=lambda r: abs(math.log(r / UNKNOWN_RATE)), default=rate)
