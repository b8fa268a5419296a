import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchmetrics.functional.image import structural_similarity_index_measure

from tokenwm.errors import TokenwmError
from tokenwm.uses.metrics import (
    Curve,
    bootstrap_curve,
    copy_nll,
    plain,
    psnr_from_mse,
    squared_error,
    ssim,
    summarize_gain,
)


@pytest.mark.parametrize(("mse", "psnr"), [(1.0, 0.0), (0.01, 20.0), (1e-6, 60.0), (0.0, 60.0)])
def test_psnr_by_hand(mse: float, psnr: float) -> None:
    assert psnr_from_mse(mse) == pytest.approx(psnr)


def test_squared_error_is_taken_per_row() -> None:
    truth = torch.zeros(2, 1, 4, 4, 3, dtype=torch.uint8)
    frames = truth.clone()
    frames[1, 0, 0, 0] = 255  # one pixel of sixteen is wrong in all channels
    assert squared_error(frames, truth).tolist() == [0.0, pytest.approx(1 / 16)]
    assert squared_error(truth, frames)[1] == pytest.approx(1 / 16)  # uint8 must not wrap around


@pytest.mark.parametrize("size", [(11, 11), (32, 24), (64, 64)])
def test_ssim_equals_torchmetrics(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, 2, *size, 3)  # rows, cameras
    truth = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    noise = torch.randint(-40, 41, shape, generator=generator)
    frames = (truth.int() + noise).clamp(0, 255).to(torch.uint8)
    frames[1] = truth[1]
    frames[2] = 128

    def images(x: torch.Tensor) -> torch.Tensor:
        return x.movedim(-1, -3).flatten(0, 1).float() / 255

    theirs = structural_similarity_index_measure(
        images(frames), images(truth), data_range=1.0, reduction="none"
    )
    assert isinstance(theirs, torch.Tensor)
    ours = ssim(frames, truth)
    torch.testing.assert_close(ours, theirs.view(3, 2).mean(1), atol=2e-5, rtol=0)
    assert ours[1] == pytest.approx(1.0)
    assert ours[0] > ours[2]


def test_ssim_needs_frames_as_large_as_its_window() -> None:
    frames = torch.zeros(1, 1, 10, 64, 3, dtype=torch.uint8)
    with pytest.raises(TokenwmError, match="10×64 pixels; SSIM needs sides of at least 11"):
        ssim(frames, frames)


def test_bootstrap_of_two_episodes_by_hand() -> None:
    # Means of two draws out of {0, 1} are 0, ½, 1 with probability ¼, ½, ¼.
    curve = bootstrap_curve(np.array([[0.0], [1.0]]))
    assert (curve.mean[0], curve.low[0], curve.high[0]) == (0.5, 0.0, 1.0)


def test_bootstrap_agrees_with_the_normal_interval_of_many_episodes() -> None:
    values = np.random.default_rng(1).normal(3.0, 2.0, (400, 2))
    curve = bootstrap_curve(values, seed=5)
    half = 1.96 * values.std(axis=0) / math.sqrt(400)
    np.testing.assert_allclose(curve.mean, values.mean(axis=0))
    np.testing.assert_allclose(curve.low, curve.mean - half, atol=0.03)
    np.testing.assert_allclose(curve.high, curve.mean + half, atol=0.03)


def test_bootstrap_is_fixed_by_its_seed() -> None:
    values = np.random.default_rng(2).normal(size=(9, 3))
    again = bootstrap_curve(values, seed=1)
    assert bootstrap_curve(values, seed=1).low.tolist() == again.low.tolist()
    assert bootstrap_curve(values, seed=2).low.tolist() != again.low.tolist()


def test_one_episode_has_no_interval_and_none_no_mean() -> None:
    curve = bootstrap_curve(np.array([[1.0, 2.0]]))
    assert curve.to_dict() == {"mean": [1.0, 2.0], "low": [None, None], "high": [None, None]}
    with pytest.raises(TokenwmError, match="no episode"):
        bootstrap_curve(np.zeros((0, 3)))


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


def gain(mean: list[float], low: list[float]) -> Curve:
    return Curve(mean=np.array(mean), low=np.array(low), high=np.array(mean) + 1)


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
