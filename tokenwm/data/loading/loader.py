"""The arguments of a data module, and the processes that read ahead."""

import signal
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tokenwm.data.loading.windows import Batch
from tokenwm.errors import ShardError

LEAST = {
    "num_steps": 1,
    "batch_size": 1,
    "val_batch_size": 1,
    "num_val_batches": 1,
    "num_workers": 0,
    "shuffle_windows": 1,
}
"""Arguments of :class:`EpisodeDataModule` that are numbers, and the smallest that makes sense."""


def check_arguments(given: Mapping[str, Any]) -> None:
    """Check arguments of :class:`EpisodeDataModule` by their names.

    Raises:
        ShardError: One is out of range, or does not go with another.
    """
    for name, least in LEAST.items():
        if given[name] is not None and given[name] < least:
            raise ShardError(f"{name} is {given[name]}; it must be at least {least}")
    if not 0 <= given["seed"] < 2**64:
        raise ShardError(f"seed {given['seed']} is outside [0, 2**64)")
    if given["loader"] == "stream":
        needs_offsets = ("mixture", "weighting", "real_fraction", "on_corrupt", "cache")
        for name in needs_offsets:
            if given[name] not in (None, [], "error"):
                raise ShardError(
                    f"data.loader stream reads one dataset from start to end, which data.{name} "
                    "does not go with; leave it out, or use data.loader offset"
                )


def make_loader(
    dataset: Dataset[Any],
    batches: Any,
    join: Callable[..., Batch],
    num_workers: int,
    start_method: str,
) -> DataLoader[Any]:
    """A loader of batches in a given order.

    Args:
        dataset: Dataset that the numbers of a batch refer to.
        batches: Lists of places, each list a batch.
        join: Parts → batch.
        num_workers: Processes; 0 reads in this one.
        start_method: Start method of the processes: fork or spawn.
    """
    # Always a batch sampler of our own: Lightning then refuses, rather than quietly adds, a
    # distributed sampler on top of the split by rank that is already made here.
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=join,
        num_workers=num_workers,
        worker_init_fn=ignore_signals,
        multiprocessing_context=start_method if num_workers else None,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which all processes of a run get, to the one that trains.

    It needs a worker's batches until it has come to the end of its step; workers end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
