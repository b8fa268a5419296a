"""A figure with its interval, and settings of the bootstrap that intervals come from."""

from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.solve import Array


@dataclass(frozen=True, kw_only=True)
class Draws:
    """Settings of the bootstrap that intervals come from.

    Attributes:
        num_replicates: Replicates of a bootstrap.
        seed: Seed of its random numbers.
        confidence: Confidence of the interval, 0 to 1.
    """

    num_replicates: int
    seed: int
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure and the interval its bootstrap replicates span.

    Attributes:
        value: Value by the fit to all runs.
        low: Lower end of the interval; NaN where there is none.
        high: Upper end.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, value: float, replicates: Array, confidence: float) -> "Estimate":
        """The percentile interval of the replicates that are finite; NaN for fewer than half."""
        finite = replicates[np.isfinite(replicates)]
        if 2 * len(finite) < len(replicates) or not len(finite):
            return cls(value=float(value), low=float("nan"), high=float("nan"))
        tail = 50.0 * (1.0 - confidence)
        low, high = np.percentile(finite, [tail, 100.0 - tail])
        return cls(value=float(value), low=float(low), high=float(high))

    @property
    def span(self) -> float:
        """Upper over lower end."""
        return self.high / self.low if self.low > 0 else float("inf")


@np.errstate(over="ignore")
def exponential(estimate: Estimate) -> Estimate:
    """The estimate of exp of what was estimated; percentiles go along, to infinity if need be."""
    value, low, high = np.exp([estimate.value, estimate.low, estimate.high])
    return Estimate(value=float(value), low=float(low), high=float(high))
