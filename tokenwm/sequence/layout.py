"""The layout of the sequence: the order of state, frame and action tokens.

Pure functions; no parameters, no state. A step of ``L`` positions::

    slot      0 (if P > 0)    |  then K frame slots        |  last, L-1
    holds     P state tokens  |  one frame token each      |  A action tokens
    predicts  frame slot 0    |  the next frame slot;      |  the next step's first slot,
                              |  the last predicts nothing |  reward, terminated

Frame tokens have a position each. The ``P`` state tokens share one position and so do the ``A``
action tokens: their embeddings are merged. The sequence is strictly causal in this order.

The state comes first because where the robot is, is a smooth function of where it was and of its
action, and what the camera sees follows from it: the model need not learn the dynamics from tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.shapes import check_shape

LAYOUT_VERSION = 1
"""Changes whenever the meaning of a position does; checkpoints carry it."""


@dataclass(frozen=True, kw_only=True)
class StepLayout:
    """The slots of one step: state, frame tokens, action.

    Attributes:
        num_frame_tokens: ``K >= 1``, tokens of all cameras.
        has_state: True if the step has a slot for proprioception.
    """

    num_frame_tokens: int
    has_state: bool

    def __post_init__(self) -> None:
        if self.num_frame_tokens < 1:
            raise TokenwmError(
                f"num_frame_tokens={self.num_frame_tokens}; a step needs at least one frame token"
            )

    @property
    def positions_per_step(self) -> int:
        """``L``."""
        return self.num_predicted + 1

    @property
    def state_slot(self) -> int | None:
        """Slot of the state, 0, or None."""
        return 0 if self.has_state else None

    @property
    def first_frame_slot(self) -> int:
        """Slot of the first frame token."""
        return int(self.has_state)

    @property
    def action_slot(self) -> int:
        """Slot of the action, the last one, ``L - 1``."""
        return self.num_predicted

    @property
    def num_predicted(self) -> int:
        """``J``, slots of a step that are predicted: the state's and the frame's."""
        return self.num_frame_tokens + int(self.has_state)


def interleave(layout: StepLayout, frame: Tensor, state: Tensor | None, action: Tensor) -> Tensor:
    """Merge per-step tensors into one sequence.

    Args:
        layout: The step layout.
        frame: ``(B, T, K, *)``.
        state: ``(B, T, *)``, or None if the layout has no state.
        action: ``(B, T, *)``.

    Returns:
        ``(B, T * L, *)``.

    Raises:
        ShapeError: ``K`` is not the layout's.
    """
    check_shape("frame", frame.unsqueeze(-1).flatten(3), ("B", "T", layout.num_frame_tokens, "D"))
    parts = [frame, action.unsqueeze(2)]
    if layout.has_state:
        assert state is not None
        parts.insert(0, state.unsqueeze(2))
    return torch.cat(parts, dim=2).flatten(1, 2)


def predictors(layout: StepLayout, hidden: Tensor) -> Tensor:
    """Select the hidden states that predict the observation slots of steps 1 to ``T - 1``.

    Slot 0 of step ``t`` is predicted at the action of ``t - 1``, slot ``j`` at slot ``j - 1``. Step
    0 follows no action and is not predicted.

    Args:
        layout: The step layout.
        hidden: ``(B, T * L, D)``.

    Returns:
        ``(B, T - 1, J, D)`` with ``J = num_predicted``; entry ``[:, t, j]`` predicts slot ``j`` of
        step ``t + 1``.
    """
    steps = torch.unflatten(hidden, 1, (-1, layout.positions_per_step))  # (B, T, L, D)
    first = steps[:, :-1, layout.action_slot, None]  # (B, T-1, 1, D)
    return torch.cat([first, steps[:, 1:, : layout.num_predicted - 1]], dim=2)


def shift_to_inputs(layout: StepLayout, first: Tensor, others: Tensor, fill: Tensor) -> Tensor:
    """Put, at every position, the hint for the slot that the position is about to predict.

    Args:
        layout: The step layout.
        first: ``(B, T, D)``; entry ``[:, t]`` is computed from step ``t`` and helps to predict slot
            0 of step ``t + 1``.
        others: ``(B, T - 1, J - 1, D)`` with ``J = num_predicted``, the same for the other slots.
        fill: ``(D,)`` for positions that predict nothing or have no step before them.

    Returns:
        ``(B, T * L, D)``.
    """
    batch, num_steps, width = first.shape
    out = fill.to(first.dtype).expand(batch, num_steps, layout.positions_per_step, width).clone()
    out[:, :, layout.action_slot] = first
    out[:, 1:, : layout.num_predicted - 1] = others
    return out.flatten(1, 2)


def attention_mask(layout: StepLayout, num_steps: int, window: int) -> Tensor:
    """Causal mask that reaches back ``window`` steps, the current one included.

    Returns:
        ``(S, S)`` bool; entry ``[i, j]`` is True if position ``i`` may attend to position ``j``.
    """
    position = torch.arange(num_steps * layout.positions_per_step)
    step = position // layout.positions_per_step
    causal = position[:, None] >= position[None, :]
    return causal & (step[:, None] - step[None, :] < window)
