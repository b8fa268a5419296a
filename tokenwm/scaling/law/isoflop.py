"""Approach 2: at each level of compute a parabola of log loss over log N, and its lowest point."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from tokenwm.scaling.law.estimate import Draws, Estimate
from tokenwm.scaling.law.lines import Line, fit_line
from tokenwm.scaling.law.select import SAME, Observations, num_distinct
from tokenwm.scaling.law.solve import Array

WIDTH = 1.25
"""Runs whose FLOPs differ by no more than this factor are one level of compute."""
LEAST_SIZES = 4
"""A parabola has three numbers; a fourth size is the least that can contradict it."""
LEAST_INTERPOLATED = 3
"""Fewest sizes where losses are interpolated; noise then tells how far to trust the optimum."""
LEAST_LEVELS = 3
"""Levels that a line through their optima takes."""
LEAST_CERTAIN = 0.8
"""Share of replicates in which the optimum of a level must stay between its sizes."""
NUM_INTERPOLATED = 7
"""Levels where losses are interpolated along the runs of each size."""


@dataclass(frozen=True, kw_only=True)
class Profile:
    """Log losses of several sizes at one level of compute.

    Attributes:
        log_c: Log compute of the level.
        log_n: Log parameters of the sizes, (m,).
        deviation: Log C of each less that of the level, (m,).
        mix: Log losses are ``mix @ log_loss`` of the runs, (m, n).
    """

    log_c: float
    log_n: Array
    deviation: Array
    mix: Array


@dataclass(frozen=True, kw_only=True)
class Level:
    """A profile, its parabola and the lowest point of it.

    Attributes:
        profile: The profile that it is fitted to.
        log_losses: Log losses of the profile, brought to the level's compute, (m,).
        parabola: Log loss over log N less the mean, lowest power first.
        log_n: Lowest point; NaN if there is none.
        log_loss: Log loss there.
        reason: Why the lowest point is not used; empty if it is.
    """

    profile: Profile
    log_losses: Array
    parabola: Array
    log_n: float
    log_loss: float
    reason: str


@dataclass(frozen=True, kw_only=True)
class IsoFlopFit:
    """Optima of the levels, and lines through them.

    Attributes:
        levels: All of them by rising compute, those not used with their reason.
        interpolated: Whether losses were interpolated along the runs of each size, because runs of
            equal compute are too few.
        size: Line of log N over log C; None if there are too few usable levels.
        loss: Line of log loss over log C. It has no floor, so far away it is too low.
        exponent: Slope of ``size``.
        reason: Why there is no line; empty if there is.
    """

    levels: tuple[Level, ...]
    interpolated: bool
    size: Line | None = None
    loss: Line | None = None
    exponent: Estimate | None = None
    reason: str = ""


def fit_isoflop(seen: Observations, spread: float, draws: Draws) -> IsoFlopFit:
    """Fit a parabola at each level, and lines through their lowest points.

    Args:
        seen: The runs.
        spread: Standard deviation of log loss from run to run. For the intervals all is fitted
            again with normal noise of this size on the losses that the parabolas say.
        draws: Draws of the noise.
    """
    profiles, interpolated = window_profiles(seen), False
    if len(profiles) < LEAST_LEVELS:
        profiles, interpolated = interpolated_profiles(seen), True
    random = np.random.default_rng(draws.seed)
    noise = spread * random.standard_normal((draws.num_replicates, len(seen.log_n)))
    levels, optima, losses = [], [], []
    for profile in profiles:
        level, design = _fit_level(profile, seen)
        shaken = (np.linalg.pinv(design) @ (profile.mix @ noise.T))[:3].T + level.parabola
        lowest, depth = _lowest_point(shaken, profile)
        level = _unless_vague(level, float(np.isfinite(lowest).mean()))
        levels.append(level)
        if not level.reason:
            optima.append(lowest)
            losses.append(depth)
    used = [level for level in levels if not level.reason]
    if len(used) < LEAST_LEVELS:
        reason = (
            f"{len(used)} of the {LEAST_LEVELS} levels of compute that are needed have enough "
            "sizes and an optimum between them"
        )
        return IsoFlopFit(levels=tuple(levels), interpolated=interpolated, reason=reason)
    log_c = np.array([level.profile.log_c for level in used])
    places = np.array([level.log_n for level in used])
    # A flat parabola says little about its lowest point, so it counts little.
    weights = 1.0 / np.maximum(np.nanvar(optima, axis=1), 1e-12)
    depths = np.array([level.log_loss for level in used])
    # Optima also scatter because no parabola is the true shape: levels are reweighted as well.
    shuffled = weights * random.exponential(size=(draws.num_replicates, len(used)))
    size = fit_line(log_c, places, weights, np.array(optima).T, shuffled)
    loss = fit_line(log_c, depths, weights, np.array(losses).T, shuffled)
    return IsoFlopFit(
        levels=tuple(levels),
        interpolated=interpolated,
        size=size,
        loss=loss,
        exponent=Estimate.of(size.slope, size.replicates[:, 1], draws.confidence),
    )


def window_profiles(seen: Observations) -> list[Profile]:
    """Disjoint windows of compute no wider than ``WIDTH``; those with most sizes come first."""
    free = [int(index) for index in np.argsort(seen.log_c, kind="stable")]
    profiles = []
    while free:
        windows = []
        for first in range(len(free)):
            limit = seen.log_c[free[first]] + np.log(WIDTH)
            windows.append([index for index in free[first:] if seen.log_c[index] <= limit])
        best = max(windows, key=lambda window: (num_distinct(seen.log_n[window]), len(window)))
        if num_distinct(seen.log_n[best]) < LEAST_SIZES:
            break
        log_c = float(seen.log_c[best].mean())
        profiles.append(
            Profile(
                log_c=log_c,
                log_n=seen.log_n[best],
                deviation=seen.log_c[best] - log_c,
                mix=np.eye(len(seen.log_n))[best],
            )
        )
        free = [index for index in free if index not in best]
    return sorted(profiles, key=lambda profile: profile.log_c)


def interpolated_profiles(seen: Observations) -> list[Profile]:
    """Levels over the compute that enough sizes were trained for, linear between runs.

    Both axes are logarithms; runs of the same size and compute (seeds) are averaged.
    """
    order = np.argsort(seen.log_n, kind="stable")
    cuts = np.flatnonzero(np.diff(seen.log_n[order]) > np.log1p(SAME)) + 1
    sizes = [_Size.of(group, seen) for group in np.split(order, cuts)]
    sizes = [size for size in sizes if len(size.log_c) >= 2]
    if len(sizes) < LEAST_INTERPOLATED:
        return []
    low = sorted(size.log_c[0] for size in sizes)[LEAST_INTERPOLATED - 1]
    high = sorted((size.log_c[-1] for size in sizes), reverse=True)[LEAST_INTERPOLATED - 1]
    profiles = []
    for log_c in np.linspace(low, high, NUM_INTERPOLATED) if low < high else []:
        reaching = [size for size in sizes if size.log_c[0] <= log_c <= size.log_c[-1]]
        if len(reaching) >= LEAST_INTERPOLATED:
            profiles.append(
                Profile(
                    log_c=float(log_c),
                    log_n=np.array([size.log_n for size in reaching]),
                    deviation=np.zeros(len(reaching)),
                    mix=np.array([size.mix_at(log_c) for size in reaching]),
                )
            )
    return profiles


@dataclass(frozen=True, kw_only=True)
class _Size:
    """Runs of one size: compute (k,), and how runs make up the loss at each, (k, n)."""

    log_n: float
    log_c: Array
    averages: Array

    @classmethod
    def of(cls, group: NDArray[np.intp], seen: Observations) -> "_Size":
        log_c, which = np.unique(seen.log_c[group].round(6), return_inverse=True)
        averages = np.zeros((len(log_c), len(seen.log_n)))
        averages[which, group] = 1.0 / np.bincount(which)[which]
        return cls(log_n=float(seen.log_n[group].mean()), log_c=log_c, averages=averages)

    def mix_at(self, log_c: float) -> Array:
        shares = [np.interp(log_c, self.log_c, unit) for unit in np.eye(len(self.log_c))]
        return np.asarray(shares @ self.averages)


def _fit_level(profile: Profile, seen: Observations) -> tuple[Level, Array]:
    """The level, and the matrix (m, 3 or 4) whose least squares it is."""
    away = profile.log_n - profile.log_n.mean()
    columns = [np.ones_like(away), away, away**2]
    if len(away) > len(columns) + 1 and np.ptp(profile.deviation) > 0.01:
        columns.append(profile.deviation)  # or a slope of loss over compute would pass for shape
    design = np.stack(columns, axis=1)
    measured = profile.mix @ seen.log_loss
    coefficients = np.linalg.pinv(design) @ measured
    parabola = coefficients[:3]
    (lowest,), (depth,) = _lowest_point(parabola[None], profile)
    reason = ""
    if parabola[2] <= 0:
        reason = "its parabola opens downwards"
    elif not np.isfinite(lowest):
        side = "below the smallest" if parabola[1] > 0 else "above the largest"
        reason = f"its optimum lies {side} of its sizes, at the edge of the grid"
    level = Level(
        profile=profile,
        log_losses=measured - design[:, 3:] @ coefficients[3:],
        parabola=parabola,
        log_n=float(lowest),
        log_loss=float(depth),
        reason=reason,
    )
    return level, design


def _lowest_point(parabolas: Array, profile: Profile) -> tuple[Array, Array]:
    """Log N and log loss of the lowest points of (R, 3); NaN for those not between the sizes."""
    constant, linear, square = parabolas.T
    square = np.where(square > 0, square, np.nan)
    log_n = profile.log_n.mean() - linear / (2.0 * square)
    between = (profile.log_n.min() < log_n) & (log_n < profile.log_n.max())
    depth = constant - linear**2 / (4.0 * square)
    return np.where(between, log_n, np.nan), np.where(between, depth, np.nan)


def _unless_vague(level: Level, share: float) -> Level:
    """The level, not to be used if noise takes its optimum out of its sizes too often."""
    if level.reason or share >= LEAST_CERTAIN:
        return level
    reason = f"noise takes its optimum out of its sizes in {100 * (1 - share):.0f} % of replicates"
    return replace(level, reason=reason)
