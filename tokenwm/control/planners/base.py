"""Planners: what they are asked, what they answer, and the search that they have in common."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from tokenwm.control.objectives import Objective
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.memory import RowLimits
from tokenwm.imagination.pausing import finish, without_pause
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig, check_sampling
from tokenwm.imagination.stepped_world import SteppedWorld
from tokenwm.imagination.world import World
from tokenwm.shapes import is_number, is_whole, shown

State = TypeVar("State")

GREEDY = SamplingConfig(temperature=0.0)


class NoPlanError(TokenwmError):
    """No candidate has a finite score, so there is no plan."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A plan, and what is expected of it.

    Attributes:
        actions: ``(H, A)`` float32 in the units of the data, or int64 ids.
        expected_return: The objective's total, see :func:`~tokenwm.control.objectives.total`; the
            mean over noise streams if there are several.
        spread: Standard deviation of the total over the noise streams; None of a single one.
        doubt: Mean doubt over the steps; None if the world estimates none.
        num_rollouts: Futures that were imagined for it.
        seconds: Time it took.
        num_rounds: Rounds that the search had, or steps of a beam search.
        number: Plans before it that it was a warm start of, one after another.
        rollout: Its imagined future, one row.
        elites: ``(n, H, A)``, the best sequences that were found, best first.
    """

    actions: Tensor
    expected_return: float
    spread: float | None = None
    doubt: float | None = None
    num_rollouts: int = 0
    seconds: float = 0.0
    num_rounds: int = 1
    number: int = 0
    rollout: Rollout | None = field(default=None, repr=False)
    elites: Tensor | None = field(default=None, repr=False)

    def shifted(self, num_taken: int = 1, actions_per_step: int = 1) -> "Plan":
        """This plan after its first actions were taken, to start the next search with.

        The last action is repeated in place of those that are gone.

        Args:
            num_taken: Actions of the robot that were taken.
            actions_per_step: Actions of the robot that lie side by side in a step of the plan.

        Raises:
            TokenwmError: The number of actions is none.
        """
        if not is_whole(num_taken, least=0):
            raise TokenwmError(f"num_taken={shown(num_taken)}; use a whole number, at least 0")

        def shift(actions: Tensor) -> Tensor:
            *rows, num_steps, size = actions.shape
            robot = actions.reshape(*rows, num_steps * actions_per_step, -1)
            count = min(num_taken, robot.shape[-2])
            last = robot[..., -1:, :].expand(*rows, count, -1)
            moved = torch.cat([robot[..., count:, :], last], dim=-2)
            return moved.reshape(*rows, num_steps, size)

        elites = None if self.elites is None else shift(self.elites)
        return replace(self, actions=shift(self.actions), elites=elites)


class Planner(Protocol):
    """Chooses what to do in a world."""

    def plan(
        self, world: World[Any], state: Any, objective: Objective, warm: Plan | None = None
    ) -> Plan:
        """Look for actions whose imagined future the objective likes best.

        Args:
            world: The world.
            state: Where, one row; it is read and not used up.
            objective: What is wanted.
            warm: The plan before, moved on by the steps that were taken since
                (:meth:`Plan.shifted`); it is one of the candidates, and the search begins there.

        Raises:
            TokenwmError: The state has several rows, the objective does not fit the world, or no
                candidate has a finite score (:class:`NoPlanError`).
        """
        ...


@dataclass(frozen=True, kw_only=True)
class PlannerSettings:
    """Settings that all planners have.

    Attributes:
        horizon: ``H``, steps of the world that a plan has.
        num_elites: Best candidates of a round, that a next one is fitted to; and those that are
            tried again in the end, with ``num_noise_streams``.
        seconds: Time budget of a plan: there is always one round, and none begins that, if it took
            as long as the longest before it, would end later. None: no limit.
        seed: Of all draws; the same seed, state and warm start give the same plan.
        sampling: How outcomes of candidates are drawn; all candidates have the same luck.
        approximation: A fixed number of passes for candidates, for worlds that decode in passes;
            elites are tried again, exactly, in the end. None: candidates are as exact as the world.
        num_noise_streams: Futures, each with luck of its own, that every elite is judged by in the
            end; drawn at temperature 1 if ``sampling`` is greedy. 1: none is tried again.
        max_rows: Most candidates that are imagined at once. What does not fit into memory is done
            in parts anyway.
        clock: Gives the time, in seconds.
    """

    horizon: int = 5
    num_elites: int = 8
    seconds: float | None = None
    seed: int = 0
    sampling: SamplingConfig = GREEDY
    approximation: Approximation | None = None
    num_noise_streams: int = 1
    max_rows: int = sys.maxsize
    clock: Callable[[], float] = field(default=time.perf_counter, repr=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        self.check_counts("horizon", "num_elites", "num_noise_streams")
        if self.seconds is not None and (not is_number(self.seconds) or not self.seconds > 0.0):
            raise TokenwmError(f"seconds={shown(self.seconds)}; use a positive number, or None")
        if not is_whole(self.seed, least=0):
            raise TokenwmError(f"seed={shown(self.seed)}; use a whole number, at least 0")
        if self.max_rows < 1:
            raise TokenwmError(f"max_rows={shown(self.max_rows)}; use a whole number, at least 1")
        check_sampling(self.sampling)

    @property
    def tries_again(self) -> bool:
        """True if elites are tried again in the end."""
        return self.num_noise_streams > 1 or self.approximation is not None

    def check_counts(self, *names: str) -> None:
        """Check that settings are whole numbers, at least 1.

        Raises:
            TokenwmError: One is not.
        """
        for name in names:
            if not is_whole(getattr(self, name)):
                value = shown(getattr(self, name))
                raise TokenwmError(f"{name}={value}; use a whole number, at least 1")

    def check_range(self, name: str, low: float, high: float) -> None:
        """Check that a setting is a number in ``[low, high]``.

        Raises:
            TokenwmError: It is not.
        """
        value = getattr(self, name)
        if not is_number(value) or not low <= value <= high:
            raise TokenwmError(f"{name}={shown(value)}; use a number in [{low:g}, {high:g}]")


@contextmanager
def approximately(world: World[Any], approximation: Approximation | None) -> Iterator[None]:
    """Let a world decode in a fixed number of passes for a while; None: leave it as it is.

    Raises:
        TokenwmError: The world decodes in no passes.
    """
    if approximation is None:
        yield
        return
    if not isinstance(world, SteppedWorld):
        raise TokenwmError(f"{type(world).__name__} decodes in no passes; leave approximation out")
    before, world.approximation = world.approximation, approximation
    try:
        yield
    finally:
        world.approximation = before


def roll_candidates(
    world: World[State],
    state: State,
    candidates: Tensor,
    *,
    noise_streams: int | Tensor = 0,
    sampling: SamplingConfig | None = GREEDY,
    max_rows: int = sys.maxsize,
) -> Rollout:
    """Imagine candidates from one state; what was observed is read once.

    Args:
        world: The world.
        state: One row; it is not used up.
        candidates: ``(n, H, A)`` in the units of the data.
        noise_streams: Each candidate's stream, or one for all, which then have the same luck.
        sampling: Settings for drawing outcomes; greedy by default.
        max_rows: Most candidates at once. More than fit into memory are done in parts as well; the
            futures are the same.

    Returns:
        ``n`` rows.
    """
    own, own_state = cast(Any, (world, state))

    def roll(rows: slice) -> Rollout:
        part = candidates[rows]
        streams = noise_streams[rows] if isinstance(noise_streams, Tensor) else noise_streams
        if isinstance(own, SteppedWorld):
            return own.try_out(own_state, part, sampling, noise_streams=streams)
        fork = world.fork(state, len(part), part.shape[1], noise_streams=streams)
        return world.roll(fork, part, sampling)[1]

    limits: RowLimits = getattr(world, "limits", None) or RowLimits()
    num_steps = candidates.shape[1]
    parts = limits.in_parts(
        ("candidates", num_steps),
        f"candidates of {num_steps} steps",
        len(candidates),
        lambda rows: without_pause(partial(roll, rows)),
        getattr(world, "free_memory", lambda: False),
        min(max_rows, getattr(world, "max_rows", sys.maxsize)),
    )
    rollouts = finish(parts)
    return rollouts[0] if len(rollouts) == 1 else Rollout.cat(rollouts)
