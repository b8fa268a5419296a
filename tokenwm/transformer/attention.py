"""Attention of training on a CPU: part by part of the queries, each with the keys it may see."""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

ROWS_OF_A_PART = 128


class Part(NamedTuple):
    """Some queries and the keys from the first to the last that any of them may attend to."""

    rows: slice
    keys: slice


class AttentionInParts(torch.autograd.Function):
    """Scaled dot-product attention and its gradient, without most of what the mask hides.

    A causal mask hides nearly half of all pairs, a window more. Softmax of a part leaves out only
    zeros, so this is attention by two products up to rounding.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Compute ``(B, N, Q, head)``.

        Args:
            ctx: Keeps what the gradient needs.
            q: ``(B, N, Q, head)``.
            k: ``(B, kv_heads, S, head)``.
            v: The same shape.
            bias: ``(Q, S)``, 0 or ``-inf``.
        """
        batch, num_heads, queries, width = q.shape
        sharing = num_heads // k.shape[1]
        # Heads that share keys lie side by side: (B * kv_heads, sharing, Q, head).
        q = torch.unflatten((q * width**-0.5).flatten(0, 1), 0, (-1, sharing))
        k, v = k.flatten(0, 1), v.flatten(0, 1)  # (B * kv_heads, S, head)
        out = q.new_empty(batch, queries, num_heads, width)  # as the next linear map reads it
        mixed = out.transpose(1, 2)
        parts, every = parts_of(bias), []
        for rows, keys in parts:
            scores = torch.unflatten(q[:, :, rows].flatten(1, 2) @ k[:, keys].mT, 1, (sharing, -1))
            weights = scores.add_(bias[rows, keys]).softmax(-1).flatten(1, 2)
            mixed[:, :, rows] = (weights @ v[:, keys]).view(batch, num_heads, -1, width)
            every.append(weights)
        ctx.save_for_backward(q, k, v, *every)
        ctx.parts = parts
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of ``q``, ``k`` and ``v``."""
        q, k, v, *every = ctx.saved_tensors
        shape, width = gradient.shape, q.shape[-1]
        gradient = gradient.reshape(q.shape)
        of_q = torch.empty_like(q)
        exact = torch.promote_types(q.dtype, torch.float32)
        of_k, of_v = (x.new_zeros(x.shape, dtype=exact) for x in (k, v))  # sums over parts
        for (rows, keys), weights in zip(ctx.parts, every, strict=True):
            queries, mixed = q[:, :, rows].flatten(1, 2), gradient[:, :, rows].flatten(1, 2)
            of_v[:, keys] += weights.mT @ mixed
            of_weights = mixed @ v[:, keys].mT
            of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
            of_q[:, :, rows] = torch.unflatten(of_scores @ k[:, keys], 1, (q.shape[1], -1))
            of_k[:, keys] += of_scores.mT @ queries
        kv_shape = (shape[0], -1, *k.shape[1:])
        return (
            of_q.mul_(width**-0.5).view(shape),
            of_k.to(k.dtype).view(kv_shape),
            of_v.to(v.dtype).view(kv_shape),
            None,
        )


def parts_of(bias: Tensor) -> list[Part]:
    """Parts of a bias ``(Q, S)``; queries that may see no key see all, as nothing is hidden then.

    Queries are taken in order, so a mask that is a band along the diagonal is cut well.
    """
    queries, num_keys = bias.shape
    parts = []
    for first in range(0, queries, ROWS_OF_A_PART):
        rows = slice(first, min(first + ROWS_OF_A_PART, queries))
        seen = (bias[rows] == 0).any(0).nonzero()
        keys = slice(int(seen[0]), int(seen[-1]) + 1) if len(seen) else slice(0, num_keys)
        parts.append(Part(rows, keys))
    return parts
