"""Goals as objectives: a picture, a state of the robot, a learned distance, a task state.

A goal counts at the ``best`` step by default. By the ``last`` one, whoever plans anew at every step
wants to be there at the end of the horizon, again and again, and never arrives
(docs/results/deciding.md).
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.control.objectives import Reduction, Weighable
from tokenwm.control.places import Place, Wanted
from tokenwm.errors import TokenwmError
from tokenwm.heads.readout import Readout
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.goals import Comparison, PictureGoal
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape, check_type
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import slices

ROWS_AT_ONCE = 64
"""Rows whose frames are decoded at a time; more would only take more memory."""


class GoalImage(Weighable):
    """Minus the distance to a picture of the goal.

    Args:
        model: The model that imagines.
        goal: ``(cameras, H, W, 3)`` uint8, or ``(H, W, 3)`` if there is one camera.
        by: ``tokens``: mean squared difference of codes, in which no picture is decoded.
            ``expected``: that of the codes which the model expected. ``pixels``: that of pixels in
            [0, 1].
        reduce: How steps count.

    Raises:
        TokenwmError: The goal is no such picture, or ``by`` is none of these.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        goal: NDArray[Any] | Tensor,
        *,
        by: Comparison = "tokens",
        reduce: Reduction = "best",
    ) -> None:
        self.goal, self.reduce = PictureGoal(model, goal, by), reduce

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus the distance, at most 0."""
        return -self.goal.distances(rollout)


class GoalState(Weighable):
    """Minus the distance of the robot's imagined state to a wanted one.

    The distance is Euclidean over the chosen dimensions, each in units of its scale.

    Args:
        vocabulary: Of the world.
        goal: Dimension (name or number) → wanted value, or the values of all dimensions, in the
            units of the data.
        scale: Dimension → difference that counts as 1; by default half of its training range.
        reduce: How steps count.

    Raises:
        TokenwmError: The world has no continuous state, or no such dimension, or a scale is not
            positive.
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        goal: Wanted,
        *,
        scale: Wanted | None = None,
        reduce: Reduction = "best",
    ) -> None:
        bins = vocabulary.state
        if not isinstance(bins, BinTokenizer):
            raise TokenwmError(
                "GoalState needs a world with a continuous state, and this one has "
                + ("none" if bins is None else "a discrete one")
                + "; use GoalImage"
            )
        low, high = bins.scale_range
        self.reduce = reduce
        self.place = Place(goal, scale, names=bins.names, scales=[*((high - low) / 2.0)])

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus the distance, at most 0.

        Raises:
            TokenwmError: The rollout has no state.
        """
        if rollout.state is None:
            raise TokenwmError("GoalState: this rollout has no state; use GoalImage")
        return -self.place.distance(rollout.state)


class FeatureWorld(Protocol):
    """A world that describes imagined steps as it describes states."""

    def features_of(self, rollout: Rollout) -> Tensor:
        """``(B, H, E)`` float32, :meth:`World.features` of every step."""
        ...


class LearnedDistance(Weighable):
    """Minus a learned distance to the goal, in steps.

    Args:
        world: The world that imagines.
        distance: Of features ``(N, E)`` and goal features ``(N, E)``, the steps from the one to
            the other, ``(N,)``.
        goal: ``(E,)`` or ``(1, E)``, features of the goal.
        reduce: How steps count.
    """

    def __init__(
        self,
        world: FeatureWorld,
        distance: Callable[[Tensor, Tensor], Tensor],
        goal: Tensor,
        *,
        reduce: Reduction = "best",
    ) -> None:
        self.world, self.distance, self.reduce = world, distance, reduce
        self.goal = as_tensor("goal", goal).float().reshape(1, -1)

    @torch.inference_mode()
    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus the distance of every step."""
        features = self.world.features_of(rollout)
        check_shape("goal", self.goal, (1, features.shape[-1]))
        rows = features.flatten(0, 1)
        steps = self.distance(rows, self.goal.to(rows).expand_as(rows))
        check_shape("distance", steps, (len(rows),))
        return -steps.float().view(features.shape[:2])


class TaskState(Weighable):
    """A score of the task state, as a readout reads it off the imagined frames.

    Frames are decoded for it, which takes longer than all other objectives.

    Args:
        model: The model that imagines.
        readout: See :mod:`tokenwm.heads.readout`.
        score: Of task states ``(B, H, D)`` in their units, ``(B, H)``, more is better; or a goal:
            dimension (name or number) → wanted value, from which the score is minus the distance.
        scale: With a goal, dimension → difference that counts as 1; by default the standard
            deviation in the training data. Angles are compared around the circle.
        reduce: How steps count; by default ``sum`` of a score and ``best`` of a goal.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        readout: Readout,
        score: Callable[[Tensor], Tensor] | Wanted,
        *,
        scale: Wanted | None = None,
        reduce: Reduction | None = None,
    ) -> None:
        check_type("readout", readout, Readout)
        self.model, self.readout = model, readout
        if callable(score):
            self.score, self.reduce = score, reduce or "sum"
            return
        code = readout.code
        place = Place(score, scale, names=code.names, scales=code.std, turns=code.turns)
        self.score = lambda values: -place.distance(values)
        self.reduce = reduce or "best"

    def read(self, rollout: Rollout) -> Tensor:
        """``(B, H, D)`` float32, the task state of every imagined step in its units."""
        parts = []
        for part in slices(len(rollout.frame_tokens), ROWS_AT_ONCE):
            frames = self.model.decode_frames(rollout.rows(part))
            read = torch.from_numpy(self.readout.read(frames.flatten(0, 1))).float()
            parts.append(read.view(*frames.shape[:2], -1))
        return torch.cat(parts).to(rollout.frame_tokens.device)

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """The score of every step."""
        return self.score(self.read(rollout))
