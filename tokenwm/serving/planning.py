"""Plans over the wire: what to do next, by the predicted reward or towards a goal's picture."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.control.limits import Limits
from tokenwm.control.planners.sampling import SamplingPlanner
from tokenwm.control.planners.suited import suited_cem
from tokenwm.imagination.context import Context
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving.checks import number, whole_number
from tokenwm.serving.decisions import ANSWERS, Arrays, checked_goal, checked_limits, objective_for

PLAN = "/v1/plan"
OPTIONS = ("horizon", "num_candidates", "num_rounds", "seconds", "limits", "seed", "timeout")
MOST_SECONDS = 1.0
"""Longest search. It makes no pauses, so the requests of others wait for it, and for its first
round if that takes longer."""


@dataclass(frozen=True, kw_only=True)
class PlanQuestion:
    """A question for a plan.

    Attributes:
        planner: iCEM for real actions, CEM for ids.
        goal: ``(cameras, H, W, 3)`` uint8, or None: by the predicted reward.
        limits: Hard limits that the plan is checked against, or None.
    """

    planner: SamplingPlanner[Any]
    goal: NDArray[np.uint8] | None
    limits: Limits | None


def parse_plan(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], max_steps: int
) -> PlanQuestion:
    """Check a question as far as it can be without computing.

    Raises:
        TokenwmError: An option is impossible, or there is neither a goal nor a reward.
    """
    count = whole_number(options, "num_candidates", 64, 2, 2**16)
    return PlanQuestion(
        planner=suited_cem(model.vocabulary)(
            horizon=whole_number(options, "horizon", 5, 1, max_steps),
            num_candidates=count,
            num_rounds=whole_number(options, "num_rounds", 3, 1, 1000),
            num_elites=max(1, count // 8),
            seconds=number(options, "seconds", MOST_SECONDS / 2, 1e-3, MOST_SECONDS),
            seed=whole_number(options, "seed", 0, 0, 2**31 - 1),
        ),
        goal=checked_goal(model, arrays, needs_one=True),
        limits=checked_limits(model, options),
    )


def make_plan(
    model: TokenWorldModel, question: PlanQuestion, context: Context, past_actions: NDArray[Any]
) -> Arrays:
    """The answer: the plan's actions, what is expected of it, and whether it is within the limits.

    Args:
        model: The model.
        question: What is asked.
        context: One row.
        past_actions: ``(1, C - 1, A)``, for limits of speed.
    """
    state = model.start(context, seed=question.planner.seed)
    objective = objective_for(model, question.goal)
    assert objective is not None  # checked before
    plan = question.planner.plan(model, state, objective)
    actions = plan.actions.cpu().numpy()
    breach = None
    if question.limits is not None:
        dims = actions.shape[1] // question.limits.actions_per_step
        before = past_actions.reshape(1, -1, dims)
        (breach,) = question.limits.check(actions[None], context.state, before)
    reason = "" if breach is None else str(breach)
    return {
        "actions": actions,
        "expected_return": np.array([plan.expected_return], dtype=np.float32),
        "num_rollouts": np.array([plan.num_rollouts], dtype=np.int64),
        "decision": np.array([ANSWERS.index("rejected" if breach else "accepted")], np.uint8),
        "reasons": np.frombuffer(json.dumps([reason]).encode(), dtype=np.uint8),
    }
