"""Ranking futures by a picture of the goal, where no reward was recorded."""

from typing import Any, Literal, get_args

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.shapes import check_shape, check_type, shown
from tokenwm.tokenizer.frames import slices

Comparison = Literal["pixels", "tokens"]
ROWS_AT_ONCE = 64


@torch.inference_mode()
def goal_scores(
    model: TokenWorldModel,
    rollout: Rollout,
    goal: NDArray[Any] | Tensor,
    *,
    by: Comparison = "pixels",
) -> Tensor:
    """Scores of futures by how near to a picture of the goal each comes to its end.

    ::

        best = rollout.best(tokenwm.goal_scores(model, rollout, goal))

    The distance at each step counts by the probability that the step is the last that is reached
    (:attr:`Rollout.stop_probability`).

    Args:
        model: The model that imagined.
        rollout: ``B`` futures.
        goal: ``(cameras, H, W, 3)`` uint8, or ``(H, W, 3)`` if there is one camera.
        by: ``pixels``: mean squared difference of pixels in [0, 1]. ``tokens``: mean squared
            difference of the tokens' codes; no picture is decoded, which takes far less time.

    Returns:
        ``(B,)`` float32, minus the expected distance: more is better, 0 is best.

    Raises:
        TokenwmError: The goal is no such picture, or ``by`` is neither.
    """
    check_type("rollout", rollout, Rollout)
    if by not in get_args(Comparison):
        raise TokenwmError(f"by={shown(by)}; choose pixels or tokens")
    picture = as_tensor("goal", goal).to(model.device)
    if picture.ndim == 3:
        picture = picture[None]
    check_shape("goal", picture, model.tokenizer.frame_shape)
    if picture.dtype != torch.uint8:
        raise ShapeError(f"goal is {picture.dtype}; expected uint8 in [0, 255]")
    distance = _of_pixels if by == "pixels" else _of_tokens
    return -(rollout.stop_probability * distance(model, rollout, picture)).sum(1)


def _of_pixels(model: TokenWorldModel, rollout: Rollout, goal: Tensor) -> Tensor:
    """Mean squared error of pixels to the goal, ``(B, H)``."""
    parts = []
    for part in slices(len(rollout.frame_tokens), ROWS_AT_ONCE):
        pixels = model.decode_frames(rollout.rows(part))
        parts.append(((pixels.float() - goal) / 255.0).square().mean((2, 3, 4, 5)))
    return torch.cat(parts)


def _of_tokens(model: TokenWorldModel, rollout: Rollout, goal: Tensor) -> Tensor:
    """Mean squared error of codes to those of the goal, ``(B, H)``."""
    tokenizer = model.tokenizer
    both = (rollout.frame_tokens, tokenizer.encode_frames(goal[None]))
    shape = (-1, tokenizer.tokens_per_camera)
    futures, wanted = (
        tokenizer.quantizer.codes_of(tokens.reshape(shape)).reshape(*tokens.shape[:-1], -1).float()
        for tokens in both
    )
    return (futures - wanted).square().mean(-1)
