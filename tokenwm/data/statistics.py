"""Figures over the train split, gathered one episode at a time in bounded memory."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

NUM_QUANTILES = 1001
"""Evenly spaced quantiles kept per dimension, from 0 (minimum) to 1 (maximum)."""
MAX_ROWS = 400_000
"""Rows kept to compute quantiles from; beyond, every second, fourth, … row is kept."""


class ContinuousStatistics:
    """Minimum, maximum, mean, standard deviation and quantiles of each dimension.

    Args:
        max_rows: Most rows to hold in memory.
    """

    def __init__(self, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        self.count = 0
        self._mean: NDArray[np.float64] | None = None
        self._squares: NDArray[np.float64] | None = None  # sum of squared deviations
        self._low: NDArray[np.float64] | None = None
        self._high: NDArray[np.float64] | None = None
        self._kept: list[NDArray[np.float32]] = []
        self._stride = 1

    def add(self, values: NDArray[Any]) -> None:
        """Add rows ``(N, dimensions)``."""
        if not len(values):
            return
        rows = values.astype(np.float64)
        mean, squares = rows.mean(axis=0), rows.var(axis=0) * len(rows)
        low, high = rows.min(axis=0), rows.max(axis=0)
        if self._mean is None or self._squares is None or self._low is None or self._high is None:
            self._mean, self._squares, self._low, self._high = mean, squares, low, high
        else:
            # Chan, Golub and LeVeque (1983): merging two groups without losing digits.
            total = self.count + len(rows)
            shift = mean - self._mean
            self._squares += squares + shift**2 * self.count * len(rows) / total
            self._mean += shift * len(rows) / total
            self._low, self._high = np.minimum(self._low, low), np.maximum(self._high, high)
        first = -self.count % self._stride
        self._kept.append(values[first :: self._stride].astype(np.float32))
        self.count += len(rows)
        while sum(map(len, self._kept)) > self.max_rows:
            self._kept = [np.concatenate(self._kept)[::2]]
            self._stride *= 2

    def result(self) -> dict[str, Any]:
        """JSON values: one number per dimension, quantiles ``(dimensions, NUM_QUANTILES)``."""
        if self._mean is None or self._squares is None or self._low is None or self._high is None:
            return {"count": 0}
        levels = np.linspace(0.0, 1.0, NUM_QUANTILES)
        quantiles = np.quantile(np.concatenate(self._kept), levels, axis=0).T
        # Thinned rows may have lost the extremes; bins between quantiles must not.
        quantiles[:, 0], quantiles[:, -1] = self._low, self._high
        return {
            "count": self.count,
            "min": self._low.tolist(),
            "max": self._high.tolist(),
            "mean": self._mean.tolist(),
            "std": np.sqrt(self._squares / self.count).tolist(),
            # Nine digits hold a float32 exactly; more would only make the manifest longer.
            "quantiles": [[float(f"{value:.9g}") for value in row] for row in quantiles.tolist()],
        }


class DiscreteStatistics:
    """How often each id occurs."""

    def __init__(self) -> None:
        self.counts = np.zeros(0, dtype=np.int64)

    def add(self, ids: NDArray[Any]) -> None:
        """Add ids of any shape, each ``>= 0``."""
        counts = np.bincount(ids.reshape(-1), minlength=len(self.counts))
        counts[: len(self.counts)] += self.counts
        self.counts = counts

    def result(self) -> dict[str, Any]:
        """JSON values."""
        return {"count": int(self.counts.sum()), "counts": self.counts.tolist()}


class MeanFrame:
    """The mean picture of one camera."""

    def __init__(self) -> None:
        self.count = 0
        self._sum: NDArray[np.float64] | None = None

    def add(self, frames: NDArray[np.uint8]) -> None:
        """Add frames ``(N, H, W, 3)``."""
        total = frames.sum(axis=0, dtype=np.float64)
        self._sum = total if self._sum is None else self._sum + total
        self.count += len(frames)

    def result(self) -> NDArray[np.float32]:
        """``(H, W, 3)`` float32 in [0, 255]."""
        assert self._sum is not None
        return (self._sum / self.count).astype(np.float32)
