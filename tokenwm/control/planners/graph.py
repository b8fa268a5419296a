"""Graph search: every situation that can be come to is gone on from once."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tokenwm.control.objectives import Objective
from tokenwm.control.planners.base import Plan
from tokenwm.control.planners.beam import BeamSearch
from tokenwm.control.planners.search import Search
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.world import World


@dataclass(frozen=True, kw_only=True)
class GraphSearch(BeamSearch):
    """Search over situations, for worlds with a few actions whose picture tells all.

    Futures that arrive at the same tokens are the same situation; it is gone on from once, by every
    action, from where it was come to first, and from where the future has likely ended it is not
    gone on from at all. So the search is as large as what can be come to, and not as the number of
    sequences: it finds a single reward behind a dozen steps. Of a step's new situations the best
    ``width`` are kept. The best beginning of each length, its last action repeated behind it, is
    imagined to the horizon in the end, so that their totals are of the same length; the best of
    them is the plan. Totals that are summed need a discount below 1, or later is as good as sooner.

    Deviation from breadth-first search: what two situations with the same tokens have seen before
    may differ within the world's window, and the first one stands for both.
    """

    width: int = 64

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
        beginnings: list[Tensor] = []
        seen: set[tuple[int, ...]] = set()
        for history, scores in self.grow(search, partial(self._new, seen=seen)):
            search.remember(history.actions, scores, history, instead=True)
            beginnings.append(search.space.sequences(search.elites[:1], self.horizon))
        search.score(torch.cat(beginnings), instead=True)
        return search.finish()

    def _new(self, history: Rollout, scores: Tensor, seen: set[tuple[int, ...]]) -> Tensor:
        """The rows to go on from, the best first; their situations have been seen then."""
        tokens = [history.frame_tokens[:, -1]]
        if history.state_tokens is not None:
            tokens.append(history.state_tokens[:, -1])
        situations = torch.cat(tokens, dim=1).tolist()
        ends = (history.survival[:, -1] * (1.0 - history.termination_probability[:, -1])) < 0.5
        is_open = (~ends & (scores > -torch.inf)).tolist()
        found: list[int] = []
        for row in scores.argsort(descending=True, stable=True).tolist():
            situation = tuple(situations[row])
            if is_open[row] and situation not in seen and len(found) < self.width:
                seen.add(situation)
                found.append(row)
        return torch.tensor(found, dtype=torch.int64, device=scores.device)
