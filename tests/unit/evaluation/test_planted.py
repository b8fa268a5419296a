from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.moving_square import SIZE, make_model
from tokenwm.evaluation.planted import OUTCOMES, PLANTED_PER_START, count_outcomes
from tokenwm.imagination.context import Context
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState

ROWS, CONTEXT, NUM_MOVING = 5, 3, 14  # of 16 slots; the two that stay are planted in


class Scripted(TokenWorldModel):
    """Says the same of every slot, whatever it was shown: a copy, the truth, or another code."""

    def __init__(self, model: TokenWorldModel, says: str, truth: torch.Tensor) -> None:
        self.__dict__.update(model.__dict__)
        self.says, self.truth = says, truth
        self.seen: list[torch.Tensor] = []

    def step_tokens(
        self,
        state: WorldState,
        action_tokens: torch.Tensor,
        sampling: SamplingConfig | None = None,
    ) -> tuple[WorldState, Rollout]:
        following, rollout = super().step_tokens(state, action_tokens, sampling)
        assert sampling == SamplingConfig(temperature=0.0)
        shown = state.context.tokens.frame
        self.seen.append(shown)
        true = self.truth[state.noise_streams]
        # A third code: neither the right one nor, as it is two away from both, the planted one.
        third = torch.where((true + 1) % 64 == shown[:, -1], true + 2, true + 1) % 64
        said = {"copy": shown[:, -1], "truth": true, "third": third}[self.says]
        return replace(following, decoding=replace(following.decoding, frame_tokens=said)), rollout


@pytest.fixture(scope="module")
def context() -> Context:
    """Frames whose first slots get another code in the last step of the context."""
    frames = torch.zeros(ROWS, CONTEXT, 1, SIZE, SIZE, 3, dtype=torch.uint8)
    found = make_model().context(
        frames, torch.zeros(ROWS, CONTEXT - 1, 2), torch.zeros(ROWS, CONTEXT, 2)
    )
    frame = torch.arange(16).expand(ROWS, CONTEXT, 16).clone()
    frame[:, -1, :NUM_MOVING] += 20
    return replace(found, tokens=found.tokens._replace(frame=frame))


def outcomes(says: str, context: Context, rows: slice = slice(None)) -> tuple[Scripted, list[int]]:
    truth = context.tokens.frame[:, -1]
    model = Scripted(make_model(), says, truth)
    counts = count_outcomes(
        model,
        context.rows(rows),
        truth[rows, None].expand(-1, 4, -1),
        torch.zeros(len(truth[rows]), 2, dtype=torch.int64),
        truth[rows] + (torch.arange(16) == 15),  # the last slot is wrong without planting
        rows=np.arange(ROWS)[rows],
        seed=0,
    )
    return model, counts.sum(axis=0).tolist()


@pytest.mark.parametrize(
    ("says", "outcome"), [("copy", "copied"), ("truth", "repaired"), ("third", "other")]
)
def test_outcomes_of_models_that_are_known(context: Context, says: str, outcome: str) -> None:
    assert PLANTED_PER_START == 16 - NUM_MOVING
    expected = dict.fromkeys(OUTCOMES, 0) | {outcome: 2 * ROWS, "right_unplanted": ROWS}
    assert dict(zip(OUTCOMES, outcomes(says, context)[1], strict=True)) == expected


def test_one_wrong_code_in_a_still_slot_of_the_last_frame(context: Context) -> None:
    model, _ = outcomes("copy", context)
    assert len(model.seen) == PLANTED_PER_START
    places = []
    for frame in model.seen:
        row, step, slot = (frame != context.tokens.frame).nonzero().T
        assert row.tolist() == list(range(ROWS))  # one for each row
        assert (step == CONTEXT - 1).all() and (slot >= NUM_MOVING).all()
        assert (frame >= 0).all() and (frame < 64).all()
        places.append(slot)
    assert (places[0] != places[1]).all()  # another slot in every round


def test_what_is_planted_does_not_depend_on_the_batch(context: Context) -> None:
    together, _ = outcomes("copy", context)
    alone, _ = outcomes("copy", context, slice(3, 4))
    for all_rows, one in zip(together.seen, alone.seen, strict=True):
        torch.testing.assert_close(all_rows[3:4], one)


def test_nothing_is_planted_where_nothing_stays(context: Context) -> None:
    moving = torch.arange(16) + 16 * torch.arange(CONTEXT)[:, None]
    tokens = context.tokens._replace(frame=moving.expand(ROWS, -1, -1) % 64)
    _, counts = outcomes("copy", replace(context, tokens=tokens))
    assert counts == [0] * len(OUTCOMES)
