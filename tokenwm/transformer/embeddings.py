"""Embeddings and heads that know what their tokens mean.

Space for frames, order for real values.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.tokenizer.actions import ContinuousTokenizer, DiscreteTokenizer, ScalarTokenizer

NUM_FREQUENCIES = 6
"""Fourier features resolve 2^-5 of a dimension's range.

Finer differences are left to their linear term.
"""


def fourier_features(values: Tensor) -> Tensor:
    """``(..., )`` values in [-1, 1] → ``(..., 2 * NUM_FREQUENCIES + 1)``.

    The value, sines and cosines, each octave at half the amplitude of the one below. With equal
    amplitudes the fine ones outweigh the coarse, and 26 joints tell one training step from every
    other: few episodes are learned by heart instead of understood (measured on the Unitree G1).
    """
    octave = torch.arange(NUM_FREQUENCIES, device=values.device)
    angle = values.unsqueeze(-1) * (math.pi * 2.0 ** (octave - 1))
    amplitude = 2.0**-octave
    return torch.cat(
        [values.unsqueeze(-1), amplitude * angle.sin(), amplitude * angle.cos()], dim=-1
    )


def center_features(tokenizer: ContinuousTokenizer) -> tuple[Tensor, Tensor]:
    """Bin centres scaled to [-1, 1] by the outer edges, and their features.

    ``(P, bins)`` and ``(P, bins, F)``.
    """
    low, high = tokenizer.edges[:, :1], tokenizer.edges[:, -1:]
    scaled = torch.from_numpy(np.asarray(2 * (tokenizer.centers - low) / (high - low) - 1)).float()
    return scaled, fourier_features(scaled)


def one_hot_ids(tokenizer: DiscreteTokenizer) -> Tensor:
    """One-hot vectors of the ids of every dimension, ``(A, ids, ids)``."""
    return torch.eye(tokenizer.num_values).repeat(tokenizer.num_dimensions, 1, 1)


class ScalarEmbedding(nn.Module):
    """One vector for all action (or state) tokens of a step.

    Bins enter as Fourier features of their centre, so near values are near from the start and a
    dimension needs no table of ``bins × D`` to be learned; a two-layer network lets dimensions
    interact. Discrete ids have a table.
    """

    features: Tensor
    dimension: Tensor

    def __init__(self, tokenizer: ScalarTokenizer, dim: int) -> None:
        super().__init__()
        self.is_continuous = isinstance(tokenizer, ContinuousTokenizer)
        if isinstance(tokenizer, ContinuousTokenizer):
            _, features = center_features(tokenizer)
        else:
            features = one_hot_ids(tokenizer)
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("dimension", torch.arange(features.shape[0]), persistent=False)
        read = nn.Linear(features.shape[0] * features.shape[-1], dim)
        write = nn.Linear(dim, dim)
        # PyTorch's default init leaves these a twentieth the size of code embeddings, and frame
        # predictions then hardly used the robot's state (docs/quickstart-recipe.md). These give
        # about three times theirs.
        nn.init.normal_(read.weight, std=2.0 * features.shape[0] ** -0.5)
        nn.init.normal_(write.weight, std=2.0 * dim**-0.5)
        self.layers = nn.Sequential(read, nn.SiLU(), write)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., A)`` int64 → ``(..., D)``."""
        features = self.features[self.dimension, tokens].flatten(-2)
        return apply_in_its_type(self.layers, features)


def apply_in_its_type(layers: nn.Sequential | nn.Linear, x: Tensor) -> Tensor:
    """Apply layers that may be in float64, in which a frozen model's are, to float32.

    In float32 a product's last bits depend on the number of rows beside a row, and rounded to
    bfloat16 they may become another token.
    """
    if next(layers.parameters()).dtype == torch.float64:
        out: Tensor = layers(x.double()).to(x.dtype)
    else:
        out = layers(x)
    return out


class LinearDynamics(nn.Module):
    """Where a state goes if it moves linearly: ``s' = s + W [s, a] + b``, in scaled units.

    Least squares finds ``W`` from a few hundred steps, which gradients on tokens do not: on 18
    episodes of a Unitree G1 it predicts 26 joints 20 steps ahead with an error of 5 bins of 256
    where the transformer alone had 28. What is not linear is left to the head's other part.
    """

    centers: Tensor
    action_features: Tensor
    dimension: Tensor
    action_dimension: Tensor

    def __init__(self, state: ContinuousTokenizer, action: ScalarTokenizer) -> None:
        super().__init__()
        centers, _ = center_features(state)
        self.register_buffer("centers", centers, persistent=False)
        if isinstance(action, ContinuousTokenizer):
            features = center_features(action)[0].unsqueeze(-1)
        else:
            features = one_hot_ids(action)
        self.register_buffer("action_features", features, persistent=False)
        self.register_buffer("dimension", torch.arange(len(centers)), persistent=False)
        self.register_buffer("action_dimension", torch.arange(len(features)), persistent=False)
        self.drift = nn.Linear(len(centers) + features.shape[0] * features.shape[-1], len(centers))
        nn.init.zeros_(self.drift.weight)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        """``(..., P)`` and ``(..., A)`` int64 → expected next state, ``(..., P)`` float32.

        In units in which the outer edges of the bins are -1 and 1.
        """
        with torch.autocast(state.device.type, enabled=False):  # bfloat16 is as coarse as the bins
            value, inputs = self._inputs(state, action)
            out: Tensor = value + self.drift(inputs)
        return out

    @torch.no_grad()
    def fit(self, *, state: Tensor, action: Tensor, next_state: Tensor) -> None:
        """Least squares over ``N`` steps, with a little ridge.

        Args:
            state: ``(N, P)`` int64.
            action: ``(N, A)`` int64.
            next_state: ``(N, P)`` int64.
        """
        value, inputs = self._inputs(state, action)
        ones = torch.ones(len(inputs), 1, device=inputs.device)
        x = torch.cat([inputs, ones], dim=1).double()
        y = (self.centers[self.dimension, next_state] - value).double()
        ridge = 1e-4 * len(x) * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        weights = torch.linalg.solve(x.T @ x + ridge, x.T @ y).T  # (P, inputs + 1)
        self.drift.weight.copy_(weights[:, :-1])
        self.drift.bias.copy_(weights[:, -1])

    def _inputs(self, state: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled state ``(..., P)`` and the inputs of the linear map."""
        value = self.centers[self.dimension, state]
        features = self.action_features[self.action_dimension, action].flatten(-2)
        return value, torch.cat([value, features], dim=-1)


class ContinuousHead(nn.Module):
    """Logits over the bins of every state dimension, all read from one hidden state.

    A linear map gives coefficients of the Fourier features of the bin centres (smooth over bins),
    and a Laplace prior around where linear dynamics lead, with a learned sharpness per dimension,
    makes learning start there; before :meth:`LinearDynamics.fit`, at persistence.
    """

    features: Tensor
    centers: Tensor

    def __init__(self, tokenizer: ContinuousTokenizer, action: ScalarTokenizer, dim: int) -> None:
        super().__init__()
        self.dynamics = LinearDynamics(tokenizer, action)
        centers, features = center_features(tokenizer)
        self.register_buffer("centers", centers, persistent=False)
        self.register_buffer("features", features, persistent=False)
        self.coefficients = nn.Linear(dim, features.shape[0] * features.shape[-1])
        nn.init.zeros_(self.coefficients.weight)
        # Its logarithm, that is; checkpoints know it by this name.
        self.sharpness = nn.Parameter(torch.full((len(centers),), 4.0))

    def forward(self, hidden: Tensor, previous: Tensor, action: Tensor) -> Tensor:
        """Compute logits.

        Args:
            hidden: ``(..., D)``.
            previous: ``(..., P)`` int64, the state tokens of the step before.
            action: ``(..., A)`` int64, the action taken there.

        Returns:
            ``(..., P, bins)`` float32.
        """
        coefficients = self.coefficients(hidden).float().unflatten(-1, (len(self.centers), -1))
        logits = torch.einsum("...pf,pbf->...pb", coefficients, self.features)
        expected: Tensor = self.dynamics(previous, action)
        distance = (self.centers - expected.unsqueeze(-1)).abs()
        return logits - self.sharpness.exp().unsqueeze(-1) * distance


class DiscreteHead(nn.Module):
    """Logits over the ids of every discrete state dimension."""

    def __init__(self, num_dimensions: int, num_values: int, dim: int) -> None:
        super().__init__()
        self.num_dimensions = num_dimensions
        self.logits = nn.Linear(dim, num_dimensions * num_values)
        nn.init.zeros_(self.logits.weight)

    def forward(self, hidden: Tensor, previous: Tensor, action: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., P, ids)``; ``previous`` and ``action`` are not used."""
        out: Tensor = self.logits(hidden).float().unflatten(-1, (self.num_dimensions, -1))
        return out


def digit_table(codebook_size: int, levels: tuple[int, ...]) -> Tensor:
    """One-hot digits of every code, ``(V, sum(levels))``; ``(V, 0)`` if codes have no digits.

    An FSQ code is a number in a mixed base, the first digit the least significant. Codes that share
    a digit look alike, so what is learned of one serves the others.
    """
    columns = []
    index = torch.arange(codebook_size)
    for level in levels:
        columns.append(F.one_hot(index % level, level).float())
        index = index // level
    return torch.cat(columns, dim=1) if columns else torch.zeros(codebook_size, 0)


class CodeTable(nn.Module):
    """A vector per code: a row of a table plus one vector for each of its digits.

    Args:
        codebook_size: ``V``.
        levels: Number of values of each digit, see :func:`digit_table`.
        dim: ``D``.
        scale: Standard deviation of the rows at the start, or 0 for nothing but zeros.
    """

    digits: Tensor
    folded: Tensor | None

    def __init__(self, codebook_size: int, levels: tuple[int, ...], dim: int, scale: float) -> None:
        super().__init__()
        self.register_buffer("digits", digit_table(codebook_size, levels), persistent=False)
        self.register_buffer("folded", None, persistent=False)
        self.table = nn.Parameter(torch.zeros(codebook_size, dim))
        self.digit_table = nn.Parameter(torch.zeros(sum(levels), dim))
        if scale > 0.0:
            nn.init.normal_(self.table, std=scale)
            nn.init.normal_(self.digit_table, std=0.5)

    @torch.no_grad()
    def fold(self) -> None:
        """For inference: add rows and digits up once, not at every call."""
        self.folded = self.vectors()

    def vectors(self) -> Tensor:
        """``(V, D)``."""
        if self.folded is not None:
            return self.folded
        return self.table + self.digits @ self.digit_table


class CodeEmbedding(CodeTable):
    """The vector of each code."""

    def __init__(self, codebook_size: int, levels: tuple[int, ...], dim: int) -> None:
        super().__init__(codebook_size, levels, dim, scale=0.5 if levels else 1.0)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(...)`` int64 → ``(..., D)``."""
        return F.embedding(tokens, self.vectors())


class CodeHead(CodeTable):
    """Logits of all codes, linear in the hidden state. Starts at zero."""

    def __init__(self, codebook_size: int, levels: tuple[int, ...], dim: int) -> None:
        super().__init__(codebook_size, levels, dim, scale=0.0)
        self.bias = nn.Parameter(torch.zeros(codebook_size))

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → ``(..., V)``."""
        return F.linear(hidden, self.vectors(), self.bias)


class FrameHints(nn.Module):
    """For every slot of the next frame, what is known about it before it is drawn.

    The previous frame's tokens around the slot (a 3×3 neighbourhood in its camera's grid), the
    place of the slot, and a condition (action, old and new state): what a slot needs to know
    whether it will change, put where it is predicted instead of left to attention.
    """

    def __init__(
        self, embedding: CodeEmbedding, num_cameras: int, grid: tuple[int, int], dim: int
    ) -> None:
        super().__init__()
        self.num_cameras, self.grid = num_cameras, grid
        self.embedding = embedding
        self.neighbourhood = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.mix = nn.Linear(dim, dim)

    def forward(self, frame_tokens: Tensor, place: Tensor, condition: Tensor) -> Tensor:
        """Compute hints.

        Args:
            frame_tokens: ``(B, T, K)`` int64, the previous frames.
            place: ``(K, D)``, the embeddings of the frame slots.
            condition: ``(B, T, D)``, what is known about the step to be predicted.

        Returns:
            ``(B, T, K, D)``.
        """
        batch, num_steps, _ = frame_tokens.shape
        embedded = self.embedding(frame_tokens)  # (B, T, K, D)
        images = embedded.reshape(batch * num_steps * self.num_cameras, *self.grid, -1)
        near = self.neighbourhood(images.movedim(-1, 1)).movedim(1, -1).reshape(embedded.shape)
        out: Tensor = self.mix(F.silu(near + place + condition.unsqueeze(2))) + embedded
        return out


def grid_positions(num_cameras: int, grid: tuple[int, int], dim: int) -> Tensor:
    """``(K, D)`` sinusoidal embedding of row and column (Vaswani et al. 2017, per axis).

    Cameras share it. Slot embeddings start from it, so that neighbours are near and attention finds
    them without having to learn the grid first.
    """
    quarter = dim // 4
    frequency = 1.0 / (32.0 ** (torch.arange(quarter) / max(quarter, 1)))
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    angles = [axis.flatten().unsqueeze(1) * frequency for axis in (rows, columns)]
    table = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], dim=1)
    table = F.pad(table, (0, dim - table.shape[1]))
    return table.repeat(num_cameras, 1)


def symlog(x: Tensor) -> Tensor:
    """``sign(x) * log(1 + |x|)`` (Hafner et al. 2023)."""
    return x.sign() * x.abs().log1p()


def symexp(x: Tensor) -> Tensor:
    """Inverse of :func:`symlog`."""
    return x.sign() * x.abs().expm1()


class RewardHead(nn.Module):
    """Symlog two-hot regression (DreamerV3, Hafner et al. 2023, eq. 9 and 10).

    Deviation: the expectation is taken in symlog space, then mapped back once.
    """

    bins: Tensor

    def __init__(self, dim: int, num_bins: int = 255, limit: float = 20.0) -> None:
        super().__init__()
        self.register_buffer("bins", torch.linspace(-limit, limit, num_bins), persistent=False)
        self.logits = nn.Linear(dim, num_bins)
        nn.init.zeros_(self.logits.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(..., D)`` → expected reward ``(...)`` float32."""
        return symexp(self.logits(hidden).float().softmax(-1) @ self.bins)

    def loss(self, hidden: Tensor, reward: Tensor) -> Tensor:
        """Cross-entropy ``(...)`` against the two-hot encoding of ``reward`` ``(...)``."""
        target = symlog(reward.float()).clamp(self.bins[0], self.bins[-1])
        width = self.bins[1] - self.bins[0]
        place = (target - self.bins[0]) / width
        below = place.floor().long().clamp(max=len(self.bins) - 2)
        weight = place - below
        log_probabilities = self.logits(hidden).float().log_softmax(-1)
        low = log_probabilities.gather(-1, below.unsqueeze(-1)).squeeze(-1)
        high = log_probabilities.gather(-1, below.unsqueeze(-1) + 1).squeeze(-1)
        loss: Tensor = -((1 - weight) * low + weight * high)
        return loss
