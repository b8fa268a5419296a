"""The place of a run in its data, and the check that another run may go on from there."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils.data import Dataset, Sampler

from tokenwm.data.episode import CorruptSample
from tokenwm.data.loading.mixture import MixedWindows, MixtureItem, Stratum
from tokenwm.data.loading.order import MOST_SORTED, GlobalOrderSampler, Leg
from tokenwm.data.loading.stream import (
    EndlessNumbers,
    Lanes,
    StreamedBatches,
    StreamOrder,
    only_one,
)
from tokenwm.data.loading.windows import Batch, collate
from tokenwm.errors import CheckpointError, CorruptSampleError, ShardError
from tokenwm.resume import REMEDY, check_options

logger = logging.getLogger(__name__)


class RunPlace:
    """The place of a run in its training windows, as a function of its optimizer steps.

    Args:
        strata: Sources of windows.
        options: Options of the data module that decide the order of the windows, by name.
        batch_size: Windows per batch on each rank.
        world_size: Ranks.
        accumulate: Batches of an optimizer step.
        lanes_per_rank: Lanes of the stream loader on each rank.

    Attributes:
        legs: The parts of the run so far, each with a batch size of its own; mostly one.
        stream: Order of the stream loader from here on; None where windows are read by offset.
    """

    def __init__(
        self,
        strata: Sequence[Stratum],
        options: Mapping[str, Any],
        *,
        batch_size: int,
        world_size: int,
        accumulate: int,
        lanes_per_rank: int = 1,
    ) -> None:
        self._strata = strata
        self._options = dict(options)
        for part in strata:
            self._options[f"the number of windows of {part.name}"] = len(part.windows)
            self._options[f"the share of {part.name}"] = str(part.share)
            if len(part.windows) > MOST_SORTED:  # once their order was a sorted list, too
                self._options[f"the order of {part.name}"] = "scattered"
        self._sizes = (batch_size, world_size)
        self._shares = [stratum.share for stratum in strata]
        self._new = Leg(
            drawn=(0,) * len(strata), batch_windows=batch_size * world_size, accumulate=accumulate
        )
        self.legs = [self._new]
        self.stream: StreamOrder | None = None
        if options["data.loader"] == "stream":
            lanes = Lanes(batch_size=batch_size, world_size=world_size, per_rank=lanes_per_rank)
            self.stream = StreamOrder(
                strata[0].windows, options["data.seed"], options["data.shuffle_windows"], lanes
            )

    def batches_before(self, step: int) -> int:
        """Batches of each rank before an optimizer step."""
        return self.legs[-1].batches_before(step)

    def drawn_before(self, step: int) -> list[int]:
        """Windows of each stratum that were seen before an optimizer step."""
        return self.legs[-1].drawn_before(self._shares, self.batches_before(step))

    def batches(
        self, rank: int, step: Callable[[], int], skip_corrupt: bool = False
    ) -> tuple[Dataset[Any], Sampler[Any], Callable[..., Batch]]:
        """The three parts of a loader: windows, the sampler that orders them, the collate function.

        Args:
            rank: Number of this process.
            step: Says how many optimizer steps there were; asked at each new iteration.
            skip_corrupt: See :class:`MixedWindows`.
        """

        def first() -> int:
            return self.batches_before(step())

        if self.stream is not None:
            streamed = StreamedBatches(self.stream, self._strata[0].name, rank)
            return streamed, EndlessNumbers(first), only_one
        windows = [(stratum.name, stratum.windows) for stratum in self._strata]
        batch_size, world_size = self._sizes
        sampler = GlobalOrderSampler(
            orders=[stratum.order for stratum in self._strata],
            shares=self._shares,
            batch_size=batch_size,
            start_step=first,
            rank=rank,
            world_size=world_size,
            leg=self.legs[-1],
        )
        return MixedWindows(windows, skip_corrupt), sampler, collate

    def state(self, step: int) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "order": self._options,
            "legs": [asdict(leg) for leg in self.legs],
            "step": step,
            "batches_seen": self.batches_before(step),
            "windows_seen": self.drawn_before(step),
            "lanes": None if self.stream is None else asdict(self.stream.lanes),
        }

    def check(self, state: Mapping[str, Any]) -> None:
        """Check that windows come in the order in which they came before a state was saved.

        Raises:
            CheckpointError: Names what differs, and both values.
        """
        if not state.get("order"):
            return
        before, step = {"data.loader": "offset", **state["order"]}, state["step"]
        names = {**before, **self._options}
        check_options(
            {name: before.get(name) for name in names},
            {name: self._options.get(name) for name in names},
            step,
        )
        accumulate, accumulated = self._new.accumulate, state["legs"][-1]["accumulate"]
        batches = state["batches_seen"]
        if accumulate != accumulated and batches % accumulate:
            raise CheckpointError(
                f"trainer.accumulate_grad_batches is {accumulate}, but {accumulated} in the run to "
                f"be continued (step {step}): its {batches} batches are no multiple of "
                f"{accumulate}; give a divisor of {batches}, or {REMEDY}"
            )

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on with the first window that was not seen; begin a new leg where sizes differ."""
        self.check(state)
        step, batches = state["step"], state["batches_seen"]
        self.legs = [Leg(**{**leg, "drawn": tuple(leg["drawn"])}) for leg in state["legs"]]
        sizes = (self.legs[-1].batch_windows, self.legs[-1].accumulate)
        if sizes != (self._new.batch_windows, self._new.accumulate):
            drawn = tuple(state["windows_seen"])
            now = replace(self._new, first_step=step, first_batch=batches, drawn=drawn)
            self.legs = [*(leg for leg in self.legs if leg.first_step < step), now]
        if self.stream is not None:
            self.stream = self.stream.after(Lanes(**state["lanes"]), batches)


def weighting_options(items: Sequence[MixtureItem]) -> dict[str, str]:
    """The weightings that the order of the windows follows from, by name."""
    return {
        f"weighting of data.mixture[{number - 1}]" if number else "weighting of data": getattr(
            item.weighting, "__qualname__", type(item.weighting).__qualname__
        )
        for number, item in enumerate(items)
        if item.weighting is not None
    }


def check_whole_steps(trainer: Any) -> None:
    """Check ``limit_train_batches``: Lightning ends each round of it with a step, whole or not.

    Raises:
        ShardError: It is no multiple of ``accumulate_grad_batches``.
    """
    if trainer is None or trainer.fast_dev_run:
        return
    limit, accumulate = trainer.limit_train_batches, trainer.accumulate_grad_batches
    # As a float it is a share of an epoch, and Lightning refuses all but 1.0.
    if isinstance(limit, int) and limit % accumulate:
        raise ShardError(
            f"trainer.limit_train_batches {limit} is no multiple of "
            f"trainer.accumulate_grad_batches {accumulate}: every {limit} batches a step would "
            f"have {limit % accumulate} of its {accumulate} batches, and the others would never be "
            f"trained on; use {limit - limit % accumulate or accumulate}, or leave it out and set "
            "max_steps"
        )


class CorruptEpisodes(dict[str, str]):
    """Episodes that were skipped: ``root: key`` → what is wrong with them.

    Args:
        most: Most episodes that may be skipped.
    """

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def add(self, samples: Sequence[CorruptSample]) -> None:
        """Count samples that were skipped.

        Raises:
            CorruptSampleError: There are too many.
        """
        for sample in samples:
            name = f"{sample.root}: {sample.key}"
            if name not in self:
                self[name] = sample.reason
                logger.warning("skipped, %d so far: %s", len(self), sample.reason)
        if len(self) > self._most:
            raise CorruptSampleError(
                f"{len(self)} episodes are damaged, more than max_corrupt {self._most}; the last "
                f"one: {list(self.values())[-1]}"
            )


def of_all_ranks(samples: Sequence[CorruptSample], trainer: Any) -> list[CorruptSample]:
    """Corrupt samples that any rank has met in this batch; every rank must ask."""
    if trainer is None or trainer.world_size == 1:
        return list(samples)
    strategy = trainer.strategy
    count = torch.tensor(len(samples), device=strategy.root_device)
    if not strategy.reduce(count, reduce_op="sum"):  # nearly always: then one number is all
        return []
    parts: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(parts, list(samples))
    return [sample for part in parts for sample in part]
