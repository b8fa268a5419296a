"""Planners that draw candidates, score them, and draw better ones."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from tokenwm.control.objectives import Objective
from tokenwm.control.planners.base import Plan, PlannerSettings
from tokenwm.control.planners.search import Search
from tokenwm.control.proposals import Proposal
from tokenwm.errors import TokenwmError
from tokenwm.imagination.world import World

Belief = TypeVar("Belief")


@dataclass(frozen=True, kw_only=True)
class SamplingPlanner(PlannerSettings, ABC, Generic[Belief]):
    """A planner that goes on from a belief about good actions: draw, score, fit it to the best.

    Attributes:
        num_candidates: Action sequences that a round tries.
        num_rounds: Most rounds.
        prior: Another source of candidates for the first round.
        prior_share: The most of the first round's candidates that it gives, in [0, 1].
    """

    num_candidates: int = 64
    num_rounds: int = 3
    prior: Proposal | None = field(default=None, repr=False)
    prior_share: float = 1.0

    draws: ClassVar[tuple[bool, ...]] = (False,)
    """Kinds of actions that it draws: ids are True, real actions False."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        self.check_counts("num_candidates", "num_rounds")
        self.check_range("prior_share", 0.0, 1.0)

    @abstractmethod
    def begin(self, search: Search) -> Belief:
        """The belief before anything was tried."""

    @abstractmethod
    def draw(self, search: Search, belief: Belief, num: int) -> Tensor:
        """``(num, H, A)`` candidates; the first is the middle of what is believed."""

    @abstractmethod
    def refit(self, search: Search, belief: Belief, candidates: Tensor, scores: Tensor) -> Belief:
        """The belief after a round of ``(n, H, A)`` candidates and ``(n,)`` scores."""

    def answer(self, belief: Belief) -> Tensor | None:
        """``(H, A)``, the plan in the end; None for the best candidate that was tried."""
        return None

    def size_of_round(self, number: int) -> int:
        """Candidates of a round."""
        return self.num_candidates

    def carried(self, search: Search, number: int) -> Tensor:
        """``(n, H, A)``, candidates that a round has besides those it draws."""
        return self._given(search) if number == 0 else self._none(search)

    @torch.no_grad()
    def plan(
        self, world: World[Any], state: Any, objective: Objective, warm: Plan | None = None
    ) -> Plan:
        """Look for the best plan, see :meth:`Planner.plan`.

        Raises:
            TokenwmError: Actions are of the wrong kind, or see :meth:`Planner.plan`.
        """
        search = Search(self, world, state, objective, warm)
        if search.space.is_discrete not in self.draws:
            kind, others = "real actions", "CategoricalCEM, GraphSearch or RandomShooting"
            if not search.space.is_discrete:
                kind, others = "ids", "CEM, ICEM, MPPI or RandomShooting"
            raise TokenwmError(
                f"{type(self).__name__} draws {kind}, and this world has others; use {others}"
            )
        belief = self.begin(search)
        num_tried_again = self.num_elites if self.tries_again else 0
        if self.answer(belief) is not None:
            num_tried_again = 1
        reserve = num_tried_again * self.num_noise_streams / self.num_candidates
        for number in search.rounds(self.num_rounds, reserve):
            size, carried = self.size_of_round(number), self.carried(search, number)
            drawn = self.draw(search, belief, max(1, size - len(carried)))
            candidates, scores = search.score(torch.cat([carried, drawn])[:size])
            belief = self.refit(search, belief, candidates, scores)
        return search.finish(self.answer(belief))

    def _given(self, search: Search) -> Tensor:
        """The plan to start from, and what the prior proposes."""
        parts = [self._none(search)] if search.warm is None else [search.warm]
        num = int(self.prior_share * self.num_candidates)
        if self.prior is not None and num:
            proposed = self.prior(search.world, search.state, search.generator, num, self.horizon)
            parts.append(search.space.sequences(proposed[:num], self.horizon))
        return torch.cat(parts)

    def _none(self, search: Search) -> Tensor:
        return search.space.low.new_zeros((0, self.horizon, search.space.num_dimensions))
