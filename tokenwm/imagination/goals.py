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

Comparison = Literal["pixels", "tokens", "expected"]
ROWS_AT_ONCE = 64


class PictureGoal:
    """A picture of the goal, encoded once, to compare futures with.

    Args:
        model: The model that imagines.
        goal: ``(cameras, H, W, 3)`` uint8, or ``(H, W, 3)`` if there is one camera.
        by: ``pixels``: mean squared difference of pixels in [0, 1]. ``tokens``: mean squared
            difference of the tokens' codes; no picture is decoded, which takes far less time.
            ``expected``: that of the codes which the model expected, between what it took for
            possible.

    Raises:
        TokenwmError: The goal is no such picture, or ``by`` is none of these.
    """

    @torch.inference_mode()
    def __init__(
        self, model: TokenWorldModel, goal: NDArray[Any] | Tensor, by: Comparison = "pixels"
    ) -> None:
        if by not in get_args(Comparison):
            raise TokenwmError(f"by={shown(by)}; choose pixels, tokens or expected")
        picture = as_tensor("goal", goal).to(model.device)
        if picture.ndim == 3:
            picture = picture[None]
        check_shape("goal", picture, model.tokenizer.frame_shape)
        if picture.dtype != torch.uint8:
            raise ShapeError(f"goal is {picture.dtype}; expected uint8 in [0, 255]")
        self._model, self._by, self._picture = model, by, picture
        if by != "pixels":
            tokens = model.tokenizer.encode_frames(picture[None])
            self._codes = model.features_of_tokens(tokens, None)

    @torch.inference_mode()
    def distances(self, rollout: Rollout) -> Tensor:
        """Mean squared difference of every step to the goal, ``(B, H)`` float32."""
        check_type("rollout", rollout, Rollout)
        if self._by != "pixels":
            codes = (
                self._model.expected_codes_of(rollout)
                if self._by == "expected"
                else self._model.features_of_tokens(rollout.frame_tokens, None)
            )
            return (codes - self._codes).square().mean(-1)
        parts = []
        for part in slices(len(rollout.frame_tokens), ROWS_AT_ONCE):
            pixels = self._model.decode_frames(rollout.rows(part))
            parts.append(((pixels.float() - self._picture) / 255.0).square().mean((2, 3, 4, 5)))
        return torch.cat(parts)


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
        goal: See :class:`PictureGoal`.
        by: The same.

    Returns:
        ``(B,)`` float32, minus the expected distance: more is better, 0 is best.

    Raises:
        TokenwmError: The goal is no such picture, or ``by`` is none of these.
    """
    distances = PictureGoal(model, goal, by).distances(rollout)
    return -(rollout.stop_probability * distances).sum(1)
