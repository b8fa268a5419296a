"""Intervals by draws of whole episodes, for tools that try several things in each."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

DRAWS = 2000

Record = dict[str, Any]


def interval(
    records: Sequence[Record], figure: Callable[[Sequence[Record]], float]
) -> dict[str, float]:
    """A figure with its 95 % interval: attempts in one episode are not independent.

    Args:
        records: Attempts, each with the ``key`` of its episode.
        figure: Of some of them; NaN where they do not tell.
    """
    keys = [record["key"] for record in records]
    groups = [[r for r in records if r["key"] == key] for key in dict.fromkeys(keys)]
    generator = np.random.default_rng(0)
    drawn = [
        figure([record for group in choice for record in groups[group]])
        for choice in generator.integers(len(groups), size=(DRAWS, len(groups)))
    ]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return {"value": figure(records), "low": float(low), "high": float(high)}


def mean_of(value: Callable[[Record], float]) -> Callable[[Sequence[Record]], float]:
    """The mean of a value over records."""
    return lambda records: float(np.mean([value(record) for record in records]))
