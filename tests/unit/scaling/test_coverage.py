"""Intervals hold what they promise: over 200 simulated sweeps, 90 % of them hold the truth."""

import numpy as np
import pytest

from tests.small_sweeps import SMALL_LAW, best_size, grid_points
from tokenwm.scaling.law import Laws, TrainingCost, best_log_n
from tokenwm.scaling.parametric import problem_of, resample, solve
from tokenwm.scaling.select import Observations
from tokenwm.scaling.solve import Array, Problem

NUM_SWEEPS = 200
NUM_REPLICATES = 120
NOISE = 0.003
"""Of log loss, from run to run. With less the intervals are a little short, with more too long."""


def quantities(law: Laws, log_budget: float) -> Array:
    """E, log A, log B, α, β, log N* and the loss at N*, (R, 7)."""
    cost = TrainingCost(log_factor=float(np.log(6.0)), bend=0.0, largest_error=0.0)
    log_n = best_log_n(law, cost, log_budget)
    loss = law.loss(log_n, log_budget - np.log(6.0) - log_n)
    found = [law.irreducible, law.log_a, law.log_b, law.alpha, law.beta, log_n, loss]
    return np.stack(found, axis=-1)


@pytest.mark.parametrize("heavy_tails", [False, True], ids=["normal", "heavy_tails"])
def test_ninety_per_cent_intervals_hold_the_truth_in_ninety_per_cent(heavy_tails: bool) -> None:
    """200 × 120 fits: the binomial error of a coverage of 0.9 is 0.02."""
    seen = Observations.of(grid_points(noise=0.0))
    random = np.random.default_rng(1)
    shape = (NUM_SWEEPS, len(seen.log_n))
    noise = random.standard_t(4, shape) if heavy_tails else random.standard_normal(shape)
    exact = problem_of(seen)
    problem = Problem(
        x=exact.x,
        y=exact.y,
        log_loss=seen.log_loss + NOISE * noise,
        weights=exact.weights,
        delta=exact.delta,
    )
    replicates = resample(solve(problem), problem, NUM_REPLICATES, seed=2)
    means = float(seen.log_n.mean()), float(seen.log_d.mean())
    log_budget = float(seen.log_c.max() + np.log(10.0))
    found = quantities(Laws.from_centred(replicates.reshape(-1, 5), *means), log_budget)
    found = found.reshape(NUM_SWEEPS, NUM_REPLICATES, -1)
    low, high = np.percentile(found, [5, 95], axis=1)
    truth = quantities(
        Laws(
            irreducible=np.array([SMALL_LAW["E"]]),
            log_a=np.log([SMALL_LAW["A"]]),
            log_b=np.log([SMALL_LAW["B"]]),
            alpha=np.array([SMALL_LAW["alpha"]]),
            beta=np.array([SMALL_LAW["beta"]]),
        ),
        log_budget,
    )
    assert np.exp(truth[0, 5]) == pytest.approx(best_size(np.exp(log_budget), SMALL_LAW))
    coverage = ((low <= truth) & (truth <= high)).mean(axis=0)
    assert (coverage >= 0.85).all(), coverage
    assert (coverage <= 0.95).all(), coverage
