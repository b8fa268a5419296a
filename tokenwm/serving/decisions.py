"""Questions about action chunks, over the wire: which one is best, and may it be carried out?"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.control.goals import GoalImage
from tokenwm.control.limits import Limits, limits_for, limits_from
from tokenwm.control.objectives import Objective, Reward
from tokenwm.control.rank import Ranking, ranking_of
from tokenwm.control.verify import VerifyConfig, falls_below, futures_of
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.pausing import Pausing
from tokenwm.imagination.rollout import NO_REWARD, Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving.checks import check_array, number, whole_number

Arrays = dict[str, NDArray[Any]]

RANK, VERIFY = PATHS = ("/v1/rank", "/v1/verify")
ANSWERS = ("accepted", "rejected", "unknown")
"""Decisions by their number in an answer."""
GOAL = "goal"
"""Name of the array with a picture of the goal; without it chunks are judged by reward."""
OPTIONS = (
    *("least", "limits", "num_futures", "max_failure_probability", "temperature"),
    *("seed", "timeout"),
)
MOST = 1e30


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about chunks.

    Attributes:
        goal: ``(cameras, H, W, 3)`` uint8, or None: by the predicted reward.
        least: A future fails where the objective is below it; None: none fails.
        limits: Hard limits, or None.
        config: How many futures, and how many of them may fail.
    """

    goal: NDArray[np.uint8] | None
    least: float | None
    limits: Limits | None
    config: VerifyConfig


def parse_question(
    path: str, model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any]
) -> Question:
    """Check a question as far as it can be without computing.

    Raises:
        TokenwmError: An option is impossible, or there is neither a goal nor a reward.
    """
    is_ranked = path == RANK
    return Question(
        goal=checked_goal(model, arrays, needs_one=is_ranked or "least" in options),
        least=number(options, "least", 0.0, -MOST, MOST) if "least" in options else None,
        limits=checked_limits(model, options),
        config=VerifyConfig(
            num_futures=whole_number(options, "num_futures", 1 if is_ranked else 16, 1, 2**31 - 1),
            max_failure_probability=number(options, "max_failure_probability", 0.1, 0.0, 1.0),
            sampling=SamplingConfig(
                temperature=number(options, "temperature", 0.0 if is_ranked else 1.0, 0.0, 1e6)
            ),
        ),
    )


Imagine = Callable[[torch.Tensor, torch.Tensor], Pausing[Rollout]]
"""Function from rows of actions ``(B, H, A)`` and their noise streams to their futures."""


def decide(
    model: TokenWorldModel,
    question: Question,
    context: Context,
    actions: NDArray[Any],
    past_actions: NDArray[Any],
    imagine: Imagine,
) -> Pausing[Arrays]:
    """Rank and judge chunks, as :func:`~tokenwm.control.rank.rank` does.

    Args:
        model: The model.
        question: What is asked.
        context: One row.
        actions: ``(K, H, A)``.
        past_actions: ``(1, C - 1, A)``, for limits of speed.
        imagine: Imagines from the context, with pauses.
    """
    count, config = len(actions), question.config
    breaches = (
        [None] * count
        if question.limits is None
        else question.limits.check(
            actions,
            None if context.state is None else context.state.expand(count, -1),
            np.repeat(past_actions.reshape(1, -1, _dims(question.limits, actions)), count, axis=0),
        )
    )
    allowed = [number for number, breach in enumerate(breaches) if breach is None]
    rollout = None
    if allowed:
        chunks = torch.from_numpy(actions[allowed])
        rollout = yield from imagine(*futures_of(chunks, config.num_futures))
        yield
    objective = objective_for(model, question.goal)
    failure = None
    if objective is not None and question.least is not None:
        failure = falls_below(objective, question.least)
    return answer_of(ranking_of(breaches, rollout, objective, failure, None, config, lambda: 0.0))


def answer_of(ranking: Ranking) -> Arrays:
    """The answer as arrays; reasons are the bytes of a JSON list."""
    verdicts = ranking.verdicts
    failing = [verdict.failure_probability for verdict in verdicts]
    reasons = json.dumps([verdict.reason for verdict in verdicts]).encode()
    return {
        "scores": ranking.scores.numpy(),
        "order": ranking.order.numpy(),
        "decision": np.array([ANSWERS.index(v.decision) for v in verdicts], dtype=np.uint8),
        "failure_probability": np.array(
            [np.nan if value is None else value for value in failing], dtype=np.float32
        ),
        "reasons": np.frombuffer(reasons, dtype=np.uint8),
    }


def checked_goal(
    model: TokenWorldModel, arrays: Arrays, *, needs_one: bool
) -> NDArray[np.uint8] | None:
    """The picture of the goal, if there is one.

    Raises:
        TokenwmError: It is no such picture, or one is needed since the model predicts no reward.
    """
    goal = arrays.get(GOAL)
    if goal is not None:
        check_array(GOAL, goal, model.tokenizer.frame_shape, np.uint8)
    elif needs_one and not model.vocabulary.has_reward:
        raise TokenwmError(NO_REWARD + "send the array goal, a picture of what is wanted")
    return goal


def checked_limits(model: TokenWorldModel, options: Mapping[str, Any]) -> Limits | None:
    """The hard limits of the options, if there are any, for chunks of a model.

    Raises:
        TokenwmError: They are impossible, or for another rate.
    """
    values = options.get("limits")
    if values is None:
        return None
    if not isinstance(values, Mapping):
        raise TokenwmError(f"limits={values!r}; an object with rate, position, speed, …")
    return limits_for(limits_from(values), model)


def objective_for(model: TokenWorldModel, goal: NDArray[np.uint8] | None) -> Objective | None:
    """The objective: near a goal, else the predicted reward, else none."""
    if goal is not None:
        return GoalImage(model, goal)
    return Reward() if model.vocabulary.has_reward else None


def _dims(limits: Limits, actions: NDArray[Any]) -> int:
    return int(actions.shape[2]) // limits.actions_per_step
