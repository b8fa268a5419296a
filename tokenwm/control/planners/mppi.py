"""MPPI, model predictive path integral control: the mean of all candidates, weighed by score."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from tokenwm.control.planners.cem import CEM, Gaussian
from tokenwm.control.planners.search import Search


@dataclass(frozen=True, kw_only=True)
class MPPI(CEM):
    """MPPI for real actions; its deviation stays, and the plan is the weighed mean.

    The mean is imagined once more in the end, which says what to expect of it.

    Source: Williams et al. (2017), "Information theoretic MPC for model-based reinforcement
    learning", algorithm 2, with ``alpha = 1``: what actions cost is up to the objective
    (:class:`~tokenwm.control.penalties.ActionSize`). Candidates that leave the bounds are moved to
    them before they are weighed.

    Attributes:
        temperature: ``lambda``: the lower, the more only the best counts.
        relative: Whether the temperature is in standard deviations of the round's scores, so that
            it suits any objective; else it is in units of the score.
    """

    initial_std: float = 0.5
    temperature: float = 0.2
    relative: bool = True
    chooses: Literal["best", "mean"] = "mean"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        self.check_range("temperature", 1e-6, 1e6)

    def refit(
        self, search: Search, belief: Gaussian, candidates: Tensor, scores: Tensor
    ) -> Gaussian:
        """The weighed mean, with the deviation as it was."""
        temperature: float | Tensor = self.temperature
        if self.relative:
            temperature = temperature * spread_of(scores)
        weights = path_weights(scores, temperature)[:, None, None]
        return Gaussian((weights * candidates).sum(0), belief.std)


def path_weights(scores: Tensor, temperature: float | Tensor) -> Tensor:
    """``(n,)`` scores → weights: ``exp((score - best) / temperature)``, divided by their sum.

    Minus infinity has no weight, unless all are; then all weigh the same.
    """
    best = scores.max()
    shares = torch.where(best > -torch.inf, (scores - best) / temperature, torch.zeros_like(scores))
    return shares.softmax(0)


def spread_of(scores: Tensor) -> Tensor:
    """Standard deviation of the scores that are finite, a little above 0 at least."""
    counts = (scores > -torch.inf).to(scores.dtype)
    values = torch.where(scores > -torch.inf, scores, torch.zeros_like(scores))
    number = counts.sum().clamp(min=1.0)
    mean = values.sum() / number
    return ((counts * (values - mean).square()).sum() / number).sqrt().clamp(min=1e-9)
