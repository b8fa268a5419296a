"""Speculation changes how fast tokens come and nothing else."""

import os
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.small_models import VOCABULARIES, random_tokens, small_world_model, teacher_forced
from tokenwm.errors import TokenwmError
from tokenwm.imagination.decode import decode_step, decode_steps, prefill
from tokenwm.imagination.passes import max_span_steps
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.world_model import WorldModel

WINDOW = 3
NUM_STEPS = 3 * WINDOW
SAMPLINGS = [
    SamplingConfig(temperature=0.0),
    SamplingConfig(),
    SamplingConfig(temperature=0.7, top_k=8, top_p=0.9),
]


def model_of(kind: str, copy_bias: float = 1.0) -> WorldModel:
    """With a larger bias more tokens stay, so that drafts are accepted more often."""
    model = small_world_model(kind, window=WINDOW)
    nn.init.constant_(model.copy_head.bias, copy_bias)
    return model


def assert_same(got: DecodedSteps, expected: DecodedSteps) -> None:
    assert torch.equal(got.frame_tokens, expected.frame_tokens)
    if expected.state_tokens is not None:
        assert got.state_tokens is not None
        assert torch.equal(got.state_tokens, expected.state_tokens)
        torch.testing.assert_close(got.state_values, expected.state_values, atol=1e-5, rtol=0)
    for name in ("reward", "termination_probability", "frame_nll", "frame_entropy"):
        torch.testing.assert_close(
            getattr(got, name), getattr(expected, name), atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("copy_bias", [1.0, 5.0])
def test_speculative_equals_sequential(
    kind: str, sampling: SamplingConfig, batch_size: int, copy_bias: float
) -> None:
    """From one step of context to far past the window, with rows that end up at odds."""
    model = model_of(kind, copy_bias)
    for seed in range(3):
        tokens = random_tokens(model, batch_size, NUM_STEPS + 2, seed=seed)
        context, actions = tokens.steps(slice(seed + 1)), tokens.action[:, seed:NUM_STEPS]
        _, expected = decode_steps(model, prefill(model, context, seed=seed), actions, sampling)
        _, got = decode_steps_speculatively(
            model, prefill(model, context, seed=seed), actions, sampling
        )
        assert_same(got, expected)
        assert len(got.frame_tokens.unique()) > 1


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_any_span_and_any_division_into_calls_give_the_same_future(kind: str) -> None:
    model = model_of(kind, 3.0)
    tokens = random_tokens(model, 5, NUM_STEPS + 1, seed=3)
    context, actions, sampling = tokens.steps(slice(2)), tokens.action[:, 1:], SamplingConfig()
    _, expected = decode_steps(model, prefill(model, context), actions, sampling)
    longest = max_span_steps(model) * model.layout.positions_per_step
    for span in range(1, longest + 1):
        state, pieces = prefill(model, context), []
        for part, piece in enumerate(actions.split([1, 3, NUM_STEPS - 4], dim=1)):
            # One piece sequentially: what a wrong draft left in the cache must not be seen.
            if part == 1 and span % 2:
                state, decoded = decode_steps(model, state, piece, sampling)
            else:
                state, decoded = decode_steps_speculatively(
                    model, state, piece, sampling, span=span
                )
            pieces.append(decoded)
        assert_same(DecodedSteps.join(pieces), expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
def test_rows_count_their_own_passes(kind: str) -> None:
    """As many as each needs alone, though others of the batch need more, and leave it or not."""
    model = model_of(kind, 3.0)
    tokens = random_tokens(model, 6, 9, seed=8)
    context, actions = tokens.steps(slice(2)), tokens.action[:, 1:9]
    _, together = decode_steps_speculatively(
        model, prefill(model, context), actions, SamplingConfig(), span=4
    )
    for row in range(6):
        one = slice(row, row + 1)
        alone = prefill(model, context.rows(one), noise_streams=torch.tensor([row]))
        _, decoded = decode_steps_speculatively(
            model, alone, actions[one], SamplingConfig(), span=4
        )
        assert decoded.row_passes.item() == decoded.num_passes == together.row_passes[row]
    assert len(together.row_passes.unique()) > 1
    mean = actions.shape[1] * model.layout.num_frame_tokens / together.row_passes.double().mean()
    assert together.tokens_per_pass == pytest.approx(float(mean))
    _, sequential = decode_steps(model, prefill(model, context), actions, SamplingConfig())
    assert (sequential.row_passes == sequential.num_passes).all()
    assert sequential.tokens_per_pass <= 1.0 < together.tokens_per_pass


@given(
    kind=st.sampled_from(VOCABULARIES),
    batch_size=st.sampled_from([1, 2, 16]),
    num_context=st.integers(1, 2 * WINDOW),
    num_steps=st.integers(1, 2 * WINDOW),
    num_copies=st.sampled_from([1, 1, 4]),
    copy_bias=st.floats(-2.0, 7.0),
    seed=st.integers(0, 2**62),
    temperature=st.floats(0.05, 3.0),
    top_k=st.none() | st.integers(1, 40),
    top_p=st.floats(0.05, 1.0),
    data=st.data(),
)
@settings(max_examples=60)
def test_any_sampling_of_any_rows_is_the_same_speculatively(
    kind: str,
    batch_size: int,
    num_context: int,
    num_steps: int,
    num_copies: int,
    copy_bias: float,
    seed: int,
    temperature: float,
    top_k: int | None,
    top_p: float,
    data: st.DataObject,
) -> None:
    """Every span, and forks too."""
    model = model_of(kind, copy_bias)
    sampling = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    span = data.draw(st.integers(1, max_span_steps(model) * model.layout.positions_per_step))
    context = random_tokens(model, batch_size, num_context, seed=seed % 2**31)
    actions = random_tokens(model, batch_size * num_copies, num_steps, seed=seed % 2**30).action

    def start() -> DecodeState:
        state = prefill(model, context, seed=seed)
        return state if num_copies == 1 else state.fork(num_copies, num_steps)

    with torch.no_grad():
        _, expected = decode_steps(model, start(), actions, sampling)
        _, got = decode_steps_speculatively(model, start(), actions, sampling, span=span)
    assert_same(got, expected)


@torch.no_grad()
def test_a_model_that_copies_needs_one_pass_a_step() -> None:
    """And one that never does needs more, but no more than the tokens it draws."""
    tokens = random_tokens(model_of("frame"), 4, 7, seed=4)
    passes = {}
    for bias in (50.0, -50.0):
        model = model_of("frame", bias)
        state = prefill(model, tokens.steps(slice(1)))
        _, decoded = decode_steps_speculatively(
            model, state, tokens.action[:, :6], SamplingConfig()
        )
        passes[bias] = decoded.num_passes
        assert decoded.row_passes.max() == decoded.num_passes
    # The pending token and the action come first, so the last step ends one pass later.
    assert passes[50.0] <= 7
    assert 7 < passes[-50.0] <= 6 * model.layout.positions_per_step


@torch.no_grad()
@pytest.mark.parametrize("span", [0, 19])
def test_a_span_out_of_range_is_refused(span: int) -> None:
    model = model_of("frame")
    tokens = random_tokens(model, 1, 2)
    state = prefill(model, tokens.steps(slice(1)))
    with pytest.raises(TokenwmError, match=rf"span={span}; use 1 to 18"):
        decode_steps_speculatively(model, state, tokens.action[:, :1], SamplingConfig(), span=span)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("num_context", [1, WINDOW, 2 * WINDOW + 1])
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
@pytest.mark.parametrize("sampling", SAMPLINGS[:2], ids=str)
def test_a_fork_is_as_good_as_reading_the_context_for_every_row(
    kind: str,
    num_context: int,
    decode: Callable[..., tuple[DecodeState, DecodedSteps]],
    sampling: SamplingConfig,
) -> None:
    """Within the window of what is shared and far past it."""
    model, num_copies, num_steps = model_of(kind, 3.0), 3, 2 * WINDOW
    tokens = random_tokens(model, 2, num_context)
    actions = random_tokens(model, 2 * num_copies, num_steps, seed=1).action
    spread = tokens.repeat(num_copies)
    _, expected = decode(model, prefill(model, spread), actions, sampling)
    state = prefill(model, tokens).fork(num_copies, num_steps)
    assert state.cache.capacity <= (WINDOW + 2) * model.layout.positions_per_step
    pieces = []
    for piece in actions.split([1, 2, num_steps - 3], dim=1):
        state, decoded = decode(model, state, piece, sampling)
        pieces.append(decoded)
    assert_same(DecodedSteps.join(pieces), expected)
    with pytest.raises(
        TokenwmError, match=r"1 more step\(s\) asked of a cache that has room for 0"
    ):
        decode(model, state, actions[:, :1], sampling)


@torch.no_grad()
def test_a_short_fork_is_small_and_a_fork_of_a_fork_refused() -> None:
    model = small_world_model("frame", window=20)
    state = prefill(model, random_tokens(model, 1, 20)).fork(100, 2)
    assert state.cache.keys[0].shape[:3] == (100, 2, 5 * model.layout.positions_per_step)
    assert state.cache.past is not None
    assert len(state.cache.past.keys[0]) == 1
    with pytest.raises(TokenwmError, match="a fork cannot be forked again"):
        state.fork(2, 2)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decode", [decode_steps, decode_steps_speculatively])
def test_a_cache_for_few_steps_is_small_and_gives_the_same_future(
    dtype: torch.dtype, decode: Callable[..., tuple[DecodeState, DecodedSteps]]
) -> None:
    """Attention over the used part only: no token may depend on how many steps are asked for."""
    model = freeze(small_world_model("frame", dim=64, window=12), dtype)
    nn.init.constant_(model.copy_head.bias, 3.0)
    tokens = random_tokens(model, 4, 10)
    context, actions, sampling = tokens.steps(slice(3)), tokens.action[:, 2:], SamplingConfig()
    _, expected = decode(model, prefill(model, context), actions, sampling)
    for num_steps in (1, 4, 8):
        state = prefill(model, context, num_steps=num_steps)
        ahead = max_span_steps(model)
        assert state.cache.capacity == (3 + num_steps + ahead) * model.layout.positions_per_step
        state, got = decode(model, state, actions[:, :num_steps], sampling)
        assert torch.equal(got.frame_tokens, expected.frame_tokens[:, :num_steps])
        with pytest.raises(TokenwmError, match=r"1 more step\(s\) asked of a cache"):
            decode(model, state, actions[:, :1], sampling)


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs Linux's /proc")
def test_ten_thousand_steps_take_no_more_memory_than_a_thousand() -> None:
    model = small_world_model("discrete", num_layers=1, window=WINDOW)
    nn.init.constant_(model.copy_head.bias, 6.0)
    actions = random_tokens(model, 1, 100).action
    state = prefill(model, random_tokens(model, 1, 2))
    used = []
    for _ in range(100):
        state, _ = decode_steps_speculatively(model, state, actions, SamplingConfig())
        used.append(resident_bytes())
    assert int(state.step) == 10_001
    assert used[-1] - used[9] < 4 * 2**20
    # And what is imagined there is what the full pass says.
    recent = 3 * WINDOW
    frames, states, taken = [state.frame_tokens], [state.state_tokens], []
    for action in actions[:, :recent].unbind(1):
        state, _ = decode_step(model, state, action, SamplingConfig(temperature=0.0))
        frames.append(state.frame_tokens)
        states.append(state.state_tokens)
        taken.append(action)
    tokens = Tokens(
        torch.stack(frames, 1),
        torch.stack(states, 1),  # type: ignore[arg-type]
        torch.stack([*taken, taken[-1]], 1),
    )
    logits = teacher_forced(model, tokens)[:, -WINDOW:]  # one layer forgets all but the window
    assert torch.equal(logits.argmax(-1), tokens.frame[:, -WINDOW:])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["frame", "frame+state"])
def test_speculation_is_exact_in_bfloat16_too(kind: str) -> None:
    """Where rounding is coarse, one last bit of an input would become another token."""
    model = freeze(small_world_model(kind, dim=256, num_heads=4, window=4), torch.bfloat16)
    nn.init.constant_(model.copy_head.bias, 4.0)
    for seed in range(6):
        tokens = random_tokens(model, 8, 14, seed=seed)
        row = tokens.rows([0])
        futures = []
        for decode, some in [
            (decode_steps, row),
            (decode_steps_speculatively, row),
            (decode_steps_speculatively, tokens),
        ]:
            state = prefill(model, some.steps(slice(2)), seed=seed)
            futures.append(decode(model, state, some.action[:, 1:], SamplingConfig())[1])
        assert torch.equal(futures[0].frame_tokens, futures[1].frame_tokens)
        assert torch.equal(futures[0].frame_tokens, futures[2].frame_tokens[:1])


@torch.no_grad()
def test_rows_of_a_fork_cannot_be_replaced() -> None:
    model = small_world_model("frame")
    state = prefill(model, random_tokens(model, 1, 2))
    forked = state.fork(3, 2)
    with pytest.raises(TokenwmError, match="rows of a fork cannot be replaced"):
        forked.replace_rows(torch.tensor([1]), prefill(model, random_tokens(model, 1, 2)))


@torch.no_grad()
def test_rows_of_a_fork_leave_a_batch_that_they_are_done_with() -> None:
    """What the others draw, and what comes after, is as if all had stayed."""
    model = freeze(model_of("frame+state", 4.0))
    tokens = random_tokens(model, 16, 5)
    decoded, following = [], []
    for decode in (decode_steps, decode_steps_speculatively):
        state = prefill(model, tokens.rows([0]).steps(slice(2)), num_steps=0).fork(16, 4)
        state, steps = decode(model, state, tokens.action[:, 1:4], SamplingConfig())
        decoded.append(steps)
        following.append(decode_step(model, state, tokens.action[:, 4], SamplingConfig())[0])
    passes = decoded[1].row_passes
    assert (passes < passes.max()).sum() >= 8  # so half of them left
    assert_same(decoded[1], decoded[0])
    assert torch.equal(following[1].frame_tokens, following[0].frame_tokens)
