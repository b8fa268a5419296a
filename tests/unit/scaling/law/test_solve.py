"""The solvers find the minimum, agree, and do not care about units or the order of runs."""

import sys
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_sweeps import LAW, SMALL_LAW, grid_points, level_points
from tokenwm.errors import SweepError
from tokenwm.scaling.law.estimate import Draws
from tokenwm.scaling.law.law import Laws
from tokenwm.scaling.law.parametric import fit_parametric, problem_of
from tokenwm.scaling.law.select import Observations
from tokenwm.scaling.law.solve import Problem, gradient, objective, predict, solve
from tokenwm.scaling.runs.runs import RunPoint


def fitted(points: list[RunPoint]) -> Laws:
    seen = Observations.of(points)
    means = float(seen.log_n.mean()), float(seen.log_d.mean())
    return Laws.from_centred(solve(problem_of(seen)), *means)


def close(law: Laws, truth: Mapping[str, float], tolerance: float) -> bool:
    found = [law.irreducible, np.exp(law.log_a), np.exp(law.log_b), law.alpha, law.beta]
    return np.allclose(np.ravel(found), list(truth.values()), rtol=tolerance)


@pytest.mark.parametrize("truth", [SMALL_LAW, LAW])
def test_a_law_without_noise_is_found_exactly(truth: Mapping[str, float]) -> None:
    sizes, tokens = np.geomspace(1e6, 1e9, 5), np.geomspace(1e8, 1e11, 5)
    points = grid_points(tuple(sizes), tuple(tokens), noise=0.0, law=truth)
    assert close(fitted(points), truth, 1e-4)


@settings(max_examples=15)
@given(
    alpha=st.floats(0.15, 0.8),
    beta=st.floats(0.15, 0.8),
    floor=st.floats(0.3, 0.9),
    by_size=st.floats(0.2, 0.8),
)
def test_any_law_is_found(alpha: float, beta: float, floor: float, by_size: float) -> None:
    """Floor and terms as shares of the loss in the middle of the grid."""
    truth = {
        "E": 3.0 * floor,
        "A": 3.0 * (1 - floor) * by_size * 3e5**alpha,
        "B": 3.0 * (1 - floor) * (1 - by_size) * 2e7**beta,
        "alpha": alpha,
        "beta": beta,
    }
    assert close(fitted(grid_points(noise=0.0, law=truth)), truth, 1e-2)


@settings(max_examples=10)
@given(scale_n=st.floats(1e-6, 1e6), scale_d=st.floats(1e-6, 1e6))
def test_units_of_size_and_data_change_a_and_b_only(scale_n: float, scale_d: float) -> None:
    points = grid_points()
    seen = Observations.of(points)
    moved = Observations(
        log_n=seen.log_n + np.log(scale_n),
        log_d=seen.log_d + np.log(scale_d),
        log_c=seen.log_c,
        log_loss=seen.log_loss,
    )
    law = fitted(points)
    means = float(moved.log_n.mean()), float(moved.log_d.mean())
    other = Laws.from_centred(solve(problem_of(moved)), *means)
    for name in ("irreducible", "alpha", "beta"):
        assert np.allclose(getattr(law, name), getattr(other, name), rtol=1e-5)
    assert np.allclose(other.log_a, law.log_a + law.alpha * np.log(scale_n), atol=1e-4)
    assert np.allclose(other.log_b, law.log_b + law.beta * np.log(scale_d), atol=1e-4)


def test_two_solvers_agree_and_nearly_all_starts_end_at_the_minimum() -> None:
    seen = Observations.of(level_points(noise=0.005))
    fit = fit_parametric(seen, draws=Draws(num_replicates=100, seed=0, confidence=0.9))
    assert fit.misfit <= fit.misfit_descent
    assert fit.misfit <= fit.misfit_lbfgs * (1 + 1e-9)
    assert fit.misfit_descent == pytest.approx(fit.misfit, rel=0.03)
    assert fit.misfit_lbfgs == pytest.approx(fit.misfit, rel=1e-3)
    assert fit.num_agreeing > 0.8 * fit.num_starts


def noisy_problem() -> Problem:
    problem = problem_of(Observations.of(grid_points(noise=0.01)))
    random = np.random.default_rng(0)
    return Problem(
        x=problem.x,
        y=problem.y,
        log_loss=problem.log_loss + 0.02 * random.standard_normal((3, len(problem.x))),
        weights=random.exponential(size=(3, len(problem.x))),
        delta=problem.delta,
    )


def test_the_gradient_is_that_of_the_objective() -> None:
    problem, step = noisy_problem(), 1e-6
    start = np.random.default_rng(1).normal([0.5, -1.0, -1.0, 0.4, 0.4], 0.2, size=(3, 5))
    numeric = np.stack(
        [
            (objective(start + shift, problem) - objective(start - shift, problem)) / (2 * step)
            for shift in step * np.eye(5)
        ],
        axis=1,
    )
    assert np.allclose(gradient(start, problem), numeric, rtol=1e-4, atol=1e-9)


def test_many_fits_at_once_are_the_same_as_one_by_one() -> None:
    problem = noisy_problem()
    together = solve(problem)
    for row in range(3):
        alone = Problem(
            x=problem.x,
            y=problem.y,
            log_loss=problem.log_loss[[row]],
            weights=problem.weights[[row]],
            delta=problem.delta,
        )
        assert np.allclose(solve(alone)[0], together[row], rtol=1e-6)


def test_shares_of_the_terms_add_up_and_nothing_overflows() -> None:
    extreme = np.array([[800.0, -800.0, 0.0, 30.0, 30.0]])
    log_loss, shares = predict(extreme, np.linspace(-9, 9, 5), np.linspace(-9, 9, 5))
    assert np.isfinite(log_loss).all()
    assert np.allclose(shares.sum(axis=-1), 1.0)


def test_outliers_hardly_move_the_fit() -> None:
    """What the Huber loss is for: one run with 30 % too much loss."""
    points = grid_points(noise=0.001)
    spoilt = [*points[:-3], points[-1]]
    law = fitted(points)
    worse = Observations.of(points)
    worse.log_loss[3] += 0.3
    means = float(worse.log_n.mean()), float(worse.log_d.mean())
    shaken = Laws.from_centred(solve(problem_of(worse)), *means)
    assert len(spoilt) < len(points)
    assert shaken.alpha == pytest.approx(law.alpha, rel=0.05)
    assert shaken.irreducible == pytest.approx(law.irreducible, rel=0.02)


def test_without_scipy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(SweepError, match=r"needs scipy .*pip install 'tokenwm\[scaling\]'"):
        fit_parametric(
            Observations.of(grid_points()),
            draws=Draws(num_replicates=100, seed=0, confidence=0.9),
        )
