"""Verdicts on an action chunk: hard limits first, then imagined futures, and an honest unknown.

::

    verdict = verify(world, state, chunk, failure=falls_below(objective, -0.5), limits=limits)
    if verdict.decision != "accepted":
        print(verdict.reason)
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.control.limits import Breach, Limits, limits_for
from tokenwm.control.planners.base import roll_candidates
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.world import World
from tokenwm.shapes import check_shape, check_type, is_number, is_whole, shown

State = TypeVar("State")
Answer = Literal["accepted", "rejected", "unknown"]

OfRollout = Callable[[Rollout], Tensor]
"""Function from ``B`` futures to ``(B,)`` or ``(B, H)``: an objective, a failure or a doubt."""


@dataclass(frozen=True, kw_only=True)
class VerifyConfig:
    """Settings of a verdict.

    Attributes:
        num_futures: Futures imagined of each chunk, each with a noise stream of its own; the
            streams are the same for all chunks. A probability is resolved to one of so many.
        max_failure_probability: A chunk is rejected if a larger part of its futures fails.
        max_doubt: A verdict is ``unknown`` if the doubt is larger; None for no limit.
        sampling: Settings for drawing outcomes.
    """

    num_futures: int = 16
    max_failure_probability: float = 0.1
    max_doubt: float | None = None
    sampling: SamplingConfig = field(default_factory=SamplingConfig)

    def __post_init__(self) -> None:
        if not is_whole(self.num_futures):
            raise TokenwmError(
                f"num_futures={shown(self.num_futures)}; use a whole number, at least 1"
            )
        most = self.max_failure_probability
        if not is_number(most) or not 0.0 <= most <= 1.0:
            raise TokenwmError(
                f"max_failure_probability={shown(most)}; use a probability in [0, 1]"
            )
        if self.max_doubt is not None and not (is_number(self.max_doubt) and self.max_doubt >= 0):
            raise TokenwmError(f"max_doubt={shown(self.max_doubt)}; use 0 or more, or None")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """An answer to whether a chunk may be carried out.

    Attributes:
        decision: ``accepted``, ``rejected``, or ``unknown`` where the model cannot tell.
        reason: Why, in one sentence.
        failure_probability: Part of the imagined futures that fail, in [0, 1]; None if nothing was
            imagined or nothing says what a failure is.
        doubt: Mean over the futures of their largest doubt; None if nothing estimates it.
        limit: Hard limit that the chunk breaks; None if it breaks none.
        seconds: Time that the verdict took; of several chunks that were judged together, all of it.
    """

    decision: Answer
    reason: str
    failure_probability: float | None = None
    doubt: float | None = None
    limit: Breach | None = None
    seconds: float = 0.0


def falls_below(objective: OfRollout, least: float) -> OfRollout:
    """A failure: the objective is below a value at some step; NaN stays, which is unknown."""

    def failure(rollout: Rollout) -> Tensor:
        score = objective(rollout)
        return torch.where(score.isnan(), score, (score < least).to(score))

    return failure


@torch.inference_mode()
def verify(
    world: World[State],
    state: State,
    chunk: Tensor | NDArray[Any],
    failure: OfRollout | None,
    limits: Limits | None = None,
    *,
    doubt: OfRollout | None = None,
    previous: Tensor | NDArray[Any] | None = None,
    config: VerifyConfig | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Judge one chunk: the hard limits, then as many imagined futures as the settings say.

    Nothing is imagined of a chunk that breaks a limit.

    Args:
        world: The world.
        state: Where, one row; it is not used up.
        chunk: ``(H, A)`` in the units of the data.
        failure: Tells futures that fail: ``(B,)`` or ``(B, H)``, bool or a probability in [0, 1];
            of steps, one is enough, as far as it is reached (:attr:`Rollout.survival`). See
            :func:`falls_below` to make one of an objective. None: only limits and doubt count.
        limits: Hard limits.
        doubt: ``(B,)`` or ``(B, H)``, how little the model knows; None takes
            :attr:`Rollout.doubt`.
        previous: ``(n, dims)`` the robot's last actions, for limits of speed and acceleration.
        config: Settings.
        clock: Seconds.

    Raises:
        TokenwmError: The chunk has another shape, a failure is no probability, or doubt is limited
            and nothing estimates it.
    """
    chunks = as_tensor("chunk", chunk)
    check_shape("chunk", chunks, ("H", "A"))
    before = None if previous is None else as_tensor("previous", previous)[None]
    began = clock()
    config = VerifyConfig() if config is None else config
    (breach,) = broken_limits(world, state, chunks[None], limits, before)
    if breach is not None:
        return rejected_by(breach, clock() - began)
    rollout = imagine_chunks(world, state, chunks[None], config)
    (verdict,) = judge(rollout, 1, failure, doubt, config, lambda: clock() - began)
    return verdict


def rejected_by(breach: Breach, seconds: float) -> Verdict:
    """The verdict on a chunk that breaks a hard limit."""
    return Verdict(decision="rejected", reason=str(breach), limit=breach, seconds=seconds)


def broken_limits(
    world: Any, state: Any, chunks: Tensor, limits: Limits | None, previous: Tensor | None
) -> list[Breach | None]:
    """The limit that each of ``(K, H, A)`` chunks breaks from one state, or None.

    Args:
        world: If it tells the robot's state (``state_of``), as a model does, limits get it.
        state: One row.
        chunks: In units.
        limits: None for no limits.
        previous: ``(1, n, dims)`` the robot's last actions, or None.

    Raises:
        TokenwmError: The limits are for another rate or other actions.
    """
    if limits is None:
        return [None] * len(chunks)
    check_type("limits", limits, Limits)
    tell = getattr(world, "state_of", None)
    robot = None if tell is None else tell(state)
    count = len(chunks)
    return limits_for(limits, world).check(
        chunks,
        None if robot is None else robot.expand(count, -1),
        None if previous is None else previous.expand(count, -1, -1),
    )


def imagine_chunks(
    world: World[State], state: State, chunks: Tensor, config: VerifyConfig
) -> Rollout:
    """``n`` futures of each of ``(K, H, A)`` chunks, those of a chunk next to each other.

    All are one batch (in parts if they do not fit into memory), the past is read once, and the
    ``n`` noise streams of every chunk are the same, so that chunks are compared with the same luck.
    """
    actions, streams = futures_of(chunks, config.num_futures)
    return roll_candidates(world, state, actions, noise_streams=streams, sampling=config.sampling)


def futures_of(chunks: Tensor, num_futures: int) -> tuple[Tensor, Tensor]:
    """Actions and noise streams of ``n`` futures of each chunk, those of a chunk neighbours."""
    return chunks.repeat_interleave(num_futures, dim=0), torch.arange(num_futures).repeat(
        len(chunks)
    )


def judge(
    rollout: Rollout,
    num_chunks: int,
    failure: OfRollout | None,
    doubt: OfRollout | None,
    config: VerifyConfig,
    seconds: Callable[[], float],
) -> list[Verdict]:
    """Verdicts on chunks within their limits, of their futures; waits for the device once."""
    num_rows = len(rollout.frame_tokens)
    doubts = rollout.doubt if doubt is None else doubt(rollout)
    if doubts is None and config.max_doubt is not None:
        raise TokenwmError(
            f"max_doubt={config.max_doubt:g}, but nothing estimates the model's doubt; give "
            "doubt=…, or leave max_doubt out"
        )
    figures = torch.zeros((3, num_rows), dtype=torch.float64, device=rollout.frame_tokens.device)
    figures[0] = rollout.is_finite
    if failure is not None:
        figures[1] = _reached(failure(rollout), rollout)
    if doubts is not None:
        figures[2] = _of_rows("doubt", doubts.double(), rollout)
    finite, failed, doubted = figures.reshape(3, num_chunks, -1).cpu()
    finite = finite.bool() & ~failed.isnan() & ~doubted.isnan()
    if bool(((failed < 0) | (failed > 1)).any()):
        raise TokenwmError(
            f"failure gives values in [{failed.min():g}, {failed.max():g}]; give bool or "
            "probabilities in [0, 1] (of an objective, falls_below makes a failure)"
        )
    took = seconds()
    return [
        _verdict(
            int((~finite[chunk]).sum()),
            None if failure is None else float(failed[chunk].mean()),
            None if doubts is None else float(doubted[chunk].mean()),
            config,
            took,
        )
        for chunk in range(num_chunks)
    ]


def _verdict(
    num_broken: int,
    probability: float | None,
    doubt: float | None,
    config: VerifyConfig,
    seconds: float,
) -> Verdict:
    most, count = config.max_failure_probability, config.num_futures
    decision: Answer = "accepted"
    reason = "within all limits"
    if probability is not None:
        reason = f"{probability:.1%} of {count} futures fail, at most {most:.1%} may"
    if num_broken:
        decision = "unknown"
        reason = f"{num_broken} of {count} futures are not finite numbers"
        probability = doubt = None
    elif doubt is not None and config.max_doubt is not None and doubt > config.max_doubt:
        decision = "unknown"
        reason = f"the model's doubt is {doubt:.3g}, more than {config.max_doubt:g}"
    elif probability is not None and probability > most:
        decision = "rejected"
    return Verdict(
        decision=decision,
        reason=reason,
        failure_probability=probability,
        doubt=doubt,
        seconds=seconds,
    )


def _reached(failing: Any, rollout: Rollout) -> Tensor:
    """Probability that each future fails, ``(B,)`` float64.

    A step counts by the probability that it is reached. Of several the largest is taken: exact
    where failing is certain or not, since the first failing step is the likeliest to be reached.
    """
    values = as_tensor("failure", failing).double()
    if values.ndim == 2:
        check_shape("what the failure returned", values, tuple(rollout.frame_nll.shape))
        values = values * rollout.survival
    return _of_rows("failure", values, rollout)


def _of_rows(name: str, values: Tensor, rollout: Rollout) -> Tensor:
    """The largest value over the steps of each future; NaN if one is."""
    if values.ndim == 2:
        values = values.amax(1)
    check_shape(f"what the {name} returned", values, (len(rollout.frame_tokens),))
    return values
