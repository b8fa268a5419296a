"""The cross-entropy method: a Gaussian is fitted to the best of what was drawn from it."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from tokenwm.control.planners.sampling import SamplingPlanner
from tokenwm.control.planners.search import Search
from tokenwm.control.proposals import coloured_noise
from tokenwm.errors import TokenwmError
from tokenwm.shapes import shown


class Gaussian(NamedTuple):
    """A Gaussian over action sequences, each number by itself.

    Attributes:
        mean: ``(H, A)`` in the units of the data.
        std: ``(H, A)``.
    """

    mean: Tensor
    std: Tensor


@dataclass(frozen=True, kw_only=True)
class CEM(SamplingPlanner[Gaussian]):
    """The cross-entropy method for real actions.

    Source: de Boer et al. (2005), "A tutorial on the cross-entropy method". Every round also tries
    the mean.

    Attributes:
        initial_std: Standard deviation of the first round, in deviations of the data
            (:attr:`ActionSpace.std`).
        least_std: The least that it may become, in the same unit; above 0 it goes on looking.
        smoothing: Weight of the Gaussian before in the new one, in [0, 1).
        exponent: Colour of the noise, see :func:`coloured_noise`; 0 is white.
        chooses: ``best``: the plan is the best sequence that was tried. ``mean``: it is the mean of
            the last Gaussian, which is imagined once more; it clings less to what the world model
            happens to be wrong about.
    """

    initial_std: float = 1.0
    least_std: float = 0.02
    smoothing: float = 0.0
    exponent: float = 0.0
    chooses: Literal["best", "mean"] = "best"

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        for name, high in (("initial_std", 100.0), ("least_std", 100.0), ("exponent", 10.0)):
            self.check_range(name, 0.0, high)
        self.check_range("smoothing", 0.0, 0.999)
        if self.num_elites > self.num_candidates:
            raise TokenwmError(
                f"num_elites={self.num_elites} of num_candidates={self.num_candidates}; use fewer"
            )
        if self.chooses not in ("best", "mean"):
            raise TokenwmError(f"chooses={shown(self.chooses)}; choose best or mean")

    def begin(self, search: Search) -> Gaussian:
        """The data's spread around the warm start, or around the middle of the data."""
        space, shape = search.space, (self.horizon, search.space.num_dimensions)
        mean = space.mean.expand(shape) if search.warm is None else search.warm[0]
        return Gaussian(mean, (self.initial_std * space.std).expand(shape))

    def draw(self, search: Search, belief: Gaussian, num: int) -> Tensor:
        """The mean, and draws around it."""
        noise = coloured_noise(search.generator, num, self.horizon, search.space, self.exponent)
        noise[0] = 0.0
        return belief.mean + belief.std * noise.to(belief.mean.device)

    def refit(
        self, search: Search, belief: Gaussian, candidates: Tensor, scores: Tensor
    ) -> Gaussian:
        """Mean and deviation of the elites."""
        top = scores.topk(min(self.num_elites, len(scores)))
        new = fit_gaussian(candidates[top.indices], top.values, belief)
        least = self.least_std * search.space.std
        mean, std = (
            self.smoothing * old + (1.0 - self.smoothing) * now
            for old, now in zip(belief, new, strict=True)
        )
        return Gaussian(mean, torch.maximum(std, least))

    def answer(self, belief: Gaussian) -> Tensor | None:
        """The mean, if that is what is chosen."""
        return belief.mean if self.chooses == "mean" else None


def fit_gaussian(elites: Tensor, scores: Tensor, before: Gaussian) -> Gaussian:
    """The Gaussian under which elites are likeliest; those without a finite score do not count.

    Args:
        elites: ``(k, H, A)``.
        scores: ``(k,)``.
        before: The answer if none of them counts.
    """
    counts = (scores > -torch.inf).to(elites.dtype)[:, None, None]
    number = counts.sum()
    mean = (counts * elites).sum(0) / number
    std = ((counts * (elites - mean).square()).sum(0) / number).sqrt()
    pairs = zip((mean, std), before, strict=True)
    return Gaussian(*(torch.where(number > 0, new, old) for new, old in pairs))
