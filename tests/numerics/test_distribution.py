"""Sampled tokens have the distribution that the model gives them, however they are drawn."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.small_models import random_tokens, small_world_model, teacher_forced
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.world_model import WorldModel

NUM_ROWS = 4000
Decode = Callable[
    [WorldModel, DecodeState, Tensor, SamplingConfig], tuple[DecodeState, DecodedSteps]
]


def toy_process(weight_of_seven: float = 1.0) -> WorldModel:
    """A frame's token stays with probability 0.6, and is any of the 31 others otherwise.

    Token 7 may be more likely than the others. Heads read nothing (their weights are zero), so this
    holds for every slot of every step.
    """
    model = small_world_model("frame")
    with torch.no_grad():
        for parameter in (*model.frame_head.parameters(), *model.copy_head.parameters()):
            parameter.zero_()
        model.copy_head.bias.fill_(torch.tensor(0.6 / 0.4 * 31).log())
        model.frame_head.bias[7] = torch.tensor(weight_of_seven).log()
    return model


@torch.no_grad()
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
def test_frequencies_are_the_known_probabilities(decode: Decode) -> None:
    model = toy_process(weight_of_seven=4.0)
    tokens = random_tokens(model, 1, 1)
    actions = random_tokens(model, NUM_ROWS, 2).action
    state = prefill(model, tokens).fork(NUM_ROWS, 2)
    start = state.frame_tokens.clone()
    _, decoded = decode(model, state, actions, SamplingConfig())

    before, after = start, decoded.frame_tokens[:, 0]
    for step in range(2):
        logits = model.frame_head.bias.expand(*before.shape, -1).scatter_add(
            -1, before[..., None], model.copy_head.bias.expand(*before.shape, 1)
        )
        expected = logits.softmax(-1).flatten(0, 1).sum(0)  # (V,)
        counts = after.flatten().bincount(minlength=32).float()
        chi_square = ((counts - expected) ** 2 / expected).sum()
        assert chi_square < 61.1  # 31 degrees of freedom: 1 in 1,000
        stayed, share = (
            (after == before).float().mean(),
            logits.softmax(-1).gather(-1, before[..., None]),
        )
        assert float(stayed) == pytest.approx(float(share.mean()), abs=0.02)
        if step == 0:
            before, after = after, decoded.frame_tokens[:, 1]


@torch.no_grad()
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
def test_slots_and_steps_are_independent_where_the_process_is(decode: Decode) -> None:
    """No slot shares its noise with another, in a step or across steps."""
    model = toy_process()
    state = prefill(model, random_tokens(model, 1, 1)).fork(NUM_ROWS, 2)
    start = state.frame_tokens[:, None]
    actions = random_tokens(model, NUM_ROWS, 2).action
    _, decoded = decode(model, state, actions, SamplingConfig())
    frames = torch.cat([start, decoded.frame_tokens], dim=1)
    stayed = (frames[:, 1:] == frames[:, :-1]).flatten(1).double()  # (rows, 2 * K)
    correlation = torch.corrcoef(stayed.T).fill_diagonal_(0.0)
    assert float(correlation.abs().max()) < 4.5 / NUM_ROWS**0.5


@torch.no_grad()
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
@pytest.mark.parametrize("seed", range(3))
def test_frequencies_given_the_slots_before_are_those_of_the_full_pass(
    decode: Decode, seed: int
) -> None:
    """Here every slot depends on those before it; what is known comes from no cache."""
    model = small_world_model("frame", seed=seed)
    tokens = random_tokens(model, 1, 2, seed=seed)
    context = tokens.steps([0])
    actions = tokens.action[:, :1].expand(NUM_ROWS, -1, -1)
    state = prefill(model, context, seed=seed).fork(NUM_ROWS, 1)
    _, decoded = decode(model, state, actions, SamplingConfig())
    drawn = decoded.frame_tokens[:, 0]  # (rows, K)
    frame = torch.zeros_like(drawn[:1])
    same = torch.ones(NUM_ROWS, dtype=torch.bool)  # rows that begin as this frame does
    for slot in range(model.layout.num_frame_tokens):
        following = drawn[same, slot]
        if len(following) < 200:
            break
        both = Tokens(torch.stack([tokens.frame[:, 0], frame], 1), None, tokens.action)
        probability = teacher_forced(model, both)[0, 0, slot].softmax(-1)
        expected = probability.double() * len(following)
        counts = following.bincount(minlength=len(expected)).double()
        is_rare = expected < 5.0
        expected = torch.cat([expected[~is_rare], expected[is_rare].sum(0, keepdim=True)])
        counts = torch.cat([counts[~is_rare], counts[is_rare].sum(0, keepdim=True)])
        chi_square = float(((counts - expected) ** 2 / expected.clamp_min(1.0)).sum())
        freedom = len(expected) - 1
        assert chi_square < freedom + 4.0 * (2 * freedom) ** 0.5 + 5.0
        frame[0, slot] = following.mode().values  # go on with the most frequent
        same &= drawn[:, slot] == frame[0, slot]
    assert slot >= 2
