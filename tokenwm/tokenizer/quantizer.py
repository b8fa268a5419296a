"""Vector quantizers behind one small interface; the only import of ``vector_quantize_pytorch``.

* ``fsq`` – finite scalar quantization (Mentzer et al. 2024) behind a BatchNorm. Without the norm it
  collapses to a single code on frames that hardly differ (measured on Push-T).
* ``vq`` – an EMA codebook (van den Oord et al. 2017) with k-means initialisation, revival of dead
  codes and the rotation trick (Fifty et al. 2025).
"""

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

QuantizerKind = Literal["fsq", "vq"]

FSQ_LEVELS: dict[int, list[int]] = {
    64: [8, 8],
    240: [8, 6, 5],
    256: [8, 8, 4],
    512: [8, 8, 8],
    1000: [8, 5, 5, 5],
    1024: [8, 8, 4, 4],
    2048: [8, 8, 8, 4],
    4096: [8, 8, 8, 8],
}
"""Levels per dimension for each supported FSQ codebook size.

After table 1 of Mentzer et al., powers of 2 added.
"""


class Quantized(NamedTuple):
    """Results of a quantizer for ``B`` camera frames of ``h * w`` tokens.

    Attributes:
        codes: ``(B, h * w, code_dim)`` quantized latents; the gradient is passed straight through.
        indices: ``(B, h * w)`` int64 in [0, codebook_size).
        commitment_loss: Scalar; zero for FSQ.
    """

    codes: Tensor
    indices: Tensor
    commitment_loss: Tensor


class FiniteScalarQuantizer(nn.Module):
    """BatchNorm followed by FSQ; ``code_dim`` equals the number of levels."""

    def __init__(self, codebook_size: int) -> None:
        super().__init__()
        from vector_quantize_pytorch import FSQ

        levels = FSQ_LEVELS[codebook_size]
        self.code_dim = len(levels)
        self.codebook_size = codebook_size
        self.norm = nn.BatchNorm1d(self.code_dim)
        self.fsq = FSQ(levels)

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize ``(B, h * w, code_dim)``."""
        with torch.autocast(latents.device.type, enabled=False):
            normed = self.norm(latents.float().flatten(0, 1)).view_as(latents)
            codes, indices = self.fsq(normed)
        return Quantized(codes, indices.long(), latents.new_zeros(()))

    def codes_of(self, indices: Tensor) -> Tensor:
        """``(B, h * w)`` indices → ``(B, h * w, code_dim)`` codes."""
        return cast(Tensor, self.fsq.indices_to_codes(indices))


class CodebookQuantizer(nn.Module):
    """Nearest code of a learned EMA codebook."""

    def __init__(self, codebook_size: int, code_dim: int, commitment_weight: float) -> None:
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize

        self.code_dim = code_dim
        self.codebook_size = codebook_size
        self.vq = VectorQuantize(
            dim=code_dim,
            codebook_size=codebook_size,
            kmeans_init=True,
            threshold_ema_dead_code=2,
            rotation_trick=True,
            commitment_weight=commitment_weight,
        )

    def forward(self, latents: Tensor) -> Quantized:
        """Quantize ``(B, h * w, code_dim)``."""
        with torch.autocast(latents.device.type, enabled=False):
            codes, indices, loss = self.vq(latents.float())
        return Quantized(codes, indices, loss.sum())

    def codes_of(self, indices: Tensor) -> Tensor:
        """``(B, h * w)`` indices → ``(B, h * w, code_dim)`` codes."""
        return cast(Tensor, self.vq.get_codes_from_indices(indices))


Quantizer = FiniteScalarQuantizer | CodebookQuantizer


def build_quantizer(
    kind: QuantizerKind, codebook_size: int, code_dim: int, commitment_weight: float
) -> Quantizer:
    """Build a quantizer.

    Build it inside ``configure_model``: vector-quantize-pytorch decides in its constructor whether
    codebooks are synchronised between ranks, so the process group has to exist by then.
    """
    if kind == "fsq":
        return FiniteScalarQuantizer(codebook_size)
    return CodebookQuantizer(codebook_size, code_dim, commitment_weight)
