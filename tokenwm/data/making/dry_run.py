"""A dry run of ``prepare``: plan, size and time of a dataset, estimated from a few episodes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

from tokenwm.data.episode import Episode
from tokenwm.data.making.plan import Plan, make_plan
from tokenwm.data.readers.base import EpisodeRef, Source, load_one
from tokenwm.data.recipes.first_look import FirstLook, arrays_of
from tokenwm.data.recipes.recipe import Recipe
from tokenwm.data.shards.manifest import SPLITS

NUM_TIMED = 3
"""Episodes that are read for an estimate."""


@dataclass(frozen=True, kw_only=True)
class SplitPlan:
    """Estimated size of one split; steps and bytes follow from the episodes that were read."""

    num_episodes: int
    num_steps: int
    num_shards: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True)
class DryRun:
    """Estimated contents of a dataset, and the time to make it.

    Attributes:
        name: Name of the dataset.
        splits: Split → its estimated size.
        excluded: Key of an episode that was looked at → why it would be left out.
        gaps: Parts that the source declares but does not hold, in words.
        num_timed: Episodes that were read.
        num_workers: Shards made at once.
        seconds: Estimated time, all workers together.
    """

    name: str
    splits: dict[str, SplitPlan]
    excluded: dict[str, str]
    gaps: tuple[str, ...]
    num_timed: int
    num_workers: int
    seconds: float


def dry_run(recipe: Recipe, num_workers: int = 0) -> DryRun:
    """Plan a dataset, read a few episodes, and estimate the rest by them; nothing is written.

    Args:
        recipe: The recipe of the dataset.
        num_workers: Shards that would be made at once.

    Raises:
        SourceError: The source is missing, or too few of its episodes can be used.
        RecipeError: The recipe does not fit the source.
        EpisodeError: One that was looked at breaks a rule, and the recipe is strict.
    """
    source = recipe.open_source()
    strict = recipe.quality.strict
    look = FirstLook(source, strict=strict, agreeing=1 if strict or recipe.records else 2)
    plan = make_plan(recipe, source, look)
    steps, num_bytes, seconds, excluded, read = _read_some(source, plan)
    rows = sum(ref.num_rows or 0 for ref in read)
    # Steps follow from the rows that a source declares; where it declares none, from the mean.
    per_row = steps / rows if rows else 0.0
    mean = steps / len(read) if read else 0.0
    splits = {}
    for split in SPLITS:
        refs = [ref for ref in plan.refs if plan.split_of[ref.key] == split]
        num_steps = sum(per_row * ref.num_rows if ref.num_rows else mean for ref in refs)
        splits[split] = SplitPlan(
            num_episodes=len(refs),
            num_steps=round(num_steps),
            num_shards=sum(shard.split == split for shard in plan.shards),
            num_bytes=round(num_steps * num_bytes / max(1, steps)),
        )
    total = sum(part.num_steps for part in splits.values())
    workers = max(1, min(num_workers, len(plan.shards)))
    return DryRun(
        name=recipe.name,
        splits=splits,
        excluded={**excluded, **look.problems},
        gaps=tuple(gap.text for gap in source.gaps()),
        num_timed=len(read),
        num_workers=workers,
        seconds=seconds * total / max(1, steps) / workers,
    )


def _read_some(
    source: Source, plan: Plan
) -> tuple[int, int, float, dict[str, str], Sequence[EpisodeRef]]:
    """Steps, bytes and seconds of a few episodes, those that cannot be used, and the usable."""
    steps, num_bytes = 0, 0
    excluded: dict[str, str] = {}
    usable: list[EpisodeRef] = []
    start = time.monotonic()
    for ref in islice((ref for shard in plan.shards for ref in shard.refs), NUM_TIMED):
        found = load_one(source, ref)
        if not isinstance(found, Episode):
            excluded[ref.key] = str(found)
            continue
        usable.append(ref)
        arrays = arrays_of(found)
        steps += len(arrays["action"])
        num_bytes += sum(array.nbytes for array in arrays.values())
    return steps, num_bytes, time.monotonic() - start, excluded, usable
