"""Decisions of a controller, its settings, and what it is given beside a planner."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from tokenwm.control.planners.base import Plan
from tokenwm.control.verify import Verdict
from tokenwm.errors import TokenwmError
from tokenwm.imagination.world import Observation
from tokenwm.shapes import is_number, is_whole, shown

Numbers = NDArray[Any]
Came = Literal["plan", "rest of the last plan", "safe action"]
SafeAction = Numbers | Callable[[Observation], Numbers]
"""The robot's action ``(dims,)`` that is always safe, or a function of what is observed (to hold
where the robot is, for example)."""
Verifier = Callable[[Any, Any, torch.Tensor], Verdict]
"""Function of world, state and a chunk ``(H, A)``: ``partial(verify, failure=…)``, for example."""


class LimitsError(TokenwmError):
    """No action is within the hard limits; stop the robot by its own means."""


@dataclass(frozen=True, kw_only=True)
class ControllerConfig:
    """Settings of a controller.

    Attributes:
        every: Robot steps from plan to plan; not only whole steps of the model.
        deadline: Seconds from an observation until its action must be there; None waits for plans.
    """

    every: int = 1
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not is_whole(self.every):
            raise TokenwmError(f"every={shown(self.every)}; use whole robot steps, at least 1")
        deadline = self.deadline
        if deadline is not None and not (is_number(deadline) and 0 < deadline < float("inf")):
            raise TokenwmError(f"deadline={shown(deadline)}; use seconds above 0, or None")


@dataclass(frozen=True, kw_only=True)
class Decision:
    """An action, and how it came about.

    Attributes:
        step: Robot step since :meth:`Controller.begin`.
        came: From where: the plan that was due, what is left of the one before, or the safe action.
        reason: Why not from the plan that was due; empty if it is.
        is_planned: Whether a plan was due at this step.
        missed_deadline: Whether it was due and not there in time.
        seconds: Time from the observation until the action.
        plan: The plan that was made for this step, in time.
        verdict: The verifier's, on that plan.
        surprise: The model's at what was observed when this plan was made, nats per token.
    """

    step: int
    came: Came
    reason: str = ""
    is_planned: bool = False
    missed_deadline: bool = False
    seconds: float = 0.0
    plan: Plan | None = None
    verdict: Verdict | None = None
    surprise: float | None = None


@dataclass(frozen=True, kw_only=True)
class Thought:
    """A plan made for a robot step, and what was found about it.

    Attributes:
        step: Robot step.
        plan: The plan.
        robot: ``(T, dims)``, its actions one after another.
        verdict: The verifier's.
        surprise: As in :class:`Decision`.
    """

    step: int
    plan: Plan
    robot: Numbers
    verdict: Verdict | None
    surprise: float | None
