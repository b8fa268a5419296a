"""From imagined tokens to pixels, anchored at the last observed frame.

A token model can show no more than its tokenizer kept. But imagination starts at a *real* frame,
and where the decoded future equals the decoded present, the real pixels are still right. So the
residual that the tokenizer lost in the last observed frame is added back, weighted by how little
the decoded pixels around have changed (*anchored* decoding). Nothing is learned and nothing of the
future is used.
"""

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_array
from tokenwm.shapes import shown
from tokenwm.tokenizer.frames import FrameTokenizer, slices, to_uint8

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
    decoder: nn.Module | None = None,
    anchor_rows: Tensor | None = None,
) -> Tensor:
    """Decode tokens, anchored if an anchor frame is given; as many frames at once as fit.

    Args:
        tokenizer: The tokenizer that made the tokens; its ``pixel_memory`` says how many fit.
        tokens: ``(B, H, K)`` int64.
        anchor_tokens: ``(N, K)`` int64, tokens of the anchor frames.
        anchor: ``(N, cameras, height, width, 3)`` uint8, real frames.
        decoder: In place of the tokenizer's own, see :func:`frozen_decoder`.
        anchor_rows: ``(B,)`` int64, which of the ``N`` anchors each row has; its own by default.
            So anchors that many rows share are held once.

    Returns:
        ``(B, H, cameras, height, width, 3)`` uint8 in [0, 255].
    """
    num_rows, num_steps = tokens.shape[:2]
    pixels = tokens.new_empty((num_rows, num_steps, *tokenizer.frame_shape), dtype=torch.uint8)
    if pixels.numel() == 0:
        return pixels
    # Whole rows, so that each one's anchor is decoded once; parts of a row if it is too long.
    steps_at_once = min(num_steps, tokenizer.frames_at_once)
    rows_at_once = max(1, tokenizer.frames_at_once // num_steps)
    for rows in slices(num_rows, rows_at_once):
        before = observed = None
        if anchor is not None and anchor_tokens is not None:
            which = rows if anchor_rows is None else anchor_rows[rows]
            before = tokenizer.decode_to_unit(anchor_tokens[which, None], decoder)
            observed = anchor[which, None].float() / 255.0
        for steps in slices(num_steps, steps_at_once):
            decoded = tokenizer.decode_to_unit(tokens[rows, steps], decoder)
            if before is not None and observed is not None:
                decoded = anchored(decoded, before, observed)
            pixels[rows, steps] = to_uint8(decoded)
    return pixels


def frozen_decoder(tokenizer: FrameTokenizer, dtype: torch.dtype) -> nn.Module:
    """The tokenizer's decoder for inference, in another type: a copy, if it has not that type.

    In bfloat16 and channels-last memory a CPU that has the type decodes up to twice as fast; pixels
    differ by 2 of 255 at most, 0.06 on average (docs/results/imagination.md).
    """
    decoder: nn.Module = tokenizer.decoder
    if next(decoder.parameters()).dtype == dtype:
        return decoder
    decoder = copy.deepcopy(decoder).requires_grad_(False).eval()
    return decoder.to(dtype=dtype).to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def chosen(name: str, indices: Sequence[int] | None, count: int) -> list[int] | slice:
    """Check indices of rows or steps and make them an index; None picks all ``count``.

    Raises:
        TokenwmError: One is outside; a GPU would not say so.
    """
    if indices is None:
        return slice(None)
    numbers = as_array(name, indices)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu"):
        raise TokenwmError(f"{name} is {shown(indices)}; give a list of whole numbers, or None")
    picked: list[int] = numbers.astype(np.int64).tolist()
    outside = [index for index in picked if not -count <= index < count]
    if outside:
        raise TokenwmError(f"{name} has {outside[0]}; the rollout has {count}: give [0, {count})")
    return picked
