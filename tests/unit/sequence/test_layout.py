"""Interleaving as a bijection, and the two rules of who predicts whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.sequence.layout import (
    StepLayout,
    interleave,
    predictors,
    shift_to_inputs,
)

layouts = st.builds(StepLayout, num_frame_tokens=st.integers(1, 6), has_state=st.booleans())
sizes = st.tuples(st.integers(1, 3), st.integers(1, 5))  # B, T


def numbered(layout: StepLayout, batch: int, num_steps: int, width: int = 2) -> Tensor:
    """``(B, T * L, width)``, every entry another number."""
    shape = (batch, num_steps * layout.positions_per_step, width)
    return torch.arange(torch.Size(shape).numel()).view(shape)


def deinterleave(layout: StepLayout, sequence: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
    """``(B, T * L, *)`` → frame, state, action."""
    steps = sequence.unflatten(1, (-1, layout.positions_per_step))  # (B, T, L, *)
    state = None if layout.state_slot is None else steps[:, :, layout.state_slot]
    frame = steps[:, :, layout.first_frame_slot : layout.action_slot]
    return frame, state, steps[:, :, layout.action_slot]


@given(layout=layouts, size=sizes, width=st.integers(0, 3))
def test_interleave_and_deinterleave_are_inverse(
    layout: StepLayout, size: tuple[int, int], width: int
) -> None:
    """Both ways, with a trailing axis (embeddings) and without (tokens)."""
    sequence = numbered(layout, *size, width=max(width, 1))
    if width == 0:
        sequence = sequence[..., 0]
    frame, state, action = deinterleave(layout, sequence)
    assert frame.shape[:3] == (*size, layout.num_frame_tokens)
    assert (state is not None) == layout.has_state
    assert torch.equal(interleave(layout, frame, state, action), sequence)


@given(layout=layouts, size=sizes)
def test_every_kind_lies_in_its_slot(layout: StepLayout, size: tuple[int, int]) -> None:
    batch, num_steps = size
    shape = (batch, num_steps)
    frame = torch.arange(layout.num_frame_tokens).expand(*shape, -1)
    state = torch.full(shape, 100) if layout.has_state else None
    sequence = interleave(layout, frame, state, torch.full(shape, 200))
    for position in range(sequence.shape[1]):
        slot = position % layout.positions_per_step
        special = {layout.state_slot: 100, layout.action_slot: 200}
        expected = special.get(slot, slot - layout.first_frame_slot)
        assert (sequence[:, position] == expected).all()
    slots = [layout.first_frame_slot + index for index in range(layout.num_frame_tokens)]
    slots += [layout.action_slot, *([0] if layout.has_state else [])]
    assert sorted(slots) == list(range(layout.positions_per_step))
    assert layout.state_slot == (0 if layout.has_state else None)
    assert layout.num_predicted == layout.positions_per_step - 1


@given(layout=layouts, size=sizes)
def test_a_slot_is_predicted_one_position_before_it(
    layout: StepLayout, size: tuple[int, int]
) -> None:
    batch, num_steps = size
    hidden = numbered(layout, batch, num_steps)
    predicting = predictors(layout, hidden)
    assert predicting.shape == (batch, num_steps - 1, layout.num_predicted, 2)
    for t in range(num_steps - 1):
        for slot in range(layout.num_predicted):
            target = (t + 1) * layout.positions_per_step + slot
            assert torch.equal(predicting[:, t, slot], hidden[:, target - 1])


@given(layout=layouts, size=sizes)
def test_hints_lie_where_their_slot_is_predicted(layout: StepLayout, size: tuple[int, int]) -> None:
    """Reading shifted hints at the predictors gives the hints back; elsewhere there is fill."""
    batch, num_steps = size
    hints = 1.0 + torch.rand(batch, num_steps, layout.num_predicted, 2)
    fill = torch.tensor([-1.0, -2.0])
    shifted = shift_to_inputs(layout, hints[:, :, 0], hints[:, :-1, 1:], fill)
    assert torch.equal(predictors(layout, shifted), hints[:, :-1])
    assert torch.equal(shifted[:, -1], hints[:, -1, 0])
    used = batch * ((num_steps - 1) * layout.num_predicted + 1)
    assert int((shifted == fill).all(-1).sum()) == batch * shifted.shape[1] - used


def test_a_frame_of_the_wrong_width_is_refused() -> None:
    layout = StepLayout(num_frame_tokens=3, has_state=False)
    with pytest.raises(ShapeError, match=r"frame has shape .*expected .*3"):
        interleave(layout, torch.zeros(1, 2, 4, 1), None, torch.zeros(1, 2, 1))


def test_a_step_without_frame_tokens_is_refused() -> None:
    with pytest.raises(TokenwmError, match="num_frame_tokens=0"):
        StepLayout(num_frame_tokens=0, has_state=True)
