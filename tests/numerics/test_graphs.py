"""Recorded decoding does what it does unrecorded, and nothing in it looks at a value.

On a CPU a tape stands in for CUDA graphs; ``test_cuda.py`` has the real ones.
"""

import logging
from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import nn

from tests import tape
from tests.small_models import VOCABULARIES, random_tokens, small_world_model
from tokenwm.imagination import graphs
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill
from tokenwm.imagination.graphs import WARM_UP_CALLS, GraphedCall, overwrite
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.cache import MOST_GRAPHS, KVCache
from tokenwm.transformer.world_model import WorldModel

Decode = Callable[..., tuple[DecodeState, DecodedSteps]]

WINDOW = 3
SAMPLINGS = [SamplingConfig(temperature=0.0), SamplingConfig(temperature=0.8, top_k=8, top_p=0.9)]
ENGINES: dict[str, Decode] = {
    "sequential": decode_steps,
    "speculative": decode_steps_speculatively,
    "approximate": partial(decode_steps_approximately, approximation=Approximation(num_passes=2)),
}


@pytest.fixture
def tapes(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Recordings are made on tapes; counts how many were."""
    made: list[int] = []

    def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        made.append(len(made))
        return tape.capture(function, device)

    monkeypatch.setattr(graphs, "capture", capture)
    yield made


def pair(kind: str) -> tuple[WorldModel, WorldModel]:
    """A model, and the same one with recorded passes."""
    model, recorded = small_world_model(kind, window=WINDOW), small_world_model(kind, window=WINDOW)
    for one in (model, recorded):
        nn.init.constant_(one.copy_head.bias, 3.0)
    recorded.graph_passes = True
    return model, recorded


def decode_in_pieces(
    model: WorldModel, decode: Decode, state: DecodeState, actions: torch.Tensor, size: int
) -> DecodedSteps:
    pieces = []
    for piece in actions.split(size, dim=1):
        state, decoded = decode(model, state, piece, SAMPLINGS[1])
        pieces.append(decoded)
    return DecodedSteps.join(pieces)


def assert_same(got: DecodedSteps, expected: DecodedSteps) -> None:
    for name, value in expected._asdict().items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(getattr(got, name), value, atol=1e-5, rtol=1e-5, msg=name)
        else:
            assert getattr(got, name) == value, name


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [1, 3])
def test_recorded_decoding_is_unrecorded_decoding(
    kind: str, engine: str, size: int, tapes: list[int]
) -> None:
    """Far past the window, in calls of one and of several steps, through all of warming up."""
    model, recorded = pair(kind)
    num_steps = 3 * (WARM_UP_CALLS + 3)
    tokens = random_tokens(model, 5, num_steps + 2)
    context, actions = tokens.steps(slice(2)), tokens.action[:, 1 : num_steps + 1]
    decode = ENGINES[engine]
    expected = decode_in_pieces(model, decode, prefill(model, context), actions, size)
    assert not tapes
    got = decode_in_pieces(recorded, decode, prefill(recorded, context), actions, size)
    assert tapes
    assert_same(got, expected)


@torch.no_grad()
@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("num_copies", [1, 3])
@pytest.mark.parametrize("engine", ["sequential", "speculative"])
def test_a_cache_with_its_graphs_serves_another_context(
    kind: str, sampling: SamplingConfig, num_copies: int, engine: str, tapes: list[int]
) -> None:
    """Other tokens, other noise, from a recording that an earlier context made."""
    model, recorded = pair(kind)
    num_steps = 4

    def start(one: WorldModel, tokens: Tokens, seed: int, spare: KVCache | None) -> DecodeState:
        if num_copies == 1:
            return prefill(one, tokens, seed=seed, num_steps=num_steps, cache=spare)
        past = None if spare is None else spare.past
        state = prefill(one, tokens, seed=seed, num_steps=0, cache=past)
        return state.fork(num_copies, num_steps, spare)

    spare = None
    for seed in range(4):
        tokens = random_tokens(model, 2, 2, seed=seed)
        actions = random_tokens(model, 2 * num_copies, num_steps, seed=seed + 9).action
        fresh = start(model, tokens, seed, None)
        _, expected = ENGINES[engine](model, fresh, actions, sampling)
        state = start(recorded, tokens, seed, spare)
        spare = state.cache
        _, got = ENGINES[engine](recorded, state, actions, sampling)
        assert_same(got, expected)
    assert len(tapes) == 1


@torch.no_grad()
def test_results_are_not_overwritten_by_the_next_call(tapes: list[int]) -> None:
    _, model = pair("frame+state")
    for decode in ENGINES.values():
        actions = random_tokens(model, 2, 2 * WARM_UP_CALLS + 4).action
        state = prefill(model, random_tokens(model, 2, 2))
        results: list[DecodedSteps] = []
        copies: list[DecodedSteps] = []
        for action in actions.split(2, dim=1):
            state, decoded = decode(model, state, action, SamplingConfig())
            results.append(decoded)
            copies.append(graphs.map_leaves(graphs._copy, decoded))
        for result, copied in zip(results, copies, strict=True):
            assert_same(result, copied)


@torch.no_grad()
def test_what_cannot_be_recorded_goes_on_unrecorded_and_says_so(
    tapes: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def double_if_positive(values: tuple[torch.Tensor]) -> torch.Tensor:
        return values[0] * (2 if values[0] > 0 else 1)

    looking = GraphedCall(double_if_positive, (torch.tensor(1.0),))
    with caplog.at_level(logging.WARNING):
        results = [float(looking()) for _ in range(WARM_UP_CALLS + 3)]
    assert results == [2.0] * len(results)
    assert caplog.messages == [
        "decoding goes on without a CUDA graph: _local_scalar_dense cannot be recorded: "
        "it waits for the device"
    ]
    overwrite(looking.arguments, (torch.tensor(-1.0),))
    assert float(looking()) == -1.0


@torch.no_grad()
def test_memory_that_ran_out_while_recording_is_no_reason_to_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The caller splits the batch."""

    def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
        raise torch.OutOfMemoryError("full")

    monkeypatch.setattr(graphs, "capture", capture)
    forgetting = GraphedCall(lambda values: values[0] + 1, (torch.zeros(2),))
    for _ in range(WARM_UP_CALLS):
        forgetting()
    with pytest.raises(torch.OutOfMemoryError):
        forgetting()


def test_a_cache_keeps_few_graphs_and_the_newest() -> None:
    cache = small_world_model("frame").new_cache(1)
    made: list[int] = []

    def get(key: int) -> int:
        return cache.graph(key, lambda: made.append(key) or key + 100)  # type: ignore[func-returns-value]

    most = MOST_GRAPHS
    for key in range(most):
        get(key)
    assert get(0) == 100 and len(made) == most
    get(most)  # in the place of the one that was not asked for longest
    assert get(0) == 100 and get(2) == 102 and len(made) == most + 1
    assert get(1) == 101 and len(made) == most + 2
    assert cache.take_rows(torch.tensor([0])).graph(0, lambda: 7) == 7
