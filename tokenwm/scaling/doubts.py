"""When a recommendation is refused, and what weakens one that is given."""

from collections.abc import Sequence

import numpy as np

from tokenwm.scaling.estimate import Estimate
from tokenwm.scaling.law import Laws, TrainingCost, best_log_n
from tokenwm.scaling.parametric import ParametricFit
from tokenwm.scaling.runs import RunPoint
from tokenwm.scaling.select import MAX_EPOCHS, Observations
from tokenwm.scaling.solve import Array

MAX_SPAN = 10.0
"""Upper over lower end of the interval of N*, beyond which nothing is recommended."""
FAR = 10.0
"""Budget over the most compute of a run, beyond which there is a warning."""
TOO_FAR = 1000.0
"""The same, beyond which nothing is recommended."""
MAX_LOST = 0.05
"""Share of bootstrap replicates without an optimum, beyond which nothing is recommended."""


def find_refusals(
    fit: ParametricFit,
    cost: TrainingCost,
    seen: Observations,
    size: Estimate,
    reach: float,
    replicates_log_n: Array,
) -> list[str]:
    """Why N* is not to be acted on.

    Args:
        fit: The law.
        cost: Of training.
        seen: The runs.
        size: N* for the budget.
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
    edge = _edge(fit.law, cost, seen)
    if edge:
        reasons.append(edge)
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
    return reasons


def _edge(law: Laws, cost: TrainingCost, seen: Observations) -> str:
    """Say so if the optimum is outside the grid for all compute that the runs span."""
    levels = np.linspace(seen.log_c.min(), seen.log_c.max(), 200)
    log_n = best_log_n(law, cost, levels)
    log_d = levels - cost.log_flops_per_token(log_n)
    inside = [
        (values >= measured.min()) & (values <= measured.max())
        for values, measured in ((log_n, seen.log_n), (log_d, seen.log_d))
    ]
    if (inside[0] & inside[1]).any():
        return ""
    middle = len(levels) // 2
    above = log_n[middle] > seen.log_n.mean()
    wanted = "larger models or fewer tokens" if above else "smaller models or more tokens"
    return (
        "the optimum lies at the grid's edge: at no compute of the sweep is it within the sizes "
        f"{np.exp(seen.log_n.min()):.3g} to {np.exp(seen.log_n.max()):.3g} and the tokens "
        f"{np.exp(seen.log_d.min()):.3g} to {np.exp(seen.log_d.max()):.3g}; add {wanted}"
    )


def find_warnings(
    fit: ParametricFit,
    cost: TrainingCost,
    points: Sequence[RunPoint],
    best_num_tokens: float,
    reach: float,
    confidence: float,
) -> list[str]:
    """What weakens the figures for a budget."""
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
    unique = [p.num_tokens / p.num_epochs for p in points if p.num_epochs]
    if unique and best_num_tokens > MAX_EPOCHS * max(unique):
        warnings.append(
            f"D* is {best_num_tokens / max(unique):.1f} times the tokens that the runs "
            f"had ({max(unique):.3g}); beyond {MAX_EPOCHS:g} repeats the law is too hopeful"
        )
    return warnings
