"""Changes to training frames: moved by some pixels, or cut to squares that hold something."""

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_WEIGHT = 4e-3
"""Weight of a cell in which nothing differs from the mean frame, so that those are seen, too."""


def shifted(pixels: Tensor, shift: Tensor) -> Tensor:
    """Move pictures by whole pixels; what comes in at the border repeats the border.

    Done to centred frames (the mean frame stays where it is) this is the augmentation of DrQ
    (Kostrikov et al. 2021): a camera that stood a little differently.

    Args:
        pixels: ``(B, C, H, W)``.
        shift: ``(B, 2)`` int64, pixels down and right; negative is up and left.

    Returns:
        ``(B, C, H, W)`` in channels-last memory.
    """
    height, width = pixels.shape[-2:]
    rows = torch.arange(height, device=pixels.device) - shift[:, :1]
    columns = torch.arange(width, device=pixels.device) - shift[:, 1:]
    return _picked(pixels, rows.clamp(0, height - 1), columns.clamp(0, width - 1))


def draw_squares(pixels: Tensor, side: int, cell: int) -> Tensor:
    """Draw squares in which there is something: a cell by what is in it, and a square around it.

    Most of a picture is its background. A step on squares costs less than one on whole pictures
    and sees nearly as much of what moves.

    Args:
        pixels: ``(B, C, H, W)``, centred, so that 0 is the background.
        side: Pixels of a side, a multiple of ``cell`` and no more than ``H`` and ``W``.
        cell: Pixels of a token's side; squares begin at tokens.

    Returns:
        ``(B, 2)`` int64, the first row and column of each.
    """
    weight = F.avg_pool2d(pixels.abs().amax(1, keepdim=True), cell)[:, 0] + LEAST_WEIGHT
    rows, columns = weight.shape[1:]
    place = torch.multinomial(weight.flatten(1), 1)[:, 0]
    chosen = torch.stack([place // columns, place % columns], dim=1)
    before = torch.randint(0, side // cell, chosen.shape, device=pixels.device)
    most = torch.tensor([rows, columns], device=pixels.device) - side // cell
    return (chosen - before).clamp(min=0).minimum(most) * cell


def cut(pixels: Tensor, corner: Tensor, side: int) -> Tensor:
    """Squares ``(B, C, side, side)`` of pictures ``(B, C, H, W)``, from corners ``(B, 2)`` on."""
    reach = torch.arange(side, device=pixels.device)
    return _picked(pixels, corner[:, :1] + reach, corner[:, 1:] + reach)


def _picked(pixels: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Rows ``(B, h)`` and columns ``(B, w)`` of pictures, in channels-last memory."""
    picture = torch.arange(len(pixels), device=pixels.device)[:, None, None]
    return pixels.movedim(1, -1)[picture, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
