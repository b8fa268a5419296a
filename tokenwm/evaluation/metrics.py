"""Intervals over episodes, and for how many steps a model is better; pure functions."""

import functools
import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError

MSE_FLOOR = 1e-6
"""Smallest mean squared error that counts: PSNR ends at 60 dB, far above what 8-bit video holds."""
CONFIDENCE = 0.95
"""Level of the interval of one figure at one horizon."""
MIN_EPISODES = 6
"""Nothing is claimed with confidence on fewer: of so few not even their skewness can be seen."""
CLAIM_ERROR = 0.01
"""Chance of any false claim over all horizons of a curve, if episodes were Gaussian.

It is a fifth of the 5 % that a claim allows. The rest is for skewed differences (a few episodes
lost by much), of which Student's t is wrong more often than it says; see docs/evaluation.md.
"""
LEAST_SHARES = 10
"""Horizons that share ``CLAIM_ERROR`` at least, so that short curves have room for skewness too."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One figure at every horizon, each with its own 95 % interval over episodes.

    Attributes:
        mean: ``(H,)`` float64, mean over episodes; entry ``h - 1`` belongs to horizon ``h``. NaN
            where no episode has a value.
        low: ``(H,)`` lower end of the interval; NaN where there is one episode only.
        high: ``(H,)`` upper end.
    """

    mean: FloatArray
    low: FloatArray
    high: FloatArray


@dataclass(frozen=True, kw_only=True)
class GainCurve(Curve):
    """A paired difference at every horizon, of which claims are made: above zero is better.

    Attributes:
        simultaneous_low: ``(H,)`` lower ends that hold at *all* horizons at once with 95 %
            confidence; NaN on fewer than ``MIN_EPISODES`` episodes.
    """

    simultaneous_low: FloatArray

    @property
    def is_certain(self) -> NDArray[np.bool_]:
        """``(H,)`` where the difference is above zero, all these horizons together with 95 %."""
        return np.asarray(self.simultaneous_low > 0)  # NaN is not above zero


def psnr_from_mse(mse: FloatArray | float) -> FloatArray:
    """Peak signal-to-noise ratio, ``-10 log10(mse)``.

    Args:
        mse: Mean squared error of pixels in [0, 1]; raised to ``MSE_FLOOR``.

    Returns:
        dB, at most 60.
    """
    return -10.0 * np.log10(np.maximum(np.asarray(mse, dtype=np.float64), MSE_FLOOR))


def mean_of_known(values: FloatArray) -> FloatArray:
    """Mean over the first axis of what is not NaN; NaN where nothing is known."""
    known = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        mean: FloatArray = np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)
    return mean


def interval_curve(values: FloatArray) -> Curve:
    """Mean over episodes with Student's interval of the mean.

    The unit is the episode, since the steps and starts of one are not independent.

    Args:
        values: ``(episodes, H)``; NaN where an episode has no value, which then counts as if it had
            not been measured there.

    Raises:
        TokenwmError: There is no episode.
    """
    half = _half_width(values, CONFIDENCE)
    mean = mean_of_known(values)
    return Curve(mean=mean, low=mean - half, high=mean + half)


def gain_curve(differences: FloatArray) -> GainCurve:
    """Mean paired difference over episodes, and the lower ends that hold at all horizons at once.

    The horizons share the error (Bonferroni), which needs nothing of how they depend on each other.

    Args:
        differences: ``(episodes, H)``, of one episode each; NaN as in :func:`interval_curve`.

    Raises:
        TokenwmError: There is no episode.
    """
    curve = interval_curve(differences)
    error = CLAIM_ERROR / max(differences.shape[1], LEAST_SHARES)
    low = curve.mean - _half_width(differences, 1.0 - 2.0 * error)
    low[(~np.isnan(differences)).sum(axis=0) < MIN_EPISODES] = np.nan
    return GainCurve(mean=curve.mean, low=curve.low, high=curve.high, simultaneous_low=low)


def _half_width(values: FloatArray, confidence: float) -> FloatArray:
    """``(H,)`` half of Student's interval of the mean; NaN where fewer than two are known."""
    if len(values) < 1:
        raise TokenwmError("no episode to take a mean of")
    counts = (~np.isnan(values)).sum(axis=0)
    quantiles = [student_quantile(confidence, n - 1) if n > 1 else np.nan for n in counts.tolist()]
    degrees = np.maximum(counts - 1, 1)
    variance = np.nansum((values - mean_of_known(values)) ** 2, axis=0) / degrees
    return np.asarray(quantiles * np.sqrt(variance / np.maximum(counts, 1)))


@functools.lru_cache
def student_quantile(confidence: float, degrees: int) -> float:
    """The ``t`` within which, on both sides of zero, Student's variable lies so often.

    Args:
        confidence: Probability of lying within, above 0 and below 1.
        degrees: Degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_within(high, degrees) < confidence:
        high *= 2.0
    for _ in range(60):
        middle = (low + high) / 2.0
        if _student_within(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return high


def _student_within(t: float, degrees: int) -> float:
    """The probability that Student's variable lies in [-t, t].

    Source: Abramowitz & Stegun 1964, 26.7.3 and 26.7.4, a finite sum for whole degrees of freedom.
    """
    angle = math.atan2(t, math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    numbers = np.arange(1, (degrees - odd) // 2)
    ratios = (2 * numbers - 1 + odd) / (2 * numbers + odd) * cosine**2
    total = 1.0 + float(np.cumprod(ratios).sum())
    if not odd:
        return sine * total
    beyond_one = sine * cosine * total if degrees > 1 else 0.0
    return 2.0 / math.pi * (angle + beyond_one)


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
    """The horizons at which a model is better than a baseline. They count from 1.

    Everything said here of confidence is one statement: with 95 % *all* of it is true.

    Attributes:
        effective_horizon: Last ``h`` such that the model is better at *every* horizon 1 to ``h``
            with confidence; 0 if it is not at horizon 1, or on too few episodes.
        first_better: First horizon at which the mean difference is positive, or None.
        longest_confident_run: First and last horizon of the longest run over which the model is
            better with confidence, or None. It need not start at 1: one step ahead, copying the
            last frame is hard to beat.
        confident_horizons: All horizons at which it is better with confidence.
    """

    effective_horizon: int
    first_better: int | None
    longest_confident_run: tuple[int, int] | None
    confident_horizons: tuple[int, ...]


def summarize_gain(gain: GainCurve) -> HorizonSummary:
    """The horizons at which a paired difference (model minus baseline) shows the model to win."""
    confident = [bool(certain) for certain in gain.is_certain]
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


def wilson_interval(num_successes: int, num_trials: int) -> tuple[float, float]:
    """Wilson's score interval of a probability, at the level ``CONFIDENCE``.

    Unlike the textbook's normal interval it is right near 0 and 1, and of few trials.

    Args:
        num_successes: In [0, num_trials].
        num_trials: Independent ones; (0, 1) is known of none.

    Returns:
        Lower and upper end, in [0, 1].

    Source: Wilson, "Probable Inference", JASA 22 (1927).
    """
    if num_trials == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1.0 + CONFIDENCE) / 2.0)
    rate, shrink = num_successes / num_trials, 1.0 + z * z / num_trials
    centre = (rate + z * z / (2.0 * num_trials)) / shrink
    spread = rate * (1.0 - rate) / num_trials + z * z / (4.0 * num_trials**2)
    half = z * math.sqrt(spread) / shrink
    return max(0.0, centre - half), min(1.0, centre + half)
