"""The lag of a robot's state behind its actions, from their cross-correlation."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_LAG_SECONDS = 1.0
"""Lags are searched from minus to plus this."""
MIN_LAG_ROWS = 20
"""Recordings with fewer rows tell nothing about a lag."""
MIN_CORRELATION = 0.3
"""A lag whose correlation is below this is not measured: the signals do not belong together."""

Signal = NDArray[Any]


def estimate_lag(state: Signal, action: Signal, rate: float) -> dict[str, Any] | None:
    """Estimate the lag of the state behind the action from their cross-correlation.

    Only where both have equally many dimensions, of which the same ones are taken to belong
    together. An action that is a *target* (position commands) is compared by its changes, since
    levels of slow signals correlate at any lag; one that is a *rate* (velocities, differences) is
    compared with the changes of the state. Which it is, is what fits the levels better. Each
    dimension has a lag of its own, since a hand may be slower than an arm.

    Args:
        state: ``(N, D)`` float64.
        action: ``(N, D)`` or ``(N - 1, D)`` float64.
        rate: Rows per second, Hz.

    Returns:
        ``rows`` and ``seconds`` by which the state is later, below zero if it comes first: the
        median over dimensions, weighted by their squared correlation; ``correlation``, the mean of
        the same dimensions, in [0.3, 1]; ``action``, ``target`` or ``rate``; ``dimensions``, the
        seconds of each, None where they cannot be told. An action that is carried out at once has a
        lag of one row: ``a_t`` leads to ``s_{t+1}``. None where nothing can be said: the dimensions
        differ, too few rows, nothing moves, no correlation.
    """
    num_rows = min(len(state), len(action))
    if state.shape[1] != action.shape[1] or num_rows < MIN_LAG_ROWS:
        return None
    s, a = state[:num_rows], action[:num_rows]
    largest = min(round(MAX_LAG_SECONDS * rate), num_rows // 4)
    # s_{t+1} - s_t is first seen in row t + 1; the row before the first is taken to be at rest.
    change = np.diff(s, axis=0, prepend=s[:1])
    as_target, as_rate = _correlations(a, s, largest), _correlations(a, change, largest)
    if as_rate.max(axis=0).sum() > as_target.max(axis=0).sum():
        kind, correlations = "rate", as_rate
    else:
        kind, correlations = "target", _correlations(np.diff(a, axis=0), change[1:], largest)
    place, height = _peaks(correlations)
    known = height >= MIN_CORRELATION
    if not known.any():
        return None
    lags = place - largest
    rows = _weighted_median(lags[known], height[known] ** 2)
    return {
        "rows": round(rows, 2),
        "seconds": round(rows / rate, 4),
        "correlation": round(float(height[known].mean()), 3),
        "action": kind,
        "dimensions": [
            round(float(lag) / rate, 3) if sure else None
            for lag, sure in zip(lags, known, strict=True)
        ],
    }


def _correlations(a: Signal, s: Signal, largest: int) -> Signal:
    """Correlation of ``a[t]`` and ``s[t + k]``, ``(2 largest + 1, D)`` for |k| <= largest."""
    a, s = _standardized(a), _standardized(s)
    num_rows = len(a)
    result = np.empty((2 * largest + 1, a.shape[1]))
    for k in range(-largest, largest + 1):
        left = a[max(0, -k) : num_rows - max(0, k)]
        right = s[max(0, k) : num_rows - max(0, -k)]
        result[k + largest] = (left * right).mean(axis=0)
    return result


def _peaks(correlations: Signal) -> tuple[Signal, Signal]:
    """Place (by a parabola, finer than a row) and height of each column's peak.

    The height is zero where the peak lies at an end of the range: there may be a higher one beyond.
    """
    columns = np.arange(correlations.shape[1])
    peak = np.argmax(correlations, axis=0)
    inside = (peak > 0) & (peak < len(correlations) - 1)
    middle = np.clip(peak, 1, len(correlations) - 2)
    before, top, after = (correlations[middle + shift, columns] for shift in (-1, 0, 1))
    curvature = np.minimum(before - 2 * top + after, -1e-12)
    offset = np.clip(0.5 * (before - after) / curvature, -0.5, 0.5)
    return middle + offset, np.where(inside, top, 0.0)


def _weighted_median(values: Signal, weights: Signal) -> float:
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(total, 0.5 * total[-1])])


def _standardized(values: Signal) -> Signal:
    centred = values - values.mean(axis=0)
    deviation = centred.std(axis=0)
    result: Signal = np.zeros_like(centred)
    # A constant's deviation need not be exactly zero, its range is.
    np.divide(centred, deviation, out=result, where=np.ptp(values, axis=0) > 0)
    return result
