"""The plan of shards: which episodes go where, as a function of recipe and source alone."""

import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokenwm.data.readers.base import PHASE, EpisodeRef, Source
from tokenwm.data.recipes.first_look import FirstLook, Layout
from tokenwm.data.recipes.recipe import Recipe, split_episodes
from tokenwm.data.shards.manifest import SPLITS
from tokenwm.errors import RecipeError, SourceError

logger = logging.getLogger(__name__)

MANY_SHARDS = 64
"""Shards a dataset should have at least, so that many processes can make and read it."""
SHARD_BYTES = (2 * 2**20, 256 * 2**20)
"""Smallest and largest size aimed at, counted for one camera."""
MOST_PHASES = 100
"""Rows at which an episode can begin, that are each worth an episode of their own."""
UNKNOWN_ROWS = 100
"""Rows taken for an episode whose source declares none."""


@dataclass(frozen=True, kw_only=True)
class PlannedShard:
    """The episodes of one shard; see :class:`~tokenwm.data.shards.tasks.ShardTask`.

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
    """The episodes of each shard of a dataset that is to be made.

    Attributes:
        refs: All episodes in the order of the source, other phases behind their own.
        split_of: Key → split.
        shards: The shards of all splits.
        layout: The fields that every episode must have.
    """

    refs: tuple[EpisodeRef, ...]
    split_of: dict[str, str]
    shards: tuple[PlannedShard, ...]
    layout: Layout

    def to_json(self) -> list[Any]:
        """Name and episodes of each shard, as JSON values."""
        return [[shard.name, [ref.key for ref in shard.refs]] for shard in self.shards]


def make_plan(recipe: Recipe, source: Source, look: FirstLook) -> Plan:
    """Divide the episodes of a source into splits, and each split into shards.

    Args:
        recipe: The recipe of the dataset.
        source: The source of the episodes.
        look: Tells what episodes have, and which can be used.

    Raises:
        RecipeError: There are too few episodes, or too many phases.
        SourceError: Two episodes have the same key, or too few can be used.
        EpisodeError: One that was looked at breaks a rule, and the recipe is strict.
    """
    if recipe.all_phases and source.num_phases > MOST_PHASES:
        raise RecipeError(
            f"all_phases: {source.num_phases:,} rows make one step, at most {MOST_PHASES} can be "
            "kept each as an episode of its own; set all_phases to false"
        )
    refs = list(source.episodes())
    twice = [key for key, count in Counter(ref.key for ref in refs).items() if count > 1]
    if twice:
        raise SourceError(f"{recipe.name}: two episodes of the source have the key {twice[0]}")
    split_of = split_episodes(refs, recipe.splits)
    # First the episodes that filling the splits looks at anyway.
    heads = [_of_split(refs, split_of, split)[:1] for split in reversed(SPLITS)]
    layout = look.find_layout(dict.fromkeys([*itertools.chain(*heads), *refs]))
    if not recipe.records:
        _fill_splits(refs, split_of, look, recipe)
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
        shards += [
            PlannedShard(name=f"{split}-{index:06d}.tar", refs=group)
            for index, group in enumerate(_groups(_of_split(refs, split_of, split), steps, limit))
        ]
    return Plan(refs=tuple(refs), split_of=split_of, shards=tuple(shards), layout=layout)


def _of_split(refs: Sequence[EpisodeRef], split_of: dict[str, str], split: str) -> list[EpisodeRef]:
    return [ref for ref in refs if split_of[ref.key] == split]


def _fill_splits(
    refs: Sequence[EpisodeRef], split_of: dict[str, str], look: FirstLook, recipe: Recipe
) -> None:
    """Let a training episode stand in where no episode of a held-out split can be used.

    Not for a fold's test split: the stand-in is held out in another fold as well.

    Raises:
        SourceError: There are too few episodes that can be used.
    """
    by_key = {ref.key: ref for ref in refs}
    # In the order in which episodes are dealt to splits, a function of their keys and the seed.
    spare = (by_key[k] for k, split in list(split_of.items()) if split == "train")
    usable = filter(look.is_usable, spare)
    for split in dict.fromkeys(split_of.values()):
        if any(map(look.is_usable, _of_split(refs, split_of, split))):
            continue
        stand_in = next(usable, None)
        if split == "test" and recipe.splits.folds:
            raise SourceError(
                f"{recipe.name}: no episode of fold {recipe.splits.fold} can be used; choose "
                "another splits.seed or fewer splits.folds, the same for all folds"
            )
        if split == "train" or stand_in is None:
            raise SourceError(
                f"{recipe.name}: no episode is left for split {split}, too few of {len(refs)} can "
                "be used"
            )
        logger.warning(
            "%s: no episode of split %s can be used; %s is taken from train instead",
            recipe.name,
            split,
            stand_in.key,
        )
        split_of[stand_in.key] = split


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
