"""The cross-entropy method for ids: probabilities are fitted to the best of what was drawn."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from tokenwm.control.planners.sampling import SamplingPlanner
from tokenwm.control.planners.search import Search


@dataclass(frozen=True, kw_only=True)
class CategoricalCEM(SamplingPlanner[Tensor]):
    """The cross-entropy method for discrete actions.

    What is believed are probabilities ``(H, A, V)`` of every id at every step. Every round also
    tries the likeliest sequence.

    Source: de Boer et al. (2005), with smoothed updating: an id that was in no elite stays
    possible.

    Attributes:
        smoothing: Weight of the probabilities before in the new ones, in [0, 1).
    """

    smoothing: float = 0.1

    draws: ClassVar[tuple[bool, ...]] = (True,)

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        super().__post_init__()
        self.check_range("smoothing", 0.0, 0.999)

    def begin(self, search: Search) -> Tensor:
        """Even probabilities of all ids that the data uses, but tenfold of the warm start's."""
        high = search.space.high  # (A,)
        ids = torch.arange(int(high.max()) + 1, device=high.device)
        weights = (ids <= high[:, None]).float().repeat(self.horizon, 1, 1)  # (H, A, V)
        if search.warm is not None:
            weights = weights * (1.0 + 9.0 * (ids == search.warm[0][..., None]))
        return weights / weights.sum(-1, keepdim=True)

    def draw(self, search: Search, belief: Tensor, num: int) -> Tensor:
        """The likeliest sequence, and draws (Gumbel-max)."""
        uniform = torch.rand(num, *belief.shape, generator=search.generator).clamp(1e-7, 1.0 - 1e-7)
        noise = -(-uniform.log()).log()
        noise[0] = 0.0
        return (belief.log() + noise.to(belief.device)).argmax(-1)

    def refit(self, search: Search, belief: Tensor, candidates: Tensor, scores: Tensor) -> Tensor:
        """Frequencies of ids in the elites, smoothed."""
        top = scores.topk(min(self.num_elites, len(scores)))
        new = fit_probabilities(candidates[top.indices], top.values, belief)
        return self.smoothing * belief + (1.0 - self.smoothing) * new


def fit_probabilities(elites: Tensor, scores: Tensor, before: Tensor) -> Tensor:
    """Frequencies ``(H, A, V)`` of ids in elites; those without a finite score do not count.

    Args:
        elites: ``(k, H, A)`` int64.
        scores: ``(k,)``.
        before: ``(H, A, V)``, the answer if none of them counts.
    """
    counts = (scores > -torch.inf).to(before.dtype)
    ids = torch.arange(before.shape[-1], device=elites.device)
    is_there = (elites[..., None] == ids).to(before.dtype)
    found = (counts[:, None, None, None] * is_there).sum(0) / counts.sum()
    return torch.where(counts.sum() > 0, found, before)
