"""The best size for a budget is the best, with and without the cost of imagining."""

import numpy as np
import pytest

from tests.small_sweeps import LAW, SMALL_LAW, best_size, grid_points
from tokenwm.scaling.law.law import (
    Laws,
    TrainingCost,
    best_log_n,
    cheapest_log_n,
    log_tokens_needed,
)
from tokenwm.scaling.law.select import Observations

LAWS = Laws(
    irreducible=np.array([SMALL_LAW["E"], LAW["E"]]),
    log_a=np.log([SMALL_LAW["A"], LAW["A"]]),
    log_b=np.log([SMALL_LAW["B"], LAW["B"]]),
    alpha=np.array([SMALL_LAW["alpha"], LAW["alpha"]]),
    beta=np.array([SMALL_LAW["beta"], LAW["beta"]]),
)


def cost(bend: float) -> TrainingCost:
    return TrainingCost(log_factor=float(np.log(6.0)), bend=bend, largest_error=0.0)


def test_the_closed_form_is_that_of_the_paper() -> None:
    found = np.exp(best_log_n(LAWS, cost(0.0), np.log(1e18)))
    assert found == pytest.approx([best_size(1e18, SMALL_LAW), best_size(1e18, LAW)])


@pytest.mark.parametrize("bend", [0.0, -0.1, 0.15])
def test_no_other_size_does_better_for_the_budget(bend: float) -> None:
    log_c = np.log(1e15)
    best = best_log_n(LAWS, cost(bend), log_c)

    def loss(log_n: np.ndarray) -> np.ndarray:
        return LAWS.loss(log_n, log_c - cost(bend).log_flops_per_token(log_n))

    for step in (-0.5, -0.01, 0.01, 0.5):
        assert (loss(best + step) > loss(best)).all()


@pytest.mark.parametrize("bend", [0.0, -0.1])
def test_cost_is_read_off_the_runs(bend: float) -> None:
    seen = Observations.of(grid_points())
    log_c = np.log(7.0) + (1 + bend) * seen.log_n + seen.log_d
    found = TrainingCost.from_runs(seen.log_n, seen.log_d, log_c)
    assert np.exp(found.log_factor) == pytest.approx(7.0)
    assert found.bend == pytest.approx(bend, abs=1e-9)
    assert found.largest_error == pytest.approx(0.0, abs=1e-9)


def lifetime_flops(log_n: np.ndarray, target: np.ndarray, log_imagined: float) -> np.ndarray:
    per_token = np.exp(cost(0.0).log_flops_per_token(log_n))
    trained = np.exp(log_tokens_needed(LAWS, log_n, target))
    return np.asarray(per_token * (trained + np.exp(log_imagined) / 3.0))


def test_a_model_that_imagines_more_should_be_smaller_and_nothing_is_cheaper() -> None:
    log_c = np.log(1e16)
    best = best_log_n(LAWS, cost(0.0), log_c)
    target = np.log(LAWS.loss(best, log_c - np.log(6.0) - best))
    before = best
    for tokens in (1.0, 1e9, 1e11, 1e13):
        log_imagined = float(np.log(tokens))
        found = cheapest_log_n(LAWS, cost(0.0), target, log_imagined)
        assert (found <= before + 1e-4).all()
        for step in (-0.05, 0.05):
            total = lifetime_flops(found, target, log_imagined)
            assert (lifetime_flops(found + step, target, log_imagined) > total).all()
        reached = LAWS.loss(found, log_tokens_needed(LAWS, found, target))
        assert np.allclose(reached, np.exp(target))
        before = found
    assert np.allclose(cheapest_log_n(LAWS, cost(0.0), target, 0.0), best, atol=1e-3)
    assert (found < best - 0.5).all()


def test_a_model_that_is_too_small_needs_infinite_data() -> None:
    target = np.log(LAWS.irreducible + 1e-3)
    assert np.isinf(log_tokens_needed(LAWS, np.log([1e3, 1e3]), target)).all()
