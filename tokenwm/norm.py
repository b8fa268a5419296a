"""The one norm of all networks."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

LEAST_RMS = 1e-3
"""Vectors with a smaller root mean square are not blown up to one of 1."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019); see :func:`unit`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)``, scaled to a root mean square of 1 and by the weight, → the same shape."""
        return normed(x, gain_of(self.weight).to(x.dtype))


def gain_of(weight: Tensor) -> Tensor:
    """The factor that turns :func:`unit` into a norm with this weight, ``(..., D)``."""
    out: Tensor = weight * weight.shape[-1] ** 0.5
    return out


def normed(x: Tensor, gain: Tensor) -> Tensor:
    """:func:`unit` of ``(..., D)`` times a gain of its last dimensions, → the same shape."""
    if not x.requires_grad or x.dtype == torch.float16 or torch.compiler.is_compiling():
        return unit(x).mul(gain)
    out: Tensor = _Normed.apply(x, gain)  # type: ignore[no-untyped-call]
    return out


class _Normed(torch.autograd.Function):
    """A norm with its gradient written out: half the operations, and one tensor kept, not five."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        ctx.save_for_backward(x, length, gain)
        return x.div(_at_least(length, x.shape[-1])).mul_(gain)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, length, gain = ctx.saved_tensors
        divisor = _at_least(length, x.shape[-1])
        direction = x / divisor
        along = gradient * direction
        of_gain = along.flatten(0, -1 - gain.ndim).sum(0)
        # What only makes x longer does nothing, unless it is too short to be scaled to 1.
        along = along.mul_(gain).sum(-1, keepdim=True) * (length >= divisor)
        of_x = (gradient * gain).addcmul_(direction, along, value=-1).div_(divisor)
        return of_x, of_gain


def unit(x: Tensor) -> Tensor:
    """``(..., D)``, scaled to a length of 1, → the same shape and type.

    In as few operations as possible, fewer than ``F.rms_norm``: small models spend much of their
    time starting operations. Squares are added up in float32 whatever the type.
    """
    if x.dtype == torch.float16:  # its length may be beyond what the type holds
        return unit(x.float()).to(x.dtype)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.div(_at_least(length, x.shape[-1]))


def _at_least(length: Tensor, dim: int) -> Tensor:
    return length.clamp_min(LEAST_RMS * dim**0.5)
