"""Imagination on a GPU: recorded, compiled, large, and never waiting inside a step."""

import gc
import logging
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from tests.small_models import (
    VOCABULARIES,
    random_tokens,
    small_tokenizer,
    small_world_model,
)
from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.context import Context
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.episodes import ImaginedEpisodes
from tokenwm.imagination.graphs import WARM_UP_CALLS
from tokenwm.imagination.passes import compile_passes
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.frozen import freeze
from tokenwm.transformer.world_model import WorldModel

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

Decode = Callable[..., tuple[DecodeState, DecodedSteps]]

WINDOW = 3
NUM_STEPS = 12
ENGINES: dict[str, Decode] = {
    "sequential": decode_steps,
    "speculative": decode_steps_speculatively,
    "approximate": partial(decode_steps_approximately, approximation=Approximation(num_passes=2)),
}


@pytest.fixture(autouse=True)
def exact_products() -> Iterator[None]:
    """float32 as on a CPU, whatever another test asked for."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


@pytest.fixture(autouse=True)
def every_graph_is_recorded(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Going on without a graph would pass every other test."""
    with caplog.at_level(logging.WARNING, logger="tokenwm.imagination.graphs"):
        yield
    messages = [record.getMessage() for record in caplog.get_records("call")]
    assert not [text for text in messages if "without a CUDA graph" in text]


def on_gpu(tokens: Tokens) -> Tokens:
    return tokens.to("cuda")


def frozen(kind: str, dtype: torch.dtype = torch.float32) -> WorldModel:
    model = small_world_model(kind, window=WINDOW)
    nn.init.constant_(model.copy_head.bias, 3.0)
    return freeze(model.cuda(), dtype)


def whole(kind: str = "frame", dtype: torch.dtype = torch.float32) -> TokenWorldModel:
    tokenizer = small_tokenizer("vq", num_cameras=2, codebook_size=32).cuda()
    model = small_world_model(kind, window=WINDOW).cuda()
    loaded = LoadedWorldModel(
        world_model=model,
        tokenizer=tokenizer,
        control_rate=10.0,
        cameras=("a", "b"),
        provenance={},
    )
    return TokenWorldModel(loaded, dtype)


def assert_same(got: DecodedSteps, expected: DecodedSteps) -> None:
    assert torch.equal(got.frame_tokens.cpu(), expected.frame_tokens.cpu())
    for name in ("reward", "termination_probability", "frame_nll", "frame_entropy"):
        torch.testing.assert_close(
            getattr(got, name).cpu(), getattr(expected, name).cpu(), atol=1e-4, rtol=1e-4
        )


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("batch_size", [1, 16])
@pytest.mark.parametrize("engine", ENGINES)
def test_recorded_decoding_is_unrecorded_decoding_here_and_on_the_cpu(
    kind: str, batch_size: int, engine: str
) -> None:
    model = frozen(kind)
    tokens = random_tokens(small_world_model(kind), batch_size, NUM_STEPS + 2)
    context, actions = tokens.steps(slice(2)), tokens.action[:, 1 : NUM_STEPS + 1]
    slow = small_world_model(kind, window=WINDOW)
    nn.init.constant_(slow.copy_head.bias, 3.0)
    decode, sampling = ENGINES[engine], SamplingConfig()
    _, expected = decode(slow, prefill(slow, context), actions, sampling)
    for records in (False, True):
        model.graph_passes = records
        state = prefill(model, on_gpu(context))
        for _ in range(2):  # the second call replays from its first pass on
            again = prefill(model, on_gpu(context), cache=state.cache)
            _, got = decode(model, again, actions.cuda(), sampling)
            assert_same(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_in_a_step_waits_for_the_device(kind: str, dtype: torch.dtype) -> None:
    model = frozen(kind, dtype)
    tokens = on_gpu(random_tokens(small_world_model(kind), 4, 6))
    sampling = SamplingConfig(temperature=0.8, top_k=8, top_p=0.9)
    state = prefill(model, tokens.steps(slice(2)))
    state, _ = decode_steps(model, state, tokens.action[:, :5], sampling)  # records
    torch.cuda.synchronize()
    for records in (False, True):
        model.graph_passes = records
        torch.cuda.set_sync_debug_mode("error")
        try:
            state, _ = decode_steps(model, state, tokens.action[:, 5:], sampling)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
@pytest.mark.parametrize("num_candidates", [1, 64])
def test_imagine_uses_its_cache_and_graph_again(num_candidates: int) -> None:
    model, slow = whole(), whole()
    slow.world_model.graph_passes = False
    for seed in range(6):
        tokens = on_gpu(random_tokens(small_world_model("frame"), 2, 3, seed=seed))
        context = Context(tokens=tokens)
        actions = torch.rand(2 * num_candidates, 5, 3) * 2 - 1
        got = model.imagine(context, actions, seed=seed)
        expected = slow.imagine(context, actions, seed=seed)
        assert torch.equal(got.frame_tokens, expected.frame_tokens)
        torch.testing.assert_close(got.reward, expected.reward, atol=1e-4, rtol=1e-4)
    assert len(model._spare_caches) == 1 and not slow._spare_caches


@torch.no_grad()
@pytest.mark.timeout(600)  # every shape is compiled
def test_compiled_and_recorded_is_eager_within_tolerance() -> None:
    eager, compiled = frozen("frame"), frozen("frame")
    eager.graph_passes = False
    compile_passes(compiled)
    tokens = on_gpu(random_tokens(small_world_model("frame"), 4, NUM_STEPS + 2))
    context, actions = tokens.steps(slice(2)), tokens.action[:, 1 : NUM_STEPS + 1]
    for decode in (decode_steps, decode_steps_speculatively):
        _, expected = decode(eager, prefill(eager, context), actions, SamplingConfig())
        _, got = decode(compiled, prefill(compiled, context), actions, SamplingConfig())
        same = got.frame_tokens == expected.frame_tokens
        assert same.float().mean() > 0.99
        torch.testing.assert_close(got.reward[:, 0], expected.reward[:, 0], atol=1e-3, rtol=1e-3)


@torch.no_grad()
def test_graphs_can_be_recorded_after_all_others_are_gone() -> None:
    tokens = on_gpu(random_tokens(small_world_model("frame"), 2, NUM_STEPS + 2))
    for _ in range(3):
        model = frozen("frame")
        state = prefill(model, tokens.steps(slice(2)))
        decode_steps(model, state, tokens.action[:, 1 : NUM_STEPS + 1], SamplingConfig())
        del model, state
        gc.collect()
        torch.cuda.empty_cache()


@torch.no_grad()
@pytest.mark.slow
def test_ten_thousand_steps_take_no_more_memory_than_a_thousand() -> None:
    model = frozen("frame")
    actions = random_tokens(small_world_model("frame"), 1, 100).action.cuda()
    state = prefill(model, on_gpu(random_tokens(small_world_model("frame"), 1, 2)))
    used = []
    for _ in range(100):
        state, _ = decode_steps_speculatively(model, state, actions, SamplingConfig())
        used.append(torch.cuda.memory_allocated())
    assert int(state.step) == 10_001
    assert used[-1] == used[9]


@torch.no_grad()
def test_more_rows_than_memory_holds_are_imagined_in_parts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    gc.collect()
    torch.cuda.empty_cache()
    model = whole()
    tokens = on_gpu(random_tokens(small_world_model("frame"), 1, 3))
    actions = torch.rand(4096, 5, 3) * 2 - 1
    expected = model.imagine(Context(tokens=tokens), actions)
    model.free_memory()
    used = torch.cuda.memory_reserved() + 24 * 2**20
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(used / total)
    try:
        got = model.imagine(Context(tokens=tokens), actions)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any("do not fit into memory" in text for text in caplog.messages)
    assert torch.equal(got.frame_tokens, expected.frame_tokens)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["frame", "frame+state"])
def test_imagined_episodes_stay_on_the_device(kind: str) -> None:
    model = whole(kind)
    tokens = on_gpu(random_tokens(small_world_model(kind), 4, 3))
    starts = Context(tokens=tokens)
    episodes = ImaginedEpisodes(model, starts, 8, max_steps=5)
    actions = 3.0 * torch.rand(8, 3, device="cuda") - 1.5
    expected = torch.from_numpy(
        model.vocabulary.action.encode(actions.cpu().numpy()).astype("int64")
    )
    assert torch.equal(model.encode_actions(actions).cpu(), expected)
    model.speculative = False
    for number in range(12):
        torch.cuda.set_sync_debug_mode("error" if number > WARM_UP_CALLS else "default")
        try:
            moved = episodes.step(actions)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        parts = [moved.reward, moved.terminated, moved.truncated, *vars(moved.rollout).values()]
        assert all(part.device.type == "cuda" for part in parts if isinstance(part, torch.Tensor))
        episodes.restart(moved.terminated | moved.truncated)
    assert episodes.observe("pixels").shape == (8, 2, 16, 16, 3)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["frame", "frame+state"])
def test_nothing_that_a_world_does_waits_for_the_device(kind: str) -> None:
    model = whole(kind)
    model.speculative = False
    context = Context(tokens=on_gpu(random_tokens(small_world_model(kind), 4, 3)))
    frames = torch.randint(256, (4, 2, 16, 16, 3), dtype=torch.uint8, device="cuda")
    values = None if kind == "frame" else 2.0 * torch.rand(4, 2, device="cuda") - 1.0
    seen = Observation(frames=frames, state=values)
    actions, rows = 2.0 * torch.rand(8, 2, 3, device="cuda") - 1.0, torch.tensor([5, 0]).cuda()
    state = model.start(context)
    for number in range(3):
        torch.cuda.set_sync_debug_mode("error" if number else "default")
        try:
            kept = model.snapshot(state)
            fork = model.fork(state, 2, 4, noise_streams=0)
            rolled, rollout = model.roll(fork, actions)
            some, _ = model.roll(model.select(rolled, rows), actions[rows])
            features = model.features(some)
            del fork, rolled, some
            state, surprise = model.observe(state, actions[:4, 0], seen)
            model.roll(kept, actions[:4])
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert len(features) == 2 and surprise.isfinite().all() and rollout.is_finite.all()
