"""PSNR, SSIM, intervals over episodes, and for how many steps a model is better; pure functions."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError

MSE_FLOOR = 1e-6
"""Smallest mean squared error that counts: PSNR ends at 60 dB, far above what 8-bit video holds."""
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
SSIM_WIDTH = 11
"""Side, in pixels, of the Gaussian window of SSIM."""
SSIM_SIGMA = 1.5

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure at every horizon, with its 95 % interval over episodes.

    Attributes:
        mean: ``(H,)`` float64, mean over episodes; entry ``h - 1`` belongs to horizon ``h``.
        low: ``(H,)`` lower end of the interval; NaN where there is one episode only.
        high: ``(H,)`` upper end.
    """

    mean: FloatArray
    low: FloatArray
    high: FloatArray

    def to_dict(self) -> dict[str, list[float | None]]:
        """JSON-ready form; None stands for a value that there is not."""
        return {"mean": plain(self.mean), "low": plain(self.low), "high": plain(self.high)}


def plain(values: FloatArray) -> list[Any]:
    """Array → nested list with None in place of what is not finite, as JSON has no NaN."""
    if values.ndim > 1:
        return [plain(row) for row in values]
    return [float(value) if math.isfinite(value) else None for value in values]


def psnr_from_mse(mse: FloatArray | float) -> FloatArray:
    """Peak signal-to-noise ratio, ``-10 log10(mse)``.

    Args:
        mse: Mean squared error of pixels in [0, 1]; raised to ``MSE_FLOOR``.

    Returns:
        dB, at most 60.
    """
    return -10.0 * np.log10(np.maximum(np.asarray(mse, dtype=np.float64), MSE_FLOOR))


def squared_error(frames: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error of each row, over all axes but the first.

    Args:
        frames: ``(B, ...)`` uint8 in [0, 255].
        truth: The same shape.

    Returns:
        ``(B,)`` float32, of pixels in [0, 1].
    """
    difference = (frames.float() - truth.float()) / 255.0
    return difference.square().flatten(1).mean(1)


def ssim(frames: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of each row (Wang et al. 2004), mean over cameras and channels.

    The Gaussian window is applied as two products with a band matrix: equal to
    ``torchmetrics.functional.image.structural_similarity_index_measure`` (a test compares them) and
    ten times as fast on a CPU, where a whole report needs tens of thousands of frames.

    Args:
        frames: ``(B, cameras, H, W, 3)`` uint8 in [0, 255]; sides of at least 11 pixels.
        truth: The same shape.

    Returns:
        ``(B,)`` float32 in [-1, 1]; 1 is identical.

    Raises:
        TokenwmError: The frames are smaller than the window.
    """
    height, width = frames.shape[-3:-1]
    if min(height, width) < SSIM_WIDTH:
        raise TokenwmError(
            f"frames of {height}×{width} pixels; SSIM needs sides of at least {SSIM_WIDTH}"
        )
    x = frames.movedim(-1, -3).float() / 255.0  # (B, cameras, 3, H, W)
    y = truth.movedim(-1, -3).float() / 255.0
    rows, columns = _gaussian_band(height, x.device), _gaussian_band(width, x.device)

    def blur(image: Tensor) -> Tensor:
        return rows @ image @ columns.T

    mean_x, mean_y = blur(x), blur(y)
    variance_x = (blur(x * x) - mean_x.square()).clamp(min=0.0)
    variance_y = (blur(y * y) - mean_y.square()).clamp(min=0.0)
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return (luminance * structure).flatten(1).mean(1)


def _gaussian_band(size: int, device: torch.device) -> Tensor:
    """``(size, size)``: row ``i`` weighs the pixels around ``i``, mirrored at the border."""
    offset = torch.arange(SSIM_WIDTH, device=device) - SSIM_WIDTH // 2
    weights = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).expand(size, -1)
    rows = torch.arange(size, device=device).unsqueeze(1)
    columns = (rows + offset).abs()  # -1 is pixel 1
    columns = torch.minimum(columns, 2 * (size - 1) - columns)
    return torch.zeros(size, size, device=device).scatter_add(1, columns, weights)


def bootstrap_curve(
    values: FloatArray, *, seed: int = 0, num_resamples: int = NUM_RESAMPLES
) -> Curve:
    """Mean over episodes with a percentile bootstrap interval (Efron 1979).

    Whole episodes are resampled, because the steps and starts of one episode are not independent.
    With fewer than about ten episodes such intervals are somewhat too narrow.

    Args:
        values: ``(episodes, H)``.
        seed: Seed of the resampling; the same values and seed give the same interval.
        num_resamples: How many sets of episodes are drawn.

    Raises:
        TokenwmError: There is no episode.
    """
    num_episodes, num_horizons = values.shape
    if num_episodes < 1:
        raise TokenwmError("no episode to take a mean of")
    mean = values.mean(axis=0)
    if num_episodes == 1:
        unknown = np.full(num_horizons, np.nan)
        return Curve(mean=mean, low=unknown, high=unknown)
    generator = np.random.default_rng(seed)
    share = np.full(num_episodes, 1.0 / num_episodes)
    counts = generator.multinomial(num_episodes, share, size=num_resamples)
    means = counts @ values / num_episodes  # (num_resamples, H)
    tail = (1.0 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1.0 - tail], axis=0)
    return Curve(mean=mean, low=low, high=high)


def copy_nll(copied: FloatArray, num_values: int) -> FloatArray:
    """Persistence as a distribution: what it costs to bet on the last observed token.

    At each horizon it gives the old token the probability ``p`` and every other token an equal
    share of the rest. ``p`` is the share of tokens that really stayed, over the very episodes that
    are scored: the best constant there is, so the baseline is a little better than one could have
    known beforehand.

    Args:
        copied: ``(rows, H)`` share of tokens equal to the last observed frame's, in [0, 1].
        num_values: Size of the codebook, at least 2.

    Returns:
        ``(rows, H)`` nats per token.
    """
    stay = np.clip(copied.mean(axis=0), 1e-6, 1.0 - 1e-6)
    change = np.log((1.0 - stay) / (num_values - 1))
    nll: FloatArray = -(copied * np.log(stay) + (1.0 - copied) * change)
    return nll


@dataclass(frozen=True, kw_only=True)
class HorizonSummary:
    """For how many steps a model is better than a baseline. Horizons count from 1.

    Attributes:
        effective_horizon: Last ``h`` such that at *every* horizon 1 to ``h`` the 95 % interval of
            the paired difference lies above zero; 0 if it does not at horizon 1.
        first_better: First horizon at which the mean difference is positive, or None.
        longest_confident_run: First and last horizon of the longest run over which the interval
            lies above zero, or None. It need not start at 1: one step ahead, copying the last frame
            is hard to beat.
        confident_horizons: All horizons at which the interval lies above zero.
    """

    effective_horizon: int
    first_better: int | None
    longest_confident_run: tuple[int, int] | None
    confident_horizons: tuple[int, ...]


def summarize_gain(gain: Curve) -> HorizonSummary:
    """Where a paired difference (model minus baseline, more is better) shows the model to win."""
    confident = [bool(low > 0) for low in gain.low]  # NaN is not above zero
    effective = confident.index(False) if False in confident else len(confident)
    better = np.flatnonzero(gain.mean > 0)
    longest: tuple[int, int] | None = None
    start = None
    for index, wins in enumerate([*confident, False]):
        if wins and start is None:
            start = index
        elif not wins and start is not None:
            if longest is None or index - start > longest[1] - longest[0] + 1:
                longest = (start + 1, index)
            start = None
    return HorizonSummary(
        effective_horizon=effective,
        first_better=int(better[0]) + 1 if len(better) else None,
        longest_confident_run=longest,
        confident_horizons=tuple(index + 1 for index, wins in enumerate(confident) if wins),
    )
