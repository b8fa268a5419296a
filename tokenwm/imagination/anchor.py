"""Anchored decoding: keep from the last observed frame what the tokens say has not changed.

A token model can show no more than its tokenizer kept. But imagination starts at a *real* frame,
and where the decoded future equals the decoded present, the real pixels are still right. So the
residual that the tokenizer lost in the last observed frame is added back, weighted by how little
the decoded pixels around have changed. Nothing is learned and nothing of the future is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHANGE_SCALE = 0.06
"""A decoded change of this size (of the full range of a pixel) keeps 1/e of the residual."""
NEIGHBOURHOOD = 3
"""Side, in pixels, over which the largest change counts."""


def anchored(decoded: Tensor, anchor_decoded: Tensor, anchor: Tensor) -> Tensor:
    """Add the residual of an observed frame where the decoded frame has not changed since.

    Args:
        decoded: ``(..., cameras, H, W, 3)`` float32 in about [0, 1], decoded from imagined tokens.
        anchor_decoded: The same shape (or one that broadcasts), decoded from the observed frame's
            tokens.
        anchor: Like ``anchor_decoded``, the observed frame itself.

    Returns:
        The shape of ``decoded``.
    """
    change = (decoded - anchor_decoded).abs().amax(-1)  # (..., cameras, H, W)
    flat = change.reshape(-1, 1, *change.shape[-2:])
    near = F.max_pool2d(flat, NEIGHBOURHOOD, stride=1, padding=NEIGHBOURHOOD // 2)
    keep = torch.exp(-((near.view_as(change) / CHANGE_SCALE) ** 2)).unsqueeze(-1)
    return decoded + keep * (anchor - anchor_decoded)
