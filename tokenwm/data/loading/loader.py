"""The processes that read ahead."""

import signal
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from tokenwm.data.loading.windows import Batch


def make_loader(
    dataset: Dataset[Any],
    batches: Any,
    join: Callable[..., Batch],
    num_workers: int,
    start_method: str,
) -> DataLoader[Any]:
    """A loader of batches in a given order.

    Args:
        dataset: What each place of a batch names a part of.
        batches: Lists of places, each list a batch.
        join: Parts → batch.
        num_workers: Processes; 0 reads in this one.
        start_method: How they are started: fork or spawn.
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
