"""One search for a plan: candidates are scored, the best are remembered, and the time is kept."""

import logging
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tokenwm.control.objectives import Objective, total
from tokenwm.control.planners.base import (
    NoPlanError,
    Plan,
    PlannerSettings,
    approximately,
    roll_candidates,
)
from tokenwm.control.proposals import ActionSpace
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.world import World

logger = logging.getLogger(__name__)


class Best(NamedTuple):
    """The best of a round.

    Attributes:
        scores: ``(k,)``, the highest first.
        actions: ``(k, H, A)``.
        rollout: The future of the first.
    """

    scores: Tensor
    actions: Tensor
    rollout: Rollout


class Search:
    """A search from one state. Waits for the device only to keep the time, and in the end.

    Args:
        settings: Those of the planner.
        world: The world.
        state: Where, one row.
        objective: What is wanted.
        warm: The plan that the search begins with.

    Attributes:
        space: Actions that may be tried.
        generator: Of all draws, on the CPU.
        warm: ``(1, H, A)``, the plan that the search begins with, or None.
        warm_elites: ``(n, H, A)``, its elites, or None.

    Raises:
        TokenwmError: The state has several rows, or the warm start is not of this world.
    """

    def __init__(
        self,
        settings: PlannerSettings,
        world: World[Any],
        state: Any,
        objective: Objective,
        warm: Plan | None = None,
    ) -> None:
        self._started = settings.clock()
        features = world.features(state)
        if len(features) != 1:
            raise TokenwmError(
                f"the state has {len(features)} rows, and a plan is made for one of them: "
                "world.select(state, rows)"
            )
        self.settings, self.world, self.state = settings, world, state
        self.objective = objective
        self.space = ActionSpace.of(world.vocabulary, features.device)
        self._number = 0 if warm is None else warm.number + 1
        # The next plan draws anew, so that what was not found is not missed again and again.
        seed = (settings.seed + 0x9E3779B97F4A7C15 * self._number) % 2**63
        self.generator = torch.Generator().manual_seed(seed)
        self.warm = self.warm_elites = None
        if warm is not None:
            self.warm = self.space.sequences(warm.actions[None], settings.horizon)
            if warm.elites is not None:
                self.warm_elites = self.space.sequences(warm.elites, settings.horizon)
        self._best: list[Best] = []
        self._num_rounds = self._num_rollouts = 0
        self._num_ruled_out = torch.zeros((), dtype=torch.int64, device=features.device)

    def rounds(self, most: int, reserve: float = 0.0) -> Iterator[int]:
        """Numbers of the rounds that there is time for, at least 0; in each, something is scored.

        Args:
            most: Most rounds.
            reserve: What comes behind the last round, in parts of a round.
        """
        clock, seconds, longest = self.settings.clock, self.settings.seconds, 0.0
        begin = self._started
        for number in range(most):
            if number and seconds is not None:
                float(self._best[-1].scores[0])  # waits for the device
                now = clock()
                longest, begin = max(longest, now - begin), now
                if now - self._started + (1.0 + reserve) * longest > seconds:
                    return
            self._num_rounds += 1
            yield number

    def score(self, candidates: Tensor, *, instead: bool = False) -> tuple[Tensor, Tensor]:
        """Imagine and score candidates; the best are remembered.

        Args:
            candidates: ``(n, H, A)``. Those that leave the bounds are moved to them, and those with
                numbers that are not finite lose.
            instead: See :meth:`remember`.

        Returns:
            The candidates as they were tried, and their scores ``(n,)``, finite or minus infinity.
        """
        settings = self.settings
        is_finite = candidates.isfinite().flatten(1).all(1)
        if not self.space.is_discrete:
            candidates = torch.where(candidates.isfinite(), candidates, self.space.mean)
        candidates = self.space.clamp(candidates)
        with approximately(self.world, settings.approximation):
            rollout = roll_candidates(
                self.world,
                self.state,
                candidates,
                sampling=settings.sampling,
                max_rows=settings.max_rows,
            )
        scores = total(self.objective, rollout).masked_fill(~is_finite, -torch.inf)
        self.remember(candidates, scores, rollout, instead=instead)
        return candidates, scores

    def remember(
        self, candidates: Tensor, scores: Tensor, rollout: Rollout, *, instead: bool = False
    ) -> None:
        """Keep the best of a round; ``instead`` of those before, if it takes their place."""
        if instead:
            self._best.clear()
            self._num_ruled_out.zero_()
        top = scores.topk(min(self.settings.num_elites, len(scores)))
        best = Best(top.values, candidates[top.indices], rollout.rows(top.indices[:1]))
        self._best.append(best)
        self._num_rollouts += len(candidates)
        self._num_ruled_out += (scores == -torch.inf).sum()

    @property
    def elites(self) -> Tensor:
        """``(k, H, A)``, the best of the last round, best first."""
        return self._best[-1].actions

    def finish(self, answer: Tensor | None = None) -> Plan:
        """The plan. Waits for the device.

        Args:
            answer: ``(H, A)``, the plan that the search arrived at; None: the best that was tried.

        Raises:
            NoPlanError: Nothing has a finite score.
        """
        settings, spread = self.settings, None
        scores = torch.cat([best.scores for best in self._best])
        elites = torch.cat([best.actions for best in self._best])
        same = (elites[:, None] == elites).flatten(2).all(2)
        scores = scores.masked_fill(same.tril(-1).any(1), -torch.inf)  # each of them once
        top = scores.topk(min(settings.num_elites, len(scores)))
        elites = elites[top.indices][top.values > -torch.inf]
        tried = elites if answer is None else self.space.clamp(answer)[None]
        if len(elites) and (answer is not None or settings.tries_again):
            actions, score, spread, rollout = self._try_again(tried)
            if answer is not None and float(score) == -torch.inf:
                # A mean may be ruled out where good candidates lie on both sides of it.
                actions, score, spread, rollout = self._try_again(elites)
        else:
            number = int(torch.stack([best.scores[0] for best in self._best]).argmax())
            (score, *_), (actions, *_), rollout = self._best[number]
        expected = float(score)
        ruled_out = int(self._num_ruled_out)
        if expected == -torch.inf:
            raise NoPlanError(
                f"{ruled_out} of {self._num_rollouts} candidates have no finite score, and none "
                "can be chosen"
            )
        if ruled_out:
            logger.warning(
                "%d of %d candidates have no finite score and were not chosen",
                ruled_out,
                self._num_rollouts,
            )
        doubt = rollout.doubt
        return Plan(
            actions=actions,
            expected_return=expected,
            spread=None if spread is None else float(spread),
            doubt=None if doubt is None else float(doubt.mean()),
            num_rollouts=self._num_rollouts,
            num_rounds=self._num_rounds,
            number=self._number,
            rollout=rollout,
            elites=elites,
            seconds=settings.clock() - self._started,
        )

    def _try_again(self, tried: Tensor) -> tuple[Tensor, Tensor, Tensor | None, Rollout]:
        """The best of ``(n, H, A)`` on average over all noise streams.

        Returns:
            Its actions, the mean and standard deviation of its totals, and its first future.
        """
        settings, count = self.settings, self.settings.num_noise_streams
        is_drawn = count > 1 and settings.sampling.is_greedy
        streams = torch.arange(count, device=tried.device).repeat(len(tried))
        rollout = roll_candidates(
            self.world,
            self.state,
            tried.repeat_interleave(count, dim=0),
            noise_streams=streams,
            sampling=SamplingConfig() if is_drawn else settings.sampling,
            max_rows=settings.max_rows,
        )
        scores = total(self.objective, rollout)
        self._num_rollouts += len(scores)
        self._num_ruled_out += (scores == -torch.inf).sum()
        of_each = scores.view(len(tried), count)
        best = of_each.mean(1).argmax()
        spread = of_each[best].std() if count > 1 else None
        return tried[best], of_each[best].mean(), spread, rollout.rows((best * count)[None])
