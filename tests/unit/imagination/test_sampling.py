import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import (
    SamplingConfig,
    gumbel_noise,
    sample,
    transform_logits,
)

GREEDY = SamplingConfig(temperature=0.0)


def noise(rows: Tensor, seed: int = 0, step: int = 0, slot: int = 0, num_values: int = 8) -> Tensor:
    return gumbel_noise(torch.tensor(seed), rows, torch.tensor(step), slot, num_values)


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return float(((counts - expected).square() / expected).sum())


@pytest.mark.parametrize("vary", ["rows", "step", "slot", "seed"])
def test_draws_follow_the_categorical_distribution(vary: str) -> None:
    """Whichever part of the counter changes from draw to draw."""
    logits = torch.tensor([2.0, 1.0, 0.0, 0.0, -1.0, 0.5, -2.0, 1.5])
    num_draws = 4000 if vary != "rows" else 40_000
    one = torch.tensor([3])
    if vary == "rows":
        drawn = noise(torch.arange(num_draws))
    elif vary == "step":
        drawn = torch.cat([noise(one, step=number) for number in range(num_draws)])
    elif vary == "slot":
        drawn = torch.cat([noise(one, slot=number) for number in range(num_draws)])
    else:
        drawn = torch.cat([noise(one, seed=number) for number in range(num_draws)])
    counts = sample(logits.expand(num_draws, -1), drawn, SamplingConfig()).bincount(minlength=8)
    # 29.9 is passed once in 10,000 times with 7 degrees of freedom, and the draws are fixed.
    assert chi_square(counts.double(), logits.softmax(0).double()) < 29.9


def test_noise_is_standard_gumbel() -> None:
    values = noise(torch.arange(20_000), num_values=10).flatten().double().sort().values
    levels = torch.arange(1, len(values) + 1) / len(values)
    distance = (torch.exp(-torch.exp(-values)) - levels).abs().max()  # Kolmogorov and Smirnov
    assert distance < 2.2 / math.sqrt(len(values))


def test_neighbouring_decisions_are_independent() -> None:
    rows = torch.arange(20_000)
    base = noise(rows)
    others = {
        "next value": base.roll(1, dims=1)[:, 1:],
        "next row": noise(rows + 1)[:, 1:],
        "next step": noise(rows, step=1)[:, 1:],
        "next slot": noise(rows, slot=1)[:, 1:],
        "next seed": noise(rows, seed=1)[:, 1:],
    }
    for name, other in others.items():
        pair = torch.stack([base[:, 1:].flatten(), other.flatten()])
        assert abs(float(pair.corrcoef()[0, 1])) < 4 / math.sqrt(pair.shape[1]), name


def test_parts_of_the_counter_are_not_interchangeable() -> None:
    one, two = torch.tensor([1]), torch.tensor([2])
    streams = [
        noise(one, step=2),
        noise(two, step=1),
        noise(one, slot=2),
        noise(two, slot=1),
        noise(one, seed=2),
        noise(two, seed=1),
        noise(one, step=2, slot=1),
        noise(one, step=1, slot=2),
    ]
    assert len({tuple(stream.flatten().tolist()) for stream in streams}) == len(streams)


def test_the_smallest_and_largest_possible_noise_is_finite() -> None:
    drawn = noise(torch.arange(200_000), num_values=64)
    assert drawn.isfinite().all()
    assert drawn.max() < 17.0 and drawn.min() > -3.0  # log of 2^24, and of its logarithm


@given(
    rows=st.lists(st.integers(0, 2**40), min_size=1, max_size=6),
    seed=st.integers(-(2**62), 2**62),
    step=st.integers(0, 10**6),
    slot=st.integers(0, 5000),
)
def test_a_row_has_its_noise_whatever_its_neighbours(
    rows: list[int], seed: int, step: int, slot: int
) -> None:
    together = noise(torch.tensor(rows), seed, step, slot)
    for index, row in enumerate(rows):
        assert torch.equal(noise(torch.tensor([row]), seed, step, slot)[0], together[index])
    every_step = torch.full((len(rows),), step)
    per_row = gumbel_noise(torch.tensor(seed), torch.tensor(rows), every_step, slot, 8)
    assert torch.equal(per_row, together)


def allowed_by_hand(logits: list[float], config: SamplingConfig) -> set[int]:
    """Which ids may be drawn, straight from the definition."""
    scaled = [value / config.temperature for value in logits]
    kept = list(range(len(logits)))
    if config.top_k is not None and config.top_k < len(kept):
        threshold = sorted(scaled, reverse=True)[config.top_k - 1]
        kept = [index for index in kept if scaled[index] >= threshold]
    weights = {index: math.exp(scaled[index] - max(scaled)) for index in kept}
    total = sum(weights.values())
    allowed: set[int] = set()
    mass = 0.0
    for index in sorted(kept, key=lambda index: -scaled[index]):
        if allowed and mass >= config.top_p:
            break
        allowed.add(index)
        mass += weights[index] / total
    return allowed


@settings(max_examples=200)
@given(
    order=st.permutations(range(9)),
    temperature=st.floats(0.1, 5.0),
    top_k=st.one_of(st.none(), st.integers(1, 12)),
    top_p=st.floats(0.01, 1.0),
)
def test_top_k_and_top_p_against_brute_force(
    order: list[int], temperature: float, top_k: int | None, top_p: float
) -> None:
    # Steps of 0.37 between distinct logits, so that no comparison hangs on the last digit.
    logits = [0.37 * place for place in order]
    config = SamplingConfig(temperature=temperature, top_k=top_k, top_p=top_p)
    got = transform_logits(torch.tensor(logits), config)
    allowed = {index for index, value in enumerate(got.tolist()) if value > float("-inf")}
    wanted = allowed_by_hand(logits, config)
    if allowed != wanted:  # only where the mass reaches top_p within rounding
        near = (max(1e-9, top_p - 1e-5), min(1.0, top_p + 1e-5))
        assert allowed in [allowed_by_hand(logits, replace(config, top_p=p)) for p in near]
    kept = torch.tensor(sorted(allowed))
    torch.testing.assert_close(got[kept], torch.tensor(logits)[kept] / temperature)


def test_nucleus_by_hand() -> None:
    logits = torch.tensor([0.1, 0.5, 0.15, 0.25]).log()
    for top_p, allowed in {0.4: {1}, 0.6: {1, 3}, 0.8: {1, 3, 2}, 0.95: {0, 1, 2, 3}}.items():
        got = transform_logits(logits, SamplingConfig(top_p=top_p))
        assert set(got.isfinite().nonzero().flatten().tolist()) == allowed


def test_ties_at_the_threshold_are_all_kept() -> None:
    got = transform_logits(torch.tensor([1.0, 2.0, 1.0, 0.0]), SamplingConfig(top_k=2))
    assert got.isfinite().tolist() == [True, True, True, False]


def test_the_most_likely_id_always_remains() -> None:
    logits = torch.randn(50, 20, generator=torch.Generator().manual_seed(0))
    for config in (SamplingConfig(top_k=1), SamplingConfig(top_p=1e-6)):
        got = transform_logits(logits, config)
        assert (got.isfinite().sum(-1) == 1).all()
        assert torch.equal(got.argmax(-1), logits.argmax(-1))


def test_a_low_temperature_is_all_but_greedy() -> None:
    assert SamplingConfig(temperature=0.0).is_greedy
    logits = torch.randn(30, 7, generator=torch.Generator().manual_seed(1))
    drawn = noise(torch.arange(30), num_values=7)
    cold = SamplingConfig(temperature=1e-4)
    assert not cold.is_greedy
    assert torch.equal(sample(logits, drawn, cold), logits.argmax(-1))


def test_a_high_temperature_is_uniform() -> None:
    logits = torch.tensor([5.0, 0.0, 0.0, 0.0]).expand(20_000, -1)
    drawn = noise(torch.arange(20_000), num_values=4)
    counts = sample(logits, drawn, SamplingConfig(temperature=1e4)).bincount(minlength=4)
    assert chi_square(counts.double(), torch.full((4,), 0.25).double()) < 21.1  # 1 in 10,000


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": -0.1},
        {"temperature": math.inf},
        {"temperature": math.nan},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.01},
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float]) -> None:
    (name,) = change
    with pytest.raises(TokenwmError, match=f"^{name}="):
        SamplingConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [9.9e-5, 1e-38, 5e-324])
def test_a_temperature_that_would_overflow_is_refused(temperature: float) -> None:
    """At 1e-38 all logits were infinite, and the first id was drawn instead of the best."""
    message = rf"^temperature={temperature} is below the limit of 0.0001.*use 0, which is greedy"
    with pytest.raises(TokenwmError, match=message):
        SamplingConfig(temperature=temperature)
