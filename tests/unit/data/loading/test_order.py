import itertools
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenwm.data.loading import order as order_module
from tokenwm.data.loading.order import (
    GlobalOrderSampler,
    Place,
    ShuffledOrder,
    WeightedOrder,
    drawn_before,
    evenly_spaced,
    philox,
    scatter,
    van_der_corput,
)
from tokenwm.data.shards.manifest import EpisodeInfo
from tokenwm.errors import ShardError

seeds = st.integers(0, 2**64 - 1)
GOLDEN_ORDER = [4, 1, 3, 2, 5, 0, 3, 1, 2, 5, 4, 0]
GOLDEN_MIXTURE = [
    [(0, 4), (1, 2), (0, 1), (1, 5)],
    [(0, 3), (1, 1), (0, 2), (2, 5)],
    [(0, 0), (1, 3), (0, 3), (1, 4)],
]
"""Written down once; see ``test_the_order_never_changes``."""

shares_lists = st.lists(st.integers(0, 20), min_size=1, max_size=6).filter(any)


def exact_shares(weights: Sequence[int]) -> list[Fraction]:
    return [Fraction(weight, sum(weights)) for weight in weights]


def single(num_windows: int, batch_size: int, seed: int, *more: int) -> GlobalOrderSampler:
    """A sampler over one stratum; ``more`` are start step, rank and world size."""
    return GlobalOrderSampler([ShuffledOrder(num_windows, seed)], [Fraction(1)], batch_size, *more)


def mixed(weights: Sequence[int], batch_size: int, seed: int, *more: int) -> GlobalOrderSampler:
    """A sampler over strata of 5, 6, 7, … windows."""
    orders = [ShuffledOrder(5 + i, seed, stream=i) for i in range(len(weights))]
    return GlobalOrderSampler(orders, exact_shares(weights), batch_size, *more)


# The order within a stratum


@given(num_windows=st.integers(1, 300), seed=seeds, epoch=st.integers(0, 2**40))
def test_each_epoch_is_a_permutation(num_windows: int, seed: int, epoch: int) -> None:
    first, order = epoch * num_windows, ShuffledOrder(num_windows, seed)
    assert sorted(order(first + i) for i in range(num_windows)) == list(range(num_windows))


def test_epochs_seeds_and_strata_differ_and_are_shuffled() -> None:
    def windows(seed: int, epoch: int, stream: int) -> list[int]:
        order = ShuffledOrder(100, seed, stream)
        return [order(epoch * 100 + i) for i in range(100)]

    orders = [windows(*key) for key in itertools.product((0, 1), repeat=3)] + [list(range(100))]
    for one, other in itertools.combinations(orders, 2):
        # Two independent permutations agree in one place on average.
        assert sum(a == b for a, b in zip(one, other, strict=True)) < 10


def test_the_order_never_changes() -> None:
    """A change here means that no run of an earlier version resumes: say so in the CHANGELOG."""
    order = ShuffledOrder(6, 7)
    assert [order(position) for position in range(12)] == GOLDEN_ORDER
    assert list(itertools.islice(mixed([5, 4, 2], 4, 7), 3)) == GOLDEN_MIXTURE


def test_places_can_be_asked_for_in_any_order() -> None:
    order = ShuffledOrder(10, 3)
    forward = [order(position) for position in range(100)]
    backward = [order(position) for position in reversed(range(100))]
    assert forward == backward[::-1]


# Steps and ranks


@given(weights=shares_lists, seed=seeds, per_rank=st.integers(1, 4), start=st.integers(0, 200))
def test_ranks_together_see_the_global_sequence(
    weights: list[int], seed: int, per_rank: int, start: int
) -> None:
    num_steps = 5
    sequences = []
    for world_size in (1, 2, 4):
        size = 4 * per_rank // world_size
        ranks = [iter(mixed(weights, size, seed, start, r, world_size)) for r in range(world_size)]
        steps = [[next(rank) for rank in ranks] for _ in range(num_steps)]
        assert all(len(batch) == size for step in steps for batch in step)
        sequences.append([place for step in steps for batch in step for place in batch])
    assert sequences[1] == sequences[0]
    assert sequences[2] == sequences[0]
    # The definition, place by place: each stratum gives its windows in its own order.
    drawn = drawn_before(exact_shares(weights), 4 * per_rank, start)
    for stratum, window in sequences[0]:
        assert window == ShuffledOrder(5 + stratum, seed, stratum)(drawn[stratum])
        drawn[stratum] += 1


@given(num_windows=st.integers(1, 50), seed=seeds, size=st.integers(1, 9))
def test_one_dataset_is_walked_place_by_place(num_windows: int, seed: int, size: int) -> None:
    batches = itertools.islice(single(num_windows, size, seed, 7), 4)
    order = ShuffledOrder(num_windows, seed)
    expected = [(0, order(7 * size + i)) for i in range(4 * size)]
    assert [place for batch in batches for place in batch] == expected


@given(weights=shares_lists, seed=seeds, start=st.integers(0, 60), world_size=st.integers(1, 3))
def test_starting_late_is_the_tail_of_starting_at_zero(
    weights: list[int], seed: int, start: int, world_size: int
) -> None:
    for rank in range(world_size):
        whole = mixed(weights, 3, seed, 0, rank, world_size)
        late = mixed(weights, 3, seed, start, rank, world_size)
        assert list(itertools.islice(whole, start, start + 8)) == list(itertools.islice(late, 8))


def test_the_start_may_be_a_function_asked_at_each_iteration() -> None:
    step = 0
    sampler = GlobalOrderSampler([ShuffledOrder(20, 0)], [Fraction(1)], 2, lambda: step)
    whole = list(itertools.islice(sampler, 10))
    step = 4
    assert list(itertools.islice(sampler, 6)) == whole[4:]


def test_starting_after_a_billion_steps_costs_no_more() -> None:
    batch = next(iter(mixed([5, 3, 2], 4, 0, 10**9)))
    assert len(batch) == 4
    assert sum(drawn_before(exact_shares([5, 3, 2]), 4, 10**9)) == 4 * 10**9


# Shares


def counts(batches: Sequence[list[Place]]) -> Counter[int]:
    return Counter(stratum for batch in batches for stratum, _ in batch)


@given(weights=shares_lists, size=st.integers(1, 40), block=st.integers(0, 30))
@settings(max_examples=60)
def test_every_batch_is_as_near_to_the_shares_as_integers_allow(
    weights: list[int], size: int, block: int
) -> None:
    """And so are all batches of each aligned block of 2, 4, 8 steps together."""
    shares = exact_shares(weights)
    batches = list(itertools.islice(mixed(weights, size, 0, 8 * block), 8))
    for width in (1, 2, 4, 8):
        for first in range(0, 8, width):
            found = counts(batches[first : first + width])
            for stratum, share in enumerate(shares):
                assert abs(found[stratum] - share * size * width) < 1
                if share == 0:
                    assert found[stratum] == 0


@given(weights=shares_lists, size=st.integers(1, 20))
@settings(max_examples=30)
def test_neighbours_together_have_their_shares_too(weights: list[int], size: int) -> None:
    """Real strata come before synthetic ones: so their ratio is held, too."""
    shares = exact_shares(weights)
    for batch in itertools.islice(mixed(weights, size, 0), 4):
        found = counts([batch])
        for first, last in itertools.combinations(range(len(shares) + 1), 2):
            wanted = size * sum(shares[first:last])
            assert abs(sum(found[i] for i in range(first, last)) - wanted) < 1


@given(weights=shares_lists, size=st.integers(1, 20), step=st.integers(0, 40))
def test_what_was_drawn_before_is_known_without_walking_there(
    weights: list[int], size: int, step: int
) -> None:
    shares = exact_shares(weights)
    walked = counts(list(itertools.islice(mixed(weights, size, 0), step)))
    assert drawn_before(shares, size, step) == [walked[i] for i in range(len(shares))]
    # In the long run the shares are exact: the gap grows like a logarithm at most.
    far = 10**6 + step
    for drawn, share in zip(drawn_before(shares, size, far), shares, strict=True):
        assert abs(drawn - share * size * far) < far.bit_length()


@pytest.mark.parametrize("world_size", [2, 4])
def test_each_rank_has_its_part_of_every_dataset(world_size: int) -> None:
    batch_size = 16 // world_size
    for rank in range(world_size):
        sampler = mixed([1, 1], batch_size, 0, 0, rank, world_size)
        for batch in itertools.islice(sampler, 20):
            assert abs(counts([batch])[0] - batch_size / 2) <= 1


def test_van_der_corput() -> None:
    expected = [0, 1 / 2, 1 / 4, 3 / 4, 1 / 8, 5 / 8, 3 / 8, 7 / 8]
    assert [float(van_der_corput(i)) for i in range(8)] == expected


# Weighted episodes


def episodes(*lengths: int) -> list[EpisodeInfo]:
    return [
        EpisodeInfo(
            key=f"e{i}", split="train", shard="", num_steps=n, offsets={}, metadata_offset=0
        )
        for i, n in enumerate(lengths)
    ]


def later_ones(infos: Sequence[EpisodeInfo], step: int) -> list[float]:
    """A curriculum: episodes of at most ``step`` steps."""
    return [float(info.num_steps <= step) for info in infos]


def draw(weighting: object, step: int, number: int) -> Counter[int]:
    windows = np.array([2, 6, 0 + 12])
    order = WeightedOrder(weighting, episodes(5, 9, 15), windows, seed=3)  # type: ignore[arg-type]
    return Counter(order(place, step) for place in range(number))


def test_equal_weights_draw_all_windows_alike() -> None:
    found = draw(lambda infos, step: [1.0] * 3, 0, 20_000)
    assert set(found) == set(range(20))
    # 1000 each on average, with a standard deviation of 31.
    assert max(abs(count - 1000) for count in found.values()) < 150


def test_weights_favour_the_windows_of_an_episode() -> None:
    found = draw(lambda infos, step: [0.0, 3.0, 1.0], 0, 30_000)
    assert set(found) == set(range(2, 20))
    assert abs(sum(found[window] for window in range(2, 8)) - 18_000) < 400  # 6 · 3 of 6 · 3 + 12


def test_weights_may_change_with_the_step() -> None:
    assert set(draw(later_ones, 5, 200)) == {0, 1}
    assert set(draw(later_ones, 9, 2000)) == set(range(8))


def test_a_weighted_window_depends_on_place_and_step_only() -> None:
    def order() -> WeightedOrder:
        return WeightedOrder(later_ones, episodes(5, 9, 15), np.array([2, 6, 12]), seed=3)

    one, other = order(), order()
    forward = [one(place, 9 + place // 4) for place in range(40)]
    backward = [other(place, 9 + place // 4) for place in reversed(range(40))]
    assert forward == backward[::-1]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([1.0], r"gave \(1,\) weights at step 2.*expected 3"),
        ([1.0, float("nan"), 1.0], "finite"),
        ([1.0, -1.0, 1.0], ">= 0"),
        ([0.0, 0.0, 0.0], "only zeros at step 2"),
    ],
)
def test_impossible_weights(weights: list[float], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        draw(lambda infos, step: weights, 2, 1)


# Errors, validation


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size 0"),
        ({"rank": 2, "world_size": 2}, r"rank 2 is outside \[0, world_size 2\)"),
    ],
)
def test_sampler_refuses(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        GlobalOrderSampler([], [Fraction(1)], **{"batch_size": 2, **arguments})


@given(num_windows=st.integers(1, 200), count=st.integers(1, 300), world_size=st.integers(1, 5))
def test_evenly_spaced(num_windows: int, count: int, world_size: int) -> None:
    ranks = [evenly_spaced(num_windows, count, rank, world_size) for rank in range(world_size)]
    assert len({len(rank) for rank in ranks}) == 1
    together = sorted(window for rank in ranks for window in rank)
    assert together[0] >= 0
    assert together[-1] < num_windows
    wanted = min(count, num_windows)
    assert wanted <= len(together) < wanted + world_size
    gaps = np.diff(together)
    if len(gaps):
        assert gaps.max() - gaps.min() <= 1  # evenly, up to rounding
    if world_size == 1:
        assert len(set(together)) == wanted


@pytest.mark.parametrize("count", [1, 2, 3, 7, 64, 65, 1000, 1025])
def test_scattering_is_a_permutation(count: int) -> None:
    epochs = [
        [scatter(index, count, philox(5, epoch, 0)) for index in range(count)] for epoch in (0, 1)
    ]
    assert [sorted(numbers) for numbers in epochs] == [list(range(count))] * 2
    assert count < 5 or epochs[0] != epochs[1]


def test_scattering_leaves_no_trace_of_the_order() -> None:
    """Neighbours land as far apart as chance would have it, and so does what they are taken to."""
    count = 4099
    places = np.array([scatter(index, count, philox(7, 0, 0)) for index in range(count)])
    assert abs(np.corrcoef(np.arange(count), places)[0, 1]) < 0.05
    assert abs(np.corrcoef(places[:-1], places[1:])[0, 1]) < 0.05
    gaps = np.abs(np.diff(places)) / count  # of two random points: mean 1/3
    assert abs(gaps.mean() - 1 / 3) < 0.02


def test_orders_of_very_many_windows_need_no_list(monkeypatch: pytest.MonkeyPatch) -> None:
    order = ShuffledOrder(10**12, seed=1)
    places = [order(place) for place in range(1000)]
    assert len(set(places)) == 1000 and max(places) > 9 * 10**11
    assert order(0) != order(10**12)  # another epoch
    monkeypatch.setattr(order_module, "MOST_SORTED", 10)
    small = ShuffledOrder(30, seed=1)
    assert sorted(small(place) for place in range(30)) == list(range(30))
