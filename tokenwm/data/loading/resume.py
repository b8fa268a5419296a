"""Where a run is in its data, and whether another run may go on from there."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch

from tokenwm.data.episode import CorruptSample
from tokenwm.data.loading.mixture import MixtureItem, Stratum
from tokenwm.data.loading.order import Leg
from tokenwm.data.loading.stream import Lanes, StreamOrder
from tokenwm.errors import CheckpointError, ShardError
from tokenwm.resume import REMEDY, check_options


class RunPlace:
    """Where a run is in its training windows, as a function of its optimizer steps.

    Args:
        strata: What windows are drawn from.
        batch_size: Windows per batch on each rank.
        world_size: Ranks.
        accumulate: Batches of an optimizer step.
        stream: Order of the stream loader; None where windows are read by offset.

    Attributes:
        legs: The parts of the run so far, each with a batch size of its own; mostly one.
        stream: Order of the stream loader from here on.
    """

    def __init__(
        self,
        strata: Sequence[Stratum],
        *,
        batch_size: int,
        world_size: int,
        accumulate: int,
        stream: StreamOrder | None = None,
    ) -> None:
        self._shares = [stratum.share for stratum in strata]
        self._new = Leg(
            drawn=(0,) * len(strata), batch_windows=batch_size * world_size, accumulate=accumulate
        )
        self.legs = [self._new]
        self.stream = stream

    def batches_before(self, step: int) -> int:
        """Batches of each rank before an optimizer step."""
        return self.legs[-1].batches_before(step)

    def drawn_before(self, step: int) -> list[int]:
        """Windows of each stratum that were seen before an optimizer step."""
        return self.legs[-1].drawn_before(self._shares, self.batches_before(step))

    def state(self, step: int) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "legs": [asdict(leg) for leg in self.legs],
            "step": step,
            "batches_seen": self.batches_before(step),
            "windows_seen": self.drawn_before(step),
            "lanes": None if self.stream is None else asdict(self.stream.lanes),
        }

    def go_on(self, state: Mapping[str, Any]) -> None:
        """Go on with the first window that was not seen; begin a new leg where sizes differ."""
        step, batches = state["step"], state["batches_seen"]
        self.legs = [Leg(**{**leg, "drawn": tuple(leg["drawn"])}) for leg in state["legs"]]
        sizes = (self.legs[-1].batch_windows, self.legs[-1].accumulate)
        if sizes != (self._new.batch_windows, self._new.accumulate):
            drawn = tuple(state["windows_seen"])
            now = replace(self._new, first_step=step, first_batch=batches, drawn=drawn)
            self.legs = [*(leg for leg in self.legs if leg.first_step < step), now]
        if self.stream is not None:
            self.stream = self.stream.after(Lanes(**state["lanes"]), batches)


def strata_options(strata: Sequence[Stratum], items: Sequence[MixtureItem]) -> dict[str, Any]:
    """All of the datasets that the order of the windows follows from, as plain values."""
    options: dict[str, Any] = {}
    for part in strata:
        options[f"the number of windows of {part.name}"] = len(part.windows)
        options[f"the share of {part.name}"] = str(part.share)
    for number, item in enumerate(items):
        if item.weighting is not None:
            kind = getattr(item.weighting, "__qualname__", type(item.weighting).__qualname__)
            name = f"data.mixture[{number - 1}]" if number else "data"
            options[f"weighting of {name}"] = kind
    return options


def check_order(state: Mapping[str, Any], now: Mapping[str, Any], accumulate: int) -> None:
    """Check that windows come in the order in which they came before a state was saved.

    Args:
        state: State of a data module.
        now: Options that the order follows from.
        accumulate: Batches of an optimizer step.

    Raises:
        CheckpointError: Names what differs, and both values.
    """
    if not state.get("order"):
        return
    before, step = {"data.loader": "offset", **state["order"]}, state["step"]
    names = {**before, **now}
    check_options(
        {name: before.get(name) for name in names}, {name: now.get(name) for name in names}, step
    )
    accumulated, batches = state["legs"][-1]["accumulate"], state["batches_seen"]
    if accumulate != accumulated and batches % accumulate:
        raise CheckpointError(
            f"trainer.accumulate_grad_batches is {accumulate}, but {accumulated} in the run to be "
            f"continued (step {step}): its {batches} batches are no multiple of {accumulate}; give "
            f"a divisor of {batches}, or {REMEDY}"
        )


def check_whole_steps(limit: int | float, accumulate: int) -> None:
    """Check ``limit_train_batches``: Lightning ends each round of it with a step, whole or not.

    Raises:
        ShardError: It is no multiple of ``accumulate_grad_batches``.
    """
    # As a float it is a share of an epoch, and Lightning refuses all but 1.0.
    if isinstance(limit, int) and limit % accumulate:
        raise ShardError(
            f"trainer.limit_train_batches {limit} is no multiple of "
            f"trainer.accumulate_grad_batches {accumulate}: every {limit} batches a step would "
            f"have {limit % accumulate} of its {accumulate} batches, and the others would never be "
            f"trained on; use {limit - limit % accumulate or accumulate}, or leave it out and set "
            "max_steps"
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
