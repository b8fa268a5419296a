"""Limits proposed from recorded data: what the robot did there, and a margin."""

import numpy as np
from numpy.typing import NDArray

from tokenwm.control.limits import Limits, Range
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.starts import recordings, spread

QUANTILE = 0.999
"""Part of the recorded speeds and accelerations that a proposed limit holds without its margin."""
MARGIN = 0.1
"""Margin of a proposed limit: of the range of a position, or of the speed or acceleration."""
STILL = 0.01
"""Room of a dimension that never moved: of the median range of the others, or of its value."""
MOST_EPISODES = 200
"""Episodes whose actions are read, evenly spread over the training data."""


def propose_limits(reader: ShardReader, *, margin: float = MARGIN) -> Limits:
    """Limits within which nearly all of the training data lies, to look over and to give back.

    Positions: the range of the recorded commands, and the margin of it on both sides. Speed and
    acceleration: the :data:`QUANTILE` of their amounts, and the margin. No workspace is proposed:
    the data do not know what stands beside the robot.

    Args:
        reader: Frame shards, with real-valued actions.
        margin: 0 or more.

    Raises:
        TokenwmError: Actions are ids, which have no speed; there is no training episode; or the
            margin is below 0.
    """
    manifest = reader.manifest
    feature = manifest.features["action"]
    if feature.kind != "continuous":
        raise TokenwmError(f"{reader.root} has actions of kind {feature.kind}: ids have no limits")
    if not margin >= 0.0:
        raise TokenwmError(f"margin={margin}; use a share of the range, 0 or more")
    keys = recordings(reader.keys("train"))
    if not keys:
        raise TokenwmError(f"{reader.root} has no training episode to propose limits from")
    count = manifest.actions_per_step
    rate = manifest.control_rate * count
    actions = [
        reader.arrays(keys[index], ["action"])["action"][:-1]
        for index in spread(len(keys), min(len(keys), MOST_EPISODES))
    ]
    commands = [each.reshape(len(each) * count, -1).astype(np.float64) for each in actions]
    speeds = [np.diff(each, axis=0) * rate for each in commands]
    accelerations = [np.diff(each, axis=0) * rate for each in speeds]
    every = np.concatenate(commands)
    low, high = every.min(0), every.max(0)
    ranges = high - low
    moving = ranges[ranges > 0]
    typical = np.median(moving) if len(moving) else 1.0
    # What never moved has bins of its own width, and six digits round it: it is not one point.
    still = STILL * np.maximum(typical, np.abs(low))
    room = np.where(ranges > 0, margin * ranges, still)
    return Limits(
        rate=rate,
        position=tuple(map(_range, low - room, high + room)),
        speed=_most(speeds, margin),
        acceleration=_most(accelerations, margin),
        actions_per_step=count,
    )


def _range(low: float, high: float) -> Range:
    return _rounded(low), _rounded(high)


def _most(changes: list[NDArray[np.float64]], margin: float) -> tuple[float | None, ...]:
    """Largest usual amount of each dimension; None for one that never changes."""
    amounts = np.abs(np.concatenate(changes))
    if not len(amounts):
        return (None,) * int(amounts.shape[1])
    most: list[float] = ((1.0 + margin) * np.quantile(amounts, QUANTILE, axis=0)).tolist()
    return tuple(_rounded(value) if value > 0 else None for value in most)


def _rounded(value: float) -> float:
    """A number that people can read, to six digits."""
    return float(f"{value:.6g}")
