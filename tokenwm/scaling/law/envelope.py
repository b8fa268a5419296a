"""Approach 1: the lower envelope of loss over compute, and lines through the runs on it."""

from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.estimate import Draws, Estimate
from tokenwm.scaling.law.lines import Line, resampled_counts, weighted_line
from tokenwm.scaling.law.select import Observations, num_distinct

LEAST_RUNS = 4
LEAST_SIZES = 3


@dataclass(frozen=True, kw_only=True)
class EnvelopeFit:
    """Runs that no run of less compute beats, and lines through them.

    Attributes:
        members: Their indices, by rising compute.
        size: Line of log N over log C; None if there are too few.
        loss: Line of log loss over log C. It has no floor, so far away it is too low.
        exponent: Slope of ``size``.
        reason: Why there is no line; empty if there is.
    """

    members: tuple[int, ...]
    size: Line | None = None
    loss: Line | None = None
    exponent: Estimate | None = None
    reason: str = ""


def fit_envelope(seen: Observations, draws: Draws) -> EnvelopeFit:
    """Find the envelope and fit lines; intervals come from drawing its runs with replacement.

    The envelope goes from grid point to grid point, so its optimum is only as fine as the grid.
    """
    members = envelope(seen)
    chosen = list(members)
    log_n, log_c = seen.log_n[chosen], seen.log_c[chosen]
    if len(members) < LEAST_RUNS or num_distinct(log_n) < LEAST_SIZES:
        reason = (
            f"the envelope has {len(members)} runs of {num_distinct(log_n)} sizes; "
            f"{LEAST_RUNS} runs of {LEAST_SIZES} sizes are needed"
        )
        return EnvelopeFit(members=members, reason=reason)
    counts = resampled_counts(np.random.default_rng(draws.seed), draws, len(members))
    size = weighted_line(log_c, log_n, counts)
    return EnvelopeFit(
        members=members,
        size=size,
        loss=weighted_line(log_c, seen.log_loss[chosen], counts),
        exponent=Estimate.of(size.slope, size.replicates[:, 1], draws.confidence),
    )


def envelope(seen: Observations) -> tuple[int, ...]:
    """Indices of the runs with less loss than every run of no more compute, by rising compute."""
    members: list[int] = []
    lowest = np.inf
    # Rounded, since equal compute need not be equal to the last bit.
    for index in np.lexsort((seen.log_loss, seen.log_c.round(9))):
        if seen.log_loss[index] < lowest:
            members.append(int(index))
            lowest = seen.log_loss[index]
    return tuple(members)
