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
        places: ``(B, h * w, code_dim)`` float32, where latents lay before they were quantized: in
            bins for FSQ, whose codes are whole numbers there; in the codes' own unit for ``vq``.
    """

    codes: Tensor
    indices: Tensor
    commitment_loss: Tensor
    places: Tensor


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
            places = self._bounded(normed)
        return Quantized(codes, indices.long(), latents.new_zeros(()), places)

    def _bounded(self, normed: Tensor) -> Tensor:
        """``FSQ.bound`` in bins, before it rounds, which the library does not give away."""
        levels = self._levels
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = torch.where(levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(normed + torch.atanh(offset / half)) * half - offset

    def kept(self, places: Tensor, nearest: Tensor, previous: Tensor, margin: float) -> Tensor:
        """Previous codes where they still hold, else the nearest.

        Args:
            places: ``(..., code_dim)``, see :class:`Quantized`.
            nearest: ``(...)`` int64, the codes of these places.
            previous: ``(...)`` int64, codes of the frames before.
            margin: A code holds while the place is within ``0.5 + margin`` bins of it in every
                digit.
        """
        centres = self.fsq.indices_to_level_indices(previous) - self._levels // 2
        holds = ((places - centres).abs() <= 0.5 + margin).all(-1)
        return torch.where(holds, previous, nearest)

    @property
    def _levels(self) -> Tensor:
        return cast(Tensor, self.fsq._levels)

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
        return Quantized(codes, indices, loss.sum(), latents.float())

    def kept(self, places: Tensor, nearest: Tensor, previous: Tensor, margin: float) -> Tensor:
        """Previous codes where they still hold, else the nearest.

        As for FSQ; a code holds while it is no farther from the place than ``1 + margin`` times the
        nearest.
        """
        before, least = ((places - self.codes_of(c)).norm(dim=-1) for c in (previous, nearest))
        return torch.where(before <= (1.0 + margin) * least, previous, nearest)

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
