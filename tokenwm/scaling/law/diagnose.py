"""Checks of the law: outliers, groups of runs that it misses, and runs it was not fitted to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tokenwm.scaling.law.law import Laws
from tokenwm.scaling.law.parametric import ParametricFit, law_of
from tokenwm.scaling.law.select import SAME, Observations, check_design
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.runs.runs import RunPoint

OUTLIER = 3.5
"""Robust standard deviations from the law at which a run is reported. It stays in the fit."""
ROUNDING = 1e-4
"""Least robust standard deviation: printed losses are hardly more exact."""
SYSTEMATIC = 4.0
"""Standard errors at which the mean residual of a size or token budget speaks against the law."""
NOT_ADDITIVE = 3.0
"""Standard errors at which size and tokens act together and not, as the law has it, one by one."""
LEAST_FREEDOM = 6
"""Runs beyond the six numbers of that test; with fewer it takes noise for a pattern too often."""
HELD_OUT = 0.2
"""Share of the runs, those of most compute, that the law is asked to predict."""


@dataclass(frozen=True, kw_only=True)
class Outlier:
    """A run far from the law.

    Attributes:
        index: Index of the run.
        residual: Log loss less prediction; 0.01 is one per cent too much loss.
        deviations: The same in robust standard deviations, allowing for leverage.
    """

    index: int
    residual: float
    deviations: float


@dataclass(frozen=True, kw_only=True)
class HoldOut:
    """The law fitted without the runs of most compute, against them.

    Attributes:
        members: Indices of the runs held out, by rising compute.
        predicted: Their losses as predicted, nats per token.
        errors: Predicted over measured loss less one.
        reach: Most compute held out over most compute fitted.
        law: What the other runs say.
        baseline: Median absolute error of the lowest loss among the other runs as the prediction.
    """

    members: tuple[int, ...]
    predicted: Array
    errors: Array
    reach: float
    law: Laws
    baseline: float

    @property
    def median_error(self) -> float:
        """Median absolute error."""
        return float(np.median(np.abs(self.errors)))

    @property
    def largest_error(self) -> float:
        """Largest absolute error."""
        return float(np.abs(self.errors).max())


def find_outliers(fit: ParametricFit) -> list[Outlier]:
    """Runs that many deviations from the law, farthest first."""
    shrink = np.sqrt(np.maximum(1.0 - fit.leverage, 1e-3))
    deviations = fit.residuals / (max(fit.spread, ROUNDING) * shrink)
    far = np.flatnonzero(np.abs(deviations) > OUTLIER)
    return [
        Outlier(
            index=int(index),
            residual=float(fit.residuals[index]),
            deviations=float(deviations[index]),
        )
        for index in sorted(far, key=lambda index: -abs(deviations[index]))
    ]


def find_misfit(seen: Observations, fit: ParametricFit) -> list[str]:
    """Say which sizes or token budgets have residuals that go one way, or tilt together.

    A law that holds leaves noise; one that does not leaves a pattern.
    """
    residuals, noise = fit.residuals, max(fit.spread, ROUNDING)
    found = []
    for name, values in (("parameters", seen.log_n), ("tokens", seen.log_d)):
        order = np.argsort(values, kind="stable")
        cuts = np.flatnonzero(np.diff(values[order]) > np.log1p(SAME)) + 1
        for group in np.split(order, cuts):
            if len(group) < 4:
                continue
            mean = float(residuals[group].mean())
            error = max(noise, float(residuals[group].std(ddof=1))) / np.sqrt(len(group))
            if abs(mean) > SYSTEMATIC * error:
                side = "above" if mean > 0 else "below"
                found.append(
                    f"the {len(group)} runs with {np.exp(values[group].mean()):.3g} {name} lie "
                    f"{100 * abs(mean):.1f} % {side} the law on average"
                )
    tilt = _interaction(seen, residuals)
    if abs(tilt) > NOT_ADDITIVE:
        small, large = ("too slowly", "too fast") if tilt < 0 else ("too fast", "too slowly")
        found.append(
            f"small models gain {small} from tokens for the law, large ones {large} "
            f"({abs(tilt):.1f} standard errors): the two terms do not add up over all these runs; "
            "compare with a fit without the shortest runs (--drop-shortest 1), which may not be on "
            "it yet"
        )
    return found


def _interaction(seen: Observations, residuals: Array) -> float:
    """Slope of the residuals over (log N) (log D) beyond what each explains, in standard errors."""
    log_n, log_d = seen.log_n - seen.log_n.mean(), seen.log_d - seen.log_d.mean()
    alone = np.stack([np.ones_like(log_n), log_n, log_d, log_n**2, log_d**2], axis=1)
    product = log_n * log_d
    product = product - alone @ np.linalg.lstsq(alone, product, rcond=None)[0]
    weight = float(product @ product)
    freedom = len(residuals) - alone.shape[1] - 1
    if freedom < LEAST_FREEDOM or weight < 1e-9:
        return 0.0
    slope = float(product @ residuals) / weight
    rest = residuals - slope * product
    noise = max(ROUNDING, float(np.sqrt(rest @ rest / freedom)))
    return slope * math.sqrt(weight) / noise


def hold_out(points: Sequence[RunPoint], seen: Observations, delta: float) -> HoldOut:
    """Fit without the runs of most compute, and predict those.

    Raises:
        SweepError: The others cannot be fitted on their own.
    """
    number = max(2, round(HELD_OUT * len(points)))
    order = np.argsort(seen.log_c, kind="stable")
    # Runs of the same compute stay together.
    limit = seen.log_c[order[-number]] - np.log1p(SAME)
    held = [int(index) for index in order if seen.log_c[index] >= limit]
    kept = [int(index) for index in order if seen.log_c[index] < limit]
    check_design([points[index] for index in kept])
    fitted = Observations.of([points[index] for index in kept])
    law = law_of(fitted, delta)
    predicted = law.loss(seen.log_n[held], seen.log_d[held])
    measured = np.exp(seen.log_loss[held])
    best_known = np.exp(fitted.log_loss.min())
    return HoldOut(
        members=tuple(held),
        predicted=predicted,
        errors=predicted / measured - 1.0,
        reach=float(np.exp(seen.log_c[held].max() - fitted.log_c.max())),
        law=law,
        baseline=float(np.median(np.abs(best_known / measured - 1.0))),
    )
