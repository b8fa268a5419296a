"""A straight line through a few points, with replicates: power laws in logarithms."""

from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.estimate import Draws, Estimate
from tokenwm.scaling.law.solve import Array


@dataclass(frozen=True, kw_only=True)
class Line:
    """``y = height + slope (x - centre)``.

    Attributes:
        centre: Mean of x.
        height: y there.
        slope: Rise per unit of x.
        replicates: Height and slope of each replicate, (R, 2); NaN where one had no line.
    """

    centre: float
    height: float
    slope: float
    replicates: Array

    def at(self, x: float, confidence: float) -> Estimate:
        """The height at x, and its interval."""
        offset = x - self.centre
        replicates = self.replicates[:, 0] + offset * self.replicates[:, 1]
        return Estimate.of(self.height + offset * self.slope, replicates, confidence)


def fit_line(
    x: Array, y: Array, weights: Array, replicates: Array, replicate_weights: Array
) -> Line:
    """Weighted least squares.

    Args:
        x: (m,).
        y: (m,).
        weights: Weights of the points, (m,).
        replicates: Other values of y to put a line through, (R, m); NaN where a point is missing.
        replicate_weights: Weights of the points there, (R, m).
    """
    centre = float(x.mean())
    height, slope = _weighted(x - centre, y[None], weights[None])[0]
    present = np.isfinite(replicates)
    shaken = np.where(present, replicates, 0.0)
    return Line(
        centre=centre,
        height=float(height),
        slope=float(slope),
        replicates=_weighted(x - centre, shaken, present * replicate_weights),
    )


def weighted_line(x: Array, y: Array, weights: Array) -> Line:
    """Least squares; replicates are fits with ``weights`` (R, m), such as counts of resampling."""
    return fit_line(x, y, np.ones(len(x)), np.broadcast_to(y, weights.shape), weights)


def resampled_counts(random: np.random.Generator, draws: Draws, number: int) -> Array:
    """Times that each of ``number`` points is drawn, with replacement, (R, number)."""
    shares = np.full(number, 1.0 / number)
    return random.multinomial(number, shares, size=draws.num_replicates).astype(float)


def _weighted(x: Array, y: Array, weights: Array) -> Array:
    """Height at zero and slope of R weighted lines, (R, 2); NaN where all weight is at one x."""
    total = weights.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean_x, mean_y = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
        away = x - mean_x[:, None]
        spread = (weights * away**2).sum(axis=1)
        slope = (weights * away * (y - mean_y[:, None])).sum(axis=1) / spread
        slope = np.where(spread > 1e-12 * total, slope, np.nan)
    return np.stack([mean_y - slope * mean_x, slope], axis=1)
