"""Minimising the robust misfit of L = E + A N^-α + B D^-β, many fits at a time, three ways.

A fit is a row of five numbers ``(e, a, b, α, β)`` with ``log L = logsumexp(e, a - α x, b - β y)``,
where ``x`` and ``y`` are log N and log D less their means over the runs. So units of N and D
change nothing here, and ``a`` and ``b`` are nearly independent of the exponents.

Every function takes R fits at once. ``log_loss`` and ``weights`` have the shape (R, n), or (1, n)
where all fits share them; ``x`` and ``y`` have the shape (n,).

Source: the form and the Huber loss are those of Hoffmann et al. 2022, equations 2 and 3.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EXPONENTS = (0.02, 2.0)
"""Where variable projection looks for α and β."""
SMALLEST_TERM = 1e-4
"""Of the loss in the middle of the design; a term that wants to vanish is held there."""


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
        return Problem(
            x=self.x,
            y=self.y,
            log_loss=losses if len(losses) == 1 else losses[index],
            weights=weights if len(weights) == 1 else weights[index],
            delta=self.delta,
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


def project(problem: Problem, *, coarse: int = 14, zooms: int = 4) -> Array:
    """Variable projection: a grid over (α, β) that zooms in; the other three are solved for.

    Given the exponents the loss is linear in (E, A, B), so there is nothing to start from and no
    local minimum in them.

    Args:
        problem: What to fit.
        coarse: Points a side of the first grid, spaced evenly in the logarithm.
        zooms: Times the grid around the best point is made finer.

    Returns:
        Parameters, (R, 5).
    """
    num_fits = max(len(problem.log_loss), len(problem.weights))
    low, high = np.log(EXPONENTS)
    side = np.linspace(low, high, coarse)
    grid = np.broadcast_to(_square(side), (num_fits, coarse**2, 2))
    spacing = (high - low) / (coarse - 1)
    rows = np.arange(num_fits)
    for zoom in range(zooms + 1):
        candidates, misfit = _solve_linear(np.exp(grid), problem)
        best = candidates[rows, misfit.argmin(axis=1)]
        if zoom < zooms:
            spacing /= 2.0
            around = _square(spacing * np.arange(-3, 4))
            grid = np.clip(np.log(best[:, None, 3:]) + around, low, high)
    return np.asarray(best)


def _square(side: Array) -> Array:
    """All pairs of two entries of ``side``, (1, len(side)², 2)."""
    return np.stack(np.meshgrid(side, side, indexing="ij"), axis=-1).reshape(1, -1, 2)


def _solve_linear(exponents: Array, problem: Problem, num_steps: int = 5) -> tuple[Array, Array]:
    """Parameters (R, G, 5) and misfit (R, G) for exponents (R, G, 2).

    A few reweighted Gauss–Newton steps for the three coefficients, from least squares of the
    relative error.
    """
    log_loss = problem.log_loss[:, None]  # (R, 1, n)
    basis = np.stack(
        np.broadcast_arrays(
            -log_loss,
            -exponents[..., :1] * problem.x - log_loss,
            -exponents[..., 1:] * problem.y - log_loss,
        ),
        axis=-1,
    )
    basis = np.exp(basis)  # each term over the loss, for a coefficient of one; (R, G, n, 3)
    smallest = SMALLEST_TERM * np.exp(log_loss.mean(axis=-1, keepdims=True))
    scale = np.ones_like(basis[..., 0])
    weights, target = problem.weights[:, None], scale
    for _ in range(num_steps):
        slopes = basis / scale[..., None]
        weighted = np.swapaxes(slopes * weights[..., None], -1, -2)
        gram = weighted @ slopes
        gram = gram + 1e-12 * np.einsum("rgii->rg", gram)[..., None, None] * np.eye(3)
        solved = np.linalg.solve(gram, weighted @ target[..., None])[..., 0]
        coefficients = np.maximum(solved, smallest)
        scale = np.einsum("rgni,rgi->rgn", basis, coefficients)  # predicted over measured loss
        residuals = np.log(scale)
        robust = np.minimum(1.0, problem.delta / np.maximum(np.abs(residuals), 1e-300))
        weights = problem.weights[:, None] * robust
        # log(scale) + (slopes @ (new - old)) = 0, where slopes @ old = 1.
        target = 1.0 - residuals
    misfit = (problem.weights[:, None] * _huber(residuals, problem.delta)).sum(axis=-1)
    return np.concatenate([np.log(coefficients), exponents], axis=-1), misfit
