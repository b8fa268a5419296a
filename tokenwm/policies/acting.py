"""A prior that acts: as a policy in the real and the imagined world, and as a planner's source."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.heads.distance import Distance
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation, World
from tokenwm.policies.cloning import GoalPolicy
from tokenwm.shapes import check_shape, check_type, is_whole, shown


@dataclass(frozen=True, kw_only=True)
class Cloned:
    """Memory of a cloned policy.

    Attributes:
        generator: Luck of the episodes, on the CPU.
        num_rows: ``B``.
        frame_tokens: ``(B, K)`` int64, of the last observation; None before the first.
        steps_taken: Steps of the model since the start.
    """

    generator: torch.Generator
    num_rows: int
    frame_tokens: Tensor | None = None
    steps_taken: int = 0


class ClonedPolicy:
    """A :class:`~tokenwm.imagination.world.Policy` that does what led to such a picture before.

    Args:
        model: Whose tokenizer sees.
        prior: What was cloned.
        goal: Picture of the goal: ``(cameras, H, W, 3)`` uint8, or one for every row; None for what
            is usual.
        steps: In how many steps of the model it is to be reached, counted down to 1; None: whenever
            it is usual.
        distance: Says instead how far the goal is, every time.
        num_steps: Steps of a chunk that are taken before it looks again.
        draws: Whether it draws its chunks; else it takes the most likely one.

    Raises:
        TokenwmError: The goal is no such picture, or a number is out of range.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        prior: GoalPolicy,
        goal: NDArray[np.uint8] | Tensor | None = None,
        *,
        steps: int | None = None,
        distance: Distance | None = None,
        num_steps: int = 1,
        draws: bool = False,
    ) -> None:
        if not is_whole(num_steps) or num_steps > prior.num_steps:
            raise TokenwmError(
                f"num_steps={shown(num_steps)}; the chunks have {prior.num_steps} steps, take 1 of "
                "them or more"
            )
        self.model, self.prior, self.distance, self.draws = model, prior, distance, draws
        self.goal = None if goal is None else model.goal_features(goal)
        self.steps, self.num_steps = steps, num_steps

    def begin(self, num_rows: int, seed: int) -> Cloned:
        """Start episodes with nothing remembered."""
        return Cloned(generator=torch.Generator().manual_seed(seed), num_rows=num_rows)

    @torch.inference_mode()
    def act(self, observation: Observation, memory: Cloned) -> tuple[Tensor, Cloned]:
        """Choose the next actions, see :meth:`Policy.act`.

        Returns:
            ``(B, num_steps, A)`` in the units of the data, and what is remembered.

        Raises:
            TokenwmError: The observation does not fit the model, or has another number of rows.
        """
        check_type("observation", observation, Observation)
        frames = as_tensor("observation.frames", observation.frames)
        check_shape(
            "observation.frames", frames, (memory.num_rows, *self.model.tokenizer.frame_shape)
        )
        if (observation.state is None) != (self.model.vocabulary.state is None):
            raise TokenwmError("the observation and the model: one has a state and the other none")
        tokens = self.model.tokenizer.encode_sequence(frames[:, None], memory.frame_tokens)[:, 0]
        state = None
        if observation.state is not None:
            state = self.model.units.encode_states(as_tensor("state", observation.state))
        features = self.model.features_of_tokens(tokens, state)
        left = None if self.steps is None else max(1, self.steps - memory.steps_taken)
        chunks = self.prior(
            features, self.goal, steps_to_go(features, self.goal, left, self.distance)
        )
        actions = chunks.sample(1, memory.generator)[:, 0] if self.draws else chunks.mode()
        following = Cloned(
            generator=memory.generator,
            num_rows=memory.num_rows,
            frame_tokens=tokens,
            steps_taken=memory.steps_taken + self.num_steps,
        )
        return actions[:, : self.num_steps], following


class GoalProposal:
    """The prior as a source of candidates for planners: its most likely chunk, and drawn ones.

    Args:
        prior: What was cloned.
        goal: ``(1, E)``, ``model.goal_features(picture)``; None for what is usual.
        steps: In how many steps of the model the goal is to be reached; None: whenever it is usual.
        distance: Says instead how far the goal is, every time.
    """

    def __init__(
        self,
        prior: GoalPolicy,
        goal: Tensor | None = None,
        *,
        steps: int | None = None,
        distance: Distance | None = None,
    ) -> None:
        self.prior, self.goal, self.steps, self.distance = prior, goal, steps, distance

    @torch.inference_mode()
    def __call__(
        self, world: World[Any], state: Any, generator: torch.Generator, num: int, horizon: int
    ) -> Tensor:
        """Propose chunks from a state of one row, which is read and not used up.

        Returns:
            ``(num, H, A)`` in the units of the data, or ids; ``H`` is the prior's own, at most
            ``horizon``.
        """
        features = world.features(state)
        steps = steps_to_go(features, self.goal, self.steps, self.distance)
        chunks = self.prior(features, self.goal, steps)
        drawn = chunks.sample(max(0, num - 1), generator)[0]
        return torch.cat([chunks.mode(), drawn])[:num, :horizon]


def steps_to_go(
    features: Tensor, goal: Tensor | None, steps: int | None, distance: Distance | None
) -> int | Tensor | None:
    """Steps to a goal: as a distance says, ``(B,)`` and at least 1, else the given ones."""
    if goal is None or distance is None:
        return steps
    return distance(features, goal).round().clamp(min=1)
