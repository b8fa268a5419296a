"""Embeddings that know what their tokens mean: space for frames, order for real values."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer, ScalarTokenizer

NUM_FREQUENCIES = 6
"""Fourier features resolve 2^-5 of a dimension's range.

Finer differences are left to their linear term.
"""


def fourier_features(values: Tensor) -> Tensor:
    """``(..., )`` values, in [-1, 1] in training → ``(..., 2 * NUM_FREQUENCIES + 1)``.

    The value, sines and cosines, each octave at half the amplitude of the one below. With equal
    amplitudes the fine ones outweigh the coarse, and 26 joints tell one training step from every
    other: few episodes are learned by heart instead of understood.
    """
    octave = torch.arange(NUM_FREQUENCIES, device=values.device)
    angle = values.unsqueeze(-1) * (math.pi * 2.0 ** (octave - 1))
    amplitude = 2.0**-octave
    return torch.cat(
        [values.unsqueeze(-1), amplitude * angle.sin(), amplitude * angle.cos()], dim=-1
    )


def features_around(coefficients: Tensor, place: Tensor) -> Tensor:
    """Coefficients of :func:`fourier_features` of ``x - place`` → those of features of ``x``.

    The two sums differ by a constant, ``place`` times the first coefficient.

    Args:
        coefficients: ``(..., 2 * NUM_FREQUENCIES + 1)``.
        place: ``(...)``.

    Returns:
        The shape and the type of ``coefficients``.
    """
    value, sine, cosine = torch.split(coefficients, [1, NUM_FREQUENCIES, NUM_FREQUENCIES], dim=-1)
    octave = torch.arange(NUM_FREQUENCIES, device=place.device)
    angle = place.unsqueeze(-1) * (math.pi * 2.0 ** (octave - 1))
    sin, cos = angle.sin(), angle.cos()
    turned = [value, sine * cos + cosine * sin, cosine * cos - sine * sin]
    return torch.cat(turned, dim=-1).to(coefficients.dtype)


def center_features(tokenizer: BinTokenizer) -> tuple[Tensor, Tensor]:
    """Bin centres, scaled so that the training data is in [-1, 1], and their features.

    ``(P, bins)`` and ``(P, bins, F)``.
    """
    scaled = torch.from_numpy(tokenizer.scale(tokenizer.centers.T).T).float()
    return scaled, fourier_features(scaled)


def one_hot_ids(tokenizer: DiscreteTokenizer) -> Tensor:
    """One-hot vectors of the ids of every dimension, ``(A, ids, ids)``."""
    return torch.eye(tokenizer.num_values).repeat(tokenizer.num_dimensions, 1, 1)


class ScalarEmbedding(nn.Module):
    """One vector for all action (or state) tokens of a step.

    Bins enter as Fourier features of their centre, so near values are near from the start and a
    dimension needs no table of ``bins × D`` to be learned; a two-layer network lets dimensions
    interact. Values beyond the training data enter as its nearest, since a network says nothing
    sensible of numbers that it never saw; what they move is left to
    :class:`~tokenwm.transformer.dynamics.LinearDynamics`. Discrete ids have a table.
    """

    features: Tensor
    dimension: Tensor

    def __init__(self, tokenizer: ScalarTokenizer, dim: int) -> None:
        super().__init__()
        self.is_continuous = isinstance(tokenizer, BinTokenizer)
        if isinstance(tokenizer, BinTokenizer):
            features = fourier_features(center_features(tokenizer)[0].clamp(-1.0, 1.0))
        else:
            features = one_hot_ids(tokenizer)
        self.register_buffer("features", features, persistent=False)
        self.register_buffer("dimension", torch.arange(features.shape[0]), persistent=False)
        read = nn.Linear(features.shape[0] * features.shape[-1], dim)
        write = nn.Linear(dim, dim)
        # PyTorch's default init leaves these a twentieth the size of code embeddings, and frame
        # predictions then hardly used the robot's state (docs/results/quickstart.md). These give
        # about three times theirs.
        nn.init.normal_(read.weight, std=2.0 * features.shape[0] ** -0.5)
        nn.init.normal_(write.weight, std=2.0 * dim**-0.5)
        self.layers = nn.Sequential(read, nn.SiLU(), write)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(..., A)`` int64 → ``(..., D)``."""
        features = self.features[self.dimension, tokens].flatten(-2)
        out: Tensor = self.layers(features)
        return out


def digits_of_codes(codebook_size: int, levels: tuple[int, ...]) -> Tensor:
    """Digits of every code, ``(V, digits)`` int64.

    An FSQ code is a number in a mixed base, the first digit the least significant. Codes that share
    a digit look alike, so what is learned of one serves the others.
    """
    return digits_of(torch.arange(codebook_size), levels)


def digits_of(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """``(...)`` codes → ``(..., digits)`` int64, the first digit the least significant."""
    sizes = torch.tensor(levels, dtype=torch.int64, device=codes.device)
    return codes.unsqueeze(-1) // place_values(sizes) % sizes


def place_values(sizes: Tensor) -> Tensor:
    """``(digits,)`` int64 numbers of values → by what each digit is multiplied to give a code."""
    return sizes.cumprod(0) // sizes


def digit_table(codebook_size: int, levels: tuple[int, ...]) -> Tensor:
    """One-hot digits of every code, ``(V, sum(levels))``; ``(V, 0)`` if codes have no digits."""
    digits = digits_of_codes(codebook_size, levels).unbind(-1)
    columns = [F.one_hot(d, level).float() for d, level in zip(digits, levels, strict=True)]
    return torch.cat(columns, dim=1) if columns else torch.zeros(codebook_size, 0)


class CodeTable(nn.Module):
    """A vector per code: one vector for each of its digits, plus a row of a table.

    Args:
        codebook_size: ``V``.
        levels: Number of values of each digit, see :func:`digit_table`.
        dim: ``D``.
        scale: Standard deviation of the rows at the start, or 0 for nothing but zeros.
        has_rows: Whether there is a table. Without, what is learned of a code holds for all that
            share a digit with it, and few episodes are not learned by heart.
    """

    digits: Tensor
    table: nn.Parameter | None

    def __init__(
        self, codebook_size: int, levels: tuple[int, ...], dim: int, scale: float, has_rows: bool
    ) -> None:
        super().__init__()
        self.register_buffer("digits", digit_table(codebook_size, levels), persistent=False)
        self.table = nn.Parameter(torch.zeros(codebook_size, dim)) if has_rows else None
        self.digit_table = nn.Parameter(torch.zeros(sum(levels), dim))
        if scale > 0.0:
            if self.table is not None:
                nn.init.normal_(self.table, std=scale)
            nn.init.normal_(self.digit_table, std=0.5)

    def vectors(self) -> Tensor:
        """``(V, D)``."""
        of_digits = self.digits @ self.digit_table
        return of_digits if self.table is None else self.table + of_digits


class CodeEmbedding(CodeTable):
    """The vector of each code."""

    def __init__(
        self, codebook_size: int, levels: tuple[int, ...], dim: int, has_rows: bool = True
    ) -> None:
        super().__init__(codebook_size, levels, dim, 0.5 if levels else 1.0, has_rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """``(...)`` int64 → ``(..., D)``."""
        return F.embedding(tokens, self.vectors())


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
        width = embedded.shape[-1]
        images = embedded.reshape(batch * num_steps * self.num_cameras, *self.grid, width)
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
