"""Wrong frame tokens in what a training batch shows.

A model that imagines reads its own mistakes. One that was only ever shown true tokens copies a
wrong one on; one that was shown wrong ones learns to put them right, since its targets stay true.
"""

import torch
from torch import Tensor

END_PROBABILITY = 0.5
"""Probability that a wrong token is right again in the next step although the slot is still."""


def with_errors(frame: Tensor, near: Tensor, max_share: float) -> Tensor:
    """Frame tokens of which a share is wrong, drawn from torch's random numbers.

    The share is drawn per row, even in [0, ``max_share``], and is the same at every step. An error
    in a slot is held as imagination would hold it, until the slot's true token changes or, with
    ``END_PROBABILITY``, until it is repaired. Half of the wrong tokens are near the right one, a
    quarter is drawn from the batch, a quarter from the codebook.

    Args:
        frame: ``(B, T, K)`` int64, the true tokens.
        near: ``(V, N)`` int64, codes near each code, see
            :func:`~tokenwm.transformer.embeddings.near_codes`; ``N`` is 0 if codes have no digits.
        max_share: In [0, 1).

    Returns:
        ``(B, T, K)`` int64.
    """
    share = max_share * torch.rand(len(frame), 1, device=frame.device)
    chance = torch.rand(frame.shape, device=frame.device)
    drawn = _wrong_codes(frame, near)
    begins_in_still_slot = END_PROBABILITY * share / (1.0 - share)  # keeps the share what it is
    is_wrong = chance[:, 0] < share
    shown = [torch.where(is_wrong, drawn[:, 0], frame[:, 0])]
    for step in range(1, frame.shape[1]):
        is_still = frame[:, step] == frame[:, step - 1]
        is_held = is_still & is_wrong & (chance[:, step] >= END_PROBABILITY)
        begins = chance[:, step] < torch.where(is_still, begins_in_still_slot, share)
        begins &= ~(is_still & is_wrong)
        fresh = torch.where(begins, drawn[:, step], frame[:, step])
        shown.append(torch.where(is_held, shown[-1], fresh))
        is_wrong = is_held | begins
    return torch.stack(shown, dim=1)


def _wrong_codes(frame: Tensor, near: Tensor) -> Tensor:
    """A plausible wrong code for every token, ``(B, T, K)``; now and then it is the right one."""
    kind = torch.rand(frame.shape, device=frame.device)
    place = torch.randint(frame.numel(), frame.shape, device=frame.device)
    codes = torch.randint(len(near), frame.shape, device=frame.device)
    codes = torch.where(kind < 0.75, frame.flatten()[place], codes)
    if near.shape[1] > 0:
        choice = torch.randint(near.shape[1], frame.shape, device=frame.device)
        codes = torch.where(kind < 0.5, near[frame, choice], codes)
    return codes
