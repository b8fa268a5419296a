"""Recorded steps to start imagining from, with what was done and seen from there on."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.readers.base import recording_of
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import is_whole, shown

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Start:
    """One place to start from.

    Attributes:
        key: Episode.
        first_step: Step of the episode that is the first of the context.
    """

    key: str
    first_step: int


@dataclass(frozen=True, kw_only=True)
class Starts:
    """All places to start from, episode by episode.

    Attributes:
        rows: Every start; those of one episode are neighbours.
        skipped: Key → number of steps of each episode that is too short, and so is not measured.
    """

    rows: tuple[Start, ...]
    skipped: dict[str, int]

    @property
    def keys(self) -> tuple[str, ...]:
        """Episodes that are measured, in order."""
        return tuple(dict.fromkeys(row.key for row in self.rows))


def choose_starts(
    reader: ShardReader,
    split: str,
    *,
    num_steps: int,
    num_starts: int,
    max_episodes: int | None = None,
) -> Starts:
    """Spread starts evenly over every episode of a split; the last ends at the episode's last step.

    Args:
        reader: Dataset.
        split: Split whose episodes to take.
        num_steps: Steps that a start needs: context and horizon together.
        num_starts: Starts per episode; fewer where the episode has no more distinct ones.
        max_episodes: Measure only that many, evenly spread over the split; None for all.

    Raises:
        TokenwmError: No episode is long enough.
    """
    lengths = {key: reader.episode(key).num_steps for key in recordings(reader.keys(split))}
    skipped = {key: length for key, length in lengths.items() if length < num_steps}
    keys = [key for key in lengths if key not in skipped]
    if not keys:
        raise TokenwmError(
            f"no episode of split {split!r} in {reader.root} has {num_steps} steps (context + "
            f"horizon); the longest has {max(lengths.values(), default=0)}; use a shorter context "
            "or horizon"
        )
    if skipped:
        logger.warning(
            "%d of %d episodes of split %s are shorter than %d steps and are not measured: %s",
            len(skipped),
            len(lengths),
            split,
            num_steps,
            ", ".join(list(skipped)[:5]),
        )
    if max_episodes is not None and len(keys) > max_episodes:
        keys = [keys[index] for index in spread(len(keys), max_episodes)]
    rows = []
    for key in keys:
        for first_step in spread(lengths[key] - num_steps + 1, num_starts):
            rows.append(Start(key=key, first_step=first_step))
    return Starts(rows=tuple(rows), skipped=skipped)


def recordings(keys: Sequence[str]) -> list[str]:
    """Episodes, each recording once: its other phases (``all_phases``) are no further evidence."""
    known = set(keys)
    return [key for key in keys if recording_of(key) == key or recording_of(key) not in known]


def spread(size: int, count: int) -> list[int]:
    """At most ``count`` distinct numbers evenly spread over [0, size), ends included; 1: middle."""
    if count == 1:
        return [(size - 1) // 2]
    return sorted({round(value) for value in np.linspace(0, size - 1, count)})


def choose_split(manifest: Manifest, split: str) -> str:
    """The split to measure: the one asked for, or ``val`` where there is no ``test``.

    Raises:
        TokenwmError: The split is unknown or has no episodes.
    """
    if split not in SPLITS:
        raise TokenwmError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if manifest.num_episodes(split):
        return split
    if split == "test" and manifest.num_episodes("val"):
        logger.warning("%s has no test episodes; measuring on val instead", manifest.name)
        return "val"
    counts = {name: manifest.num_episodes(name) for name in SPLITS}
    raise TokenwmError(
        f"{manifest.name} has no episodes in split {split!r} (episodes: {counts}); "
        "choose another split, or prepare the data with another `splits` in the recipe"
    )


@dataclass(frozen=True, kw_only=True, repr=False)
class RecordedStarts:
    """Recorded starts: ``C`` observed steps of ``B`` rows, and the ``H`` steps that followed.

    Attributes:
        reader: The dataset.
        rows: Episode and first step of each row.
        num_context: ``C``.
        horizon: ``H``; 0 if what followed is not wanted.
        frames: ``(B, F, cameras, height, width, 3)`` uint8: of the context, or of all steps.
        action: ``(B, C + H, A)`` in the units of the data.
        state: ``(B, C + H, state_dim)``, or None if none was recorded.
        reward: ``(B, C + H)``, or None if none was recorded.
        terminated: ``(B, C + H)`` bool.
    """

    reader: ShardReader
    rows: tuple[Start, ...]
    num_context: int
    horizon: int
    frames: Tensor
    action: NDArray[np.generic]
    state: NDArray[np.float32] | None
    reward: NDArray[np.float32] | None
    terminated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        parts = ["actions"]
        parts += [name for name in ("state", "reward") if getattr(self, name) is not None]
        return (
            f"RecordedStarts({len(self)} row(s) of {self.num_context} step(s) and {self.horizon} "
            f"that followed, from {self.reader.root}; frames, {', '.join(parts)})"
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """Episode of each row."""
        return tuple(row.key for row in self.rows)

    @property
    def first_steps(self) -> tuple[int, ...]:
        """Step of the episode that is the first of each row's context."""
        return tuple(row.first_step for row in self.rows)

    @property
    def future_actions(self) -> NDArray[np.generic]:
        """``(B, H, A)``, what was done from the last observed step on, in the units of the data."""
        first = self.num_context - 1
        return self.action[:, first : first + self.horizon]

    @property
    def future_frames(self) -> Tensor:
        """``(B, H, cameras, height, width, 3)`` uint8, what was seen then.

        Read when asked for, unless they were read with the context.
        """
        if self.frames.shape[1] > self.num_context or not self.horizon:
            return self.frames[:, self.num_context :]
        return _read_frames(self.reader, self.rows, self.num_context, self.horizon)

    def context(self, model: TokenWorldModel) -> Context:
        """The observed steps, tokenized, for a model to imagine from.

        Raises:
            TokenwmError: The dataset does not fit the model.
        """
        check_data_fits(model, self.reader)
        steps = slice(self.num_context)
        states = None if model.vocabulary.state is None else self.state
        return model.context(
            self.frames[:, steps],
            self.action[:, : self.num_context - 1],
            None if states is None else states[:, steps],
        )


def recorded_starts(
    root: Path | str,
    split: str = "test",
    count: int = 64,
    context: int = 4,
    *,
    horizon: int = 20,
) -> RecordedStarts:
    """Read recorded steps to start imagining from, evenly spread over the episodes of a split.

    ::

        starts = tokenwm.starts("runs/quickstart/frames", count=64, context=4)
        rollout = model.imagine(starts.context(model), starts.future_actions)

    Args:
        root: Dataset that ``tokenwm prepare`` wrote: a folder or a URL.
        split: Split whose episodes to take; ``val`` where there is no ``test``.
        count: ``B``, rows; fewer, with a warning, if there are no more places to start from.
        context: ``C``, observed steps of each.
        horizon: ``H``, steps that followed; 0 if only the context is wanted.

    Raises:
        TokenwmError: There is no such split, no episode is long enough, a number is out of range,
            or the dataset holds tokens and not frames.
        ShardError: There is no dataset, or it is damaged.
    """
    if not (is_whole(count) and is_whole(context) and is_whole(horizon, least=0)):
        raise TokenwmError(
            f"count={shown(count)}, context={shown(context)}, horizon={shown(horizon)}: use whole "
            "numbers, at least 1, 1 and 0"
        )
    reader = ShardReader(root)
    if reader.manifest.kind != "frames":
        raise TokenwmError(
            f"{root} holds {reader.manifest.kind} shards; give the folder of frames that 'tokenwm "
            "prepare' wrote"
        )
    split = choose_split(reader.manifest, split)
    steps = context + horizon
    rows = choose_starts(reader, split, num_steps=steps, num_starts=count, max_episodes=count).rows
    if len(rows) < count:
        logger.warning(
            "split %s of %s has %d places to start from, not %d: its episodes have few more than "
            "the %d steps of context and horizon",
            *(split, root, len(rows), count, steps),
        )
    chosen = [rows[index] for index in spread(len(rows), count)] if len(rows) > count else rows
    return load_starts(reader, chosen, context, horizon)


def load_starts(
    reader: ShardReader,
    rows: Sequence[Start],
    num_context: int,
    horizon: int,
    *,
    with_future_frames: bool = False,
) -> RecordedStarts:
    """Read ``num_context + horizon`` recorded steps from each start on."""
    known = ("action", "terminated", "state", "reward")
    names = [name for name in known if name in reader.manifest.features]
    spans = [
        (row.key, names, row.first_step, row.first_step + num_context + horizon) for row in rows
    ]
    recorded = [reader.arrays(*span) for span in spans]
    stacked = {name: np.stack([arrays[name] for arrays in recorded]) for name in names}
    num_frames = num_context + (horizon if with_future_frames else 0)
    return RecordedStarts(
        reader=reader,
        rows=tuple(rows),
        num_context=num_context,
        horizon=horizon,
        frames=_read_frames(reader, rows, 0, num_frames),
        action=stacked["action"],
        state=stacked.get("state"),
        reward=stacked.get("reward"),
        terminated=stacked["terminated"],
    )


def _read_frames(reader: ShardReader, rows: Sequence[Start], first: int, count: int) -> Tensor:
    """``(B, count, cameras, H, W, 3)``, from the first-th step of each row on."""
    spans = [(row.key, row.first_step + first, row.first_step + first + count) for row in rows]
    return torch.from_numpy(np.stack([reader.frames(*span) for span in spans]))
