"""Beam search: the best beginnings of a plan are gone on with by every action."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tokenwm.control.objectives import Objective, total
from tokenwm.control.planners.base import Plan, PlannerSettings, approximately
from tokenwm.control.planners.search import Search
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.world import World

MOST_CHOICES = 1024
"""Actions that a step may have to choose from."""


@dataclass(frozen=True, kw_only=True)
class BeamSearch(PlannerSettings):
    """Beam search over a few actions: all ids of a discrete world, or some that are given.

    At every step each of the ``width`` best beginnings goes on with every action, and the best
    ``width`` of all these are kept; they are judged by the objective's total of what they have
    seen. With a width of all sequences the search is complete. Where the time budget ends it early,
    the plan has as many steps as were looked ahead. It has no use for a warm start.

    Attributes:
        width: Beginnings that are kept; ``width`` times the number of actions are imagined at once,
            whatever ``max_rows`` says.
        choices: ``(V, A)`` in the units of the data, actions to choose from; None: all ids.
    """

    width: int = 16
    choices: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        self.check_counts("width")

    @torch.no_grad()
    def plan(
        self, world: World[Any], state: Any, objective: Objective, warm: Plan | None = None
    ) -> Plan:
        """Look for the best plan, see :meth:`Planner.plan`.

        Raises:
            TokenwmError: There are no actions to choose from or too many, or see
                :meth:`Planner.plan`.
        """
        search = Search(self, world, state, objective, warm)
        for history, scores in self.grow(search, self.best_rows):
            search.remember(history.actions, scores, history, instead=True)
        return search.finish()

    def grow(
        self, search: Search, choose: Callable[[Rollout, Tensor], Tensor]
    ) -> Iterator[tuple[Rollout, Tensor]]:
        """Go on from chosen rows by every action, step by step, until no row is chosen.

        Args:
            search: What is looked for, and how long.
            choose: Of all futures so far and their ``(N,)`` totals, the rows to go on from,
                ``(rows,)`` int64.

        Yields:
            All futures up to a step and their totals.
        """
        world, choices = search.world, self.actions_to_try(search)
        places = world.fork(search.state, len(choices), self.horizon, noise_streams=0)
        history: Rollout | None = None
        kept = torch.zeros(1, dtype=torch.int64, device=choices.device)
        for number in search.rounds(self.horizon):
            rows = kept.repeat_interleave(len(choices))
            if number:
                places = world.select(places, rows)
            actions = choices.repeat(len(kept), 1)[:, None]
            with approximately(world, self.approximation):
                places, step = world.roll(places, actions, self.sampling)
            history = step if history is None else Rollout.join([history.rows(rows), step])
            scores = total(search.objective, history)
            yield history, scores
            kept = choose(history, scores)
            if not len(kept):
                return

    def best_rows(self, history: Rollout, scores: Tensor) -> Tensor:
        """The ``width`` best of them."""
        return scores.topk(min(self.width, len(scores))).indices

    def actions_to_try(self, search: Search) -> Tensor:
        """``(V, A)``, the actions to choose from.

        Raises:
            TokenwmError: There are none, or too many.
        """
        space = search.space
        if self.choices is not None:
            return space.sequences(self.choices[:, None], 1)[:, 0]
        if not space.is_discrete:
            raise TokenwmError(
                f"{type(self).__name__} chooses from a few actions, and those of this world are "
                f"real numbers; give {type(self).__name__}(choices=...), or use CEM, ICEM or MPPI"
            )
        sizes = [int(high) + 1 for high in space.high]
        count = int(torch.tensor(sizes, dtype=torch.float64).prod())
        if count > MOST_CHOICES:
            raise TokenwmError(
                f"{type(self).__name__}: {len(sizes)} dimensions of ids make {count} actions, and "
                f"at most {MOST_CHOICES} can be tried at every step; give choices, or use "
                "CategoricalCEM"
            )
        ids = torch.cartesian_prod(*(torch.arange(size) for size in sizes))
        return ids.reshape(count, len(sizes)).to(space.low.device)
