"""Learning rates chosen by rule are set against others of the same size, tokens and seed."""

from dataclasses import replace

import pytest

from tests.small_sweeps import at_other_rates, grid_points
from tokenwm.scaling.law.rates import check_rates, rate_warnings

POINTS = grid_points()


def test_the_rule_is_set_against_the_best_rate() -> None:
    checks = at_other_rates(POINTS[5], {5e-4: 1.02, 2e-3: 0.99})
    (found,) = check_rates(POINTS, checks)
    assert (found.num_parameters, found.learning_rate) == (POINTS[5].num_parameters, 1e-3)
    assert [rate for rate, _ in found.losses] == [5e-4, 1e-3, 2e-3]
    assert found.best == (2e-3, 0.99 * POINTS[5].loss)
    assert found.excess == pytest.approx(1 / 0.99 - 1)
    assert not rate_warnings([found])


def test_a_rule_that_wins_is_not_above_the_best() -> None:
    (found,) = check_rates(POINTS, at_other_rates(POINTS[0], {5e-4: 1.1}))
    assert found.excess == 0.0


def test_a_rate_that_is_clearly_better_is_warned_about() -> None:
    found = check_rates(POINTS, at_other_rates(POINTS[0], {2e-3: 0.95}))
    (warning,) = rate_warnings(found)
    assert "gives 5.3 % more loss than 0.002 (limit 2 %)" in warning


def test_only_the_same_size_tokens_and_seed_are_compared() -> None:
    (check,) = at_other_rates(POINTS[0], {2e-3: 0.9})
    others = [
        replace(check, seed=1),
        replace(check, num_tokens=check.num_tokens + 1),
        replace(check, num_parameters=check.num_parameters + 1),
        replace(check, learning_rate=None),
    ]
    assert check_rates(POINTS, others) == []
