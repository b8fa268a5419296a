"""A whole sweep: recommendation, refusals, warnings, and what does not change the answer."""

import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.small_sweeps import (
    LAW,
    SMALL_LAW,
    TOKENS,
    best_size,
    grid_points,
    law_loss,
    level_points,
)
from tokenwm.errors import SweepError, TokenwmError
from tokenwm.scaling.law.doubts import share_inside
from tokenwm.scaling.law.fit import FitConfig, SweepFit, fit_sweep, law_estimates
from tokenwm.scaling.law.recommend import Imagination, Machine
from tokenwm.scaling.report.report import write_fit
from tokenwm.scaling.runs.runs import Points, RunPoint

BUDGET = 1e16


def fitted(points: list[RunPoint], **options: Any) -> SweepFit:
    config = FitConfig(**{"budget": BUDGET, "num_replicates": 150} | options)
    return fit_sweep(Points(points=tuple(points)), config)


def test_the_published_law_is_found_from_runs_of_its_kind() -> None:
    """240 runs at ten levels of compute, sizes up to six times off the best one."""
    points = level_points(tuple(np.geomspace(6e18, 3e21, 10)), num_sizes=24, noise=0.005, law=LAW)
    fit = fitted(points, budget=5.76e23, num_replicates=500)
    for name, item in law_estimates(fit).items():
        assert item.low < LAW[name] < item.high, name
    size = fit.recommendation.choice.num_parameters
    assert size.low < best_size(5.76e23, LAW) < size.high
    assert size.span < 2
    assert not fit.recommendation.refusals


def test_the_answer_for_a_budget_holds_the_truth() -> None:
    fit = fitted(level_points())
    choice = fit.recommendation.choice
    best = best_size(BUDGET, SMALL_LAW)
    assert choice.num_parameters.low < best < choice.num_parameters.high
    expected = law_loss(best, BUDGET / 6 / best, SMALL_LAW)
    assert choice.loss.low < expected < choice.loss.high
    assert choice.flops.value == pytest.approx(BUDGET)
    product = choice.num_parameters.value * choice.num_tokens.value
    assert 6 * product == pytest.approx(BUDGET)
    assert [method.name for method in fit.methods if method.reason] == []
    for method in fit.methods:
        assert method.num_parameters is not None
        assert method.num_parameters.value == pytest.approx(best, rel=0.5)


def test_steps_and_hours_come_from_the_runs_or_from_the_user() -> None:
    fit = fitted(grid_points())
    choice = fit.recommendation.choice
    assert choice.num_steps is not None
    assert choice.num_steps.value == pytest.approx(choice.num_tokens.value / 1000)
    assert choice.hours is not None
    assert choice.hours.value == pytest.approx(BUDGET / 1e10 / 3600)
    given_machine = Machine(tokens_per_step=500.0, flops_per_second=1e12)
    other = fitted(grid_points(), machine=given_machine).recommendation.choice
    assert other.num_steps is not None
    assert other.num_steps.value == pytest.approx(choice.num_tokens.value / 500)
    assert other.hours is not None
    assert other.hours.value == pytest.approx(BUDGET / 1e12 / 3600)
    assert fitted(level_points()).recommendation.choice.hours is None


def test_a_model_that_imagines_should_be_smaller_for_the_same_loss() -> None:
    imagination = Imagination(steps=1e9, tokens_per_step=66)
    recommendation = fitted(grid_points(), imagination=imagination).recommendation
    lifetime = recommendation.lifetime
    assert lifetime is not None
    assert lifetime.choice.num_parameters.value < recommendation.choice.num_parameters.value
    assert lifetime.choice.num_tokens.value > recommendation.choice.num_tokens.value
    assert lifetime.choice.loss.value == pytest.approx(recommendation.choice.loss.value)
    size = lifetime.choice.num_parameters.value
    assert lifetime.imagination_flops.value == pytest.approx(2.0 * size * 66e9, rel=1e-6)
    assert 0 < lifetime.saved.value < 1


def as_values(fit: SweepFit) -> list[float]:
    estimates = list(law_estimates(fit).values()) + [fit.recommendation.choice.num_parameters]
    return [number for item in estimates for number in (item.value, item.low, item.high)]


@settings(max_examples=2)
@given(seed=st.integers(0, 10_000))
def test_the_order_of_runs_changes_nothing(seed: int) -> None:
    points = grid_points()
    shuffled = random.Random(seed).sample(points, len(points))
    assert as_values(fitted(shuffled)) == as_values(fitted(points))


def test_a_seed_gives_the_same_intervals_and_another_one_others() -> None:
    points = grid_points()
    assert as_values(fitted(points)) == as_values(fitted(points))
    assert as_values(fitted(points)) != as_values(fitted(points, seed=1))


def test_no_recommendation_if_the_optimum_is_at_the_edge_of_the_grid() -> None:
    """Models so small and so few tokens of data that larger would always have been better."""
    points = grid_points(tuple(np.geomspace(1e3, 3e4, 5)), tuple(np.geomspace(1e9, 1e11, 5)))
    (reason,) = [r for r in fitted(points).recommendation.refusals if "edge" in r]
    assert "add larger models or fewer tokens" in reason
    large = grid_points(tuple(np.geomspace(1e9, 3e10, 5)), tuple(np.geomspace(1e6, 1e8, 5)))
    reasons = fitted(large, budget=1e20).recommendation.refusals
    assert any("add smaller models or more tokens" in reason for reason in reasons)


def test_an_optimum_that_the_grid_hardly_touches_is_at_its_edge() -> None:
    points = grid_points(tuple(np.geomspace(3e4, 3e6, 5)), tuple(np.geomspace(3e7, 3e9, 5)))
    fit = fitted(points)
    inside = share_inside(fit.parametric.law, fit.cost, fit.seen)
    assert 0 < inside < 0.15
    (reason,) = [r for r in fit.recommendation.refusals if "edge" in r]
    assert f"at {100 * inside:.0f} % of the compute" in reason
    assert any("read off one side" in warning for warning in fit.recommendation.warnings)


def test_no_recommendation_of_data_that_repeat_too_often() -> None:
    points = [replace(p, num_epochs=p.num_tokens / 1e7) for p in grid_points()]
    (reason,) = fitted(points, budget=3e16).recommendation.refusals
    assert "times the 1e+07 different tokens that the runs had (limit 16)" in reason
    assert fitted(points, budget=1e14).recommendation.refusals == ()


def test_no_recommendation_if_the_interval_spans_too_much() -> None:
    reasons = fitted(grid_points(noise=0.1), budget=1e17).recommendation.refusals
    assert any("the interval of N*" in reason for reason in reasons), reasons


def test_no_recommendation_far_beyond_the_runs() -> None:
    assert not fitted(grid_points()).recommendation.warnings
    near = fitted(grid_points(), budget=2e17).recommendation
    assert any("56 times the most compute of a run" in warning for warning in near.warnings)
    assert not near.refusals
    far = fitted(grid_points(), budget=1e19).recommendation
    assert any("limit 1,000" in reason for reason in far.refusals)


def test_no_recommendation_if_size_does_not_matter() -> None:
    points = [
        replace(point, loss=law_loss(1e6, point.num_tokens, SMALL_LAW)) for point in grid_points()
    ]
    worse = [replace(p, loss=p.loss * (p.num_parameters / 1e6) ** 0.02) for p in points]
    assert fitted(points).recommendation.refusals
    assert fitted(worse).recommendation.refusals


@pytest.mark.parametrize("loss", ["constant", "random", "rising"])
def test_runs_without_a_law_are_refused_and_still_reported(loss: str, tmp_path: Path) -> None:
    random_loss = np.random.default_rng(0).uniform(1, 9, 25)
    points = [
        replace(
            point,
            loss={
                "constant": 2.0,
                "random": float(random_loss[index]),
                "rising": float(np.log(point.num_parameters)),
            }[loss],
        )
        for index, point in enumerate(grid_points())
    ]
    fit = fitted(points, num_replicates=100, imagination=Imagination(steps=1e9, tokens_per_step=66))
    assert fit.recommendation.refusals
    files = write_fit(tmp_path, loss, fit)
    assert "No recommendation" in files.index.read_text()


def test_data_that_would_repeat_are_warned_about() -> None:
    points = [replace(p, num_epochs=p.num_tokens / 1e7) for p in grid_points()]
    warnings = fitted(points).recommendation.warnings
    assert any("times the tokens that the runs had (1e+07)" in warning for warning in warnings)


def test_outliers_stay_and_what_they_decide_is_said() -> None:
    points = grid_points(noise=0.002)
    points[12] = replace(points[12], loss=1.2 * points[12].loss)
    fit = fitted(points)
    assert len(fit.points) == 25
    assert fit.outliers[0].residual == pytest.approx(0.18, abs=0.02)
    assert fit.size_without_outliers is not None
    assert fit.size_without_outliers == pytest.approx(best_size(BUDGET, SMALL_LAW), rel=0.2)


def test_one_size_only_is_refused() -> None:
    with pytest.raises(SweepError, match="the runs have 1 sizes"):
        fitted(grid_points((1e6,), TOKENS * 2))


def test_a_sweep_that_is_just_large_enough_says_why_it_has_no_hold_out() -> None:
    fit = fitted(grid_points((1e5, 5e5, 2e6), TOKENS[::2])[1:])
    assert fit.holdout is None
    assert "without the runs of most compute" in fit.holdout_reason


@pytest.mark.parametrize(
    "options",
    [
        {"budget": 0.0},
        {"budget": float("nan")},
        {"delta": 0.0},
        {"num_replicates": 5},
        {"confidence": 1.0},
    ],
)
def test_impossible_settings_are_errors(options: Mapping[str, Any]) -> None:
    with pytest.raises(TokenwmError):
        FitConfig(**options)
