"""Downsampling from a source's rate to the control rate, keeping the time alignment.

With factor ``f`` the kept steps are the source's rows ``0, f, 2f, …``. What happens between two
kept observations belongs to the first of them: rows ``[t·f, (t+1)·f)`` give the action (aggregated
as the recipe says), the reward (summed) and the termination (any) of kept step ``t``. ``stack``
keeps all ``f`` actions, in order and side by side: an action chunk.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import RecipeError

Aggregation = Literal["last", "first", "mean", "sum", "stack"]

MOST_ROWS = 10_000
"""Rows of a source that can make one step."""
MOST_STACKED = 4096
"""Numbers that one action can hold: as many as a reader takes in a row."""


@dataclass(frozen=True, kw_only=True)
class Signals:
    """The numbers of one episode: all that is recorded beside pictures.

    Attributes:
        action: ``(T, action_dim)`` float32 or int64.
        state: ``(T, state_dim)`` float32, or None.
        reward: ``(T,)`` float32, or None.
        terminated: ``(T,)`` bool.
        task_state: ``(T, task_state_dim)`` float32, or None.
    """

    action: NDArray[Any]
    state: NDArray[np.float32] | None
    reward: NDArray[np.float32] | None
    terminated: NDArray[np.bool_]
    task_state: NDArray[np.float32] | None = None

    def beginning_at(self, row: int) -> "Signals":
        """Return these signals without the rows before ``row``."""
        arrays = {name: array for name, array in vars(self).items() if array is not None}
        return replace(self, **{name: array[row:] for name, array in arrays.items()})


def downsampling_factor(source_rate: float, control_rate: float) -> int:
    """Return the number of rows of the source that make one step.

    Raises:
        RecipeError: The source's rate is not a whole multiple, or an absurd one, of the control
            rate.
    """
    ratio = source_rate / control_rate
    factor = round(min(ratio, 2.0 * MOST_ROWS))
    if not 1 <= factor <= MOST_ROWS or not math.isclose(ratio, factor, rel_tol=1e-6):
        whole = ", ".join(f"{source_rate / n:g}" for n in (1, 2, 3, 5))
        raise RecipeError(
            f"control_rate {control_rate:g} Hz does not divide the source's {source_rate:g} Hz "
            f"(ratio {ratio:.4g}); possible are {whole}, …"
        )
    return factor


def actions_per_step(factor: int, aggregation: Aggregation) -> int:
    """Number of the source's actions that an action of the result holds."""
    return factor if aggregation == "stack" else 1


def stacked_names(names: Sequence[str], num_actions: int) -> tuple[str, ...]:
    """Names of the dimensions of so many actions side by side: ``x@0, y@0, x@1, …``.

    Args:
        names: Of one action; may be empty.
        num_actions: Actions side by side; the names of one stay as they are.
    """
    if num_actions == 1:
        return tuple(names)
    return tuple(f"{name}@{index}" for index in range(num_actions) for name in names)


def downsample(signals: Signals, factor: int, aggregation: Aggregation) -> Signals:
    """Keep every ``factor``-th step; the last kept step gets no action, reward or termination.

    Args:
        signals: ``T`` rows of the source, ``T >= 1``.
        factor: Rows per step, ``>= 1``.
        aggregation: How the actions of one step become one.

    Returns:
        ``ceil(T / factor)`` steps.

    Raises:
        RecipeError: ``mean`` or ``sum`` of discrete actions, or ``stack`` makes one too large.
    """
    action, (_, size) = signals.action, signals.action.shape
    discrete = np.issubdtype(action.dtype, np.integer)
    if discrete and factor > 1 and aggregation in ("mean", "sum"):
        raise RecipeError(
            f"action_aggregation: {aggregation} makes no sense for discrete actions; "
            "use last, first or stack"
        )
    if aggregation == "stack" and factor * size > MOST_STACKED:
        raise RecipeError(
            f"action_aggregation: stack makes actions of {factor:,} × {size:,} numbers, at most "
            f"{MOST_STACKED:,} are allowed; set a higher control_rate, or another aggregation"
        )
    num_steps = math.ceil(len(action) / factor)
    # The rows of all kept steps but the last.
    used = (num_steps - 1) * factor
    grouped = action[:used].reshape(num_steps - 1, factor, size)
    new_action = np.zeros((num_steps, size * actions_per_step(factor, aggregation)), action.dtype)
    if aggregation == "stack":
        new_action[:-1] = grouped.reshape(num_steps - 1, factor * size)
    elif aggregation in ("mean", "sum"):
        new_action[:-1] = getattr(grouped, aggregation)(axis=1, dtype=np.float64)
    else:
        new_action[:-1] = grouped[:, 0 if aggregation == "first" else -1]
    terminated = np.zeros(num_steps, dtype=np.bool_)
    terminated[:-1] = signals.terminated[:used].reshape(-1, factor).any(axis=1)
    reward = None
    if signals.reward is not None:
        reward = np.zeros(num_steps, dtype=np.float32)
        reward[:-1] = signals.reward[:used].reshape(-1, factor).sum(axis=1, dtype=np.float64)
    task_state = signals.task_state
    return Signals(
        action=new_action,
        state=None if signals.state is None else signals.state[::factor],
        reward=reward,
        terminated=terminated,
        task_state=None if task_state is None else task_state[::factor],
    )
