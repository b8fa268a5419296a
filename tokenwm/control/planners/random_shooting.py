"""Random shooting: draw evenly, take the best. The baseline of every other planner."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenwm.control.planners.sampling import SamplingPlanner
from tokenwm.control.planners.search import Search


@dataclass(frozen=True, kw_only=True)
class RandomShooting(SamplingPlanner[None]):
    """A planner that draws every action evenly within its range, for real actions and for ids."""

    num_rounds: int = 1

    draws: ClassVar[tuple[bool, ...]] = (False, True)

    def begin(self, search: Search) -> None:
        """Nothing is believed."""

    def draw(self, search: Search, belief: None, num: int) -> Tensor:
        """Even draws."""
        space = search.space
        drawn = torch.rand(num, self.horizon, space.num_dimensions, generator=search.generator)
        drawn = drawn.to(space.low.device)
        if space.is_discrete:
            return (drawn * (space.high + 1)).long()
        return space.low + drawn * (space.high - space.low)

    def refit(self, search: Search, belief: None, candidates: Tensor, scores: Tensor) -> None:
        """Nothing is learned."""
