"""Ranking action chunks by what they are imagined to lead to: one batch, one past."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.control.limits import Breach, Limits
from tokenwm.control.objectives import Objective, total
from tokenwm.control.verify import (
    OfRollout,
    Verdict,
    VerifyConfig,
    broken_limits,
    imagine_chunks,
    judge,
    rejected_by,
)
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.world import World
from tokenwm.shapes import check_shape

State = TypeVar("State")
GREEDY = VerifyConfig(num_futures=1, sampling=SamplingConfig(temperature=0.0))
"""One future of each chunk, the likeliest outcomes."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """``K`` chunks, ranked.

    Attributes:
        order: ``(K,)`` int64, numbers of the chunks, best first.
        scores: ``(K,)`` float32, by chunk: mean over its futures, minus infinity for one that
            breaks a limit, is ruled out by the objective, or whose futures are not finite.
        verdicts: By chunk.
    """

    order: Tensor
    scores: Tensor
    verdicts: tuple[Verdict, ...]

    @property
    def best(self) -> int | None:
        """Number of the best chunk that is accepted and not ruled out; None if none is."""
        for number in self.order.tolist():
            is_possible = self.scores[number] > -torch.inf
            if is_possible and self.verdicts[number].decision == "accepted":
                return int(number)
        return None


@torch.inference_mode()
def rank(
    world: World[State],
    state: State,
    chunks: Tensor | NDArray[Any],
    objective: Objective,
    limits: Limits | None = None,
    *,
    failure: OfRollout | None = None,
    doubt: OfRollout | None = None,
    previous: Tensor | NDArray[Any] | None = None,
    config: VerifyConfig | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Ranking:
    """Rank chunks from one state, and judge each of them on the way.

    Chunks that break a hard limit are not imagined and rank last.

    Args:
        world: The world.
        state: Where, one row; it is not used up.
        chunks: ``(K, H, A)`` in the units of the data.
        objective: More is better; counted as :func:`~tokenwm.control.objectives.total` does.
        limits: Hard limits.
        failure: As in :func:`~tokenwm.control.verify.verify`, and so are the others.
        doubt: See there.
        previous: See there.
        config: Settings; by default one greedy future of each chunk.
        clock: Seconds.

    Raises:
        TokenwmError: There is no chunk, or see :func:`~tokenwm.control.verify.verify`.
    """
    given = as_tensor("chunks", chunks)
    count = check_shape("chunks", given, ("K", "H", "A"))["K"]
    if count < 1:
        raise TokenwmError("chunks holds none; give at least one")
    began, config = clock(), GREEDY if config is None else config
    before = None if previous is None else as_tensor("previous", previous)[None]
    breaches = broken_limits(world, state, given, limits, before)
    allowed = [number for number, breach in enumerate(breaches) if breach is None]
    rollout = imagine_chunks(world, state, given[allowed], config) if allowed else None
    return ranking_of(breaches, rollout, objective, failure, doubt, config, lambda: clock() - began)


def ranking_of(
    breaches: Sequence[Breach | None],
    rollout: Rollout | None,
    objective: Objective | None,
    failure: OfRollout | None,
    doubt: OfRollout | None,
    config: VerifyConfig,
    seconds: Callable[[], float],
) -> Ranking:
    """The ranking of chunks, of the futures of those that break no limit.

    Args:
        breaches: Of each chunk, the limit that it breaks, or None.
        rollout: Futures of the others, those of a chunk neighbours; None if there are none.
        objective: As in :func:`rank`; None: all that are judged have no score.
        failure: See there, and so are the others.
        doubt: See there.
        config: See there.
        seconds: Time since the beginning.
    """
    allowed = [number for number, breach in enumerate(breaches) if breach is None]
    scores = torch.full((len(breaches),), -torch.inf)
    verdicts: dict[int, Verdict] = {}
    if rollout is not None:
        judged = judge(rollout, len(allowed), failure, doubt, config, seconds)
        verdicts = dict(zip(allowed, judged, strict=True))
        if objective is not None:
            totals = total(objective, rollout)
            scores[allowed] = totals.reshape(len(allowed), -1).mean(1).cpu()
    took = seconds()
    return Ranking(
        order=scores.argsort(descending=True, stable=True),
        scores=scores,
        verdicts=tuple(
            verdicts[number] if breach is None else rejected_by(breach, took)
            for number, breach in enumerate(breaches)
        ),
    )
