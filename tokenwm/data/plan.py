"""Which episodes go into which shard: a function of the recipe and the source, of nothing else."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenwm.data.manifest import SPLITS
from tokenwm.data.recipe import Recipe, split_keys
from tokenwm.data.sources import PHASE, EpisodeRef, Source

MANY_SHARDS = 64
"""Shards a dataset should have at least, so that many processes can make and read it."""
SHARD_BYTES = (2 * 2**20, 256 * 2**20)
"""Smallest and largest size aimed at, counted for one camera."""
UNKNOWN_ROWS = 100
"""Rows taken for an episode whose source declares none."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """The episodes of one shard; see :class:`~tokenwm.data.shard_tasks.ShardTask`.

    Attributes:
        name: File name, ``{split}-{i:06d}.tar``.
        refs: Its episodes, in order.
    """

    name: str
    refs: tuple[EpisodeRef, ...]

    @property
    def num_episodes(self) -> int:
        """Episodes to look at."""
        return len(self.refs)

    @property
    def split(self) -> str:
        """``train``, ``val`` or ``test``."""
        return self.name.partition("-")[0]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be made.

    Attributes:
        refs: All episodes in the order of the source, other phases behind their own.
        split_of: Key → split.
        shards: The shards of all splits.
    """

    refs: tuple[EpisodeRef, ...]
    split_of: dict[str, str]
    shards: tuple[PlannedShard, ...]

    def to_json(self) -> list[Any]:
        """Name and episodes of each shard, as JSON values."""
        return [[shard.name, [ref.key for ref in shard.refs]] for shard in self.shards]


def make_plan(recipe: Recipe, source: Source) -> Plan:
    """Divide the episodes of a source into splits, and each split into shards.

    Raises:
        RecipeError: There are too few episodes.
    """
    refs = list(source.episodes())
    split_of = split_keys([ref.key for ref in refs], recipe.splits)
    if recipe.all_phases:
        refs = _with_phases(refs, split_of, source.num_phases)
    steps = {
        ref.key: max(1, (UNKNOWN_ROWS if ref.num_rows is None else ref.num_rows))
        // source.num_phases
        for ref in refs
    }
    height, width = recipe.image_size
    bytes_per_step = 3 * height * width
    smallest, largest = SHARD_BYTES
    wanted = sum(steps.values()) * bytes_per_step // MANY_SHARDS
    limit = min(max(wanted, smallest), largest) // bytes_per_step
    shards = []
    for split in SPLITS:
        of_split = [ref for ref in refs if split_of[ref.key] == split]
        shards += [
            PlannedShard(name=f"{split}-{index:06d}.tar", refs=group)
            for index, group in enumerate(_groups(of_split, steps, limit))
        ]
    return Plan(refs=tuple(refs), split_of=split_of, shards=tuple(shards))


def _groups(
    refs: Sequence[EpisodeRef], steps: dict[str, int], limit: int
) -> Iterator[tuple[EpisodeRef, ...]]:
    """Divide episodes, in order, into groups of at most ``limit`` steps; at least one each."""
    group: list[EpisodeRef] = []
    size = 0
    for ref in refs:
        if group and size + steps[ref.key] > limit:
            yield tuple(group)
            group, size = [], 0
        group.append(ref)
        size += steps[ref.key]
    if group:
        yield tuple(group)


def _with_phases(
    refs: Sequence[EpisodeRef], split_of: dict[str, str], num_phases: int
) -> list[EpisodeRef]:
    """Add the other phases of training episodes, each behind its own, also to ``split_of``."""
    every = []
    for ref in refs:
        every.append(ref)
        if split_of[ref.key] == "train":
            others = [
                replace(ref, key=f"{ref.key}{PHASE}{phase}", phase=phase)
                for phase in range(1, num_phases)
            ]
            split_of.update({other.key: "train" for other in others})
            every += others
    return every
