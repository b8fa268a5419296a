"""Decision whether actions are ids or quantities: one for a dataset, over all of its files.

Real numbers are quantities. Whole numbers can be either: ids (keys, buttons, moves of a game) or
quantities that a program counts in whole steps (encoder ticks, pixels). A recipe says which with
``source.action_kind``; with ``auto`` they are ids if they look so in more than three of four
episodes, and an episode that contradicts is left out with its reason.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import EpisodeError

Kind = Literal["continuous", "discrete"]
FEW_IDS = 256
"""Ids of a single column are below this; games and discretised controllers have fewer."""
FEW_IDS_BESIDE = 32
"""Limit of ids where several columns stand side by side: buttons have few, coordinates many."""
LARGEST_WHOLE = 2**53
"""Up to here a real number can be a whole one."""
DOUBTFUL = 4
"""Ids are quantities if one of so many episodes contradicts."""
REMEDY = "source.action_kind: continuous takes them as quantities"


@dataclass(frozen=True, kw_only=True)
class ActionKind:
    """Kind of the actions of a dataset, and what decided it.

    Attributes:
        kind: ``discrete`` (ids counted from 0) or ``continuous`` (quantities).
        why: The reason for the decision, in words.
    """

    kind: Kind
    why: str


def decide(actions: Iterable[tuple[str, NDArray[Any]]], num_episodes: int) -> ActionKind:
    """Decide from the values of all episodes.

    Args:
        actions: Key of each episode that can be read, with its actions ``(N, A)``; read no further
            than needed.
        num_episodes: Most episodes there may be.
    """
    num_seen, largest, contradicting = 0, 0, ""
    num_contradicting = 0
    for key, action in actions:
        if action.dtype.kind == "f":
            return ActionKind(kind="continuous", why=f"{key} holds real numbers")
        num_seen += 1
        reason = _why_no_ids(action)
        if reason:
            num_contradicting += 1
            contradicting = contradicting or f"{key} holds {reason}"
        elif action.size:
            largest = max(largest, int(action.max()))
        if num_contradicting * DOUBTFUL >= num_episodes:
            break
    if not num_seen:
        return ActionKind(kind="continuous", why="the actions of no episode can be read")
    # Episodes that cannot be read do not count.
    if num_contradicting and num_contradicting * DOUBTFUL >= num_seen:
        return ActionKind(kind="continuous", why=f"whole numbers, and {contradicting}")
    odd = f"; not in {num_contradicting} of {num_seen} ({contradicting})" if contradicting else ""
    return ActionKind(
        kind="discrete", why=f"whole numbers from 0 to {largest} in every episode read{odd}"
    )


def whole_where_possible(action: NDArray[Any], num_rows: int) -> NDArray[Any]:
    """The actions that lead to an observation; ids stored as floats for a NaN at the end are whole.

    Args:
        action: As recorded, ``(num_rows, A)`` or a row less.
        num_rows: Observations.
    """
    used = action[: num_rows - 1]
    nan_at_end = action.dtype.kind == "f" and np.isnan(action[num_rows - 1 :]).any()
    if nan_at_end and not (np.mod(used, 1) != 0).any():  # NaN counts as not whole
        return used.astype(np.int64)
    return used


def _why_no_ids(action: NDArray[Any]) -> str:
    if action.dtype.kind == "b" or not action.size:
        return ""
    limit = FEW_IDS if action.shape[1] == 1 else FEW_IDS_BESIDE
    if action.min() < 0:
        return f"{action.min()}"
    if action.max() >= limit:
        beside = "" if action.shape[1] == 1 else f" in {action.shape[1]} columns side by side"
        return f"{action.max()}, and ids{beside} are taken to be below {limit}"
    return ""


def as_decided(action: NDArray[Any], decision: ActionKind, where: str) -> NDArray[Any]:
    """Actions as real numbers, or as ids.

    Args:
        action: ``(N, A)`` as recorded.
        decision: The kind of the actions.
        where: Episode, for messages.

    Returns:
        ``(N, A)``, float or int64.

    Raises:
        EpisodeError: They are to be ids and are none.
    """
    if decision.kind == "continuous":
        return action if action.dtype.kind == "f" else action.astype(np.float64)
    # NaN fails all of these, but is reported as a missing value elsewhere.
    bad = ~((action >= 0) & (action <= LARGEST_WHOLE) & (np.mod(action, 1) == 0))
    if action.dtype.kind == "f":
        bad &= ~np.isnan(action)
    if action.dtype.kind != "b" and bad.any():
        row, column = map(int, np.argwhere(bad)[0])
        raise EpisodeError(
            f"{where}: action[{column}] is {action[row, column]:g} at row {row}; ids are whole "
            f"numbers from 0 on (actions are discrete: {decision.why}); {REMEDY}"
        )
    if action.dtype.kind == "f" and np.isnan(action).any():
        return action
    return action.astype(np.int64)
