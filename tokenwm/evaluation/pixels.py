"""Squared error and SSIM of pictures, over all pixels and over those that really changed."""

from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError

CHANGE_THRESHOLD = 10
"""8-bit levels by which a pixel must differ in some channel to count as changed.

A real camera's noise lets a still pixel differ by about one level from frame to frame, at 64 pixels
a side; ten is far outside of that, and outside of slow changes of the light. What moves in front of
something else changes pixels by tens of levels.
"""
SSIM_WIDTH = 11
"""Side, in pixels, of the Gaussian window of SSIM."""
SSIM_SIGMA = 1.5


class Windowed(NamedTuple):
    """Pictures with the local moments that SSIM takes of them; ``(B, cameras, 3, H, W)`` each.

    Attributes:
        pixels: float32 in [0, 1].
        mean: Of the Gaussian window around each pixel.
        variance: Of the same window, at least 0.
    """

    pixels: Tensor
    mean: Tensor
    variance: Tensor


class PictureScores(NamedTuple):
    """Scores of pictures beside the true ones; ``(B,)`` float32 each.

    Attributes:
        mse: Mean squared error of pixels in [0, 1], over cameras and pixels.
        ssim: Structural similarity, in [-1, 1].
        mse_changed: ``mse`` over the pixels that changed; NaN where none did.
        ssim_changed: Mean of the SSIM map over these pixels; NaN where none did.
    """

    mse: Tensor
    ssim: Tensor
    mse_changed: Tensor
    ssim_changed: Tensor


class Comparison:
    """A true frame that pictures are compared with; what depends on it alone is computed once.

    Args:
        truth: ``(B, cameras, H, W, 3)`` uint8 in [0, 255].
        observed: The same shape, the last observed frame.

    Attributes:
        changed: ``(B, cameras, H, W)`` bool, see :func:`changed_pixels`.

    Raises:
        TokenwmError: The frames are smaller than the window of SSIM.
    """

    def __init__(self, truth: Tensor, observed: Tensor) -> None:
        self.changed = changed_pixels(truth, observed)
        self._truth = windowed(truth)

    def scores(self, frames: Tensor) -> PictureScores:
        """Score ``(B, cameras, H, W, 3)`` uint8 pictures."""
        pictures = windowed(frames)
        similarity = ssim_map(pictures, self._truth)
        error = (pictures.pixels - self._truth.pixels).square().mean(-3)
        return PictureScores(
            mse=error.flatten(1).mean(1),
            ssim=similarity.flatten(1).mean(1),
            mse_changed=mean_where(error, self.changed),
            ssim_changed=mean_where(similarity, self.changed),
        )


def changed_pixels(truth: Tensor, observed: Tensor) -> Tensor:
    """Pixels that differ by more than ``CHANGE_THRESHOLD`` levels in some channel.

    Args:
        truth: ``(..., 3)`` uint8 in [0, 255].
        observed: The same shape, an earlier frame.

    Returns:
        ``(...)`` bool.
    """
    difference = (truth.to(torch.int16) - observed.to(torch.int16)).abs()
    return difference.amax(-1) > CHANGE_THRESHOLD


def mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean over some elements of each row: ``(B, ...)`` twice → ``(B,)``; NaN where none is chosen.

    Args:
        values: Numbers, finite.
        chosen: Which of them count; bool.
    """
    chosen = chosen.flatten(1)
    return (values.flatten(1) * chosen).sum(1) / chosen.sum(1)


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


def ssim_map(frames: Windowed, truth: Windowed) -> Tensor:
    """Structural similarity around every pixel (Wang et al. 2004), mean over channels.

    The Gaussian window is applied as two products with a band matrix: equal to
    ``torchmetrics.functional.image.structural_similarity_index_measure`` (a test compares them) and
    ten times as fast on a CPU, where a whole report needs tens of thousands of frames.

    Returns:
        ``(B, cameras, H, W)`` float32 in [-1, 1]; 1 is identical.
    """
    covariance = _blurred(frames.pixels * truth.pixels) - frames.mean * truth.mean
    c1, c2 = 0.01**2, 0.03**2
    squares = frames.mean.square() + truth.mean.square()
    luminance = (2 * frames.mean * truth.mean + c1) / (squares + c1)
    structure = (2 * covariance + c2) / (frames.variance + truth.variance + c2)
    return (luminance * structure).mean(-3)


def windowed(frames: Tensor) -> Windowed:
    """Moments of ``(B, cameras, H, W, 3)`` uint8 frames under the window of SSIM.

    Raises:
        TokenwmError: The frames are smaller than the window.
    """
    height, width = frames.shape[-3:-1]
    if min(height, width) < SSIM_WIDTH:
        raise TokenwmError(
            f"frames of {height}×{width} pixels; SSIM needs sides of at least {SSIM_WIDTH}"
        )
    pixels = frames.movedim(-1, -3).float() / 255.0  # (B, cameras, 3, H, W)
    mean = _blurred(pixels)
    variance = (_blurred(pixels.square()) - mean.square()).clamp(min=0.0)
    return Windowed(pixels=pixels, mean=mean, variance=variance)


def _blurred(image: Tensor) -> Tensor:
    """Mean of the Gaussian window around each pixel of ``(..., H, W)``."""
    height, width = image.shape[-2:]
    rows, columns = _gaussian_band(height, image.device), _gaussian_band(width, image.device)
    return rows @ image @ columns.T


def _gaussian_band(size: int, device: torch.device) -> Tensor:
    """``(size, size)``: row ``i`` weighs the pixels around ``i``, mirrored at the border."""
    offset = torch.arange(SSIM_WIDTH, device=device) - SSIM_WIDTH // 2
    weights = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    weights = (weights / weights.sum()).expand(size, -1)
    rows = torch.arange(size, device=device).unsqueeze(1)
    columns = (rows + offset).abs()  # -1 is pixel 1
    columns = torch.minimum(columns, 2 * (size - 1) - columns)
    return torch.zeros(size, size, device=device).scatter_add(1, columns, weights)
