"""A Lightning data module over a dataset folder; resumes at the exact batch."""

import logging
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from tokenwm.data.episode import Segment
from tokenwm.data.loader import GlobalOrderSampler, WindowDataset, collate, evenly_spaced
from tokenwm.data.manifest import Manifest
from tokenwm.data.shards import ShardReader
from tokenwm.errors import ShardError

logger = logging.getLogger(__name__)

Loader = DataLoader[Segment]
TOKEN_FIELDS = ("frame_tokens", "state_tokens", "action_tokens", "reward", "terminated")


class EpisodeDataModule(pl.LightningDataModule):
    """Windows of recorded episodes, shuffled for training, fixed for validation.

    Training batches never end: stop with ``max_steps`` and validate with ``val_check_interval``
    in steps and ``check_val_every_n_epoch: null``. Their order follows from the seed and the
    trainer's global step, so a resumed run sees what an uninterrupted one would. Keep
    ``val_check_interval`` a multiple of ``accumulate_grad_batches``: a checkpoint in the middle of
    an accumulated step has lost the gradients of its first part.

    Args:
        root: Dataset folder made by `tokenwm prepare` (frames) or `tokenwm tokenize` (tokens).
        num_steps: Consecutive steps per window, in steps at the control rate of the dataset.
        batch_size: Windows per batch on each device.
        val_batch_size: Windows per validation batch; the same as batch_size if not given.
        num_val_batches: Validation batches, all devices together, evenly spread over the split.
        num_workers: Processes that read ahead; 0 reads in the training process, which is enough
            while the data fits into memory.
        seed: Seed of the order of the training windows.
        verify: Whether to check the SHA-256 of every shard before training.

    Raises:
        ShardError: The folder holds no finished dataset, or a damaged one.
    """

    def __init__(
        self,
        root: str,
        num_steps: int,
        batch_size: int,
        val_batch_size: int | None = None,
        num_val_batches: int = 16,
        num_workers: int = 0,
        seed: int = 0,
        verify: bool = True,
    ) -> None:
        super().__init__()
        for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
            if value < 1:
                raise ShardError(f"{name} is {value}; it must be at least 1")
        if num_val_batches < 1 or (val_batch_size is not None and val_batch_size < 1):
            raise ShardError(
                f"num_val_batches {num_val_batches} and val_batch_size {val_batch_size} must be "
                "at least 1"
            )
        self.root = root
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.num_val_batches = num_val_batches
        self.num_workers = num_workers
        self.seed = seed
        self.verify = verify
        self._manifest: Manifest | None = None
        self._datasets: dict[str, WindowDataset] = {}

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset; known before any Trainer exists."""
        if self._manifest is None:
            self._manifest = Manifest.load(self.root)
        return self._manifest

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the batches: frames, or tokens with reward and termination."""
        if self.manifest.kind == "tokens":
            return tuple(name for name in TOKEN_FIELDS if name in self.manifest.features)
        return ("frames",)

    def prepare_data(self) -> None:
        """Check the dataset; Lightning calls this once per machine."""
        if self.verify:
            ShardReader(self.root, verify=True)
            num_bytes = sum(shard.num_bytes for shard in self.manifest.shards)
            logger.info("%s: %.1f MB verified", self.root, num_bytes / 1e6)

    def train_dataloader(self) -> Loader:
        """Endless batches that begin at the trainer's global step."""
        dataset = self._dataset("train")
        rank, world_size = self._rank()
        # Asked anew at each iteration, since `limit_train_batches` makes Lightning iterate again.
        sampler = GlobalOrderSampler(
            num_windows=len(dataset),
            batch_size=self.batch_size,
            seed=self.seed,
            start_step=self._num_batches_seen,
            rank=rank,
            world_size=world_size,
        )
        return self._loader(dataset, sampler)

    def val_dataloader(self) -> Loader | list[Loader]:
        """The same windows every time; none when fitting a dataset without a val split."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.manifest.num_episodes("val") == 0:
            logger.warning("%s has no val split: training without validation", self.root)
            return []
        return self._fixed_loader("val")

    def test_dataloader(self) -> Loader:
        """The same windows every time."""
        return self._fixed_loader("test")

    def _dataset(self, split: str) -> WindowDataset:
        if split not in self._datasets:
            self._datasets[split] = WindowDataset(self.root, split, self.num_steps, self.fields)
        return self._datasets[split]

    def _num_batches_seen(self) -> int:
        if self.trainer is None:
            return 0
        return int(self.trainer.global_step * self.trainer.accumulate_grad_batches)

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _fixed_loader(self, split: str) -> Loader:
        dataset = self._dataset(split)
        rank, world_size = self._rank()
        size = self.val_batch_size
        windows = evenly_spaced(len(dataset), self.num_val_batches * size, rank, world_size)
        batches = [windows[first : first + size] for first in range(0, len(windows), size)]
        return self._loader(dataset, batches)

    def _loader(self, dataset: WindowDataset, batches: Any) -> Loader:
        # Always a batch sampler of our own: Lightning then refuses, rather than quietly adds, a
        # distributed sampler on top of the split by rank that is already made here.
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )
