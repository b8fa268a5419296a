"""Approach 3: the parametric law, its bootstrap replicates, residuals and leverage."""

from dataclasses import dataclass, replace

import numpy as np

from tokenwm.scaling.law.estimate import Draws
from tokenwm.scaling.law.law import Laws
from tokenwm.scaling.law.select import Observations
from tokenwm.scaling.law.solve import (
    Array,
    Problem,
    descend,
    jacobian,
    minimise_with_scipy,
    objective,
    predict,
    solve,
    spread_starts,
)

DELTA = 1e-3
"""Hoffmann et al. 2022: residuals of log loss beyond it count by their size."""
SAME_MINIMUM = 1e-3
"""Relative difference of two misfits below which they are one minimum."""
EXACT = 1e-5
"""Residual of log loss that counts as none: without noise every misfit is many times the least."""


@dataclass(frozen=True, kw_only=True)
class ParametricFit:
    """The fitted law.

    Attributes:
        law: R = 1.
        replicates: The law refitted with random weights, R of them.
        misfit: Sum of Huber losses at the minimum.
        misfit_descent: Misfit that our own descent reached.
        misfit_lbfgs: Misfit that the best of scipy's L-BFGS runs reached.
        num_starts: Starts of L-BFGS.
        num_agreeing: Starts that ended at the minimum.
        residuals: Log loss less prediction, (n,).
        leverage: How far each run pulls its own prediction, 0 to 1, (n,).
        spread: Robust standard deviation of the residuals, freed of the five numbers fitted.
    """

    law: Laws
    replicates: Laws
    misfit: float
    misfit_descent: float
    misfit_lbfgs: float
    num_starts: int
    num_agreeing: int
    residuals: Array
    leverage: Array
    spread: float


def problem_of(seen: Observations, delta: float = DELTA) -> Problem:
    """The runs as a problem with R = 1."""
    return Problem(
        x=seen.log_n - seen.log_n.mean(),
        y=seen.log_d - seen.log_d.mean(),
        log_loss=seen.log_loss[None],
        weights=np.ones((1, len(seen.log_loss))),
        delta=delta,
    )


def law_of(seen: Observations, delta: float) -> Laws:
    """The law of these runs alone, R = 1."""
    means = float(seen.log_n.mean()), float(seen.log_d.mean())
    return Laws.from_centred(solve(problem_of(seen, delta)), *means)


def resample(best: Array, problem: Problem, num_replicates: int, seed: int) -> Array:
    """Refit with random weights (the Bayesian bootstrap), from the minimum on.

    Weights are exponential with mean one. No run ever vanishes, so a design stays as identifiable
    as it is, and runs may differ in how noisy they are. tools/scaling_coverage.py measures how
    often the intervals hold the truth; docs/results/scaling.md has the figures.

    Args:
        best: (S, 5), minima of S problems.
        problem: With S rows of ``log_loss`` and one row of weights of one.
        num_replicates: R, for each.
        seed: Seed of the weights.

    Returns:
        (S, R, 5).
    """
    num_problems, num_runs = len(best), len(problem.x)
    random = np.random.default_rng(seed)
    repeated = replace(
        problem,
        log_loss=np.repeat(problem.log_loss, num_replicates, axis=0),
        weights=random.exponential(size=(num_problems * num_replicates, num_runs)),
    )
    start = np.repeat(best, num_replicates, axis=0)
    found = descend(start, repeated, max_steps=100, tolerance=1e-6)
    return found.reshape(num_problems, num_replicates, 5)


def fit_parametric(seen: Observations, *, delta: float = DELTA, draws: Draws) -> ParametricFit:
    """Fit the law by two independent solvers, and again for every bootstrap replicate.

    Raises:
        SweepError: scipy is not installed.
    """
    problem = problem_of(seen, delta)
    descended = solve(problem)
    starts = spread_starts(problem, (0.2, 0.6, 0.95), (0.2, 0.5, 1.2), (0.2, 0.8))[0]
    searched = minimise_with_scipy(starts, problem)
    misfits = objective(searched, problem)
    candidates = descend(np.stack([descended[0], searched[misfits.argmin()]]), problem)
    best = candidates[[objective(candidates, problem).argmin()]]
    misfit = float(objective(best, problem)[0])
    exact = 0.5 * EXACT**2 * len(seen.log_loss)
    means = float(seen.log_n.mean()), float(seen.log_d.mean())
    replicates = resample(best, problem, draws.num_replicates, draws.seed)[0]
    prediction, shares = predict(best, problem.x, problem.y)
    residuals = seen.log_loss - prediction[0]
    return ParametricFit(
        law=Laws.from_centred(best, *means),
        replicates=Laws.from_centred(replicates, *means),
        misfit=misfit,
        misfit_descent=float(objective(descended, problem)[0]),
        misfit_lbfgs=float(misfits.min()),
        num_starts=len(starts),
        num_agreeing=int((misfits <= misfit * (1.0 + SAME_MINIMUM) + exact).sum()),
        residuals=residuals,
        leverage=_leverage(jacobian(shares, problem.x, problem.y)[0]),
        spread=robust_spread(residuals, num_fitted=5),
    )


def _leverage(slopes: Array) -> Array:
    """Diagonal of the projection onto the columns of the Jacobian (n, 5)."""
    basis = np.linalg.qr(slopes)[0]
    return np.asarray((basis**2).sum(axis=1))


def robust_spread(residuals: Array, num_fitted: int) -> float:
    """Standard deviation by the median of absolute residuals.

    The residuals nearest to zero are left aside, as many as numbers were fitted: a fit by absolute
    deviations goes through so many runs whatever the noise is.
    """
    sizes = np.sort(np.abs(residuals))[num_fitted:]
    return float(1.4826 * np.median(sizes)) if len(sizes) else float("nan")
