"""The choice of windows for a training step: a pure function of (seed, step).

Two questions are answered apart. *From which stratum* (a dataset, or the recorded or the synthetic
part of one) is each place of a batch taken? The ``G`` places of a global batch stand for ``G``
evenly spaced points of [0, 1), and each stratum owns an interval as long as its share, so a batch
holds the shares as nearly as whole numbers allow. The points of step ``s`` are moved by
the ``s``-th number of van der Corput's sequence (a half, a quarter, three quarters, …), so that all
points of ``2**k`` successive steps are evenly spaced again: shares that no batch can hold exactly
are held just as nearly by 2, 4, 8, … of them. *Which window* is it? The next one of the stratum's
own shuffled sequence, whose place is the number of times the stratum was drawn before.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from tokenwm.data.shards.manifest import EpisodeInfo
from tokenwm.errors import ShardError

Place = tuple[int, int]
"""Number of a stratum and of a window in it."""

Order = Callable[[int, int], int]
"""(Place in the endless sequence of a stratum, step) → number of a window."""

Weighting = Callable[[Sequence[EpisodeInfo], int], Sequence[float]]
"""(Episodes, step) → for each episode, how often each of its windows is drawn against others.

A pure function. Ones are what is done without; one over an episode's windows, ``1 / (n + T - 2)``,
would treat episodes alike.
"""


MOST_SORTED = 2**27
"""Windows of a stratum up to which an epoch's order is a sorted list: 2 GB and some 20 s there."""


class ShuffledOrder:
    """Every window once per epoch, in another order in each.

    Above :data:`MOST_SORTED` windows the order is computed place by place and needs no memory.

    Args:
        num_windows: Windows of the stratum.
        seed: In ``[0, 2**64)``.
        stream: Strata with different numbers have unrelated orders.
    """

    def __init__(self, num_windows: int, seed: int, stream: int = 0) -> None:
        self.num_windows = num_windows
        self._key, self._stream = seed, stream
        self._permutations: dict[int, NDArray[np.int64]] = {}

    def __call__(self, place: int, step: int = 0) -> int:
        """The window at a place of the endless sequence; ``step`` is not used."""
        epoch, index = divmod(place, self.num_windows)
        if self.num_windows > MOST_SORTED:
            return scatter(index, self.num_windows, philox(self._key, epoch, self._stream))
        if epoch not in self._permutations:
            # A batch at the border of two epochs needs both.
            self._permutations = {e: p for e, p in self._permutations.items() if e == epoch - 1}
            # Sorting raw Philox words, not Generator.permutation: NumPy promises the same raw words
            # in all versions, but not the same shuffles, and a run may be resumed after an upgrade.
            words = philox(self._key, epoch, self._stream).random_raw(self.num_windows)
            self._permutations[epoch] = np.argsort(np.asarray(words), kind="stable")
        return int(self._permutations[epoch][index])


def scatter(index: int, count: int, random: np.random.Philox) -> int:
    """Apply a random permutation of ``[0, count)`` to ``index``, without a list of it.

    A Feistel network permutes the numbers of twice as many bits as half of them have; what falls
    outside is permuted again until it falls inside.

    Source: Black and Rogaway (2002), Ciphers with arbitrary finite domains.
    """
    half = (count.bit_length() + 1) // 2
    mask = 2**half - 1
    keys = random.random_raw(6).tolist()
    while True:
        left, right = index >> half, index & mask
        for key in keys:
            mixed = (right ^ key) * 0x9E3779B97F4A7C15 % 2**64
            mixed = (mixed ^ mixed >> 32) * 0xBF58476D1CE4E5B9 % 2**64
            left, right = right, left ^ mixed >> 32 & mask
        index = left << half | right
        if index < count:
            return index


class WeightedOrder:
    """Windows drawn with replacement, as often as a function of (episodes, step) says.

    Args:
        weighting: See :data:`Weighting`.
        episodes: Episodes of the stratum.
        num_windows: Windows of each.
        seed: In ``[0, 2**64)``.
        stream: See :class:`ShuffledOrder`.
    """

    def __init__(
        self,
        weighting: Weighting,
        episodes: Sequence[EpisodeInfo],
        num_windows: NDArray[np.int64],
        seed: int,
        stream: int = 0,
    ) -> None:
        self._weighting, self._episodes, self._num_windows = weighting, episodes, num_windows
        self._first = np.cumsum(num_windows) - num_windows
        self._key, self._stream = seed, stream
        self._step = -1
        self._ends: NDArray[np.float64] = np.zeros(0)

    def __call__(self, place: int, step: int) -> int:
        """The window at a place of the endless sequence, if it is drawn at ``step``.

        Raises:
            ShardError: The weights are not one finite number >= 0 per episode, or all are 0.
        """
        if step != self._step:
            self._ends, self._step = np.cumsum(self._weights(step) * self._num_windows), step
        word = philox(self._key, place, self._stream).random_raw() >> 11
        total = self._ends[-1]
        point = min(int(word) * 2.0**-53 * total, np.nextafter(total, 0.0))  # in [0, total)
        episode = int(np.searchsorted(self._ends, point, side="right"))
        begin = self._ends[episode - 1] if episode else 0.0
        share = (point - begin) / (self._ends[episode] - begin)
        count = int(self._num_windows[episode])
        return int(self._first[episode]) + min(int(share * count), count - 1)

    def _weights(self, step: int) -> NDArray[np.float64]:
        weights = np.asarray(self._weighting(self._episodes, step), dtype=np.float64)
        count = len(self._episodes)
        if weights.shape != (count,) or not np.isfinite(weights).all() or (weights < 0).any():
            raise ShardError(
                f"weighting {self._weighting!r} gave {weights.shape} weights at step {step}, "
                f"{weights[:5]}…; expected {count} finite numbers >= 0, one per episode"
            )
        if not weights.any():
            raise ShardError(f"weighting {self._weighting!r} gave only zeros at step {step}")
        return weights


@dataclass(frozen=True, kw_only=True)
class Leg:
    """A stretch of a run whose batches all take equally many windows.

    A run that is continued with another batch size or number of ranks begins a new one, so that it
    goes on with the first window that it has not seen.

    Attributes:
        first_step: Optimizer steps before it.
        first_batch: Batches before it; as many as steps unless gradients were accumulated.
        drawn: Windows of each stratum drawn before it.
        batch_windows: Windows of a batch, all ranks together.
        accumulate: Batches of an optimizer step.
    """

    first_step: int = 0
    first_batch: int = 0
    drawn: tuple[int, ...]
    batch_windows: int
    accumulate: int = 1

    def batches_before(self, step: int) -> int:
        """Batches before an optimizer step of this leg, those of earlier legs included."""
        return self.first_batch + (step - self.first_step) * self.accumulate

    def drawn_before(self, shares: Sequence[Fraction], batch: int) -> list[int]:
        """Draws from each stratum before a batch of this leg, earlier legs included."""
        own = drawn_before(shares, self.batch_windows, batch - self.first_batch)
        return [before + count for before, count in zip(self.drawn, own, strict=True)]


class GlobalOrderSampler(Sampler[list[Place]]):
    """Endless batches of windows; all ranks together walk one global sequence.

    Step ``s`` takes ``batch_size * world_size`` places and rank ``r`` the ``r``-th run of
    ``batch_size`` of them. So the same global batch is seen whatever the number of ranks, as long
    as ``batch_size * world_size`` stays the same.

    Args:
        orders: For each stratum, which windows it gives.
        shares: For each stratum, its share of the places; they add up to 1.
        batch_size: Windows per step on this rank.
        start_step: First step to yield, 0 for a fresh run; or a function that says so, asked at
            each new iteration.
        rank: Number of this process, in ``[0, world_size)``.
        world_size: Number of processes.
        leg: The part of the run that ``start_step`` lies in; by default the run has one only.

    Raises:
        ShardError: An argument is out of range.
    """

    def __init__(
        self,
        orders: Sequence[Order],
        shares: Sequence[Fraction],
        batch_size: int,
        start_step: int | Callable[[], int] = 0,
        rank: int = 0,
        world_size: int = 1,
        leg: Leg | None = None,
    ) -> None:
        if batch_size < 1:
            raise ShardError(f"batch_size {batch_size} must be at least 1")
        if not 0 <= rank < world_size:
            raise ShardError(f"rank {rank} is outside [0, world_size {world_size})")
        assert len(orders) == len(shares) and sum(shares) == 1 and min(shares) >= 0
        size = batch_size * world_size
        self.leg = leg or Leg(drawn=(0,) * len(shares), batch_windows=size)
        assert self.leg.batch_windows == size
        self.orders = orders
        self.shares = shares
        self.batch_size = batch_size
        self.start_step = start_step
        self.rank = rank
        self.world_size = world_size

    def __iter__(self) -> Iterator[list[Place]]:
        step = self.start_step() if callable(self.start_step) else self.start_step
        size = self.leg.batch_windows
        slots = _spread(size)
        drawn = self.leg.drawn_before(self.shares, step)
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        while True:
            borders = _borders(self.shares, size, step - self.leg.first_batch)
            counts = np.diff(borders, prepend=0)
            strata = np.repeat(np.arange(len(counts)), counts)[slots]  # (size,) of each slot
            places = np.empty(size, dtype=np.int64)
            for stratum, count in enumerate(counts.tolist()):
                places[strata == stratum] = drawn[stratum] + np.arange(count)
                drawn[stratum] += count
            yield [
                (stratum, self.orders[stratum](place, step))
                for stratum, place in zip(strata[mine].tolist(), places[mine].tolist(), strict=True)
            ]
            step += 1


def drawn_before(shares: Sequence[Fraction], size: int, step: int) -> list[int]:
    """Number of draws from each stratum in the steps ``[0, step)``, in time that hardly grows.

    Args:
        shares: Share of each stratum; they add up to 1.
        size: Places per step, all ranks together.
        step: Number of steps, at least 0.
    """
    total, first = [0] * len(shares), 0
    for bit in reversed(range(step.bit_length())):
        if step >> bit & 1:
            # The points of 2**bit steps from a multiple of 2**bit on are evenly spaced.
            borders = _borders(shares, size << bit, first, scale=1 << bit)
            total = [a + b - c for a, b, c in zip(total, borders, [0, *borders], strict=False)]
            first += 1 << bit
    return total


def _borders(shares: Sequence[Fraction], size: int, step: int, scale: int = 1) -> list[int]:
    """For each stratum, how many of a step's points lie in its interval or in one before it."""
    offset, upper, borders = scale * van_der_corput(step), Fraction(0), []
    for share in shares:
        upper += share
        borders.append(ceil(upper * size - offset))  # points are (j + offset) / size
    return borders


def van_der_corput(index: int) -> Fraction:
    """The bits of ``index`` mirrored at the point: 0, 1/2, 1/4, 3/4, 1/8, … in [0, 1)."""
    bits = max(1, index.bit_length())
    return Fraction(int(f"{index:0{bits}b}"[::-1], 2), 1 << bits)


def _spread(size: int) -> NDArray[np.int64]:
    """The numbers below ``size`` so that each run of them is spread evenly: every rank's share."""
    bits = (size - 1).bit_length()
    mirrored = [int(van_der_corput(index) * (1 << bits)) for index in range(1 << bits)]
    return np.array([number for number in mirrored if number < size], dtype=np.int64)


def philox(seed: int, number: int, stream: int) -> np.random.Philox:
    """Random words that are a function of three numbers, each in ``[0, 2**64)``."""
    key = np.array([seed, number], dtype=np.uint64)
    return np.random.Philox(key=key, counter=np.array([0, 0, 0, stream], dtype=np.uint64))


def evenly_spaced(num_windows: int, count: int, rank: int = 0, world_size: int = 1) -> list[int]:
    """A fixed choice of windows for validation, spread over the whole split.

    Args:
        num_windows: Windows in the split.
        count: Windows wanted, all ranks together; fewer if the split has fewer.
        rank: Number of this process.
        world_size: Number of processes. Every rank gets equally many windows, since uneven ranks
            would wait for each other forever; a few may be given twice to get there.

    Returns:
        Ascending window numbers of this rank.
    """
    count = min(count, num_windows)
    count = -(-count // world_size) * world_size
    # The middles of `count` equal stretches: neither end of the split is favoured.
    chosen = [(2 * i + 1) * num_windows // (2 * count) for i in range(count)]
    return chosen[rank::world_size]
