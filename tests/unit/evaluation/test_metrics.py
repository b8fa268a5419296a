import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import (
    CONFIDENCE,
    MIN_EPISODES,
    FloatArray,
    GainCurve,
    copy_nll,
    gain_curve,
    interval_curve,
    mean_of_known,
    psnr_from_mse,
    student_quantile,
    summarize_gain,
)
from tokenwm.strict import from_plain, plain


@pytest.mark.parametrize(("mse", "psnr"), [(1.0, 0.0), (0.01, 20.0), (1e-6, 60.0), (0.0, 60.0)])
def test_psnr_by_hand(mse: float, psnr: float) -> None:
    assert psnr_from_mse(mse) == pytest.approx(psnr)


@pytest.mark.parametrize(
    ("confidence", "degrees", "expected"),
    # Any table of Student's distribution, two-sided.
    [
        (0.95, 1, 12.706),
        (0.95, 2, 4.303),
        (0.95, 3, 3.182),
        (0.95, 4, 2.776),
        (0.95, 5, 2.571),
        (0.95, 29, 2.045),
        (0.95, 30, 2.042),
        (0.95, 100_000, 1.960),
        (0.999, 5, 6.869),
        (0.999, 30, 3.646),
        (0.5, 7, 0.711),
    ],
)
def test_quantiles_of_student(confidence: float, degrees: int, expected: float) -> None:
    assert student_quantile(confidence, degrees) == pytest.approx(expected, abs=6e-4)


def test_interval_of_two_episodes_by_hand() -> None:
    curve = interval_curve(np.array([[0.0], [1.0]]))  # ½ ± 12.706 · √½ / √2
    assert curve.mean[0] == 0.5
    assert curve.low[0] == pytest.approx(0.5 - 12.706 / 2, abs=1e-3)
    assert curve.high[0] == pytest.approx(0.5 + 12.706 / 2, abs=1e-3)


def test_interval_agrees_with_the_normal_one_of_many_episodes() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 2))
    curve = interval_curve(values)
    half = 1.96 * values.std(axis=0, ddof=1) / math.sqrt(400)
    np.testing.assert_allclose(curve.mean, values.mean(axis=0))
    np.testing.assert_allclose(curve.low, curve.mean - half, rtol=1e-3)
    np.testing.assert_allclose(curve.high, curve.mean + half, rtol=1e-3)


def test_one_episode_has_no_interval_and_none_no_mean() -> None:
    curve = interval_curve(np.array([[1.0, 2.0]]))
    assert plain(curve) == {"mean": [1.0, 2.0], "low": [None, None], "high": [None, None]}
    with pytest.raises(TokenwmError, match="no episode"):
        interval_curve(np.zeros((0, 3)))
    unknown = plain(gain_curve(np.array([[1.0, 2.0]])))
    assert unknown["low"] == unknown["simultaneous_low"] == [None, None]


@pytest.mark.parametrize("num_episodes", range(2, 31))
def test_intervals_hold_their_level_for_few_episodes(num_episodes: int) -> None:
    """4,000 experiments each: the binomial error of a coverage of 0.95 is 0.0034."""
    draws = np.random.default_rng(num_episodes).normal(1.0, 2.0, (num_episodes, 4000))
    curve = interval_curve(draws)
    covered = ((curve.low <= 1.0) & (curve.high >= 1.0)).mean()
    assert covered == pytest.approx(CONFIDENCE, abs=0.0125)


def centred(kind: str, size: tuple[int, ...], generator: np.random.Generator) -> FloatArray:
    """Differences without any gain: mean zero. Skewed ones win often and lose much, rarely."""
    if kind == "normal":
        return generator.normal(size=size)
    if kind == "heavy tails":
        return generator.standard_t(3, size)
    if kind == "skewed":
        return math.exp(0.125) - np.exp(0.5 * generator.normal(size=size))
    return 1.0 - generator.exponential(size=size)


def gains(kind: str, shape: tuple[int, int, int], how: str, seed: int) -> FloatArray:
    """``(experiments, episodes, H)`` gains of mean zero, as horizons of an episode depend."""
    generator = np.random.default_rng(seed)
    own = centred(kind, shape, generator)
    if how == "a common part":
        return 0.95 * centred(kind, (*shape[:2], 1), generator) + 0.31 * own
    if how == "two parts":  # one fades as the other comes
        angle = np.linspace(0.0, math.pi / 2, shape[2])
        first, second = (centred(kind, (*shape[:2], 1), generator) for _ in range(2))
        return first * np.cos(angle) + second * np.sin(angle)
    for horizon in range(1, shape[2]):  # each like the one before
        own[..., horizon] = 0.9 * own[..., horizon - 1] + math.sqrt(0.19) * own[..., horizon]
    return own


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "skewed", "exponential"])
@pytest.mark.parametrize("how", ["a common part", "two parts", "each like the one before"])
@pytest.mark.parametrize("num_episodes", [6, 8, 12, 30])
def test_any_false_claim_is_made_in_at_most_five_per_cent(
    kind: str, how: str, num_episodes: int
) -> None:
    """Any of 20 horizons counts."""
    every = gains(kind, (1500, num_episodes, 20), how, seed=num_episodes)
    claims = [bool(gain_curve(one).is_certain.any()) for one in every]
    assert np.mean(claims) <= 0.05


def test_a_single_horizon_leaves_room_for_skewness_too() -> None:
    every = gains("exponential", (3000, MIN_EPISODES, 1), "a common part", seed=3)
    assert np.mean([gain_curve(one).is_certain.any() for one in every]) <= 0.05


def test_nothing_is_claimed_of_fewer_than_six_episodes() -> None:
    generator = np.random.default_rng(0)
    for num_episodes in range(1, MIN_EPISODES):
        sure = gain_curve(10.0 + 0.01 * generator.normal(size=(num_episodes, 5)))
        assert np.isnan(sure.simultaneous_low).all() and not sure.is_certain.any()
        assert summarize_gain(sure).longest_confident_run is None
    sure = gain_curve(10.0 + 0.01 * generator.normal(size=(MIN_EPISODES, 5)))
    assert summarize_gain(sure).effective_horizon == 5


def test_a_real_gain_is_found() -> None:
    """A gain of one standard deviation over 30 episodes, at horizons 6 to 20 of 20."""
    every = gains("normal", (200, 30, 20), "a common part", seed=1)
    every[..., 5:] += 1.0
    runs = [summarize_gain(gain_curve(one)).longest_confident_run for one in every]
    assert np.mean([run is not None for run in runs]) > 0.9
    assert all(run is None or run[0] >= 6 for run in runs)


def test_the_simultaneous_end_lies_below_the_one_of_a_horizon_alone() -> None:
    curve = gain_curve(np.random.default_rng(2).normal(size=(6, 20)))
    shares = (curve.mean - curve.simultaneous_low) / (curve.mean - curve.low)
    np.testing.assert_allclose(shares, 6.869 / 2.571, rtol=1e-3)  # 1 % over 20 horizons


def test_copy_nll_by_hand() -> None:
    nll = copy_nll(np.array([[1.0], [0.5]]), num_values=5)  # ¾ of the tokens stay
    stay, change = -math.log(0.75), -math.log(0.25 / 4)
    np.testing.assert_allclose(nll[:, 0], [stay, (stay + change) / 2])


@given(
    shares=st.lists(st.floats(0.01, 0.99), min_size=1, max_size=8),
    other=st.floats(0.001, 0.999),
    num_values=st.integers(2, 1000),
)
def test_no_other_constant_copies_better(
    shares: list[float], other: float, num_values: int
) -> None:
    copied = np.array(shares)[:, None]
    best = copy_nll(copied, num_values).mean()
    change = math.log((1 - other) / (num_values - 1))
    assert best <= -(copied * math.log(other) + (1 - copied) * change).mean() + 1e-9


def test_copying_everything_costs_nothing_and_is_finite() -> None:
    assert copy_nll(np.ones((3, 2)), 512) == pytest.approx(0.0, abs=1e-5)
    assert np.isfinite(copy_nll(np.zeros((3, 2)), 512)).all()


def gain(mean: list[float], low: list[float]) -> GainCurve:
    values = np.array(mean)
    alone = np.full(len(mean), np.inf)  # must not be read
    return GainCurve(mean=values, low=alone, high=values + 1, simultaneous_low=np.array(low))


def test_a_model_that_always_wins() -> None:
    summary = summarize_gain(gain([1, 1, 1], [0.5, 0.1, 0.2]))
    assert summary.effective_horizon == 3
    assert summary.first_better == 1
    assert summary.longest_confident_run == (1, 3)
    assert summary.confident_horizons == (1, 2, 3)


def test_a_model_that_wins_from_the_third_step_to_the_sixth() -> None:
    low = [-2, -0.1, 0.1, 0.2, 0.3, 0.1, -0.1, 0.1]
    summary = summarize_gain(gain([-1, 0.5, 1, 1, 1, 1, 1, 1], low))
    assert summary.effective_horizon == 0  # not at the first step
    assert summary.first_better == 2  # in the mean, before it is sure
    assert summary.longest_confident_run == (3, 6)
    assert summary.confident_horizons == (3, 4, 5, 6, 8)


def test_a_model_whose_lead_is_interrupted() -> None:
    summary = summarize_gain(gain([1, 1, 1, 1], [0.5, 0.5, 0.0, 0.5]))  # zero is not above zero
    assert summary.effective_horizon == 2
    assert summary.longest_confident_run == (1, 2)  # of equals the first


def test_a_model_that_never_wins_or_has_no_interval() -> None:
    summary = summarize_gain(gain([-1, -2], [-3, -3]))
    assert (summary.effective_horizon, summary.first_better) == (0, None)
    assert summary.longest_confident_run is None
    unknown = summarize_gain(gain([1, 2], [math.nan, math.nan]))
    assert (unknown.effective_horizon, unknown.first_better) == (0, 1)
    assert unknown.longest_confident_run is None


def test_plain_has_no_nan() -> None:
    assert plain(np.array([[1.0, math.nan], [math.inf, 2.0]])) == [[1.0, None], [None, 2.0]]
    assert plain({"a": (np.float32(2.0), -math.inf, "x", None, True)}) == {
        "a": [2.0, None, "x", None, True]
    }


def test_a_curve_is_read_back_from_its_plain_values() -> None:
    curve = gain_curve(np.array([[1.0, 2.0]]))  # NaN wherever one episode tells nothing
    read = from_plain(GainCurve, json.loads(json.dumps(plain(curve))))
    for name, values in vars(curve).items():
        np.testing.assert_array_equal(getattr(read, name), values)
    assert from_plain(tuple[int, int] | None, None) is None
    assert from_plain(tuple[int, int] | None, [3, 4]) == (3, 4)
    with pytest.raises(KeyError):
        from_plain(GainCurve, {"mean": [1.0]})


def test_episodes_without_a_value_count_as_not_measured() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(1.0, 0.1, (9, 4))
    missing = values.copy()
    missing[:2, 1] = np.nan  # 7 are left
    missing[:4, 2] = np.nan  # 5 are left: too few for a claim
    missing[:, 3] = np.nan
    found = gain_curve(missing)
    for horizon, first in enumerate((0, 2, 4)):
        alone = gain_curve(np.repeat(values[first:, horizon : horizon + 1], 4, axis=1))
        for name in ("mean", "low", "high", "simultaneous_low"):
            one, other = (getattr(curve, name) for curve in (found, alone))
            np.testing.assert_allclose(one[horizon], other[0], err_msg=name)
    assert found.is_certain.tolist() == [True, True, False, False]
    assert np.isfinite(found.low[2]) and np.isnan([found.mean[3], found.low[3]]).all()
    assert summarize_gain(found).longest_confident_run == (1, 2)


def test_the_mean_of_what_is_known() -> None:
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    np.testing.assert_array_equal(mean_of_known(values), [2.0, 5.0, np.nan])
