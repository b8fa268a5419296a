"""Reasons to refuse a recommendation, and warnings about one that is given."""

from collections.abc import Sequence

import numpy as np

from tokenwm.scaling.law.estimate import Estimate
from tokenwm.scaling.law.law import Laws, TrainingCost, best_log_n
from tokenwm.scaling.law.parametric import ParametricFit
from tokenwm.scaling.law.select import MAX_EPOCHS, Observations
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.quantities import number
from tokenwm.scaling.runs.runs import RunPoint

MAX_SPAN = 10.0
"""Upper over lower end of the interval of N*, beyond which nothing is recommended."""
FAR = 10.0
"""Budget over the most compute of a run, beyond which there is a warning."""
TOO_FAR = 1000.0
"""Budget over the most compute of a run, beyond which nothing is recommended."""
MAX_REPEATS = 16.0
"""D* over the different tokens that the runs had, beyond which nothing is recommended: repeating
data more often teaches next to nothing (Muennighoff et al. 2023)."""
LEAST_INSIDE = 0.15
"""Share of the compute levels of the sweep at which the optimum must lie within the grid."""
FEW_INSIDE = 0.4
"""Share of those compute levels, below which there is a warning."""
MAX_LOST = 0.05
"""Share of bootstrap replicates without an optimum, beyond which nothing is recommended."""


def find_refusals(
    fit: ParametricFit,
    cost: TrainingCost,
    points: Sequence[RunPoint],
    size: Estimate,
    num_tokens: float,
    reach: float,
    replicates_log_n: Array,
) -> list[str]:
    """Reasons not to act on N*.

    Args:
        fit: The law.
        cost: Cost of training.
        points: The runs.
        size: N* for the budget.
        num_tokens: D* for the budget.
        reach: Budget over the most compute of a run.
        replicates_log_n: Optimum of each replicate, NaN for those that have none, (R,).
    """
    reasons = []
    for name, one in (("α", fit.law.alpha), ("β", fit.law.beta)):
        if float(one[0]) <= 0:
            what = "size" if name == "α" else "data"
            reasons.append(f"{name} = {float(one[0]):.3f}: the loss does not fall with {what}")
    if reasons:
        return reasons
    lost = 1.0 - float(np.isfinite(replicates_log_n).mean())
    if lost > MAX_LOST:
        reasons.append(
            f"{100 * lost:.0f} % of the bootstrap replicates have no optimum (limit "
            f"{100 * MAX_LOST:.0f} %)"
        )
    seen = Observations.of(points)
    inside = share_inside(fit.law, cost, seen)
    if inside < LEAST_INSIDE:
        reasons.append(_edge(fit.law, cost, seen, inside))
    if not size.span <= MAX_SPAN:
        reasons.append(
            f"the interval of N*, {size.low:.3g} to {size.high:.3g}, spans a factor of "
            f"{size.span:.3g} (limit {MAX_SPAN:g}); more runs or a wider grid would narrow it"
        )
    if reach > TOO_FAR:
        reasons.append(
            f"the budget is {reach:,.0f} times the most compute of a run (limit {TOO_FAR:,.0f}); "
            "add larger runs"
        )
    different = _num_different_tokens(points)
    if different and num_tokens > MAX_REPEATS * different:
        reasons.append(
            f"D* is {number(num_tokens / different)} times the {different:.3g} different tokens "
            f"that the runs had (limit {MAX_REPEATS:g}); record more episodes, or give a smaller "
            "budget"
        )
    return reasons


def _optima(law: Laws, cost: TrainingCost, seen: Observations) -> tuple[Array, Array]:
    """Log N* and log D* at 200 levels of compute that the runs span."""
    levels = np.linspace(seen.log_c.min(), seen.log_c.max(), 200)
    log_n = best_log_n(law, cost, levels)
    return log_n, levels - cost.log_flops_per_token(log_n)


def share_inside(law: Laws, cost: TrainingCost, seen: Observations) -> float:
    """Share of the compute that the runs span, in logarithms, with its optimum within the grid."""
    log_n, log_d = _optima(law, cost, seen)
    inside = np.ones(len(log_n), dtype=bool)
    for values, measured in ((log_n, seen.log_n), (log_d, seen.log_d)):
        inside &= (values >= measured.min()) & (values <= measured.max())
    return float(inside.mean())


def _edge(law: Laws, cost: TrainingCost, seen: Observations, inside: float) -> str:
    log_n, _ = _optima(law, cost, seen)
    above = log_n[len(log_n) // 2] > seen.log_n.mean()
    wanted = "larger models or fewer tokens" if above else "smaller models or more tokens"
    return (
        f"the optimum lies at the grid's edge: at {100 * inside:.0f} % of the compute of the sweep "
        f"is it within the sizes {np.exp(seen.log_n.min()):.3g} to {np.exp(seen.log_n.max()):.3g} "
        f"and the tokens {np.exp(seen.log_d.min()):.3g} to {np.exp(seen.log_d.max()):.3g} (limit "
        f"{100 * LEAST_INSIDE:g} %); add {wanted}"
    )


def _num_different_tokens(points: Sequence[RunPoint]) -> float | None:
    """Different tokens of the data; None if no run says how often it saw them."""
    return max((p.num_tokens / p.num_epochs for p in points if p.num_epochs), default=None)


def find_warnings(
    fit: ParametricFit,
    cost: TrainingCost,
    points: Sequence[RunPoint],
    reach: float,
    confidence: float,
) -> list[str]:
    """Warnings about the figures for a budget."""
    warnings = []
    if FAR < reach <= TOO_FAR:
        warnings.append(
            f"the budget is {reach:.0f} times the most compute of a run; the hold-out says how "
            "well the law predicts over a smaller distance only"
        )
    floor = Estimate.of(float(fit.law.irreducible[0]), fit.replicates.irreducible, confidence)
    if floor.low < 0.01 * min(point.loss for point in points):
        warnings.append(
            "the interval of E reaches zero: these runs do not show the floor of the loss, so "
            "losses far beyond them are uncertain"
        )
    if cost.largest_error > 0.05:
        warnings.append(
            f"C = k N^(1+κ) D misses the FLOPs of a run by {100 * cost.largest_error:.0f} %; N* "
            "and D* for a budget inherit that"
        )
    inside = share_inside(fit.law, cost, Observations.of(points))
    if inside < FEW_INSIDE:
        warnings.append(
            f"at {100 * inside:.0f} % of the compute of the sweep only is the optimum within its "
            "sizes and tokens: the rest is read off one side"
        )
    return warnings


def repeats_warnings(points: Sequence[RunPoint], num_tokens: float, name: str) -> list[str]:
    """Say so if so many tokens would repeat the data that the runs had too often."""
    different = _num_different_tokens(points)
    if different is None or num_tokens <= MAX_EPOCHS * different:
        return []
    return [
        f"{name} is {number(num_tokens / different)} times the tokens that the runs had "
        f"({different:.3g}); beyond {MAX_EPOCHS:g} repeats the law is too hopeful"
    ]
