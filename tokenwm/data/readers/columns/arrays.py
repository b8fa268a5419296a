"""Rules shared by the formats that hold plain arrays: HDF5, NPZ and tables.

None of them says which array holds pictures and few say how many rows a second has.
"""

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.columns.columns import Column, RecordedConfig
from tokenwm.data.readers.pictures.pixels import SMALLEST_PICTURE, picture_shape, why_no_pictures
from tokenwm.errors import EpisodeError, RecipeError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_ROWS = 10**6
"""Most rows of an episode: nine hours at 30 Hz. A small file can claim any number."""
SMALLEST_RATE, LARGEST_RATE = 0.001, 100_000.0
"""Hz; no recorder has less or more."""
MAX_NUMBERS = 2**26
"""Most numbers of one array over one episode."""
MAX_WIDTH = 4096
"""Numbers in a row beyond which an array of several axes is no state."""
FREE_BYTES, MAX_EXPANSION = 64 * 2**20, 2000
"""Bytes, and multiple of the stored bytes, that a file may claim: deflate reaches 1,032."""
LOOKED_AT = 8
"""Episodes of which columns are taken, so that one odd episode does not decide for all."""
SMALLEST_FLAT_PICTURE = 3 * SMALLEST_PICTURE**2
PICTURED = re.compile("image|rgb|depth|pixel|camera")
"""In the name of a column that holds pictures, even if its rows are flat."""


@dataclass(frozen=True, kw_only=True)
class RatedConfig(RecordedConfig):
    """Options of the readers whose format need not record a rate.

    Attributes:
        rate: Rows per second of the source, Hz; null takes what the source says, and if it says
            nothing, every row is one step.
    """

    rate: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rate is not None and not 0 < self.rate <= LARGEST_RATE:
            raise RecipeError(
                f"rate is {self.rate}; expected Hz > 0, at most {LARGEST_RATE:,.0f}, or null"
            )

    def rows_per_second(self, recorded: float | None, where: str) -> float | None:
        """The rate of the source: as it says itself, else as the recipe says.

        Args:
            recorded: What the source says, Hz; None if nothing.
            where: The source, for messages.

        Raises:
            RecipeError: The two differ.
        """
        recorded = plausible_rate(recorded)
        if recorded is None and self.rate is None:
            logger.warning(
                "%s does not record how many rows a second has: every row becomes one step at "
                "control_rate; to have rows left out, set source.rate to the rows per second",
                where,
            )
        elif None not in (recorded, self.rate) and recorded != self.rate:
            raise RecipeError(
                f"source.rate is {self.rate:g} Hz, and {where} says {recorded:g} Hz; leave it out"
            )
        return self.rate if recorded is None else recorded


def plausible_rate(rate: float | None) -> float | None:
    """A rate that a source states, Hz; None for what can be no rate."""
    if rate is None or not SMALLEST_RATE <= rate <= LARGEST_RATE:
        return None
    return float(rate)


def column_of(dtype: np.dtype[Any], row_shape: tuple[int, ...], name: str) -> Column:
    """Column that an array makes, from its type, the shape of one row, and its name.

    What has the shape of a picture is one, or of no use to us; never numbers. Neither are text,
    maps of numbers, and rows so wide that they can only be flattened pictures.
    """

    def column(kind: Literal["numbers", "pictures", "other"], note: str = "") -> Column:
        return Column(kind=kind, dtype=str(dtype), shape=row_shape or (1,), note=note)

    pictured = PICTURED.search(name.lower())
    if dtype.kind in "SUO":
        return column(
            "other", "text or bytes: encoded pictures? they are not read" if pictured else ""
        )
    if dtype.kind not in "biuf":
        return column("other", f"of type {dtype}")
    if 0 in row_shape:
        return column("other", f"empty, rows of shape {row_shape}")
    shape = picture_shape(row_shape)
    if shape is not None:
        reason = why_no_pictures(dtype, shape, name)
        return column("other", reason) if reason else column("pictures")
    width = math.prod(row_shape)
    if sum(size >= SMALLEST_PICTURE for size in row_shape) > 1:
        return column("other", f"a map of shape {row_shape}, neither a picture nor a vector")
    if len(row_shape) > 1 and width > MAX_WIDTH:
        return column("other", f"{width:,} numbers a row; a state has at most {MAX_WIDTH:,}")
    if width >= SMALLEST_FLAT_PICTURE and (dtype.kind in "iu" or pictured):
        return column(
            "other", f"{width:,} {dtype} a row: a flattened picture? its shape is not said"
        )
    return column("numbers")


def check_claims(shape: tuple[int, ...], where: str) -> None:
    """Check the size that a file claims for an array of numbers, before memory is taken for it.

    Raises:
        EpisodeError: It is absurd, or it has no rows at all.
    """
    if not shape or shape[0] > MAX_ROWS or math.prod(shape) > MAX_NUMBERS:
        raise EpisodeError(
            f"{where} claims the shape {shape}; expected at most {MAX_ROWS:,} rows and "
            f"{MAX_NUMBERS:,} numbers"
        )


def check_expansion(claimed: int, stored: int, where: str, free: int = FREE_BYTES) -> None:
    """Check how many bytes a file makes of those it holds, before memory is taken for them.

    Args:
        claimed: Bytes that it makes of them.
        stored: Bytes that it holds.
        where: The file, for messages.
        free: Bytes that are believed of any file.

    Raises:
        EpisodeError: They are so many that the claim must be wrong.
    """
    most = free + MAX_EXPANSION * stored
    if claimed > most:
        raise EpisodeError(
            f"{where} claims {claimed:,} bytes, of which the file holds {stored:,}; at most "
            f"{most:,} are believed. If it is right, store it without compression"
        )


def spread(items: Sequence[Item]) -> list[Item]:
    """The first item, and some others evenly spread behind it; at most :data:`LOOKED_AT`."""
    places = np.linspace(0, len(items) - 1, min(LOOKED_AT, len(items))).round().astype(int)
    return [items[place] for place in places]


def usual_columns(of_episodes: Sequence[Mapping[str, Column]]) -> dict[str, Column]:
    """The columns that at least half of some episodes have, each as most of them have it.

    Where several descriptions are as frequent, the first one is taken.
    """
    found: dict[str, list[Column]] = {}
    for columns in of_episodes:
        for name, column in columns.items():
            found.setdefault(name, []).append(column)
    return {
        name: max(columns, key=columns.count)
        for name, columns in found.items()
        if 2 * len(columns) >= len(of_episodes)
    }


def as_numbers(values: NDArray[Any], num_rows: int | None, where: str) -> NDArray[Any]:
    """Rows of numbers, ``(N, width)``, in their own type.

    Raises:
        EpisodeError: It is something else, or has another number of rows.
    """
    if values.ndim == 0 or values.dtype.kind not in "biuf":
        raise EpisodeError(f"{where} is {values.dtype}{values.shape}; expected rows of numbers")
    if num_rows is not None and len(values) != num_rows:
        raise EpisodeError(f"{where} has {len(values)} rows; expected {num_rows}")
    return values.reshape(len(values), math.prod(values.shape[1:]))
