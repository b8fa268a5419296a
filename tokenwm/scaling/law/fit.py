"""A sweep's runs → the law by three methods, its checks, and a recommendation."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tokenwm.errors import SweepError, TokenwmError
from tokenwm.scaling.law.diagnose import HoldOut, Outlier, find_misfit, find_outliers, hold_out
from tokenwm.scaling.law.downstream import Downstream, fit_downstream
from tokenwm.scaling.law.envelope import EnvelopeFit, fit_envelope
from tokenwm.scaling.law.estimate import Draws, Estimate, exponential
from tokenwm.scaling.law.isoflop import IsoFlopFit, fit_isoflop
from tokenwm.scaling.law.law import Laws, TrainingCost, best_log_n
from tokenwm.scaling.law.parametric import DELTA, ParametricFit, fit_parametric, law_of
from tokenwm.scaling.law.rates import RateCheck, check_rates, rate_warnings
from tokenwm.scaling.law.recommend import (
    Imagination,
    Machine,
    Recommendation,
    measured_machine,
    recommend,
)
from tokenwm.scaling.law.select import Observations, check_design, select
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.runs.runs import LeftOut, Points, RunPoint


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Settings for fitting a sweep.

    Attributes:
        budget: FLOPs of training to recommend for; None takes ten times the most of a run.
        delta: Threshold of the Huber loss, in log loss.
        num_replicates: Replicates of every bootstrap.
        confidence: Confidence of every interval.
        seed: Seed of every bootstrap.
        drop_highest_loss: Number of runs left out, those with the highest loss.
        drop_shortest: Number of smallest token budgets of each size whose runs are left out.
        exclude: Path of a run to leave out → why.
        machine: Tokens per step and throughput; what is None is taken from the runs.
        imagination: Amount that the model will imagine; None leaves it out.
    """

    budget: float | None = None
    delta: float = DELTA
    num_replicates: int = 500
    confidence: float = 0.9
    seed: int = 0
    drop_highest_loss: int = 0
    drop_shortest: int = 0
    exclude: Mapping[str, str] = field(default_factory=dict)
    machine: Machine = field(default_factory=Machine)
    imagination: Imagination | None = None

    def __post_init__(self) -> None:
        if self.budget is not None and not (np.isfinite(self.budget) and self.budget > 0):
            raise TokenwmError(f"budget is {self.budget:g} FLOPs, expected a number above zero")
        if not self.delta > 0:
            raise TokenwmError(f"delta is {self.delta:g}, expected a number above zero")
        if self.drop_shortest < 0:
            raise TokenwmError(f"drop_shortest is {self.drop_shortest}, expected 0 or more")
        if self.num_replicates < 100:
            raise TokenwmError(
                f"num_replicates is {self.num_replicates}; an interval takes at least 100"
            )
        if not 0.5 <= self.confidence < 1.0:
            raise TokenwmError(f"confidence is {self.confidence:g}, expected from 0.5 to below 1")


@dataclass(frozen=True, kw_only=True)
class Method:
    """The answer of one method for a budget.

    Attributes:
        name: Name of the method.
        exponent: Exponent of N* over C; None if the method says nothing.
        num_parameters: N*.
        loss: Expected loss, nats per token.
        reason: Why it says nothing; empty if it does.
    """

    name: str
    exponent: Estimate | None = None
    num_parameters: Estimate | None = None
    loss: Estimate | None = None
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepFit:
    """Everything that was found.

    Attributes:
        config: As fitted; the budget is filled in.
        points: Runs fitted.
        left_out: Runs not fitted, with reasons.
        notes: What was assumed while reading.
        warnings: Warnings about the fit itself.
        seen: The runs as arrays.
        cost: FLOPs of training.
        parametric: Approach 3.
        isoflop: Approach 2.
        envelope: Approach 1.
        methods: The three side by side.
        outliers: Runs far from the law; they stay in the fit.
        size_without_outliers: N* with them left out; None if there are none.
        holdout: The runs of most compute, predicted; None if the others cannot be fitted.
        holdout_reason: Why not; empty if they can.
        downstream: Further figures against compute.
        rate_checks: The rule's learning rate against others, size by size.
        recommendation: For the budget.
        seconds: Time that all of it took.
    """

    config: FitConfig
    points: tuple[RunPoint, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    seen: Observations
    cost: TrainingCost
    parametric: ParametricFit
    isoflop: IsoFlopFit
    envelope: EnvelopeFit
    methods: tuple[Method, ...]
    outliers: tuple[Outlier, ...]
    size_without_outliers: float | None
    holdout: HoldOut | None
    holdout_reason: str
    downstream: tuple[Downstream, ...]
    rate_checks: tuple[RateCheck, ...]
    recommendation: Recommendation
    seconds: float

    @property
    def has_optimum(self) -> bool:
        """True if the law, and most of its replicates, have a best size for the budget."""
        size = self.recommendation.choice.num_parameters
        return bool(np.isfinite([size.value, size.low, size.high]).all())

    @property
    def budget(self) -> float:
        """FLOPs of training that the recommendation is for."""
        return self.recommendation.budget


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # see recommend()
def fit_sweep(read: Points, config: FitConfig) -> SweepFit:
    """Fit the runs that were read, check the fit, and recommend.

    Raises:
        SweepError: The runs cannot tell the numbers of the law apart, or one to exclude is missing.
    """
    start = time.perf_counter()
    points, left_out = select(
        read.points,
        drop_highest_loss=config.drop_highest_loss,
        drop_shortest=config.drop_shortest,
        exclude=config.exclude,
    )
    rate_checks = check_rates(points, read.rate_checks)
    warnings = [*check_design(points), *rate_warnings(rate_checks)]
    seen = Observations.of(points)
    cost = TrainingCost.from_runs(seen.log_n, seen.log_d, seen.log_c)
    draws = Draws(
        num_replicates=config.num_replicates, seed=config.seed, confidence=config.confidence
    )
    parametric = fit_parametric(seen, delta=config.delta, draws=draws)
    if parametric.num_agreeing < 0.5 * parametric.num_starts:
        warnings.append(
            f"only {parametric.num_agreeing} of {parametric.num_starts} L-BFGS starts reached the "
            "minimum; the runs hardly decide between several laws"
        )
    isoflop = fit_isoflop(seen, parametric.spread, draws)
    envelope = fit_envelope(seen, draws)
    outliers = find_outliers(parametric)
    holdout, holdout_reason = _held_out(points, seen, config)
    measured = measured_machine(points)
    recommendation = recommend(
        parametric,
        cost,
        points,
        config.budget or 10.0 * float(np.exp(seen.log_c.max())),
        confidence=config.confidence,
        machine=Machine(
            tokens_per_step=config.machine.tokens_per_step or measured.tokens_per_step,
            flops_per_second=config.machine.flops_per_second or measured.flops_per_second,
        ),
        imagination=config.imagination,
    )
    log_budget = float(np.log(recommendation.budget))
    return SweepFit(
        config=config,
        points=tuple(points),
        left_out=(*read.left_out, *left_out),
        notes=read.notes,
        warnings=(*warnings, *find_misfit(seen, parametric)),
        seen=seen,
        cost=cost,
        parametric=parametric,
        isoflop=isoflop,
        envelope=envelope,
        methods=(
            _parametric_method(parametric, cost, recommendation, config.confidence),
            _line_method("IsoFLOP parabolas", isoflop, log_budget, config.confidence),
            _line_method("loss envelope", envelope, log_budget, config.confidence),
        ),
        outliers=tuple(outliers),
        size_without_outliers=_without(outliers, points, cost, config, log_budget),
        holdout=holdout,
        holdout_reason=holdout_reason,
        downstream=tuple(fit_downstream(points, draws)),
        rate_checks=tuple(rate_checks),
        recommendation=recommendation,
        seconds=time.perf_counter() - start,
    )


def law_estimates(fit: SweepFit) -> dict[str, Estimate]:
    """E, A, B, α and β, each with its interval."""
    one, many = fit.parametric.law, fit.parametric.replicates
    confidence = fit.config.confidence
    return {
        "E": Estimate.of(float(one.irreducible[0]), many.irreducible, confidence),
        "A": exponential(Estimate.of(float(one.log_a[0]), many.log_a, confidence)),
        "B": exponential(Estimate.of(float(one.log_b[0]), many.log_b, confidence)),
        "alpha": Estimate.of(float(one.alpha[0]), many.alpha, confidence),
        "beta": Estimate.of(float(one.beta[0]), many.beta, confidence),
    }


def _held_out(
    points: list[RunPoint], seen: Observations, config: FitConfig
) -> tuple[HoldOut | None, str]:
    try:
        return hold_out(points, seen, config.delta), ""
    except SweepError as error:
        return None, f"without the runs of most compute there is no fit: {error}"


def _parametric_method(
    fit: ParametricFit, cost: TrainingCost, recommendation: Recommendation, confidence: float
) -> Method:
    def exponent(laws: Laws) -> Array:
        return laws.beta / (laws.alpha + (1.0 + cost.bend) * laws.beta)

    return Method(
        name="parametric law",
        exponent=Estimate.of(
            float(exponent(fit.law)[0]), np.asarray(exponent(fit.replicates)), confidence
        ),
        num_parameters=recommendation.choice.num_parameters,
        loss=recommendation.choice.loss,
    )


def _line_method(
    name: str, fit: IsoFlopFit | EnvelopeFit, log_budget: float, confidence: float
) -> Method:
    if fit.size is None or fit.loss is None:
        return Method(name=name, reason=fit.reason)
    return Method(
        name=name,
        exponent=fit.exponent,
        num_parameters=exponential(fit.size.at(log_budget, confidence)),
        loss=exponential(fit.loss.at(log_budget, confidence)),
    )


def _without(
    outliers: Sequence[Outlier],
    points: Sequence[RunPoint],
    cost: TrainingCost,
    config: FitConfig,
    log_budget: float,
) -> float | None:
    """N* of a fit without the outliers: how much they decide."""
    if not outliers:
        return None
    far = {outlier.index for outlier in outliers}
    kept = Observations.of([point for index, point in enumerate(points) if index not in far])
    return float(np.exp(best_log_n(law_of(kept, config.delta), cost, log_budget))[0])
