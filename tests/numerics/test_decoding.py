"""The main risk of cached decoding, closed: it computes what the full forward pass computes."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical

from tests.small_models import VOCABULARIES, random_tokens, small_world_model, teacher_forced
from tokenwm.imagination.decode import decode_step, next_frame_logits, prefill
from tokenwm.imagination.passes import decode_one_token
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodeState, StepOutcome
from tokenwm.sequence.layout import attention_mask
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.world_model import WorldModel

WINDOW = 3
NUM_STEPS = 3 * WINDOW + 2
GREEDY = SamplingConfig(temperature=0.0)

VARIANTS = [
    *[(kind, {}) for kind in VOCABULARIES],
    ("frame+state", {"num_kv_heads": 4, "qk_norm": False, "window": 4 * NUM_STEPS}),
    ("frame", {"num_kv_heads": 1, "window": 1}),
]


@pytest.fixture(params=VARIANTS, ids=str, scope="module")
def model(request: pytest.FixtureRequest) -> WorldModel:
    kind, sizes = request.param
    return small_world_model(kind, **{"window": WINDOW, **sizes})


@torch.no_grad()
def full_hidden(model: WorldModel, tokens: Tokens) -> Tensor:
    """``(B, T, L, D)`` from one uncached pass with an explicit sliding mask."""
    num_steps = tokens.frame.shape[1]
    length = model.layout.positions_per_step
    steps = torch.arange(num_steps).repeat_interleave(length)
    mask = attention_mask(model.layout, num_steps, model.config.transformer.window)
    hidden: Tensor = model.transformer(model.embed(tokens)[0], steps, mask)
    return hidden.unflatten(1, (num_steps, length))


@torch.no_grad()
def cached_hidden(model: WorldModel, tokens: Tokens) -> Tensor:
    """The same, position by position through the ring buffer."""
    num_rows, num_steps = tokens.frame.shape[:2]
    length = model.layout.positions_per_step
    embedded = model.embed(tokens)[0].unflatten(1, (num_steps, length))
    cache = model.new_cache(num_rows)
    hidden = torch.zeros_like(embedded)
    for step in range(num_steps):
        for slot in range(length):
            position = embedded[:, step, slot : slot + 1]
            at = torch.tensor([[step * length + slot]])
            hidden[:, step, slot] = decode_one_token(model, cache, position, at)
    return hidden


def decode(
    model: WorldModel,
    state: DecodeState,
    actions: Tensor,
    sampling: SamplingConfig,
) -> tuple[list[DecodeState], list[StepOutcome]]:
    """Take ``(B, H, A)`` actions one after another."""
    states, outcomes = [], []
    for step in range(actions.shape[1]):
        state, outcome = decode_step(model, state, actions[:, step], sampling)
        states.append(state)
        outcomes.append(outcome)
    return states, outcomes


def score(
    model: WorldModel, state: DecodeState, tokens: Tokens, step: int, action: Tensor | None = None
) -> Tensor:
    """Logits of the frame of a step, after the action before it unless another is given."""
    taken = tokens.action[:, step - 1] if action is None else action
    next_state = None if tokens.state is None else tokens.state[:, step]
    return next_frame_logits(model, state, taken, tokens.frame[:, step], next_state)


def test_cached_and_uncached_hidden_states_agree_everywhere(model: WorldModel) -> None:
    tokens = random_tokens(model, 2, NUM_STEPS)
    full = full_hidden(model, tokens)
    torch.testing.assert_close(cached_hidden(model, tokens), full, atol=1e-5, rtol=0)
    assert full.std() > 0.1  # not two times nothing


@torch.no_grad()
def test_cached_and_uncached_logits_agree_everywhere(model: WorldModel) -> None:
    tokens = random_tokens(model, 2, NUM_STEPS, seed=1)
    full, frame_logits = model(tokens), teacher_forced(model, tokens)
    hidden = cached_hidden(model, tokens)
    layout = model.layout
    for step in range(1, NUM_STEPS):
        for slot in range(layout.num_predicted):
            before = hidden[:, step - 1, -1] if slot == 0 else hidden[:, step, slot - 1]
            if slot == layout.state_slot:
                assert model.state_head is not None and tokens.state is not None
                logits = model.state_head(
                    before, tokens.state[:, step - 1], tokens.action[:, step - 1]
                )
                expected = full.state_logits[:, step - 1]
            else:
                index = slot - layout.first_frame_slot
                logits = model.frame_logits(before, tokens.frame[:, step - 1, index])
                expected = frame_logits[:, step - 1, index]
            torch.testing.assert_close(logits, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden[:, :, -1], full.outcome_hidden, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_context", [1, 2 * WINDOW + 1])
def test_a_greedy_future_is_its_own_argmax(model: WorldModel, num_context: int) -> None:
    """Feeding the imagined future to the full pass gives back each of its tokens, and outcomes."""
    tokens = random_tokens(model, 2, NUM_STEPS, seed=2)
    first = num_context - 1
    state = prefill(model, tokens.steps(slice(num_context)))
    states, outcomes = decode(model, state, tokens.action[:, first:-1], GREEDY)

    future = tokens.steps(slice(num_context))
    frame = torch.cat([future.frame, *(s.frame_tokens[:, None] for s in states)], dim=1)
    state_tokens = None
    if future.state is not None:
        state_tokens = torch.cat([future.state, *(s.state_tokens[:, None] for s in states)], dim=1)  # type: ignore[index]
    every = Tokens(frame, state_tokens, tokens.action)
    full, frame_logits = model(every), teacher_forced(model, every)[:, first:]

    assert torch.equal(frame_logits.argmax(-1), frame[:, num_context:])
    assert len(frame.unique()) > 4  # otherwise persistence would pass as well
    if state_tokens is not None:
        assert model.state_head is not None
        now = state_tokens[:, num_context - 1]
        values = model.state_head.values_of(now)
        for step, logits in enumerate(full.state_logits[:, first:].unbind(1)):
            taken = tokens.action[:, first + step]
            now, values = model.state_head.forecast(logits, now, taken, values)
            assert torch.equal(now, state_tokens[:, num_context + step])
            torch.testing.assert_close(states[step].state_values, values, atol=1e-5, rtol=0)
    hidden = full.outcome_hidden[:, first:-1]
    nll = -frame_logits.log_softmax(-1)
    nll = nll.gather(-1, frame[:, num_context:, :, None]).mean((2, 3))
    named = zip(*outcomes, strict=True)
    got = [torch.stack(values, dim=1) for values in named]
    torch.testing.assert_close(got[0], model.reward(hidden), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(got[1], model.termination_logit(hidden).sigmoid(), atol=1e-5, rtol=0)
    torch.testing.assert_close(got[2], nll, atol=1e-5, rtol=0)
    # Of the whole distribution, though it was drawn from greedily.
    entropy = Categorical(logits=frame_logits).entropy().mean(2)
    torch.testing.assert_close(got[3], entropy, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_context", [1, WINDOW, 2 * WINDOW + 1])
def test_score_frame_gives_the_logits_of_the_full_pass(model: WorldModel, num_context: int) -> None:
    tokens = random_tokens(model, 2, num_context + 1, seed=3)
    full = teacher_forced(model, tokens)
    state = prefill(model, tokens.steps(slice(num_context)))
    logits = score(model, state, tokens, num_context)
    torch.testing.assert_close(logits, full[:, -1], atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("num_context", [1, WINDOW, 2 * WINDOW + 1])
def test_score_frame_leaves_the_state_usable(model: WorldModel, num_context: int) -> None:
    tokens = random_tokens(model, 2, NUM_STEPS, seed=4)
    context, actions = tokens.steps(slice(num_context)), tokens.action[:, num_context - 1 : -1]
    expected, expected_outcomes = decode(model, prefill(model, context), actions, SamplingConfig())

    state = prefill(model, context)
    for step in range(actions.shape[1]):
        for scored in (step, step + 1):  # twice, with different frames
            score(model, state, tokens, scored, actions[:, step])
        state, outcome = decode_step(model, state, actions[:, step], SamplingConfig())
        assert torch.equal(state.frame_tokens, expected[step].frame_tokens)
        for got, wanted in zip(outcome, expected_outcomes[step], strict=True):
            torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_decode_step_from_a_longer_context_equals_decoding_on(model: WorldModel) -> None:
    """What was imagined and then read as a context leads to the same next step."""
    tokens = random_tokens(model, 2, NUM_STEPS, seed=5)
    states, _ = decode(model, prefill(model, tokens.steps([0])), tokens.action, GREEDY)
    seen = [tokens.frame[:, 0], *(s.frame_tokens for s in states)]
    values = [None, *(s.state_values for s in states)]
    known = [
        None if tokens.state is None else tokens.state[:, 0],
        *(s.state_tokens for s in states),
    ]
    for length in (2, WINDOW + 1, NUM_STEPS - 1):
        context = Tokens(
            torch.stack(seen[:length], 1),
            None if tokens.state is None else torch.stack(known[:length], 1),  # type: ignore[arg-type]
            tokens.action[:, :length],
        )
        state = prefill(model, context, state_values=values[length - 1])
        state, _ = decode_step(model, state, tokens.action[:, length - 1], GREEDY)
        assert torch.equal(state.frame_tokens, seen[length])


@torch.no_grad()
def test_the_window_is_really_a_window() -> None:
    """One layer forgets what is ``window`` steps old, and nothing younger."""
    model = small_world_model("frame", num_layers=1, window=WINDOW)
    tokens = random_tokens(model, 1, NUM_STEPS, seed=6)
    reference = cached_hidden(model, tokens)[:, -1]
    for step in range(NUM_STEPS):
        changed = tokens.frame.clone()
        changed[:, step] = (changed[:, step] + 1) % 32
        hidden = cached_hidden(model, tokens._replace(frame=changed))[:, -1]
        # The hint of a step is part of the embedding of the next, so it reaches one step further.
        reached = step >= NUM_STEPS - WINDOW - 1
        assert torch.equal(hidden, reference) != reached, step


@torch.no_grad()
def test_bfloat16_is_close(model: WorldModel) -> None:
    tokens = random_tokens(model, 2, 2, seed=7)
    exact = score(model, prefill(model, tokens.steps([0])), tokens, 1)
    half = freeze(model, torch.bfloat16)
    state = prefill(half, tokens.steps([0]))
    assert state.cache.keys[0].dtype == torch.bfloat16
    torch.testing.assert_close(score(half, state, tokens, 1), exact, atol=0.2, rtol=0)


SAMPLED = [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=8, top_p=0.9)]


@torch.no_grad()
@pytest.mark.parametrize("sampling", SAMPLED, ids=str)
@pytest.mark.parametrize("row", [0, 4])
def test_a_row_alone_has_the_future_it_has_in_a_batch(
    model: WorldModel, sampling: SamplingConfig, row: int
) -> None:
    tokens = random_tokens(model, 7, 6, seed=8)

    def future(rows: Sequence[int], seed: int = 11) -> tuple[Tensor, Tensor]:
        picked = tokens.rows(rows)
        state = prefill(
            model,
            picked.steps(slice(2)),
            seed=seed,
            noise_streams=torch.tensor(rows, dtype=torch.int64),
        )
        states, outcomes = decode(model, state, picked.action[:, 1:], sampling)
        reward = torch.stack([o.reward for o in outcomes], 1)
        return torch.stack([s.frame_tokens for s in states], 1), reward

    frames, reward = future(range(7))
    alone, reward_alone = future([row])
    assert torch.equal(alone[0], frames[row])
    torch.testing.assert_close(reward_alone[0], reward[row], atol=1e-4, rtol=1e-4)
    assert not torch.equal(future([row], seed=12)[0], alone)  # the noise does matter


@torch.no_grad()
def test_equal_rows_differ_by_their_noise_stream_only() -> None:
    model = small_world_model("frame")
    tokens = random_tokens(model, 1, 6, seed=9).rows([0, 0, 0])
    context, actions = tokens.steps(slice(2)), tokens.action[:, 1:]
    state = prefill(model, context, seed=1, noise_streams=torch.tensor([5, 6, 5]))
    states, _ = decode(model, state, actions, SamplingConfig())
    frames = torch.stack([s.frame_tokens for s in states], 1)
    assert torch.equal(frames[0], frames[2])
    assert not torch.equal(frames[0], frames[1])
