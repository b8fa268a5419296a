"""The robust misfit of L = E + A N^-α + B D^-β, and two solvers that minimise it.

:func:`solve` and :func:`descend` are our own because they do many fits at a time, which scipy's
solvers do not: one sweep takes 500 bootstrap refits, and the simulations that check the intervals
take 100,000 (ratio: docs/results/scaling.md). :func:`minimise_with_scipy` is the check on them.

A fit is a row of five numbers ``(e, a, b, α, β)`` with ``log L = logsumexp(e, a - α x, b - β y)``,
where ``x`` and ``y`` are log N and log D less their means over the runs. So units of N and D
change nothing here, and ``a`` and ``b`` are nearly independent of the exponents.

Every function but the last takes R fits at once. ``log_loss`` and ``weights`` have the shape
(R, n), or (1, n) where all fits share them; ``x`` and ``y`` have the shape (n,).

Source: the form and the Huber loss are those of Hoffmann et al. 2022, equations 2 and 3.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import SweepError

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Runs to fit, R times over.

    Attributes:
        x: log N less its mean, (n,).
        y: log D less its mean, (n,).
        log_loss: (R, n) or (1, n), nats are the unit of the loss.
        weights: (R, n) or (1, n), 1 for a run that counts once.
        delta: Residuals of log loss beyond it count by their size, smaller ones by their square.
    """

    x: Array
    y: Array
    log_loss: Array
    weights: Array
    delta: float

    def rows(self, index: NDArray[np.intp]) -> "Problem":
        """The fits of this index only."""
        losses, weights = self.log_loss, self.weights
        return replace(
            self,
            log_loss=losses if len(losses) == 1 else losses[index],
            weights=weights if len(weights) == 1 else weights[index],
        )


def predict(parameters: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """Log loss (R, n), and the share of each of the three terms in the loss (R, n, 3)."""
    exponents = np.stack(
        [
            np.broadcast_to(parameters[:, :1], (len(parameters), len(x))),
            parameters[:, 1:2] - parameters[:, 3:4] * x,
            parameters[:, 2:3] - parameters[:, 4:5] * y,
        ],
        axis=-1,
    )
    largest = exponents.max(axis=-1, keepdims=True)
    terms = np.exp(exponents - largest)
    total = terms.sum(axis=-1, keepdims=True)
    return (largest + np.log(total))[..., 0], terms / total


def objective(parameters: Array, problem: Problem) -> Array:
    """The weighted Huber loss of the residuals of log loss, (R,)."""
    residuals = predict(parameters, problem.x, problem.y)[0] - problem.log_loss
    return np.asarray((problem.weights * _huber(residuals, problem.delta)).sum(axis=-1))


def _huber(residuals: Array, delta: float) -> Array:
    size = np.abs(residuals)
    return np.where(size <= delta, 0.5 * size**2, delta * (size - 0.5 * delta))


def jacobian(shares: Array, x: Array, y: Array) -> Array:
    """Derivatives of log loss by the five parameters, (R, n, 5), from the shares of the terms."""
    by_exponents = -shares[..., 1:] * np.stack([x, y], axis=-1)
    return np.concatenate([shares, by_exponents], axis=-1)


def gradient(parameters: Array, problem: Problem) -> Array:
    """Derivative of the misfit by the parameters, (R, 5)."""
    prediction, shares = predict(parameters, problem.x, problem.y)
    pull = np.clip(prediction - problem.log_loss, -problem.delta, problem.delta)
    slopes = jacobian(shares, problem.x, problem.y)
    return np.asarray(np.einsum("rn,rni->ri", problem.weights * pull, slopes))


def spread_starts(
    problem: Problem, shares: Sequence[float], exponents: Sequence[float], by_size: Sequence[float]
) -> Array:
    """Starts all over what a law could be, (R, S, 5), for all combinations of the arguments.

    Args:
        problem: What to fit.
        shares: Irreducible loss over the lowest loss seen.
        exponents: α and β.
        by_size: Share of size, not of data, in the rest of the loss in the middle of the design.
    """
    lowest = np.exp(problem.log_loss.min(axis=1))
    middle = np.exp(np.median(problem.log_loss, axis=1))
    starts = []
    for share, alpha, beta, size in product(shares, exponents, exponents, by_size):
        rest = np.maximum(middle - share * lowest, 1e-3 * middle)
        terms = np.log([share * lowest, size * rest, (1.0 - size) * rest])
        starts.append([*terms, np.full_like(rest, alpha), np.full_like(rest, beta)])
    return np.array(starts).transpose(2, 0, 1)


def solve(problem: Problem) -> Array:
    """The minimum for each of R problems, (R, 5): the best of the descents from eight starts."""
    starts = spread_starts(problem, (0.5, 0.9), (0.3, 0.9), (0.5,))
    num_fits, num_starts, _ = starts.shape
    repeated = problem.rows(np.repeat(np.arange(num_fits), num_starts))
    found = descend(starts.reshape(-1, 5), repeated)
    best = objective(found, repeated).reshape(num_fits, num_starts).argmin(axis=1)
    return np.asarray(found.reshape(starts.shape)[np.arange(num_fits), best])


def descend(
    start: Array, problem: Problem, *, max_steps: int = 300, tolerance: float = 1e-9
) -> Array:
    """Levenberg–Marquardt on iteratively reweighted squares; the misfit never rises.

    Converges in tens of steps from anywhere near, which makes bootstrap intervals cheap.

    Args:
        start: (R, 5).
        problem: What to fit.
        max_steps: Steps after which a fit is left where it is.
        tolerance: Relative gain of a step below which a fit is finished.

    Returns:
        Parameters, (R, 5).
    """
    found = start.copy()
    damping = np.full(len(found), 1e-3)
    misfit = objective(found, problem)
    active = np.arange(len(found))
    for _ in range(max_steps):
        part = problem.rows(active)
        step = _damped_step(found[active], damping[active], part)
        moved = found[active] + step
        after = objective(moved, part)
        better = after <= misfit[active]
        gain = (misfit[active] - after) / np.maximum(misfit[active], 1e-300)
        found[active[better]] = moved[better]
        misfit[active[better]] = after[better]
        damping[active] = np.clip(
            np.where(better, damping[active] * 0.3, damping[active] * 10), 1e-9, 1e9
        )
        stuck = ~better & (damping[active] > 1e8)
        active = active[~(stuck | (better & (gain < tolerance)))]
        if not len(active):
            break
    return found


def _damped_step(parameters: Array, damping: Array, problem: Problem) -> Array:
    prediction, shares = predict(parameters, problem.x, problem.y)
    residuals = prediction - problem.log_loss
    robust = np.minimum(1.0, problem.delta / np.maximum(np.abs(residuals), 1e-300))
    slopes = jacobian(shares, problem.x, problem.y)
    weighted = np.swapaxes(slopes * (problem.weights * robust)[..., None], -1, -2)
    curvature = weighted @ slopes
    diagonal = np.einsum("rii->ri", curvature)
    ridge = damping[:, None] * diagonal + 1e-13 * diagonal.max(axis=-1, keepdims=True) + 1e-300
    system = curvature + ridge[..., None] * np.eye(5)
    step = -np.linalg.solve(system, weighted @ residuals[..., None])[..., 0]
    # A doubling or halving of the loss a step is enough; farther the quadratic is no guide.
    return np.asarray(np.clip(step, -0.7, 0.7))


def minimise_with_scipy(starts: Array, problem: Problem) -> Array:
    """L-BFGS from each of (S, 5) starts for one problem, (S, 5).

    Raises:
        SweepError: scipy is not installed.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise SweepError(
            f"fitting a law needs scipy ({error}): pip install 'tokenwm[scaling]'"
        ) from error

    def misfit(parameters: Array) -> tuple[float, Array]:
        one = parameters[None]
        return float(objective(one, problem)[0]), gradient(one, problem)[0]

    # The misfit of a good fit is small: the usual tolerance would stop far from the minimum.
    options: Any = {"maxiter": 300, "ftol": 1e-12, "gtol": 1e-12}
    found = [
        minimize(misfit, start, jac=True, method="L-BFGS-B", options=options) for start in starts
    ]
    return np.array([result.x for result in found])
