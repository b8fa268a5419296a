"""The one norm of all networks."""

import torch
from torch import Tensor, nn

LEAST_RMS = 1e-3
"""Vectors with a smaller root mean square are not blown up to one of 1."""


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019); see :func:`unit`."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)``, scaled to a root mean square of 1 and by the weight, → the same shape."""
        return unit(x).mul(gain_of(self.weight).to(x.dtype))


def gain_of(weight: Tensor) -> Tensor:
    """The factor that turns :func:`unit` into a norm with this weight, ``(..., D)``."""
    out: Tensor = weight * weight.shape[-1] ** 0.5
    return out


def unit(x: Tensor) -> Tensor:
    """``(..., D)``, scaled to a length of 1, → the same shape and type.

    In as few operations as possible, fewer than ``F.rms_norm``: small models spend much of their
    time starting operations. Squares are added up in float32 whatever the type.
    """
    if x.dtype == torch.float16:  # its length may be beyond what the type holds
        return unit(x.float()).to(x.dtype)
    length = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x.div(length.clamp_min(LEAST_RMS * x.shape[-1] ** 0.5))
