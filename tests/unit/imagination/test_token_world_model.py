import gc
import logging
import shutil
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenwm
from tests.moving_square import make_episode, make_model, save_model
from tests.small_models import teacher_forced
from tokenwm.errors import TokenwmError
from tokenwm.imagination.approximate import Approximation
from tokenwm.imagination.context import Context
from tokenwm.imagination.decode import score_frames
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodeState
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.imagination.world_state import WorldState
from tokenwm.sequence.tokens import Tokens
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.transformer.cache import KVCache

BATCH, CONTEXT, HORIZON = 7, 3, 8  # steps go past the window of 6


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    return make_model()


@pytest.fixture(scope="module")
def recorded() -> Mapping[str, Any]:
    """``BATCH`` episodes, stacked."""
    episodes = [make_episode(CONTEXT + HORIZON, seed) for seed in range(BATCH)]
    stacked = {name: np.stack([e[name] for e in episodes]) for name in episodes[0]}
    return stacked | {"frames": stacked["frames.top"][:, :, None]}


def start_of(
    model: TokenWorldModel, recorded: Mapping[str, Any], rows: list[int] | slice = slice(None)
) -> Context:
    return model.context(
        recorded["frames"][rows, :CONTEXT],
        recorded["action"][rows, : CONTEXT - 1],
        recorded["state"][rows, :CONTEXT],
    )


def future(recorded: Mapping[str, Any], rows: list[int] | slice = slice(None)) -> Any:
    return recorded["action"][rows, CONTEXT - 1 : CONTEXT + HORIZON - 1]


def assert_same(left: Rollout, right: Rollout, row: int) -> None:
    """Row 0 of ``left`` is row ``row`` of ``right``."""
    assert torch.equal(left.frame_tokens[0], right.frame_tokens[row])
    assert left.state_tokens is not None and right.state_tokens is not None
    assert torch.equal(left.state_tokens[0], right.state_tokens[row])
    for name in ("reward", "termination_probability", "frame_nll", "frame_entropy"):
        torch.testing.assert_close(
            getattr(left, name)[0], getattr(right, name)[row], atol=1e-5, rtol=1e-5
        )


def test_actions_of_the_robot_are_put_side_by_side_for_a_model_of_chunks(
    recorded: Mapping[str, Any],
) -> None:
    model = make_model()
    assert model.actions_per_step == 1 and "actions in a step" not in repr(model)
    plain = model.imagine(start_of(model, recorded), future(recorded))
    model.vocabulary = replace(model.vocabulary, actions_per_step=2)
    assert model.actions_per_step == 2 and "2 action dimension(s) (2 actions in a" in repr(model)
    robot = future(recorded).reshape(BATCH, 2 * HORIZON, 1)
    chunks = model.stack_actions(robot)
    np.testing.assert_array_equal(chunks, future(recorded))
    np.testing.assert_array_equal(model.unstack_actions(chunks), robot)
    for one in (torch.from_numpy(robot), torch.from_numpy(robot[0])):
        assert torch.equal(model.unstack_actions(model.stack_actions(one)), one)
    imagined = model.imagine(start_of(model, recorded), chunks)
    assert torch.equal(imagined.frame_tokens, plain.frame_tokens)
    with pytest.raises(TokenwmError, match="one step of the model holds 2 .* model.stack_actions"):
        model.imagine(start_of(model, recorded), robot)
    for wrong in (robot[:, :-1], chunks, robot[0, 0]):
        with pytest.raises(TokenwmError, match=r"expected \(..., H \* 2, 1\): 2 action\(s\)"):
            model.stack_actions(wrong)
    with pytest.raises(TokenwmError, match=r"expected \(..., H, 2\)"):
        model.unstack_actions(robot)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_one_seed_gives_one_future_alone_and_in_a_batch(
    model: TokenWorldModel, recorded: Mapping[str, Any], temperature: float
) -> None:
    sampling = SamplingConfig(temperature=temperature)
    together = model.imagine(start_of(model, recorded), future(recorded), sampling=sampling, seed=5)
    assert len({tokens.numpy().tobytes() for tokens in together.frame_tokens}) == BATCH
    for row in range(BATCH):
        alone = model.imagine(
            start_of(model, recorded, [row]),
            future(recorded, [row]),
            sampling=sampling,
            seed=5,
            noise_streams=torch.tensor([row]),
        )
        assert_same(alone, together, row)


def test_another_seed_or_row_gives_another_future(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    context, actions = start_of(model, recorded, [0]), future(recorded, [0])

    def tokens(**options: Any) -> bytes:
        return model.imagine(context, actions, **options).frame_tokens.numpy().tobytes()

    assert tokens(seed=1) == tokens(seed=1)
    others = [tokens(seed=1), tokens(seed=2), tokens(seed=1, noise_streams=torch.tensor([1]))]
    assert len(set(others)) == 3


def test_imagining_is_start_and_steps(model: TokenWorldModel, recorded: Mapping[str, Any]) -> None:
    context = start_of(model, recorded)
    rollout = model.imagine(context, future(recorded), seed=3)
    state = model.start(context, seed=3)
    tokens = model.encode_actions(future(recorded))
    for step in range(HORIZON):
        state, one = model.step_tokens(state, tokens[:, step])
        assert torch.equal(state.frame_tokens, rollout.frame_tokens[:, step])
        for name in ("reward", "frame_nll", "frame_entropy"):
            expected = getattr(rollout, name)[:, step : step + 1]
            torch.testing.assert_close(getattr(one, name), expected, atol=1e-5, rtol=1e-5)
    assert isinstance(state, WorldState)


def test_a_later_action_does_not_change_what_came_before(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    actions = future(recorded).copy()
    before = model.imagine(start_of(model, recorded), actions)
    actions[:, 4] = -actions[:, 4] + 2
    after = model.imagine(start_of(model, recorded), actions)
    assert torch.equal(before.frame_tokens[:, :4], after.frame_tokens[:, :4])
    assert torch.equal(before.reward[:, :4], after.reward[:, :4])
    assert not torch.equal(before.frame_tokens[:, 4:], after.frame_tokens[:, 4:])


def test_the_action_of_the_last_context_step_is_not_read(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    frames, state = recorded["frames"][:, :CONTEXT], recorded["state"][:, :CONTEXT]
    with_it = recorded["action"][:, :CONTEXT].copy()
    with_it[:, -1] = np.nan  # would be refused if it were
    first = model.imagine(model.context(frames, with_it, state), future(recorded))
    second = model.imagine(start_of(model, recorded), future(recorded))
    assert torch.equal(first.frame_tokens, second.frame_tokens)


def test_a_context_is_repeated_row_by_row(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    context = start_of(model, recorded, [0, 1])
    three = context.repeat(3)
    assert three.tokens.frame.shape[0] == 6 and three.anchor is not None
    for index, row in enumerate([0, 0, 0, 1, 1, 1]):
        assert torch.equal(three.tokens.frame[index], context.tokens.frame[row])
        assert torch.equal(three.tokens.action[index], context.tokens.action[row])
        assert context.anchor is not None
        assert torch.equal(three.anchor[index], context.anchor[row])


def test_frames_are_anchored_to_the_last_observed_one(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    context = start_of(model, recorded)
    # If the tokens of the last observed frame never change, neither does the picture.
    still = context.tokens.frame[:, -1:].expand(-1, HORIZON, -1)
    rollout = model.imagine(context, future(recorded))
    frozen = Rollout(**{**vars(rollout), "frame_tokens": still})
    frames = model.decode_frames(frozen)
    assert frames.shape == (BATCH, HORIZON, 1, 32, 32, 3) and frames.dtype == torch.uint8
    expected = torch.from_numpy(recorded["frames"][:, CONTEXT - 1 : CONTEXT])
    assert (frames.int() - expected.int()).abs().max() <= 1
    plain = model.decode_frames(frozen, use_anchor=False)
    assert torch.equal(plain[:, 0], model.tokenizer.decode_frames(still[:, 0]))
    assert not torch.equal(plain, frames)


def test_in_bfloat16_frames_are_encoded_as_ever_and_decoded_nearly(
    model: TokenWorldModel, recorded: Mapping[str, Any], tmp_path: Path
) -> None:
    half = tokenwm.load(save_model(tmp_path / "model", model), dtype=torch.bfloat16)
    context = start_of(model, recorded)
    assert torch.equal(start_of(half, recorded).tokens.frame, context.tokens.frame)
    rollout = model.imagine(context, future(recorded))
    rounded, exact = (owner.decode_frames(rollout).int() for owner in (half, model))
    assert 0 < (rounded - exact).abs().max() <= 3


def test_a_context_does_not_change_with_the_frames_it_was_made_of(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    frames = torch.from_numpy(recorded["frames"][:, :CONTEXT].copy())
    states = recorded["state"][:, :CONTEXT].astype(np.float32)
    context = model.context(frames, recorded["action"][:, : CONTEXT - 1], states)
    last, last_state = frames[:, -1].clone(), states[:, -1].copy()
    frames.zero_()
    states[:] = 0.0
    assert context.anchor is not None and torch.equal(context.anchor, last)
    assert context.state is not None and (context.state.numpy() == last_state).all()


def test_actions_and_states_survive_within_half_a_bin(
    model: TokenWorldModel, recorded: Mapping[str, Any]
) -> None:
    actions = future(recorded)
    tokens = model.encode_actions(actions)
    assert tokens.dtype == torch.int64
    assert np.abs(model.decode_actions(tokens) - actions).max() <= 0.5 + 1e-6
    assert torch.equal(model.encode_actions(torch.from_numpy(actions)), tokens)
    context = start_of(model, recorded)
    assert context.tokens.state is not None
    states = model.decode_states(context.tokens.state)
    assert np.abs(states - recorded["state"][:, :CONTEXT]).max() <= 0.25 + 1e-6


def test_actions_beyond_the_training_range_are_said_once(
    model: TokenWorldModel, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = model.vocabulary.action
    assert isinstance(tokenizer, BinTokenizer)
    actions = np.zeros((2, 3, tokenizer.num_dimensions), dtype=np.float32)
    actions[:] = tokenizer.centers.mean(1)
    actions[0, 0] = tokenizer.edges[:, -1]  # the largest of the training data is not beyond it
    model.units._warned.clear()
    model.encode_actions(actions)
    assert not caplog.records
    actions[1, 2, 0] = tokenizer.edges[0, -1] + 5.0
    tokens = model.encode_actions(actions)
    assert tokens[1, 2, 0] == tokenizer.num_values - 1
    model.encode_actions(actions)
    (record,) = caplog.records
    share = f"{100 / actions.size:.1f} %"
    assert f"{share} of the action values lie outside" in record.getMessage()
    assert f"and {share} beyond all bins" in record.getMessage()  # these bins have no margin
    assert f"is {actions[1, 2, 0]:g}, its range [" in record.getMessage()


def test_a_loaded_model_imagines_the_same(
    model: TokenWorldModel, recorded: Mapping[str, Any], tmp_path: Path
) -> None:
    loaded = tokenwm.load(save_model(tmp_path / "model", model))
    assert (loaded.control_rate, loaded.cameras) == (10.0, ("top",))
    assert loaded.device == torch.device("cpu")
    ours = model.imagine(start_of(model, recorded), future(recorded))
    theirs = loaded.imagine(start_of(loaded, recorded), future(recorded))
    for row in range(BATCH):
        assert torch.equal(ours.frame_tokens[row], theirs.frame_tokens[row])
    assert torch.equal(model.decode_frames(ours), loaded.decode_frames(theirs))


def test_mistakes_are_named(model: TokenWorldModel, recorded: Mapping[str, Any]) -> None:
    frames, action, state = (
        recorded["frames"][:, :CONTEXT],
        recorded["action"][:, : CONTEXT - 1],
        recorded["state"][:, :CONTEXT],
    )
    with pytest.raises(TokenwmError, match="needs a state"):
        model.context(frames, action)
    with pytest.raises(TokenwmError, match="does not take a state"):
        make_model(has_state=False).context(frames, action, state)
    with pytest.raises(TokenwmError, match="frames"):
        model.context(frames[..., :16, :], action, state)
    with pytest.raises(TokenwmError, match="action"):
        model.context(frames, action[:, :-1], state)
    with pytest.raises(TokenwmError, match="state"):
        model.context(frames, action, state[:, :-1])
    with pytest.raises(TokenwmError, match="finite"):
        model.context(frames, np.full_like(action, np.nan), state)
    context = start_of(model, recorded)
    with pytest.raises(TokenwmError, match="at least one action"):
        model.imagine(context, future(recorded)[:, :0])
    with pytest.raises(TokenwmError, match="actions"):
        model.imagine(context, future(recorded)[:3])
    with pytest.raises(TokenwmError, match="2"):
        model.imagine(context, future(recorded)[..., :1])
    with pytest.raises(TokenwmError, match="no state to decode"):
        make_model(has_state=False).decode_states(torch.zeros(1, 2, dtype=torch.int64))
    with pytest.raises(TokenwmError, match="no step"):
        none = (part[:, :0] for part in context.tokens if part is not None)
        model.start(Context(tokens=Tokens(*none)))


@pytest.mark.parametrize("num_candidates", [1, 5])
def test_candidates_of_a_start_are_imagined_as_if_each_had_its_own(
    model: TokenWorldModel, recorded: Mapping[str, Any], num_candidates: int
) -> None:
    rows = [0, 1]
    context = start_of(model, recorded, rows)
    generator = np.random.default_rng(0)
    candidates = generator.uniform(-3, 3, (len(rows) * num_candidates, HORIZON, 2))
    together = model.imagine(context, candidates, seed=2)
    expected = model.imagine(context.repeat(num_candidates), candidates, seed=2)
    assert torch.equal(together.frame_tokens, expected.frame_tokens)
    assert torch.equal(model.decode_frames(together), model.decode_frames(expected))
    with pytest.raises(TokenwmError, match="give as many, or a multiple"):
        model.imagine(context, candidates[:1])


def test_some_frames_are_decoded_as_they_are_among_all(
    model: TokenWorldModel, recorded: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = model.imagine(start_of(model, recorded), future(recorded))
    every = model.decode_frames(rollout)
    assert torch.equal(model.decode_frames(rollout, steps=[0, -1]), every[:, [0, -1]])
    some = model.decode_frames(rollout, rows=[5, -1, 5], steps=range(2))
    assert torch.equal(some, every[[5, -1, 5], :2])
    for wrong in ({"rows": [BATCH]}, {"steps": [0, -HORIZON - 1]}):
        (name,) = wrong
        with pytest.raises(TokenwmError, match=f"{name} has .*the rollout has"):
            model.decode_frames(rollout, **wrong)
    monkeypatch.setattr(model.tokenizer, "pixel_memory", 1)
    assert model.tokenizer.frames_at_once == 1
    one_by_one = model.decode_frames(rollout)
    assert (one_by_one.int() - every.int()).abs().max() <= 1  # rounding of another batch size


@pytest.mark.parametrize(("num_starts", "num_candidates"), [(3, 1), (2, 3)])
@pytest.mark.parametrize("speculative", [False, True])
def test_imagining_with_pauses_is_imagining(
    recorded: Mapping[str, Any], num_starts: int, num_candidates: int, speculative: bool
) -> None:
    model = make_model()
    model.speculative = speculative
    context = start_of(model, recorded, list(range(num_starts)))
    size = (num_starts * num_candidates, HORIZON, 2)
    actions = np.random.default_rng(0).uniform(-3, 3, size)
    expected = model.imagine(context, actions, seed=4)
    model.max_rows = 2
    for chunk_steps in (1, 2, HORIZON + 1):
        work = model.imagine_pausing(context, actions, chunk_steps=chunk_steps, seed=4)
        num_pauses = 0
        while True:  # others may imagine meanwhile
            try:
                next(work)
            except StopIteration as stop:
                rollout = stop.value
                break
            num_pauses += 1
            assert not torch.is_inference_mode_enabled()
            if num_pauses % 3 == 1:
                model.imagine(context, actions[:, :1], seed=5)
        assert num_pauses >= HORIZON // chunk_steps
        assert torch.equal(rollout.frame_tokens, expected.frame_tokens)
        torch.testing.assert_close(rollout.frame_nll, expected.frame_nll, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(rollout.reward, expected.reward, atol=1e-4, rtol=1e-4)
        assert (rollout.state_tokens == expected.state_tokens).all()
    abandoned = model.imagine_pausing(context, actions, chunk_steps=1)
    next(abandoned)
    abandoned.close()


@pytest.fixture
def only_new_objects() -> Iterator[None]:
    """``gc.get_objects`` leaves out what is there already, a million objects."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("only_new_objects")
@pytest.mark.parametrize(("num_starts", "num_candidates"), [(1, 7), (7, 1), (2, 3)])
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate"),
    ],
    ids=["cuda", "cpu"],
)
def test_what_does_not_fit_into_memory_is_imagined_in_parts(
    recorded: Mapping[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: RuntimeError,
    num_starts: int,
    num_candidates: int,
) -> None:
    model = make_model()
    context = start_of(model, recorded, list(range(num_starts)))
    size = (num_starts * num_candidates, HORIZON, 2)
    actions = np.random.default_rng(0).uniform(-3, 3, size)
    expected = model.imagine(context, actions, seed=4)
    decode = model._decode
    gc.collect()
    before = sum(type(thing) is KVCache for thing in gc.get_objects())
    caches: list[int] = []

    def with_little_memory(state: DecodeState, actions: torch.Tensor, *rest: Any) -> Any:
        if len(actions) > 2:
            raise type(error)(*error.args)  # a new one: the old would keep its frames alive
        caches.append(sum(type(thing) is KVCache for thing in gc.get_objects()))
        return decode(state, actions, *rest)

    monkeypatch.setattr(model, "_decode", with_little_memory)
    rollout = model.imagine(context, actions, seed=4)
    assert torch.equal(rollout.frame_tokens, expected.frame_tokens)
    torch.testing.assert_close(rollout.reward, expected.reward, atol=1e-4, rtol=1e-4)
    assert caplog.text.count("do not fit into memory at once") >= 1
    assert max(caches) <= before + 2  # one, and what it was forked from; no failed attempt's
    caplog.clear()
    model.imagine(context, actions, seed=4)  # it remembers
    assert not caplog.text

    longer = np.concatenate([actions, actions[:, :1]], axis=1)
    model.imagine(context, longer, seed=4)  # another horizon has another limit
    assert "do not fit into memory at once" in caplog.text

    monkeypatch.setattr(model, "_decode", lambda *_: (_ for _ in ()).throw(error))
    with pytest.raises(RuntimeError):
        model.imagine(context, actions)


@pytest.mark.parametrize("num_starts", [1, 2])
def test_a_lone_candidate_forks_as_it_would_among_others(
    recorded: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, num_starts: int
) -> None:
    """In bfloat16 a context of its own rounds otherwise: other tokens than without parts."""
    model = make_model()
    context = start_of(model, recorded, list(range(num_starts)))
    actions = np.random.default_rng(0).uniform(-3, 3, (num_starts * 3, HORIZON, 2))
    expected = model.imagine(context, actions)
    forked: list[bool] = []
    decode = model._decode

    def watched(state: DecodeState, *rest: Any) -> Any:
        forked.append(state.cache.past is not None)
        return decode(state, *rest)

    monkeypatch.setattr(model, "_decode", watched)
    model.max_rows = 1
    assert torch.equal(model.imagine(context, actions).frame_tokens, expected.frame_tokens)
    assert forked == [True] * len(actions)


def test_a_model_that_nobody_holds_frees_its_memory_at_once(recorded: Mapping[str, Any]) -> None:
    model = make_model()
    model.decode_frames(model.imagine(start_of(model, recorded), future(recorded)))
    gone = weakref.ref(model)
    gc.disable()  # what refers to itself would wait for it
    try:
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_scores_are_those_of_the_whole_pass_and_found_in_parts(
    recorded: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    last = CONTEXT + HORIZON  # past the window
    context = model.context(
        recorded["frames"][:, :last], recorded["action"][:, :last], recorded["state"][:, :last]
    )
    tokens = context.tokens
    logits = teacher_forced(model.world_model, tokens)
    chosen = logits.log_softmax(-1).gather(-1, tokens.frame[:, 1:, :, None])
    expected = -chosen.mean((2, 3))
    assert expected.shape == (BATCH, last - 1)
    torch.testing.assert_close(model.score(context), expected, atol=1e-5, rtol=1e-5)

    def with_little_memory(owner: Any, part: Tokens) -> torch.Tensor:
        if len(part.frame) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return score_frames(owner, part)

    monkeypatch.setattr("tokenwm.imagination.token_world_model.score_frames", with_little_memory)
    torch.testing.assert_close(model.score(context), expected, atol=1e-5, rtol=1e-5)
    assert "to score do not fit into memory at once; they are done in parts of at most 3" in (
        caplog.text
    )
    with pytest.raises(TokenwmError, match="at least 2"):
        model.score(Context(tokens=tokens.steps([0])))


def test_frames_that_do_not_fit_into_memory_go_through_in_smaller_parts(
    recorded: Mapping[str, Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model = make_model()
    context = start_of(model, recorded)
    rollout = model.imagine(context, future(recorded))
    expected = model.decode_frames(rollout)

    def refuse(_: torch.nn.Module, inputs: tuple[torch.Tensor]) -> None:
        if len(inputs[0]) > 5:
            raise RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't")

    tokenizer, budget = model.tokenizer, model.tokenizer.pixel_memory
    for network in (tokenizer.encoder, tokenizer.decoder):
        tokenizer.pixel_memory = budget
        hook = network.register_forward_pre_hook(refuse)
        assert torch.equal(start_of(model, recorded).tokens.frame, context.tokens.frame)
        frames = model.decode_frames(rollout)
        assert (frames.int() - expected.int()).abs().max() <= 1
        assert 2 < tokenizer.frames_at_once <= 5
        assert f"pixel_memory={budget} bytes; it is {tokenizer.pixel_memory} now" in caplog.text
        hook.remove()
        caplog.clear()

    tokenizer.decoder.register_forward_pre_hook(
        lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("CUDA out of memory"))
    )
    with pytest.raises(torch.OutOfMemoryError):
        model.decode_frames(rollout)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch, of itself
def test_a_compiled_model_imagines_the_same(
    recorded: Mapping[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    if shutil.which("c++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU")
    plain, compiled = make_model(), make_model()
    with caplog.at_level(logging.INFO, "tokenwm"):
        compiled.compile([1])
    assert "compiled for 1 row(s) in" in caplog.text
    expected, got = (
        model.imagine(start_of(model, recorded, [0]), future(recorded, [0]), seed=3)
        for model in (plain, compiled)
    )
    assert torch.equal(got.frame_tokens, expected.frame_tokens)
    torch.testing.assert_close(got.frame_nll, expected.frame_nll, atol=1e-4, rtol=1e-4)


def test_an_approximation_is_used_when_it_is_set_and_only_then(
    recorded: Mapping[str, Any],
) -> None:
    model = make_model()
    assert model.approximation is None
    context, actions = start_of(model, recorded), future(recorded)
    exact = model.imagine(context, actions)
    model.approximation = Approximation(num_passes=2)
    rough = model.imagine(context, actions)
    assert rough.num_passes == 2 * HORIZON
    assert not torch.equal(rough.frame_tokens, exact.frame_tokens)
    model.approximation = Approximation(num_passes=1)
    with pytest.raises(TokenwmError, match="draft head"):
        model.imagine(context, actions)
