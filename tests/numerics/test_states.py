"""A state is used once; what would silently decode another future is refused."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.numerics.test_graphs import ENGINES, Decode, pair, tapes
from tests.small_models import VOCABULARIES, random_tokens, small_world_model
from tokenwm.errors import TokenwmError
from tokenwm.imagination.decode import decode_step, decode_steps, next_frame_logits, prefill
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel

__all__ = ["tapes"]  # a fixture

USED = "was used already"
SAMPLING = SamplingConfig()


def score(model: WorldModel, state: DecodeState, tokens: Tokens, step: int) -> torch.Tensor:
    next_state = None if tokens.state is None else tokens.state[:, step]
    return next_frame_logits(
        model, state, tokens.action[:, step - 1], tokens.frame[:, step], next_state
    )


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("is_recorded", [False, True])
def test_a_used_state_is_refused_everywhere(
    kind: str, engine: str, is_recorded: bool, tapes: list[int]
) -> None:
    """Also where passes are recorded, which work on a copy of the state."""
    model, decode = pair(kind)[is_recorded], ENGINES[engine]
    tokens = random_tokens(model, 2, 10)
    state, used = prefill(model, tokens.steps(slice(2))), []
    for step in range(1, 8):
        used.append(state)
        state, _ = decode(model, state, tokens.action[:, step : step + 1], SAMPLING)
    attempts: list[Callable[[DecodeState], object]] = [
        lambda old: decode(model, old, tokens.action[:, 1:3], SAMPLING),
        lambda old: decode_step(model, old, tokens.action[:, 1], SAMPLING),
        lambda old: score(model, old, tokens, 2),
        lambda old: old.fork(2, 2),
        lambda old: old.take_rows(torch.tensor([0])),
        lambda old: old.replace_rows(torch.tensor([0]), state.take_rows(torch.tensor([0]))),
        lambda old: state.replace_rows(torch.tensor([0, 1]), old),
    ]
    for old in (used[0], used[-1]):
        for attempt in attempts:
            with pytest.raises(TokenwmError, match=USED):
                attempt(old)
    decode(model, state, tokens.action[:, 1:3], SAMPLING)  # what they tried did no harm


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
def test_a_parent_is_read_and_forked_again_and_steps_once_its_forks_are_gone(
    kind: str, decode: Decode
) -> None:
    model = small_world_model(kind)
    tokens = random_tokens(model, 2, 5)
    actions = random_tokens(model, 6, 3, seed=1).action
    root = prefill(model, tokens)

    def futures() -> torch.Tensor:
        return decode(model, root.fork(3, 3), actions, SAMPLING)[1].frame_tokens

    expected = futures()
    fork = root.fork(3, 3)
    fork, first = decode(model, fork, actions[:, :1], SAMPLING)
    assert torch.equal(futures(), expected)  # while another is half way
    score(model, root, random_tokens(model, 2, 6, seed=2), 5)
    with pytest.raises(TokenwmError, match=r"1 fork\(s\) of this state are still held"):
        decode(model, root, actions[:2], SAMPLING)
    with pytest.raises(TokenwmError, match="still held"):
        root.replace_rows(torch.tensor([0]), prefill(model, tokens.steps(slice(5))))
    copied, _ = decode(model, root.take_rows(torch.tensor([0, 1])), actions[:2], SAMPLING)
    fork, rest = decode(model, fork, actions[:, 1:], SAMPLING)
    together = torch.cat([first.frame_tokens, rest.frame_tokens], dim=1)
    assert torch.equal(together, expected)  # nothing that was tried meanwhile was seen
    del fork
    stepped, _ = decode(model, root, actions[:2], SAMPLING)
    assert torch.equal(stepped.frame_tokens, copied.frame_tokens)
    with pytest.raises(TokenwmError, match=USED):
        root.fork(3, 3)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("num_context", [1, 2, 7])
def test_scoring_never_overwrites_the_context(kind: str, num_context: int) -> None:
    """With room for a step it leaves forks as they were; without, it is refused."""
    model = small_world_model(kind)
    tokens = random_tokens(model, 2, num_context + 1, seed=3)
    context, actions = (
        tokens.steps(slice(num_context)),
        random_tokens(model, 6, 4, seed=4).action,
    )

    def future(state: DecodeState) -> torch.Tensor:
        return decode_steps(model, state.fork(3, 4), actions, SAMPLING)[1].frame_tokens

    expected = future(prefill(model, context, num_steps=0))
    full = prefill(model, context, num_steps=0)
    with pytest.raises(TokenwmError, match=r"1 more step\(s\) asked of a cache .* room for 0"):
        score(model, full, tokens, num_context)
    assert torch.equal(future(full), expected)
    logits = score(model, prefill(model, context), tokens, num_context)
    for num_steps in (1, 2):
        state = prefill(model, context, num_steps=num_steps)
        for _ in range(2):
            torch.testing.assert_close(score(model, state, tokens, num_context), logits)
        assert torch.equal(future(state), expected)


@torch.no_grad()
def test_what_is_asked_beyond_the_room_leaves_the_state_usable() -> None:
    model = small_world_model("frame")
    tokens = random_tokens(model, 1, 5)
    state = prefill(model, tokens.steps(slice(2)), num_steps=2)
    with pytest.raises(TokenwmError, match=r"3 more step\(s\) asked"):
        decode_steps(model, state, tokens.action[:, :3], SAMPLING)
    decode_steps(model, state, tokens.action[:, :2], SAMPLING)


@torch.no_grad()
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_copies_of_states_have_memory_of_their_own(copied: Callable[[Any], Any]) -> None:
    model = small_world_model()
    tokens = random_tokens(model, 2, 5)
    actions = random_tokens(model, 4, 2, seed=1).action
    root = prefill(model, tokens)
    fork = root.fork(2, 2)
    alone, (both_root, both_fork) = copied(root), copied((root, fork))
    decode_steps(model, alone, actions[:2], SAMPLING)  # nobody holds a fork of it
    with pytest.raises(TokenwmError, match="still held"):
        decode_steps(model, both_root, actions[:2], SAMPLING)
    expected = decode_steps(model, fork, actions, SAMPLING)[1].frame_tokens
    assert torch.equal(decode_steps(model, both_fork, actions, SAMPLING)[1].frame_tokens, expected)
    with pytest.raises(TokenwmError, match=USED):
        decode_steps(model, copied(fork), actions, SAMPLING)


def test_rows_are_replaced_outside_of_inference_mode_too() -> None:
    model = small_world_model()
    with torch.inference_mode():
        state, other = (prefill(model, random_tokens(model, 2, 5, seed=s)) for s in (0, 1))
    with pytest.raises(TokenwmError, match="take the place of others in it"):
        state.replace_rows(torch.tensor([1, 0]), state)
    put = state.replace_rows(torch.tensor([1]), other.take_rows(torch.tensor([0])))
    assert torch.equal(put.frame_tokens[1], other.frame_tokens[0])
