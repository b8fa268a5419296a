"""Errors of imagined frames in the units of the task: where the object was imagined to be.

A readout (:mod:`tokenwm.heads.readout`) tells the task state off frames. Its own error on true
frames is the floor below which nothing can be seen.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.shards.manifest import Feature, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import (
    CONFIDENCE,
    MIN_EPISODES,
    Curve,
    FloatArray,
    GainCurve,
    gain_curve,
    interval_curve,
)
from tokenwm.heads.readout import FIELD, FULL_TURN, Readout, TaskStateCode
from tokenwm.imagination.starts import Start

KINDS = ("model", "persistence", "persistence_read", "reconstruction", "floor")
"""Guesses of the task state: read off the imagined frame, the true one of the last observed step,
read off the last observed frame, off the true frame through the tokenizer, off the true frame."""
READ = ("model", "reconstruction", "floor")
"""Guesses that are read off pictures of their name at every horizon; ``floor`` are true ones."""
MOVED_SHARE, MOVED_DEGREES = 0.1, 15.0
"""An object has moved if it is off by more than this share of its standard deviation over the
training data, or turned by more than so many degrees."""
RESAMPLES = 1000
"""Draws of episodes for the interval of a median."""


@dataclass(frozen=True, kw_only=True)
class TaskStateErrors:
    """Errors of the task state, over the starts in which the object moves.

    A quantity is one place (``NAME_x`` and ``NAME_y``: Euclidean distance), one angle (degrees) or
    one other dimension (absolute error). The first one, and those whose names begin with the same
    word, are the object.

    Attributes:
        units: Quantity → its unit.
        moved_beyond: Quantity of the object → error of persistence at the last horizon beyond which
            the object has moved in a start, in its unit.
        num_moved: Starts in which it has moved, by any of these; all figures are of them.
        num_moved_episodes: Their episodes.
        median: Quantity → entry of ``KINDS`` → median over starts, with an interval over episodes.
        mean: Quantity → entry of ``KINDS`` → mean over episodes.
        gain: Paired difference of ``persistence`` and ``model`` in the mean of the first quantity,
            over *all* starts: an object that is imagined to move and does not counts, too.
    """

    units: Mapping[str, str]
    moved_beyond: Mapping[str, float]
    num_moved: int
    num_moved_episodes: int
    median: Mapping[str, Mapping[str, Curve]]
    mean: Mapping[str, Mapping[str, Curve]]
    gain: GainCurve


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """Part of a task state that has one error: a place, an angle or a number.

    Attributes:
        name: Its name.
        unit: Unit of its error.
        dimensions: Its dimensions in the task state.
        turn: A full turn in the units of the data; 0 of what is no angle.
    """

    name: str
    unit: str
    dimensions: tuple[int, ...]
    turn: float = 0.0

    def error(self, guess: FloatArray, truth: FloatArray) -> FloatArray:
        """``(..., D)`` and ``(..., D)`` → ``(...)``, at least 0, in its unit."""
        off = guess[..., list(self.dimensions)] - truth[..., list(self.dimensions)]
        if self.turn:
            off = (off + self.turn / 2.0) % self.turn - self.turn / 2.0
            off = off * (360.0 / self.turn)
        return np.asarray(np.linalg.norm(off, axis=-1))


def quantities_of(names: Sequence[str], units: Sequence[str]) -> tuple[Quantity, ...]:
    """The quantities of a task state, in the order of their first dimensions."""
    found: dict[str, Quantity] = {}
    for index, (name, unit) in enumerate(zip(names, units, strict=True)):
        stem, _, axis = name.rpartition("_")
        is_axis = axis in ("x", "y", "z") and unit not in FULL_TURN
        if stem and is_axis and {f"{stem}_x", f"{stem}_y"} <= set(names):
            known = found[stem].dimensions if stem in found else ()
            found[stem] = Quantity(name=stem, unit=unit, dimensions=(*known, index))
        elif unit in FULL_TURN:
            turn = FULL_TURN[unit]
            found[name] = Quantity(name=name, unit="deg", dimensions=(index,), turn=turn)
        else:
            found[name] = Quantity(name=name, unit=unit, dimensions=(index,))
    return tuple(found.values())


class TaskStateReadings:
    """Task states of all rows: the true ones, and those that are read off pictures as they come.

    Attributes:
        tables: ``truth`` and entries of ``KINDS`` → ``(rows, H, D)``.
    """

    def __init__(
        self,
        readout: Readout,
        reader: ShardReader,
        rows: Sequence[Start],
        num_context: int,
        horizon: int,
    ) -> None:
        self.readout = readout
        true = np.stack(
            [
                reader.arrays(
                    row.key,
                    [FIELD],
                    row.first_step + num_context - 1,
                    row.first_step + num_context + horizon,
                )[FIELD]
                for row in rows
            ]
        ).astype(np.float64)
        self.tables = {kind: np.full(true[:, 1:].shape, np.nan) for kind in KINDS}
        self.tables["persistence"][:] = true[:, :1]
        self.tables["truth"] = true[:, 1:]

    def add_observed(self, frames: Tensor, numbers: NDArray[np.int64]) -> None:
        """Read the last observed frames ``(B, cameras, H, W, 3)`` uint8 of some rows."""
        self.tables["persistence_read"][numbers] = self.readout.read(frames)[:, None]

    def add(self, pictures: Mapping[str, Tensor], numbers: NDArray[np.int64], index: int) -> None:
        """Read pictures ``(B, cameras, H, W, 3)`` uint8 of some rows at a horizon, by name."""
        for name in READ:
            self.tables[name][numbers, index] = self.readout.read(pictures[name])


def summarize_task_state(
    manifests: Sequence[Manifest], tables: Mapping[str, FloatArray], keys: Sequence[str]
) -> TaskStateErrors | None:
    """Readings of all rows → figures over episodes.

    Args:
        manifests: The dataset of each row.
        tables: As :class:`TaskStateReadings` has them; may be empty.
        keys: Episode of each row.

    Returns:
        None if nothing was read.
    """
    if not tables:
        return None
    feature: Feature = manifests[0].features[FIELD]
    code = TaskStateCode.of(feature, manifests[0].statistics[FIELD])
    quantities = quantities_of(code.names, code.units)
    errors = {
        quantity.name: {k: quantity.error(tables[k], tables["truth"]) for k in KINDS}
        for quantity in quantities
    }
    word = quantities[0].name.partition("_")[0]
    spread = np.asarray(manifests[0].statistics[FIELD]["std"], dtype=np.float64)
    beyond = {
        quantity.name: MOVED_DEGREES
        if quantity.turn
        else MOVED_SHARE * float(np.linalg.norm(spread[list(quantity.dimensions)]))
        for quantity in quantities
        if quantity.name.partition("_")[0] == word
    }
    last = {name: errors[name]["persistence"][:, -1] for name in beyond}
    moved = np.any([last[name] > limit for name, limit in beyond.items()], axis=0)
    of_moved = [key for key, has in zip(keys, moved, strict=True) if has]
    groups = [np.flatnonzero([k == key for k in of_moved]) for key in dict.fromkeys(of_moved)]

    def over_episodes(values: FloatArray) -> FloatArray:
        return np.stack([values[moved][group].mean(axis=0) for group in groups])

    first = errors[quantities[0].name]
    better = first["persistence"] - first["model"]
    everywhere = [np.flatnonzero([k == key for k in keys]) for key in dict.fromkeys(keys)]
    return TaskStateErrors(
        units={quantity.name: quantity.unit for quantity in quantities},
        moved_beyond=beyond,
        num_moved=len(of_moved),
        num_moved_episodes=len(groups),
        median={
            name: {kind: median_curve(table[moved], groups) for kind, table in of_kind.items()}
            for name, of_kind in errors.items()
            if groups
        },
        mean={
            name: {kind: interval_curve(over_episodes(table)) for kind, table in of_kind.items()}
            for name, of_kind in errors.items()
            if groups
        },
        gain=gain_curve(np.stack([better[group].mean(axis=0) for group in everywhere])),
    )


def median_curve(values: FloatArray, groups: Sequence[NDArray[np.int64]]) -> Curve:
    """Median over rows at every horizon, with an interval from draws of whole episodes.

    Args:
        values: ``(rows, H)``.
        groups: The rows of each episode, at least one episode.

    Returns:
        ``mean`` is the median; no interval of fewer than ``MIN_EPISODES`` episodes.
    """
    middle = np.median(values, axis=0)
    if len(groups) < MIN_EPISODES:
        nothing = np.full(len(middle), np.nan)
        return Curve(mean=middle, low=nothing, high=nothing)
    generator = np.random.default_rng(0)
    drawn = np.stack(
        [
            np.median(values[np.concatenate([groups[i] for i in choice])], axis=0)
            for choice in generator.integers(len(groups), size=(RESAMPLES, len(groups)))
        ]
    )
    tail = (1.0 - CONFIDENCE) / 2.0
    low, high = np.quantile(drawn, [tail, 1.0 - tail], axis=0)
    return Curve(mean=middle, low=low, high=high)
