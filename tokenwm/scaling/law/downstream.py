"""Further figures of the runs (PSNR, effective horizon, reward error) against compute."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.envelope import envelope
from tokenwm.scaling.law.estimate import Draws, Estimate, exponential
from tokenwm.scaling.law.lines import Line, resampled_counts, weighted_line
from tokenwm.scaling.law.select import Observations
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.runs.runs import RunPoint

LEAST_RUNS = 5


@dataclass(frozen=True, kw_only=True)
class Downstream:
    """One figure against compute.

    Attributes:
        name: Name of the figure.
        members: Indices of the runs of the line: the envelope's where enough of them have the
            figure, otherwise all that have it.
        values: Values of all runs, NaN where there is none, (n,).
        is_power_law: Whether the line is one of log value over log C, not of the value itself.
        line: The line; None if fewer than ``LEAST_RUNS`` runs have the figure or all are equal.
        slope: Slope of the line: the exponent, or units per factor e of compute.
        rank_correlation: Spearman's, of the figure and the loss over all runs that have it.
        follows_loss: Whether that interval leaves out zero.
    """

    name: str
    members: tuple[int, ...]
    values: Array
    is_power_law: bool
    line: Line | None
    slope: Estimate | None
    rank_correlation: Estimate | None
    follows_loss: bool

    def at(self, log_c: float, confidence: float) -> Estimate | None:
        """The figure to expect of a run on the line."""
        if self.line is None:
            return None
        height = self.line.at(log_c, confidence)
        return exponential(height) if self.is_power_law else height


def fit_downstream(points: Sequence[RunPoint], draws: Draws) -> list[Downstream]:
    """A line over log compute for every figure, and whether it follows the loss."""
    seen = Observations.of(points)
    names = sorted({name for point in points for name in point.metrics})
    random = np.random.default_rng(draws.seed)
    return [_fit_one(name, points, seen, random, draws) for name in names]


def _fit_one(
    name: str,
    points: Sequence[RunPoint],
    seen: Observations,
    random: np.random.Generator,
    draws: Draws,
) -> Downstream:
    values = np.array([point.metrics.get(name, np.nan) for point in points])
    present = np.flatnonzero(np.isfinite(values))
    on_envelope = [index for index in envelope(seen) if np.isfinite(values[index])]
    members = np.array(on_envelope if len(on_envelope) >= LEAST_RUNS else present, dtype=int)
    if len(present) < LEAST_RUNS or np.ptp(values[members]) == 0:
        return Downstream(
            name=name,
            members=tuple(map(int, members)),
            values=values,
            is_power_law=False,
            line=None,
            slope=None,
            rank_correlation=None,
            follows_loss=False,
        )
    counts = resampled_counts(random, draws, len(members))
    is_power_law = _power_law_is_closer(seen.log_c[members], values[members])
    heights = np.log(values[members]) if is_power_law else values[members]
    line = weighted_line(seen.log_c[members], heights, counts)
    correlation = rank_correlation(values[present], seen.log_loss[present], draws.confidence)
    return Downstream(
        name=name,
        members=tuple(map(int, members)),
        values=values,
        is_power_law=is_power_law,
        line=line,
        slope=Estimate.of(line.slope, line.replicates[:, 1], draws.confidence),
        rank_correlation=correlation,
        follows_loss=correlation.low > 0 or correlation.high < 0,
    )


def _power_law_is_closer(log_c: Array, values: Array) -> bool:
    """True if a power law leaves less squared error than a straight line over log compute."""
    if (values <= 0).any():
        return False
    straight = np.polyval(np.polyfit(log_c, values, 1), log_c)
    power = np.exp(np.polyval(np.polyfit(log_c, np.log(values), 1), log_c))
    return bool(((power - values) ** 2).sum() < ((straight - values) ** 2).sum())


def rank_correlation(left: Array, right: Array, confidence: float) -> Estimate:
    """Spearman's rank correlation; NaN for a constant.

    Its interval is Fisher's (normal in the inverse hyperbolic tangent). Percentiles of a bootstrap
    leave out zero too often where there is no correlation.
    """
    from scipy.stats import norm, spearmanr

    if min(np.ptp(left), np.ptp(right)) == 0:
        return Estimate(value=float("nan"), low=float("nan"), high=float("nan"))
    value = float(np.clip(spearmanr(left, right).statistic, -1.0, 1.0))
    half_width = norm.ppf(0.5 + 0.5 * confidence) / np.sqrt(len(left) - 3)
    with np.errstate(divide="ignore"):
        low, high = np.tanh(np.arctanh(value) + half_width * np.array([-1.0, 1.0]))
    return Estimate(value=value, low=float(low), high=float(high))
