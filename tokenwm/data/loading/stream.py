"""Batches of shards that are read from start to end: for stores where every seek is dear.

::

    shards, in another order in each epoch:   3 0 2 1 | 1 3 0 2 | 0 …
    dealt out to the lanes in turn:           lane 0: 3 2 1 0 …    lane 1: 0 1 3 2 …
    the windows of a lane as they lie:        shuffled in blocks of ``shuffle_windows``

A lane is what one worker of one rank reads. Which window comes when is a pure function of (seed,
number of the batch, ranks, workers, batch size), so a run goes on with the very next batch: each
lane begins again at the shard where its block began, and passes over what was given. With other
ranks, workers or batch size the lanes are other ones; then all begin at the first shard that is not
given whole, and what is given twice is counted.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from tokenwm.data.episode import Segment
from tokenwm.data.loading.order import philox
from tokenwm.data.loading.windows import Batch, WindowDataset, collate
from tokenwm.data.shards.stream import StreamedEpisode, stream_episodes

logger = logging.getLogger(__name__)

STREAM = 2**32
"""Random streams from here on are of lanes; below there are those of strata."""


@dataclass(frozen=True, kw_only=True)
class Lanes:
    """The lanes that read in one stretch of a run.

    Attributes:
        batch_size: Windows of a batch on one rank.
        world_size: Ranks.
        per_rank: Lanes of each rank: its workers, or 1 without any.
        first_batch: Batches of each rank before it.
        first_shard: Place in the endless sequence of shards where it begins.
        repeated: Windows that were given again, in all stretches so far.
    """

    batch_size: int
    world_size: int
    per_rank: int
    first_batch: int = 0
    first_shard: int = 0
    repeated: int = 0

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Batch size, ranks and lanes per rank, which keep the lanes when a run goes on."""
        return self.batch_size, self.world_size, self.per_rank

    @property
    def count(self) -> int:
        """Lanes of all ranks."""
        return self.world_size * self.per_rank

    def given(self, lane: int, batch: int) -> int:
        """Windows that a lane has given before a batch."""
        turns = -(-(batch - self.first_batch - lane % self.per_rank) // self.per_rank)
        return max(0, turns) * self.batch_size


class StreamOrder:
    """The assignment of shards to lanes, and the order in which a lane gives their windows.

    Args:
        windows: Windows of the dataset.
        seed: In ``[0, 2**64)``.
        shuffle_windows: Windows of a lane that are shuffled at a time, at least 1.
        lanes: The lanes.

    Attributes:
        shards: Names of the shards of the split.
        num_windows: Windows of each.
    """

    def __init__(
        self, windows: WindowDataset, seed: int, shuffle_windows: int, lanes: Lanes
    ) -> None:
        found: dict[str, int] = {}
        numbers = windows.windows_per_episode.tolist()
        shards = windows.reader.episodes.shards(windows.keys)
        for shard, number in zip(shards, numbers, strict=True):
            found[shard] = found.get(shard, 0) + number
        self.shards = list(found)
        self.num_windows = list(found.values())
        self.lanes = lanes
        self.windows = windows
        self._seed = seed
        self._size = shuffle_windows
        self._epoch, self._permutation = -1, np.zeros(0, dtype=np.int64)

    def shard(self, place: int) -> int:
        """The shard at a place of the endless sequence."""
        epoch, index = divmod(place, len(self.shards))
        if epoch != self._epoch:
            words = philox(self._seed, epoch, STREAM - 1).random_raw(len(self.shards))
            self._epoch, self._permutation = epoch, np.argsort(np.asarray(words), kind="stable")
        return int(self._permutation[index])

    def names(self, place: int) -> Iterator[str]:
        """The shards of a lane from one of its places on, without end."""
        return (self.shards[self.shard(at)] for at in count(place, self.lanes.count))

    def seek(self, lane: int, given: int) -> tuple[int, int]:
        """Find the shard at which a lane that has given some windows must read on.

        Returns:
            Place of the shard in which the block lies that it is giving, and how many windows of
            the lane are before that shard.
        """
        place, before = self.lanes.first_shard + lane, 0
        block = given // self._size * self._size
        while before + (num_windows := self.num_windows[self.shard(place)]) <= block:
            place, before = place + self.lanes.count, before + num_windows
        return place, before

    def shuffled(
        self, lane: int, given: int, read: Callable[[Iterator[str]], Iterator[Any]]
    ) -> Iterator[Any]:
        """The shuffled windows of a lane from a given one on, without end.

        Args:
            lane: The lane, of all ranks.
            given: Windows that it has given before.
            read: Names of shards → their windows, as they lie.
        """
        place, before = self.seek(lane, given)
        number, done = divmod(given, self._size)
        windows = islice(read(self.names(place)), number * self._size - before, None)

        def blocks() -> Iterator[Any]:
            block = list(islice(windows, self._size))
            for epoch in count(number):
                words = philox(self._seed, epoch, STREAM + lane).random_raw(self._size)
                following = []  # read window by window, so that no batch waits for a whole block
                for index in np.argsort(np.asarray(words), kind="stable").tolist():
                    following.append(next(windows))
                    yield block[index]
                block = following

        return islice(blocks(), done, None)

    def after(self, before: Lanes, batch: int) -> "StreamOrder":
        """The order from a batch on that was given before by other lanes, or by the same ones.

        Says so where windows are given again.
        """
        if before.sizes == self.lanes.sizes:
            return self._with(before)
        other = self._with(before)
        lanes = range(before.count)
        given = [before.given(lane, batch) for lane in lanes]
        first = min(other.seek(lane, given[lane])[0] for lane in lanes)
        passed = sum(self.num_windows[self.shard(at)] for at in range(before.first_shard, first))
        repeated = sum(given) - passed
        logger.warning(
            "data.loader stream: batch size, ranks and workers were %s and are %s now, so reading "
            "begins again at a shard: %d of the %d windows seen come a second time",
            before.sizes,
            self.lanes.sizes,
            repeated,
            sum(given),
        )
        total = before.repeated + repeated
        return self._with(replace(self.lanes, first_batch=batch, first_shard=first, repeated=total))

    def _with(self, lanes: Lanes) -> "StreamOrder":
        return StreamOrder(self.windows, self._seed, self._size, lanes)


class EndlessNumbers(Sampler[list[int]]):
    """The numbers of batches, each in a list of its own, without end.

    Args:
        first: Says where to begin; asked at each new iteration.
    """

    def __init__(self, first: Callable[[], int]) -> None:
        self._first = first

    def __iter__(self) -> Iterator[list[int]]:
        return ([number] for number in count(self._first()))


def only_one(batches: Sequence[Batch]) -> Batch:
    """Unpack a list that holds one batch."""
    return batches[0]


class StreamedBatches(Dataset[Batch]):
    """Batches of one rank by their number, for a loader that asks for one after the other.

    A lane's stream stays open from batch to batch; a number that is not the next one opens it anew
    at the right place.

    Args:
        order: Order of the windows.
        name: Name of the dataset in :attr:`Batch.sources`.
        rank: Number of this process.
    """

    def __init__(self, order: StreamOrder, name: str, rank: int) -> None:
        self._order = order
        self._windows = windows = order.windows
        self._name = name
        self._rank = rank
        stops = np.cumsum(windows.windows_per_episode)
        self._numbers = {
            key: range(stop - number, stop)
            for key, number, stop in zip(
                windows.keys, windows.windows_per_episode.tolist(), stops.tolist(), strict=True
            )
        }
        self._open: dict[int, tuple[int, Iterator[tuple[StreamedEpisode, int]]]] = {}
        if len(order.shards) < order.lanes.count:
            logger.warning(
                "data.loader stream: %d shards for %d lanes (ranks x workers), so several lanes "
                "are in different epochs at a time; use fewer workers or smaller shards",
                len(order.shards),
                order.lanes.count,
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def __getitem__(self, batch: int) -> Batch:
        """The next windows of the lane whose turn it is.

        Raises:
            CorruptSampleError: A shard is damaged or short.
        """
        lanes = self._order.lanes
        lane = self._rank * lanes.per_rank + (batch - lanes.first_batch) % lanes.per_rank
        expected, stream = self._open.pop(lane, (-1, iter(())))
        if expected != batch:
            stream = self._order.shuffled(lane, lanes.given(lane, batch), self._read)
        segments = [self._cut(*item) for item in islice(stream, lanes.batch_size)]
        self._open[lane] = batch + lanes.per_rank, stream
        return collate(segments)

    def _read(self, names: Iterator[str]) -> Iterator[tuple[StreamedEpisode, int]]:
        reader = self._windows.reader
        fields = self._windows.stored_fields
        for episode in stream_episodes(reader.root, reader.manifest, names, fields):
            for window in self._numbers[episode.info.key]:
                yield episode, window

    def _cut(self, episode: StreamedEpisode, window: int) -> Segment:
        key, start, stop = self._windows.locate(window)
        stored = {name: array[start:stop] for name, array in episode.arrays.items()}
        return self._windows.segment(key, start, stop, stored, self._name)
