"""From imagined tokens to pixels, anchored at the last observed frame.

A token model can show no more than its tokenizer kept. But imagination starts at a *real* frame,
and where the decoded future equals the decoded present, the real pixels are still right. So the
residual that the tokenizer lost in the last observed frame is added back, weighted by how little
the decoded pixels around have changed (*anchored* decoding). Nothing is learned and nothing of the
future is used.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenwm.tokenizer.frames import FrameTokenizer, to_uint8

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


def decode_pixels(
    tokenizer: FrameTokenizer,
    tokens: Tensor,
    anchor_tokens: Tensor | None = None,
    anchor: Tensor | None = None,
) -> Tensor:
    """Decode tokens, anchored if an anchor frame is given; as many frames at once as fit.

    Args:
        tokenizer: Whose tokens they are.
        tokens: ``(B, H, K)`` int64.
        anchor_tokens: ``(B, K)`` int64, tokens of the anchor frame.
        anchor: ``(B, cameras, height, width, 3)`` uint8, a real frame.

    Returns:
        ``(B, H, cameras, height, width, 3)`` uint8 in [0, 255].
    """
    batch, horizon = tokens.shape[:2]
    flat = tokens.flatten(0, 1)
    pixels = flat.new_empty((len(flat), *tokenizer.frame_shape), dtype=torch.uint8)
    for first in range(0, len(flat), tokenizer.frames_at_once):
        last = min(first + tokenizer.frames_at_once, len(flat))
        part = torch.arange(first, last, device=flat.device)
        decoded = tokenizer.decode_to_unit(flat[part])
        if anchor is not None and anchor_tokens is not None:
            row = part // horizon
            anchor_decoded = tokenizer.decode_to_unit(anchor_tokens[row])
            decoded = anchored(decoded, anchor_decoded, anchor[row].float() / 255.0)
        pixels[part] = to_uint8(decoded)
    return torch.unflatten(pixels, 0, (batch, horizon))
