"""Heads, from hidden states to the distributions of tokens and the expected reward."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer
from tokenwm.transformer.dynamics import LinearDynamics
from tokenwm.transformer.embeddings import (
    CodeTable,
    center_features,
    digits_of_codes,
    features_around,
    place_values,
)

UNKNOWN_RANGE = (-math.expm1(20.0), math.expm1(20.0))
"""Rewards that bins span where the range of the training rewards is not known."""
UNKNOWN_RANGE_LEAST_PROBABILITY = 1e-4
"""Bins less likely than this do not count there.

No training makes them quite impossible, and the outermost stand for half a billion: what is left of
them after training would move an expected reward.
"""

NEW_BIN_PENALTY = 12.0
"""Logits by which bins that a range gains are below the outermost of those it had."""


class ContinuousHead(nn.Module):
    """Logits over the bins of every state dimension, all read from one hidden state.

    A linear map gives coefficients of the Fourier features of the bin centres (smooth over bins),
    and a Laplace prior around where linear dynamics lead, with a learned sharpness per dimension,
    makes learning start there; before :meth:`LinearDynamics.fit`, at persistence. *Values* of a
    state are in units in which the training data is in [-1, 1].

    Args:
        tokenizer: Bins of the state.
        action: Bins or ids of the action.
        dim: ``D``.
        increments: Take the features of centres relative to where the dynamics lead: what is
            learned of how a joint moves in one place holds in another.
    """

    features: Tensor
    centers: Tensor
    inner_edges: Tensor
    outer_edges: Tensor
    dimension: Tensor

    def __init__(
        self,
        tokenizer: BinTokenizer,
        action: ScalarTokenizer,
        dim: int,
        *,
        increments: bool = False,
    ) -> None:
        super().__init__()
        self.increments = increments
        self.num_near = tokenizer.num_values - 2 * tokenizer.margin_bins
        self.dynamics = LinearDynamics(tokenizer, action)
        # What least squares found holds elsewhere, gradients fit it to the places of the training.
        self.dynamics.requires_grad_(not increments)
        centers, features = center_features(tokenizer)
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("features", features, persistent=False)
        edges = torch.from_numpy(tokenizer.scale(tokenizer.edges.T)).float()  # (bins + 1, P)
        self.register_buffer("inner_edges", edges[1:-1].T.contiguous(), persistent=False)
        self.register_buffer("outer_edges", edges[[0, -1]], persistent=False)  # (2, P)
        self.register_buffer("dimension", torch.arange(len(centers)), persistent=False)
        self.coefficients = nn.Linear(dim, features.shape[0] * features.shape[-1])
        nn.init.zeros_(self.coefficients.weight)
        self.sharpness = nn.Parameter(torch.full((len(centers),), 4.0))

    @property
    def log_sharpness(self) -> nn.Parameter:
        """``(P,)``, logarithm of the prior's sharpness; checkpoints call it ``sharpness``."""
        return self.sharpness

    def forward(self, hidden: Tensor, previous: Tensor, action: Tensor) -> Tensor:
        """Compute logits.

        Args:
            hidden: ``(..., D)``.
            previous: ``(..., P)`` int64, the state tokens of the step before.
            action: ``(..., A)`` int64, the action taken there.

        Returns:
            ``(..., P, bins)`` float32.
        """
        dtype = self.features.dtype  # float64 in a frozen model
        coefficients = self.coefficients(hidden.to(self.coefficients.weight.dtype)).to(dtype)
        coefficients = coefficients.unflatten(-1, (len(self.centers), -1))
        expected = self.dynamics(previous, action)
        if self.increments:
            coefficients = features_around(coefficients, expected)
        logits = torch.einsum("...pf,pbf->...pb", coefficients, self.features).float()
        return logits + self._log_prior(expected, self.centers)

    def _log_prior(self, expected: Tensor, centers: Tensor) -> Tensor:
        """Laplace prior around ``(..., P)`` values: its logits at ``(..., P, bins)``, float32."""
        distance = (centers.float() - expected.float().unsqueeze(-1)).abs()
        return -self.log_sharpness.float().exp().unsqueeze(-1) * distance

    def values_of(self, tokens: Tensor) -> Tensor:
        """``(..., P)`` int64 → the centres of their bins, the same shape."""
        return self.centers[self.dimension, tokens]

    def forecast(
        self, logits: Tensor, previous: Tensor, action: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The point forecast that greedy decoding goes on from.

        The most likely bin would be blind to whatever moves less than half a bin a step. So a value
        is carried beside the token: what the token rounds off is not lost but added to the next
        step (error diffusion, Floyd & Steinberg 1976). The value moves as the linear dynamics say,
        which know no bins, and by what the rest of the head adds to the expectation of their prior.
        That expectation is over the hump of the most likely bin, as far as probability falls on
        both sides of it: a gripper that may open or stay shut does not stand half open. Both are
        taken over as many bins around as the training data has, not over the margins too.

        Args:
            logits: ``(B, P, bins)``, from :meth:`forward`.
            previous: ``(B, P)`` int64, the tokens of the step before.
            action: ``(B, A)`` int64, the action taken there.
            values: ``(B, P)``, the values there, which are in the bins of those tokens.

        Returns:
            The tokens and the values of the step, ``(B, P)`` each.
        """
        likely = logits.argmax(-1)
        near = self._around(likely)
        logits, peak = logits.gather(-1, near), likely.unsqueeze(-1) - near[..., :1]
        slope = logits.diff(dim=-1)
        edge = torch.arange(slope.shape[-1], device=logits.device)  # between it and the next bin
        is_valley = torch.where(edge < peak, slope < 0, slope > 0)
        hump = F.pad(is_valley.cumsum(-1), (1, 0))
        inside = logits.masked_fill(hump != hump.gather(-1, peak), -math.inf)
        expected = self.dynamics(previous, action)
        centers = self._centers_of(self._around(self._bins_of(expected)))
        added = _mean(inside, self._centers_of(near))
        added = added - _mean(self._log_prior(expected, centers), centers)
        moved = (values + expected - self.values_of(previous) + added).clamp(*self.outer_edges)
        return self._bins_of(moved), moved

    def _bins_of(self, values: Tensor) -> Tensor:
        """``(B, P)`` → the same shape, int64."""
        return torch.searchsorted(self.inner_edges, values.T.contiguous(), right=True).T

    def _around(self, bins: Tensor) -> Tensor:
        """``(B, P)`` → ``(B, P, W)`` bins around, ``W`` of them, as many as the range has."""
        first = (bins - self.num_near // 2).clamp(0, self.centers.shape[-1] - self.num_near)
        return first.unsqueeze(-1) + torch.arange(self.num_near, device=bins.device)

    def _centers_of(self, bins: Tensor) -> Tensor:
        """``(B, P, W)`` → the same shape."""
        return self.centers[self.dimension.unsqueeze(-1), bins]


def _mean(logits: Tensor, centers: Tensor) -> Tensor:
    """``(..., P, W)`` logits of bins and their centres → the expected centre, ``(..., P)``."""
    return (logits.to(centers.dtype).softmax(-1) * centers).sum(-1)


class DiscreteHead(nn.Module):
    """Logits over the ids of every discrete state dimension. *Values* are the ids themselves."""

    def __init__(self, num_dimensions: int, num_values: int, dim: int) -> None:
        super().__init__()
        self.num_dimensions = num_dimensions
        self.logits = nn.Linear(dim, num_dimensions * num_values)
        nn.init.zeros_(self.logits.weight)

    def forward(self, hidden: Tensor, previous: Tensor, action: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., P, ids)``; ``previous`` and ``action`` are not used."""
        logits = self.logits(hidden.to(self.logits.weight.dtype)).float()
        out: Tensor = logits.unflatten(-1, (self.num_dimensions, -1))
        return out

    def values_of(self, tokens: Tensor) -> Tensor:
        """``(..., P)`` int64 → the same as float32."""
        return tokens.float()

    def forecast(
        self, logits: Tensor, previous: Tensor, action: Tensor, values: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The most likely ids, ``(B, P)``; the rest as in :meth:`ContinuousHead.forecast`."""
        tokens = logits.argmax(-1)
        return tokens, self.values_of(tokens)


class CodeHead(CodeTable):
    """Logits of all codes or of their digits, linear in the hidden state. Starts at zero."""

    digits_of: Tensor
    places: Tensor
    columns: Tensor

    def __init__(
        self, codebook_size: int, levels: tuple[int, ...], dim: int, has_rows: bool = True
    ) -> None:
        super().__init__(codebook_size, levels, dim, 0.0, has_rows)
        self.bias = nn.Parameter(torch.zeros(codebook_size if has_rows else sum(levels)))
        sizes = torch.tensor(levels, dtype=torch.int64)
        # Where each digit's values are among the logits; behind the last for values it lacks.
        values = torch.arange(max(levels, default=0))
        columns = (sizes.cumsum(0) - sizes)[:, None] + values
        columns = columns.masked_fill(values >= sizes[:, None], sum(levels))
        buffers = {
            "digits_of": digits_of_codes(codebook_size, levels),
            "places": place_values(sizes),
            "columns": columns,
        }
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., V)``."""
        if self.table is None:  # a logit for each value of each digit, which add up
            return F.linear(self.digit_logits(hidden), self.digits)
        return F.linear(hidden, self.vectors(), self.bias)

    def digit_logits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., sum(levels))``, only of a head without rows."""
        return F.linear(hidden, self.digit_table, self.bias)

    def log_digits(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → log-likelihoods, see :class:`~tokenwm.transformer.codes.DigitCodes`."""
        logits = F.pad(self.digit_logits(hidden).float(), (0, 1), value=-math.inf)
        return logits[..., self.columns].log_softmax(-1)


def symlog(x: Tensor) -> Tensor:
    """``sign(x) * log(1 + |x|)`` (Hafner et al. 2023)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


class RewardHead(nn.Module):
    """Two-hot regression over bins of rewards (DreamerV3, Hafner et al. 2023, eq. 9 and 10).

    Bins are evenly spaced in symlog over the range of the training rewards, but they stand for
    rewards as they are, and a target is divided between its two neighbours so that its expectation
    is the reward itself. So the head's expectation is that of the reward, also where a reward is
    one of two values with nothing in between.

    Args:
        dim: ``D``.
        reward_range: Smallest and largest reward; they may be equal. None: nearly all numbers, for
            data whose range is not known.
        num_bins: Bins.
    """

    bins: Tensor

    def __init__(
        self, dim: int, reward_range: tuple[float, float] | None = None, num_bins: int = 255
    ) -> None:
        super().__init__()
        self.register_buffer("bins", torch.zeros(num_bins), persistent=False)
        self.logits = nn.Linear(dim, num_bins)
        nn.init.zeros_(self.logits.weight)
        self.set_range(reward_range)

    def set_range(self, reward_range: tuple[float, float] | None) -> None:
        """Lay the bins over a range of rewards; what was learned is of the former ones."""
        self.least_probability = 0.0 if reward_range else UNKNOWN_RANGE_LEAST_PROBABILITY
        low, high = reward_range or UNKNOWN_RANGE
        first, last = (math.copysign(math.log1p(abs(end)), end) for end in (low, high))
        even = torch.linspace(first, last, len(self.bins), dtype=torch.float64)
        bins = symexp(even).clamp(low, high)
        bins[0], bins[-1] = low, high
        self.bins.copy_(bins)

    @torch.no_grad()
    def widen(self, reward_range: tuple[float, float]) -> None:
        """Lay the bins over a wider range, so that what is expected stays nearly the same.

        Each takes the logit of the likeliest of the former bins that it is nearest to. Bins beyond
        the former range begin with next to no probability.
        """
        before = self.bins.double()
        self.set_range(reward_range)
        distance = (self.bins.double().unsqueeze(1) - before).abs()  # (bins, former bins)
        taken, nearest = distance.argmin(1), distance.argmin(0)
        is_new = (self.bins < before[0]) | (self.bins > before[-1])
        for former in self.logits.bias.argsort():  # the likeliest last
            taken[nearest[former]] = former
        is_new[nearest] = False
        self.logits.weight.copy_(self.logits.weight[taken])
        self.logits.bias.copy_(self.logits.bias[taken] - NEW_BIN_PENALTY * is_new)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → expected reward ``(...)`` float32, within the range."""
        # In float64, since bins may be large beside the reward that they add up to.
        probabilities = self.logits(hidden).double().softmax(-1)
        if self.least_probability:
            probabilities = probabilities * (probabilities >= self.least_probability)
            probabilities = probabilities / probabilities.sum(-1, keepdim=True)
        out: Tensor = (probabilities @ self.bins.double()).float()
        return out

    def loss(self, hidden: Tensor, reward: Tensor) -> Tensor:
        """Cross-entropy ``(...)`` against the two-hot encoding of ``reward`` ``(...)``.

        A reward outside the range counts as its nearer end.
        """
        bins = self.bins.float()
        target = reward.float().clamp(bins[0], bins[-1]).contiguous()
        below = torch.searchsorted(bins, target, right=True).sub(1).clamp(0, len(bins) - 2)
        # Where all rewards are equal bins have no width, and any division of a target is right.
        width = (bins[below + 1] - bins[below]).clamp(min=torch.finfo(torch.float32).tiny)
        weight = (target - bins[below]) / width
        log_probabilities = self.logits(hidden).float().log_softmax(-1)
        low = log_probabilities.gather(-1, below.unsqueeze(-1)).squeeze(-1)
        high = log_probabilities.gather(-1, below.unsqueeze(-1) + 1).squeeze(-1)
        loss: Tensor = -((1 - weight) * low + weight * high)
        return loss
