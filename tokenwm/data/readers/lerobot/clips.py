"""Frames of a video file that belong to each episode, where a file holds many (LeRobot v3.0).

Files disagree with the clip times that ``meta/episodes`` lists: they begin late, times drift by
rounding, frames of takes that were thrown away stay in them, frames are lost. So everything that is
known of a file is looked at together: when each frame is shown, which are key frames, and the clips
of *all* its episodes with their numbers of rows.

1. *Are there as many frames as rows?* Then frames belong to rows one after the other, as long as
   clip times are off by a little or all alike; where one plainly points at another frame, that
   episode is left out.
2. *Otherwise the clip times decide*, if each of them is the time of a frame.
3. *A few frames too many or too few* may have come or gone anywhere. Episodes are then taken only
   where key frames show that they begin and end at their clip times.

What is still not known is left out with the reason: no episode gets another one's pictures.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.base import EpisodeRef
from tokenwm.data.readers.lerobot.episodes import Part
from tokenwm.data.readers.lerobot.meta import LeRobotMeta
from tokenwm.data.readers.pictures.video import FrameIndex, index_frames
from tokenwm.errors import EpisodeError

# All in periods of the dataset's rate.
NEAR = 0.25
"""A clip time that is farther from a frame may mean the frame beside it."""
DRIFT = 2.0
"""Most by which the times of clips may be off where the numbers of frames and rows agree."""
DRIFT_PART = 0.002
"""Drift allowed as a part of the time: 29.97 Hz that is called 30 is off by 0.001."""
OTHER_RATE = 0.1
"""Pictures that are farther from a period apart than this are of another rate."""
NEARLY = 0.95
"""A jump of so much, within 1 - NEARLY of a whole number, is one of whole frames."""


@dataclass(frozen=True, kw_only=True)
class Clip:
    """Entry of one episode in a video file, from ``meta/episodes``.

    Attributes:
        index: The episode.
        num_rows: Rows of its table.
        start: When it begins, seconds; None if that is not said.
        stop: When it ends, or when its last frame is shown; None if that is not said.
    """

    index: int
    num_rows: int
    start: float | None
    stop: float | None

    def problem(self, period: float) -> str:
        """Reason why the times cannot be those of the rows; empty if they can."""
        if self.start is None or self.stop is None:
            return "no clip times are given (null, NaN, or no numbers)"
        span = f"its clip is from {self.start:g} s to {self.stop:g} s"
        if not (self.start > -NEAR * period and self.stop < math.inf):
            return f"{span}, which no clip can be"
        if self.stop <= self.start:
            return f"{span}, which is empty"
        # The end is a period behind the last frame, or (real datasets have it) that frame's time.
        num_frames = (self.stop - self.start) / period
        if not -1 - NEARLY < num_frames - self.num_rows < NEARLY:
            return f"{span}, {num_frames:.6g} frames, and the table has {self.num_rows} rows"
        return ""

    def fraction(self, period: float) -> float:
        """Distance of the length of the clip from a whole number of frames, in periods."""
        num_frames = ((self.stop or 0.0) - (self.start or 0.0)) / period
        return abs(num_frames - round(num_frames))


Values = tuple[tuple[str, int], ...]
"""Numbers that name a file in the path template."""
Place = slice | str
"""The frames of an episode, counted over the file as they are shown; or why they are not known."""


class LeRobotClips:
    """Frames of each episode in its video files; keeps one file per camera.

    Args:
        meta: The dataset, of version 3.
    """

    def __init__(self, meta: LeRobotMeta) -> None:
        self.meta = meta
        self._clips: dict[str, dict[Values, tuple[int, list[Clip]]]] = {}
        self._known: dict[str, tuple[Path, FrameIndex, dict[int, Place]]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clips": {}, "_known": {}}

    def times(self, ref: EpisodeRef, feature: str, part: Part, path: Path) -> NDArray[np.float64]:
        """Presentation times of the frames of one episode, seconds.

        Args:
            ref: The episode.
            feature: The camera.
            part: Where its frames are, as ``meta/episodes`` says.
            path: The video file.

        Raises:
            EpisodeError: The file is missing or damaged, or which frames they are is not known.
        """
        if self._known.get(feature, (None,))[0] != path:
            frames = index_frames(path, f"episode {ref.key}")
            rows_before, clips = self._clips_of(feature)[_values(part)]
            places = place_clips(frames, clips, period=1 / self.meta.rate, rows_before=rows_before)
            self._known[feature] = (path, frames, places)
        _, frames, places = self._known[feature]
        place = places[ref.index]
        if isinstance(place, str):
            raise EpisodeError(f"episode {ref.key}: video {path} of {feature}: {place}")
        return frames.times[place]

    def _clips_of(self, feature: str) -> dict[Values, tuple[int, list[Clip]]]:
        """File → rows of the episodes that are listed before its first one, and its clips."""
        if feature not in self._clips:
            files: dict[Values, tuple[int, list[Clip]]] = {}
            rows_before = 0
            for index, row in self.meta.episodes.items():
                part = row.videos.get(feature, Part(values={}))
                clip = Clip(index=index, num_rows=row.length, start=part.start, stop=part.stop)
                files.setdefault(_values(part), (rows_before, []))[1].append(clip)
                rows_before += row.length
            self._clips[feature] = files
        return self._clips[feature]


def _values(part: Part) -> Values:
    return tuple(sorted(part.values.items()))


def place_clips(
    frames: FrameIndex, clips: Sequence[Clip], *, period: float, rows_before: int
) -> dict[int, Place]:
    """The frames of every episode in a video file.

    Args:
        frames: The frames of the file.
        clips: Its episodes, in the order of ``meta/episodes``; at least one.
        period: Seconds between two rows.
        rows_before: Rows of the episodes before these, in other files.

    Returns:
        Episode → its frames, as many as it has rows or, where the file ends before, fewer; or the
        reason why they are not known.
    """
    reasons: dict[int, Place] = {c.index: c.problem(period) for c in clips if c.problem(period)}
    good = [clip for clip in clips if clip.index not in reasons]
    if not good:
        return reasons
    in_sequence: dict[int, slice] = {}
    # As listed, too: a wrong time of one episode must not change the order of the others.
    for sequence in (_ordered(clips), clips, _ordered(good)):
        firsts = np.cumsum([0] + [clip.num_rows for clip in sequence]).tolist()
        if firsts[-1] == len(frames.times):
            found = {
                clip.index: slice(first, first + clip.num_rows)
                for clip, first in zip(sequence, firsts, strict=False)
                if clip.index not in reasons
            }
            known = [clip for clip in sequence if clip.index not in reasons]
            if _agrees(frames, known, found, period, rows_before):
                return found | reasons
            in_sequence = in_sequence or found
    places = _by_time(frames, _ordered(good), period)
    if not in_sequence:
        return _confirmed(frames, _ordered(good), places, period) | reasons
    for index, place in places.items():
        if not isinstance(place, str) and place != in_sequence[index]:
            places[index] = (
                f"its clip begins with frame {place.start}, but the file has as many frames as its "
                f"episodes have rows, and in sequence it is {in_sequence[index].start}"
            )
    return places | reasons


def _ordered(clips: Sequence[Clip]) -> Sequence[Clip]:
    """Clips as they follow each other in the file; as listed where a time is missing."""
    if any(clip.start is None or not math.isfinite(clip.start) for clip in clips):
        return clips
    return sorted(clips, key=lambda clip: clip.start or 0.0)


def _agrees(
    frames: FrameIndex,
    clips: Sequence[Clip],
    places: Mapping[int, slice],
    period: float,
    rows_before: int,
) -> bool:
    """True if clip times fit frames taken in sequence: off by little, or all by the same."""
    begin, firsts = frames.times[0], [places[clip.index].start for clip in clips]
    shown = frames.times[firsts]
    off = (np.array([clip.start for clip in clips], dtype=np.float64) - shown) / period
    allowed = DRIFT + DRIFT_PART * (shown - begin) / period
    # Times are the file's own; or begin with its first frame, or with that of the first file.
    bases = np.array([0.0, -begin, rows_before * period - begin]) / period
    near = allowed[0] if firsts[0] else 0.5
    further = DRIFT + DRIFT_PART * rows_before if rows_before else 0.0
    if (np.abs(off[0] - bases) > [near, near, near + further]).all():
        return False
    jumps = np.abs(np.diff(off))
    of_whole_frames = (jumps > NEARLY) & (np.abs(jumps - np.round(jumps)) < 1 - NEARLY)
    return not of_whole_frames.any() and bool((np.abs(off - off[0]) <= allowed).all())


def _by_time(frames: FrameIndex, clips: Sequence[Clip], period: float) -> dict[int, Place]:
    """The frames that are shown during each clip, in order of time."""
    begin, starts = frames.times[0], [clip.start or 0.0 for clip in clips]
    spacing = float(np.median(np.diff(frames.times))) if len(frames.times) > 1 else period
    spacing = max(spacing, 1e-9)
    reason = ""
    if abs(spacing / period - 1) > OTHER_RATE:
        reason = (
            f"it shows {1 / spacing:.4g} pictures a second, and the rows are at {1 / period:g} Hz"
        )
    elif begin > period / 2 and frames.is_delayed and starts[0] <= period / 2:
        starts = [start + begin for start in starts]
    elif begin > period / 2 and (frames.is_delayed or abs(starts[0] - begin) > NEAR * period):
        reason = f"its first picture is shown at {begin:g} s"
    firsts = np.searchsorted(frames.times, np.array(starts) - period / 2).tolist()
    places: dict[int, Place] = {}
    for clip, start, first in zip(clips, starts, firsts, strict=True):
        stop = int(np.searchsorted(frames.times, start + (clip.num_rows - 0.5) * period))
        places[clip.index] = slice(first, stop)
        off = (frames.times[first] - start) / period if first < len(frames.times) else np.inf
        if off > 0.5:
            places[clip.index] = f"no picture is shown at {start:g} s, where its clip begins"
        elif abs(off) > NEAR or clip.fraction(period) > NEAR:
            reason = (
                reason or f"the clip of episode {clip.index} does not begin and end with a picture"
            )
    if reason:
        reason = (
            f"it holds {_counts(frames, clips)}, and {reason}: which belong to which is not known"
        )
        return {clip.index: reason for clip in clips}
    for (one, start), (other, following) in pairwise(zip(clips, starts, strict=True)):
        if following < start + (one.num_rows - 0.5) * period:
            for clip, beside in ((one, other), (other, one)):
                places[clip.index] = f"its clip overlaps that of episode {beside.index}"
    return places


def _confirmed(
    frames: FrameIndex, clips: Sequence[Clip], places: Mapping[int, Place], period: float
) -> dict[int, Place]:
    """Places without those that a few frames too many or too few may have shifted."""
    last = places[clips[-1].index]
    begin = frames.times[last.start] if isinstance(last, slice) else clips[-1].start or 0.0
    end = begin + (clips[-1].num_rows - 1) * period
    surplus = round((frames.times[-1] - end) / period)
    if surplus == 0 or surplus > len(clips):  # many: of a take, or of episodes that nobody lists
        return dict(places)

    def begins_there(place: Place) -> bool:
        if isinstance(place, str):
            return False
        first, key = place.start, frames.is_key
        behind = key[first + 1 : first + 1 + surplus]
        beside = behind if surplus > 0 else key[max(0, first + surplus) : first]
        return bool(key[first]) and not beside.any()

    begins = [begins_there(places[clip.index]) for clip in clips]
    ends = [*begins[1:], surplus < 0]  # where frames are lost, the last one is short
    doubt = (
        f"it holds {_counts(frames, clips)}, and which one has too "
        f"{'few' if surplus < 0 else 'many'} is not known"
    )
    return {
        clip.index: doubt
        if isinstance(places[clip.index], slice) and not (begin and end)
        else places[clip.index]
        for clip, begin, end in zip(clips, begins, ends, strict=True)
    }


def _counts(frames: FrameIndex, clips: Sequence[Clip]) -> str:
    num_rows = sum(clip.num_rows for clip in clips)
    return f"{len(frames.times)} frames for {num_rows} rows of {len(clips)} episode(s)"
