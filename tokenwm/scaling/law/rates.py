"""Checks of the rule's learning rate, against runs at other rates."""

from collections.abc import Sequence
from dataclasses import dataclass

from tokenwm.scaling.runs.runs import RunPoint

TOLERANCE = 0.02
"""Loss above that of the best rate, as a fraction, beyond which the rule is doubted."""


@dataclass(frozen=True, kw_only=True)
class RateCheck:
    """Runs of one size, token budget and seed that differ in their learning rate.

    Attributes:
        num_parameters: N.
        num_tokens: D.
        learning_rate: The rule's, which the law is fitted with.
        losses: Learning rate and held-out nats per token of each run, by ascending rate.
    """

    num_parameters: float
    num_tokens: float
    learning_rate: float
    losses: tuple[tuple[float, float], ...]

    @property
    def best(self) -> tuple[float, float]:
        """The learning rate of least loss, and its loss."""
        return min(self.losses, key=lambda pair: pair[1])

    @property
    def excess(self) -> float:
        """Excess of the rule's loss over the best one, as a fraction."""
        return dict(self.losses)[self.learning_rate] / self.best[1] - 1.0


def check_rates(points: Sequence[RunPoint], checks: Sequence[RunPoint]) -> list[RateCheck]:
    """Set runs at other learning rates against the runs that are fitted.

    Args:
        points: Runs at the rule's rates.
        checks: Runs at other rates; those without a counterpart of the same size, tokens and seed
            among ``points`` check nothing.

    Returns:
        One for each size, tokens and seed that has both, the smallest size first.
    """
    found = []
    for point in sorted(points, key=lambda point: (point.num_parameters, point.num_tokens)):
        key = point.num_parameters, point.num_tokens, point.seed
        losses = {
            check.learning_rate: check.loss
            for check in checks
            if (check.num_parameters, check.num_tokens, check.seed) == key
            and check.learning_rate is not None
        }
        if losses and point.learning_rate is not None:
            losses[point.learning_rate] = point.loss
            found.append(
                RateCheck(
                    num_parameters=point.num_parameters,
                    num_tokens=point.num_tokens,
                    learning_rate=point.learning_rate,
                    losses=tuple(sorted(losses.items())),
                )
            )
    return found


def rate_warnings(checks: Sequence[RateCheck]) -> list[str]:
    """Sizes at which the rule's rate is not within :data:`TOLERANCE` of the best."""
    return [
        f"at {check.num_parameters:.3g} parameters the rule's learning rate "
        f"{check.learning_rate:g} gives {100 * check.excess:.1f} % more loss than "
        f"{check.best[0]:g} (limit {100 * TOLERANCE:g} %): train this size again at that rate"
        for check in checks
        if check.excess > TOLERANCE
    ]
