"""The choice of runs to fit: nothing is left out silently, or because it fits badly."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tokenwm.errors import SweepError
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.runs.runs import LeftOut, RunPoint

MAX_EPOCHS = 4.0
"""Repeats up to which data count as new (Muennighoff et al. 2023)."""
LEAST_RUNS = 7
"""Two more than the five numbers of the law."""
FEW_RUNS = 15
"""Below it the law goes through too large a share of the runs for them to show their noise."""
LEAST_VALUES = 3
"""Sizes, and token budgets, that a power law with a floor takes."""
SAME = 0.02
"""Difference, as a fraction, below which two sizes or token budgets are one."""
LARGEST_CORRELATION = 0.98


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Runs as arrays of shape (n,): natural logarithms of N, D, C and of nats per token."""

    log_n: Array
    log_d: Array
    log_c: Array
    log_loss: Array

    @classmethod
    def of(cls, points: Sequence[RunPoint]) -> "Observations":
        """The runs' figures."""
        table = [(p.num_parameters, p.num_tokens, p.flops, p.loss) for p in points]
        log_n, log_d, log_c, log_loss = np.log(np.array(table, dtype=float).reshape(-1, 4)).T
        return cls(log_n=log_n, log_d=log_d, log_c=log_c, log_loss=log_loss)


def select(
    points: Sequence[RunPoint],
    *,
    drop_highest_loss: int = 0,
    drop_shortest: int = 0,
    exclude: Mapping[str, str],
) -> tuple[list[RunPoint], list[LeftOut]]:
    """Leave out what the user names, and runs at a learning rate that another one beat.

    Args:
        points: Finished runs.
        drop_highest_loss: So many runs with the highest loss go.
        drop_shortest: Number of smallest token budgets of each size whose runs are left out.
        exclude: Path of a run → the user's reason.

    Returns:
        Runs to fit, in an order that does not depend on the given one, and runs left out.

    Raises:
        SweepError: A named run is not there, or nothing would be left.
    """
    unknown = sorted(set(exclude) - {point.path for point in points})
    if unknown:
        raise SweepError(f"no run '{unknown[0]}' to exclude; runs: {_some(points)}")
    if not 0 <= drop_highest_loss < len(points):
        raise SweepError(
            f"{drop_highest_loss} of {len(points)} runs cannot be dropped: at least one must stay"
        )
    reasons = {path: f"excluded by the user: {reason}" for path, reason in exclude.items()}
    by_loss = sorted(points, key=lambda point: point.loss, reverse=True)
    for point in by_loss[:drop_highest_loss]:
        reasons.setdefault(
            point.path, f"among the {drop_highest_loss} highest losses, dropped as asked for"
        )
    for point in _shortest(points, drop_shortest):
        reasons.setdefault(
            point.path, f"has one of the {drop_shortest} least tokens of its size, dropped as asked"
        )
    reasons |= _beaten([point for point in points if point.path not in reasons])
    if len(reasons) == len(points):
        raise SweepError(f"all {len(points)} runs are dropped or excluded; at least one must stay")
    kept = sorted(
        (point for point in points if point.path not in reasons),
        key=lambda p: (p.num_parameters, p.num_tokens, p.flops, p.loss, p.path),
    )
    left_out = [
        LeftOut(path=point.path, reason=reasons[point.path])
        for point in points
        if point.path in reasons
    ]
    return kept, left_out


def _shortest(points: Sequence[RunPoint], number: int) -> list[RunPoint]:
    """Runs with the ``number`` smallest token budgets of their size, over all seeds."""
    budgets: dict[float, set[float]] = defaultdict(set)
    for point in points:
        budgets[point.num_parameters].add(point.num_tokens)
    least = {size: sorted(found)[:number] for size, found in budgets.items()}
    return [point for point in points if point.num_tokens in least[point.num_parameters]]


def _some(points: Sequence[RunPoint]) -> str:
    return ", ".join(point.path for point in points[:8]) + (", …" if len(points) > 8 else "")


def _beaten(points: Sequence[RunPoint]) -> dict[str, str]:
    """Runs of the same size, tokens and seed as one with another learning rate and less loss."""
    groups: dict[tuple[float, float, int | None], list[RunPoint]] = defaultdict(list)
    for point in points:
        groups[point.num_parameters, point.num_tokens, point.seed].append(point)
    reasons = {}
    for group in groups.values():
        best = min(group, key=lambda point: point.loss)
        for point in group:
            rates = point.learning_rate, best.learning_rate
            if None not in rates and rates[0] != rates[1]:
                reasons[point.path] = (
                    f"its learning rate {rates[0]:g} is beaten by {rates[1]:g} "
                    f"at the same size, tokens and seed ({best.path})"
                )
    return reasons


def check_design(points: Sequence[RunPoint]) -> list[str]:
    """Refuse runs that cannot tell the law's numbers apart; say what weakens the answer.

    Returns:
        Warnings.

    Raises:
        SweepError: Too few runs, sizes or token budgets, or size and tokens always go together.
    """
    if len(points) < LEAST_RUNS:
        raise SweepError(
            f"{len(points)} runs for the five numbers of the law; at least {LEAST_RUNS} are needed"
        )
    seen = Observations.of(points)
    for what, values in (("sizes", seen.log_n), ("token budgets", seen.log_d)):
        number = num_distinct(values)
        if number < LEAST_VALUES:
            raise SweepError(
                f"the runs have {number} {what}: a power law with a floor takes at least "
                f"{LEAST_VALUES}; add runs of other {what}"
            )
    correlation = float(np.corrcoef(seen.log_n, seen.log_d)[0, 1])
    if abs(correlation) > LARGEST_CORRELATION:
        raise SweepError(
            f"log N and log D of the runs have a correlation of {correlation:.3f} (limit "
            f"{LARGEST_CORRELATION}): size and data cannot be told apart; vary one alone"
        )
    return _warnings(points, seen)


def _warnings(points: Sequence[RunPoint], seen: Observations) -> list[str]:
    warnings = []
    if len(points) < FEW_RUNS:
        warnings.append(
            f"{len(points)} runs for five numbers: the intervals are too short; {FEW_RUNS} runs "
            "or more would show the noise"
        )
    repeated = [p for p in points if p.num_epochs is not None and p.num_epochs > MAX_EPOCHS]
    if repeated:
        most = max(point.num_epochs or 0.0 for point in repeated)
        warnings.append(
            f"{len(repeated)} of {len(points)} runs saw their data more than {MAX_EPOCHS:g} times "
            f"(up to {most:.1f}): repeated tokens teach less than new ones, which the law does "
            f"not know. {_some(repeated)}"
        )
    for what, values in (("size", seen.log_n), ("tokens", seen.log_d)):
        ratio = float(np.exp(np.ptp(values)))
        if ratio < 10.0:
            warnings.append(
                f"{what} spans a factor of {ratio:.1f} only; exponents are read off less than "
                "a decade"
            )
    return warnings


def num_distinct(values: Array) -> int:
    """Values that differ by more than ``SAME`` from the one below."""
    return int(1 + (np.diff(np.sort(values)) > np.log1p(SAME)).sum()) if len(values) else 0
