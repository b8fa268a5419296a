"""L-BFGS from many starts at once: the usual solver, here as the check on the other one."""

from itertools import product

import numpy as np

from tokenwm.scaling.law.solve import Array, Problem, jacobian, objective, predict

MEMORY = 10
"""Pairs of steps and changes of the gradient that stand for the curvature."""


def spread_starts(problem: Problem) -> Array:
    """Starts all over what a law could be, for one fit: (54, 5).

    Irreducible loss from small to nearly all of the lowest loss seen, exponents from 0.2 to 1.2,
    and the rest of the loss in the middle of the design due to size or to data.
    """
    lowest, middle = np.exp(problem.log_loss.min()), np.exp(np.median(problem.log_loss))
    rows = []
    for share, alpha, beta, by_size in product(
        (0.2, 0.6, 0.95), (0.2, 0.5, 1.2), (0.2, 0.5, 1.2), (0.2, 0.8)
    ):
        rest = max(middle - share * lowest, 1e-3 * middle)
        terms = np.log([share * lowest, by_size * rest, (1.0 - by_size) * rest])
        rows.append([*terms, alpha, beta])
    return np.array(rows)


def gradient(parameters: Array, problem: Problem) -> Array:
    """Derivative of the misfit by the parameters, (R, 5)."""
    prediction, shares = predict(parameters, problem.x, problem.y)
    pull = np.clip(prediction - problem.log_loss, -problem.delta, problem.delta)
    slopes = jacobian(shares, problem.x, problem.y)
    return np.asarray(np.einsum("rn,rni->ri", problem.weights * pull, slopes))


def minimise(
    start: Array, problem: Problem, *, max_steps: int = 300, tolerance: float = 1e-7
) -> Array:
    """L-BFGS with backtracking until the decrease is enough (Armijo).

    Rows that are finished leave the batch.

    Args:
        start: (R, 5).
        problem: What to fit.
        max_steps: Steps after which a fit is left where it is.
        tolerance: Relative gain below which, five steps in a row, a fit is finished.

    Returns:
        Parameters, (R, 5).
    """
    found, slope, misfit = start.copy(), gradient(start, problem), objective(start, problem)
    steps, changes = np.zeros((2, MEMORY, *start.shape))
    quiet = np.zeros(len(start), dtype=int)
    result, active = start.copy(), np.arange(len(start))
    for _ in range(max_steps):
        part = problem.rows(active)
        direction = -_times_inverse_curvature(slope, steps, changes)
        uphill = (direction * slope).sum(axis=-1) >= 0
        direction[uphill] = -slope[uphill]
        moved, after = _backtrack(found, direction, slope, misfit, part)
        new_slope = gradient(moved, part)
        steps, changes = np.roll(steps, 1, axis=0), np.roll(changes, 1, axis=0)
        steps[0], changes[0] = moved - found, new_slope - slope
        gain = (misfit - after) / np.maximum(misfit, 1e-300)
        quiet = np.where(gain < tolerance, quiet + 1, 0)
        result[active] = moved
        going = quiet < 5
        if not going.any():
            break
        active, quiet = active[going], quiet[going]
        found, slope, misfit = moved[going], new_slope[going], after[going]
        steps, changes = steps[:, going], changes[:, going]
    return result


def _times_inverse_curvature(slope: Array, steps: Array, changes: Array) -> Array:
    """The two loops of L-BFGS (Nocedal & Wright, algorithm 7.4), for every row on its own."""
    result = slope.copy()
    products = (steps * changes).sum(axis=-1)  # (MEMORY, R)
    useful = products > 1e-10 * (changes**2).sum(axis=-1).clip(1e-300)
    inverse = np.where(useful, 1.0 / np.where(useful, products, 1.0), 0.0)
    factors = np.zeros_like(products)
    for age in range(MEMORY):
        factors[age] = inverse[age] * (steps[age] * result).sum(axis=-1)
        result -= factors[age][:, None] * changes[age]
    newest = products[0] / (changes[0] ** 2).sum(axis=-1).clip(1e-300)
    unscaled = 0.1 / np.linalg.norm(slope, axis=-1).clip(1e-300)
    result *= np.where(useful[0], newest, unscaled)[:, None]
    for age in reversed(range(MEMORY)):
        back = inverse[age] * (changes[age] * result).sum(axis=-1)
        result += (factors[age] - back)[:, None] * steps[age]
    return result


def _backtrack(
    found: Array, direction: Array, slope: Array, misfit: Array, problem: Problem
) -> tuple[Array, Array]:
    """Where the misfit has fallen enough along each direction, and the misfit there."""
    promised = (direction * slope).sum(axis=-1)
    length = np.minimum(1.0, 2.0 / np.abs(direction).max(axis=-1).clip(1e-300))
    moved, after = found.copy(), misfit.copy()
    waiting = np.arange(len(found))
    for _ in range(25):
        trial = found[waiting] + length[waiting, None] * direction[waiting]
        value = objective(trial, problem.rows(waiting))
        enough = value <= misfit[waiting] + 1e-4 * length[waiting] * promised[waiting]
        moved[waiting[enough]], after[waiting[enough]] = trial[enough], value[enough]
        waiting = waiting[~enough]
        if not len(waiting):
            break
        length[waiting] *= 0.5
    return moved, after
