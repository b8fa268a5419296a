"""What the formats that hold plain arrays share: HDF5, NPZ and tables.

None of them says which array holds pictures and few say how many rows a second has.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.sources.columns import Column, RecordedConfig
from tokenwm.errors import EpisodeError, RecipeError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_ROWS = 10**6
"""Of one episode: nine hours at 30 Hz. A small file can claim any number of rows."""
MAX_NUMBERS = 2**26
"""Of one array of numbers over one episode."""
MAX_WIDTH = 4096
"""Numbers in a row from which on an array of several axes is a map (depth), not a state."""
FREE_BYTES, MAX_EXPANSION = 64 * 2**20, 2000
"""What a file may claim beyond what it holds: deflate makes 1 byte of 1,032 at most."""
LOOKED_AT = 8
"""Episodes of which columns are taken, so that one odd episode does not decide for all."""
SMALLEST_PICTURE = 8
"""Pixels; a smaller array of bytes is no picture."""


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
        if self.rate is not None and not 0 < self.rate < math.inf:
            raise RecipeError(f"rate is {self.rate}; expected Hz > 0, or null")

    def rows_per_second(self, recorded: float | None, where: str) -> float | None:
        """The rate of the source: as it says itself, else as the recipe says.

        Args:
            recorded: What the source says, Hz; None if nothing.
            where: The source, for messages.

        Raises:
            RecipeError: The two differ.
        """
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


def column_of(dtype: np.dtype[Any], row_shape: tuple[int, ...]) -> Column:
    """What an array is, from its type and the shape of one row.

    Bytes of shape ``(H, W, 3)``, ``(H, W, 1)`` or ``(H, W)`` are pictures, other numbers are
    numbers. Text, and maps of numbers such as depth, are of no use to us.
    """
    pictures = (
        dtype == np.uint8
        and len(row_shape) in (2, 3)
        and row_shape[2:] in ((), (1,), (3,))
        and min(row_shape[:2]) >= SMALLEST_PICTURE
    )
    is_map = len(row_shape) > 1 and math.prod(row_shape) > MAX_WIDTH
    numbers = dtype.kind in "biuf" and not is_map and 0 not in row_shape
    return Column(
        kind="pictures" if pictures else "numbers" if numbers else "other",
        dtype=str(dtype),
        shape=row_shape or (1,),
    )


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
