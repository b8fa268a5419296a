"""Bins beyond the range of the training data."""

import math

import numpy as np
from numpy.typing import NDArray


def num_margin_bins(margin: float, num_bins: int) -> int:
    """Bins on each side: at most as many as between them."""
    return math.ceil(min(margin, 1.0) * num_bins)


def with_margins(
    edges: NDArray[np.float64],
    ends: NDArray[np.float64],
    least: NDArray[np.float64],
    margin: float,
) -> tuple[NDArray[np.float64], tuple[int, ...]]:
    """Add bins on both sides, see :meth:`tokenwm.tokenizer.actions.BinTokenizer.fit`.

    Args:
        edges: ``(A, num_bins + 1)``, over the training data.
        ends: ``(A, 2)``, its least and largest values.
        least: ``(A,)``, ranges from which on a dimension moves.
        margin: What to cover on each side.

    Returns:
        All edges, and the dimensions that never move.
    """
    num_bins, ranges = edges.shape[1] - 1, ends[:, 1] - ends[:, 0]
    moves = ranges[ranges > least]
    typical = np.maximum(least, np.median(moves) if len(moves) else 1.0)
    width = np.maximum(ranges, least) / num_bins
    number = np.arange(1, num_margin_bins(margin, num_bins) + 1)
    pairs = number * (number + 1) / 2  # sums of 1 to number, by which widths grow
    cover = margin * np.maximum(width * num_bins, typical)
    growth = np.maximum(cover / width - len(number), 0.0) / pairs[-1]
    steps = width[:, None] * (number + growth[:, None] * pairs)
    edges = np.hstack([edges[:, :1] - steps[:, ::-1], edges, edges[:, -1:] + steps])
    # How far a dimension will move that never did, nobody knows: as far as others do.
    still = np.flatnonzero(ranges <= np.minimum(least, typical / num_bins))
    places = np.arange(edges.shape[1]) - (edges.shape[1] - 1) // 2 - 0.5
    edges[still] = (ends.mean(1, keepdims=True) + (typical / num_bins)[:, None] * places)[still]
    return edges, tuple(int(number) for number in still)
