"""Parabolas, envelope, outliers, hold-out and further figures, on sweeps whose law is known."""

import math
from dataclasses import replace

import numpy as np
import pytest

from tests.small_sweeps import (
    SMALL_LAW,
    TOKENS,
    best_size,
    grid_points,
    law_loss,
    level_points,
    with_metrics,
)
from tokenwm.errors import SweepError
from tokenwm.scaling.law.diagnose import find_misfit, find_outliers, hold_out
from tokenwm.scaling.law.downstream import fit_downstream, rank_correlation
from tokenwm.scaling.law.envelope import envelope, fit_envelope
from tokenwm.scaling.law.estimate import Draws, Estimate
from tokenwm.scaling.law.isoflop import IsoFlopFit, fit_isoflop
from tokenwm.scaling.law.parametric import ParametricFit, fit_parametric
from tokenwm.scaling.law.select import Observations
from tokenwm.scaling.runs.runs import RunPoint

DRAWS = Draws(num_replicates=200, seed=0, confidence=0.9)
EXPONENT = SMALL_LAW["beta"] / (SMALL_LAW["alpha"] + SMALL_LAW["beta"])


def isoflop(points: list[RunPoint]) -> IsoFlopFit:
    return fit_isoflop(Observations.of(points), 0.002, DRAWS)


def parametric(points: list[RunPoint]) -> ParametricFit:
    return fit_parametric(Observations.of(points), draws=DRAWS)


def test_parabolas_find_the_best_size_of_each_level() -> None:
    fit = isoflop(level_points(noise=0.0))
    assert not fit.interpolated
    assert len(fit.levels) == 4
    for level in fit.levels:
        flops = float(np.exp(level.profile.log_c))
        assert np.exp(level.log_n) == pytest.approx(best_size(flops, SMALL_LAW), rel=0.1)
    assert fit.exponent is not None
    assert fit.exponent.value == pytest.approx(EXPONENT, abs=0.02)
    assert fit.exponent.low < EXPONENT < fit.exponent.high


def test_levels_with_their_optimum_at_the_edge_are_not_used_and_say_so() -> None:
    points = level_points(noise=0.0)
    best = best_size(1e12, SMALL_LAW)
    points = [p for p in points if p.flops > 1.1e12 or p.num_parameters > 1.5 * best]
    points += [replace(p, path=f"{p.path}b", num_parameters=1.2 * p.num_parameters) for p in points]
    used = isoflop(points)
    assert "below the smallest of its sizes, at the edge" in used.levels[0].reason


def test_a_grid_is_interpolated_to_equal_compute() -> None:
    fit = isoflop(grid_points(tokens=TOKENS[::2], noise=0.0))
    assert fit.interpolated
    assert fit.exponent is not None
    assert fit.exponent.value == pytest.approx(EXPONENT, abs=0.1)
    level = fit.levels[len(fit.levels) // 2]
    for log_n, log_loss in zip(level.profile.log_n, level.log_losses, strict=True):
        size = float(np.exp(log_n))
        flops = float(np.exp(level.profile.log_c))
        exact = law_loss(size, flops / 6.0 / size, SMALL_LAW)
        assert np.exp(log_loss) == pytest.approx(exact, rel=0.02)


def test_too_few_levels_are_a_reason_not_a_line() -> None:
    fit = isoflop(level_points((1e12, 4e12), num_sizes=5))
    assert fit.size is None
    assert "levels of compute" in fit.reason


def test_the_envelope_is_what_nothing_cheaper_beats() -> None:
    points = grid_points(noise=0.01)
    seen = Observations.of(points)
    members = envelope(seen)
    for index, point in enumerate(points):
        cheaper = [p for p in points if p.flops < 1.001 * point.flops and p is not point]
        assert (index in members) == all(p.loss > point.loss for p in cheaper)
    fit = fit_envelope(seen, DRAWS)
    assert fit.exponent is not None
    assert fit.exponent.value == pytest.approx(EXPONENT, abs=0.15)
    few = fit_envelope(Observations.of(points[:3]), DRAWS)
    assert few.size is None
    assert "are needed" in few.reason


def test_an_outlier_is_reported_and_a_law_without_noise_has_none() -> None:
    assert find_outliers(parametric(grid_points(noise=0.0))) == []
    points = grid_points(noise=0.002)
    points[7] = replace(points[7], loss=points[7].loss * 1.05)
    outlier, *others = find_outliers(parametric(points))
    assert outlier.index == 7
    assert outlier.residual == pytest.approx(0.05, abs=0.01)
    assert outlier.deviations > 10
    assert len(others) <= 1


def test_a_law_that_does_not_hold_is_told_by_its_pattern() -> None:
    points = grid_points(noise=0.001)
    assert find_misfit(Observations.of(points), parametric(points)) == []
    # A size in the middle that trains badly: no power law goes through it.
    bad = [replace(p, loss=p.loss * (1.02 if "n2_" in p.path else 1.0)) for p in points]
    (found,) = find_misfit(Observations.of(bad), parametric(bad))
    assert found.startswith("the 5 runs with 3e+05 parameters lie 1.")
    assert "above the law" in found


@pytest.mark.parametrize(("tilt", "who"), [(-0.01, "too slowly"), (0.01, "too fast")])
def test_sizes_that_learn_at_different_speeds_are_told(tilt: float, who: str) -> None:
    points = [
        replace(
            p,
            loss=p.loss
            * math.exp(tilt * math.log(p.num_parameters / 3e5) * math.log(p.num_tokens / 2e7)),
        )
        for p in grid_points(noise=0.003)
    ]
    messages = find_misfit(Observations.of(points), parametric(points))
    assert any(m.startswith(f"small models gain {who} from tokens") for m in messages)


@pytest.mark.parametrize("seed", range(20))
def test_noise_is_not_taken_for_a_pattern(seed: int) -> None:
    points = grid_points(noise=0.003, seed=seed)
    assert find_misfit(Observations.of(points), parametric(points)) == []


def test_leverage_adds_up_to_the_number_of_parameters() -> None:
    leverage = parametric(grid_points()).leverage
    assert leverage.sum() == pytest.approx(5.0)
    assert ((leverage >= 0) & (leverage <= 1)).all()


def test_held_out_runs_are_predicted_and_not_fitted() -> None:
    points = grid_points(noise=0.001)
    held = hold_out(points, Observations.of(points), 1e-3)
    flops = [point.flops for point in points]
    assert min(flops[index] for index in held.members) > max(
        value for index, value in enumerate(flops) if index not in held.members
    )
    assert np.abs(held.errors).max() < 0.02
    assert np.abs(held.errors).max() < held.baseline
    assert held.reach > 1
    # Spoiling what is held out changes the errors, not the predictions.
    spoilt = [
        replace(point, loss=2.0 * point.loss if index in held.members else point.loss)
        for index, point in enumerate(points)
    ]
    again = hold_out(spoilt, Observations.of(spoilt), 1e-3)
    assert again.predicted == pytest.approx(held.predicted)
    assert again.errors == pytest.approx((held.errors + 1) / 2 - 1)


def test_no_hold_out_if_the_rest_is_too_little() -> None:
    points = grid_points((1e5, 1e6, 1e7), (1e6, 1e7, 1e8))
    with pytest.raises(SweepError):
        hold_out(points[:8], Observations.of(points[:8]), 1e-3)


def test_further_figures_are_set_against_compute() -> None:
    psnr, unrelated = sorted(
        fit_downstream(with_metrics(grid_points()), DRAWS), key=lambda item: item.name
    )
    assert psnr.name == "rollout_psnr@5"
    assert psnr.follows_loss
    assert psnr.rank_correlation is not None
    assert psnr.rank_correlation.value == pytest.approx(-1.0)
    assert psnr.slope is not None
    assert psnr.slope.low > 0
    better, worse = psnr.at(np.log(1e17), 0.9), psnr.at(np.log(1e13), 0.9)
    assert better is not None
    assert worse is not None
    assert better.value > worse.value
    assert not unrelated.follows_loss


def test_a_figure_of_few_runs_has_no_line() -> None:
    points = with_metrics(grid_points()[:3]) + grid_points()[3:]
    items = fit_downstream(points, DRAWS)
    assert [item.line for item in items] == [None, None]
    assert items[0].at(1.0, 0.9) is None


def test_ranks_share_equal_values() -> None:
    def correlation(left: list[float], right: list[float]) -> float:
        return rank_correlation(np.array(left), np.array(right), 0.9).value

    assert correlation([1, 2, 2, 3, 4], [1, 2, 2, 3, 4]) == pytest.approx(1)
    assert correlation([1, 2, 3, 4], [9, 5, 1, 0]) == pytest.approx(-1)
    assert np.isnan(correlation([1] * 4, [1, 2, 3, 4]))


@pytest.mark.parametrize("count", [5, 8, 25])
def test_what_has_nothing_to_do_with_the_loss_seldom_follows_it(count: int) -> None:
    """One in ten at a confidence of 90 %; the binomial error of 1,000 draws is 0.01."""
    random = np.random.default_rng(count)
    pairs = random.standard_normal((1000, 2, count))
    found = [rank_correlation(left, right, 0.9) for left, right in pairs]
    follows = [item.low > 0 or item.high < 0 for item in found]
    assert 0.065 < np.mean(follows) < 0.13


def test_an_interval_of_too_few_replicates_is_none() -> None:
    estimate = Estimate.of(1.0, np.array([np.nan, np.nan, 1.0]), 0.9)
    assert np.isnan(estimate.low)
    assert not estimate.span < 10
