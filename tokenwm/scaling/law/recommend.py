"""The size to train, and on how much data, for a budget; or the reasons not to say."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.doubts import find_refusals, find_warnings, repeats_warnings
from tokenwm.scaling.law.estimate import Estimate, exponential
from tokenwm.scaling.law.law import (
    Laws,
    TrainingCost,
    best_log_n,
    cheapest_log_n,
    log_tokens_needed,
)
from tokenwm.scaling.law.parametric import ParametricFit
from tokenwm.scaling.law.select import Observations
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.runs.runs import RunPoint


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Tokens per step and speed, to turn tokens into steps, FLOPs into hours; None if unknown."""

    tokens_per_step: float | None = None
    flops_per_second: float | None = None


@dataclass(frozen=True, kw_only=True)
class Imagination:
    """The amount that the model will imagine.

    Attributes:
        steps: Environment steps in its life.
        tokens_per_step: Positions each takes.
    """

    steps: float
    tokens_per_step: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """One size and how to train it.

    Attributes:
        num_parameters: N.
        num_tokens: D.
        flops: FLOPs of training.
        loss: Expected, nats per token; the interval is that of the law, not of a run's noise.
        num_steps: Optimizer steps; None if tokens per step are not known.
        hours: Hours of training; None if no throughput is known.
    """

    num_parameters: Estimate
    num_tokens: Estimate
    flops: Estimate
    loss: Estimate
    num_steps: Estimate | None
    hours: Estimate | None


@dataclass(frozen=True, kw_only=True)
class LifetimeChoice:
    """The size that reaches the same loss for the least training and imagination together.

    Attributes:
        imagination: The amount asked for.
        choice: The size.
        imagination_flops: FLOPs of all imagined steps with that size.
        saved: Share of the total that it saves against the size that is best to train.
    """

    imagination: Imagination
    choice: Choice
    imagination_flops: Estimate
    saved: Estimate


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """The answer for a budget.

    Attributes:
        budget: FLOPs of training.
        choice: Best to train.
        lifetime: Best to train and to imagine with; None if not asked for.
        reach: Budget over the most compute of a run.
        refusals: Why the figures are not to be acted on; empty if they are.
        warnings: Warnings about them.
    """

    budget: float
    choice: Choice
    lifetime: LifetimeChoice | None
    reach: float
    refusals: tuple[str, ...]
    warnings: tuple[str, ...]


# A law without an optimum makes infinities and NaN; these are what is then refused.
@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def recommend(
    fit: ParametricFit,
    cost: TrainingCost,
    points: Sequence[RunPoint],
    budget: float,
    *,
    confidence: float,
    machine: Machine,
    imagination: Imagination | None = None,
) -> Recommendation:
    """The best size for a budget of training FLOPs, with intervals and reasons to doubt it."""
    seen = Observations.of(points)
    log_n, log_d = _optimum(fit.law, cost, np.log(budget))
    many_n, many_d = _optimum(fit.replicates, cost, np.log(budget))
    choice = _choice(
        fit, cost, (log_n, log_d), (many_n, many_d), confidence=confidence, machine=machine
    )
    lifetime = None
    if imagination is not None:
        lifetime = _lifetime(fit, cost, np.log(budget), imagination, confidence, machine)
    reach = budget / float(np.exp(seen.log_c.max()))
    return Recommendation(
        budget=budget,
        choice=choice,
        lifetime=lifetime,
        reach=reach,
        refusals=tuple(
            find_refusals(
                fit, cost, points, choice.num_parameters, choice.num_tokens.value, reach, many_n
            )
        ),
        warnings=(
            *find_warnings(fit, cost, points, reach, confidence),
            *repeats_warnings(points, choice.num_tokens.value, "D*"),
            *repeats_warnings(
                points, lifetime.choice.num_tokens.value if lifetime else 0.0, "D* with imagination"
            ),
        ),
    )


def measured_machine(points: Sequence[RunPoint]) -> Machine:
    """The machine as the runs themselves recorded it.

    Tokens per step are taken if all runs agree; the throughput is the median of the largest size,
    since small models leave a machine idle.
    """
    per_step = [p.num_tokens / p.num_steps for p in points if p.num_steps]
    agree = bool(per_step) and max(per_step) <= 1.02 * min(per_step)
    timed = [point for point in points if point.seconds]
    largest = max((point.num_parameters for point in timed), default=0.0)
    rates = [p.flops / p.seconds for p in timed if p.seconds and p.num_parameters == largest]
    return Machine(
        tokens_per_step=float(np.median(per_step)) if agree else None,
        flops_per_second=float(np.median(rates)) if rates else None,
    )


def _optimum(laws: Laws, cost: TrainingCost, log_c: float) -> tuple[Array, Array]:
    log_n = best_log_n(laws, cost, log_c)
    log_n = np.where((laws.alpha > 0) & (laws.beta > 0), log_n, np.nan)
    return log_n, log_c - cost.log_flops_per_token(log_n)


def _choice(
    fit: ParametricFit,
    cost: TrainingCost,
    best: tuple[Array, Array],
    replicates: tuple[Array, Array],
    *,
    confidence: float,
    machine: Machine,
) -> Choice:
    """Figures from (log N, log D) of the law and of its replicates."""

    def estimate(one: Array, many: Array) -> Estimate:
        return Estimate.of(float(one[0]), many, confidence)

    def log_flops(place: tuple[Array, Array]) -> Array:
        return np.asarray(cost.log_flops_per_token(place[0]) + place[1])

    tokens = exponential(estimate(best[1], replicates[1]))
    flops = exponential(estimate(log_flops(best), log_flops(replicates)))
    return Choice(
        num_parameters=exponential(estimate(best[0], replicates[0])),
        num_tokens=tokens,
        flops=flops,
        loss=estimate(fit.law.loss(*best), fit.replicates.loss(*replicates)),
        num_steps=_over(tokens, machine.tokens_per_step),
        hours=_over(flops, machine.flops_per_second and 3600.0 * machine.flops_per_second),
    )


def _over(estimate: Estimate, divisor: float | None) -> Estimate | None:
    if divisor is None:
        return None
    return Estimate(
        value=estimate.value / divisor, low=estimate.low / divisor, high=estimate.high / divisor
    )


def _lifetime(
    fit: ParametricFit,
    cost: TrainingCost,
    log_budget: float,
    imagination: Imagination,
    confidence: float,
    machine: Machine,
) -> LifetimeChoice:
    log_imagined = float(np.log(imagination.steps) + np.log(imagination.tokens_per_step))
    places, spent, saved = [], [], []
    for laws in (fit.law, fit.replicates):
        trained_n, trained_d = _optimum(laws, cost, log_budget)
        target = np.log(laws.loss(trained_n, trained_d))
        log_n = cheapest_log_n(laws, cost, target, log_imagined)
        places.append((log_n, log_tokens_needed(laws, log_n, target)))
        per_token = cost.log_flops_per_token(log_n)
        imagining = per_token + log_imagined - np.log(3.0)
        total = np.logaddexp(per_token + places[-1][1], imagining)
        before = np.logaddexp(
            log_budget, cost.log_flops_per_token(trained_n) + log_imagined - np.log(3.0)
        )
        spent.append(imagining)
        saved.append(-np.expm1(total - before))
    best, replicates = places
    return LifetimeChoice(
        imagination=imagination,
        choice=_choice(fit, cost, best, replicates, confidence=confidence, machine=machine),
        imagination_flops=exponential(Estimate.of(float(spent[0][0]), spent[1], confidence)),
        saved=Estimate.of(float(saved[0][0]), saved[1], confidence),
    )
