"""A Lightning data module over datasets; resumes at the exact batch."""

import logging
import shutil
import signal
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader

from tokenwm.data.episode import CorruptSample, Segment
from tokenwm.data.loading.mixture import MixedWindows, MixtureItem, Stratum, make_strata
from tokenwm.data.loading.order import GlobalOrderSampler, Leg, Weighting, evenly_spaced
from tokenwm.data.loading.windows import Batch, WindowDataset, collate
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.ranges import copy_small_files
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.folder import is_url
from tokenwm.errors import CheckpointError, CorruptSampleError, ShardError
from tokenwm.resume import REMEDY, check_options

logger = logging.getLogger(__name__)

Loader = DataLoader[Segment]
TOKEN_FIELDS = ("frame_tokens", "state_tokens", "action_tokens", "reward", "terminated")


class EpisodeDataModule(pl.LightningDataModule):
    """Windows of recorded episodes, shuffled for training, fixed for validation.

    Training batches never end: stop with ``max_steps`` and validate with ``val_check_interval``
    in steps and ``check_val_every_n_epoch: null``. Their order follows from the seed and the
    trainer's global step, so a resumed run sees what an uninterrupted one would. Resumed with
    another batch size or number of ranks it goes on with the first window it has not seen; with
    another order it is refused. Keep
    ``val_check_interval`` a multiple of ``accumulate_grad_batches``: a checkpoint in the middle of
    an accumulated step has lost the gradients of its first part. ``limit_train_batches`` must be
    one, if it is set.

    Args:
        root: Dataset made by `tokenwm prepare` (frames) or `tokenwm tokenize` (tokens): a folder or
            a URL. Validation windows and all that a model must know of its data come from here.
        num_steps: Consecutive steps per window, in steps at the control rate of the dataset.
        batch_size: Windows per batch on each device.
        val_batch_size: Windows per validation batch; the same as batch_size if not given.
        num_val_batches: Validation batches, all devices together, evenly spread over the split.
        num_workers: Processes that read ahead; 0 reads in the training process, which is enough
            while the data fits into memory.
        seed: Seed of the order of the training windows.
        verify: Whether to check the SHA-256 of every shard before training; shards behind a URL are
            checked when they are copied to the cache.
        weighting: Function (episodes, step) -> how often windows of each episode are drawn; by
            default all windows are drawn alike.
        mixture: Datasets to train on besides, each with its weight: windows drawn from it for each
            window of the first.
        real_fraction: Share of the training windows that recorded episodes have, in [0, 1]; the
            rest are synthetic. Not given: as the weights make it.
        on_corrupt: What an episode with damaged bytes does: error stops, skip lets another window
            stand in for it and counts. With skip each episode is checked when it is first read,
            instead of all before training.
        max_corrupt: Episodes that may be skipped before training stops.
        cache: Folder for copies of shards behind a URL; by default ranges of them are read.
        cache_gigabytes: What that folder may hold; shards beyond it are read by ranges.
        start_method: How the processes that read ahead are started: fork or spawn.

    Raises:
        ShardError: The folder holds no finished dataset, or a damaged one, or the datasets of a
            mixture do not fit together.
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
        weighting: Weighting | None = None,
        mixture: list[MixtureItem] | None = None,
        real_fraction: float | None = None,
        on_corrupt: Literal["error", "skip"] = "error",
        max_corrupt: int = 10,
        cache: str | None = None,
        cache_gigabytes: float | None = None,
        start_method: Literal["fork", "spawn"] = "fork",
    ) -> None:
        super().__init__()
        for name, value in (("num_steps", num_steps), ("batch_size", batch_size)):
            if value < 1:
                raise ShardError(f"{name} is {value}; it must be at least 1")
        if num_workers < 0:
            raise ShardError(f"num_workers is {num_workers}; it must be at least 0")
        if num_val_batches < 1 or (val_batch_size is not None and val_batch_size < 1):
            raise ShardError(
                f"num_val_batches {num_val_batches} and val_batch_size {val_batch_size} must be "
                "at least 1"
            )
        if not 0 <= seed < 2**64:
            raise ShardError(f"seed {seed} is outside [0, 2**64)")
        self.items = [MixtureItem(root=root, weighting=weighting), *(mixture or [])]
        self.root = root
        self.num_steps = num_steps
        self.batch_size = batch_size
        self.val_batch_size = batch_size if val_batch_size is None else val_batch_size
        self.num_val_batches = num_val_batches
        self.num_workers = num_workers
        self.seed = seed
        self.verify = verify
        self.real_fraction = real_fraction
        self.on_corrupt = on_corrupt
        self.max_corrupt = max_corrupt
        self.cache = cache
        self.cache_gigabytes = cache_gigabytes
        self.start_method = start_method
        self.corrupt: dict[str, str] = {}  # "root: key" → reason
        self._readers: list[ShardReader] = []
        self._strata: list[Stratum] = []
        self._legs: list[Leg] = []
        self._small_files: Path | None = None

    @property
    def readers(self) -> list[ShardReader]:
        """A reader of every dataset, the main one first; known before any Trainer exists."""
        if not self._readers:
            gigabytes = self.cache_gigabytes
            self._readers = [
                ShardReader(
                    item.root,
                    check_episodes=self.on_corrupt == "skip",
                    cache=self.cache,
                    cache_bytes=None if gigabytes is None else int(gigabytes * 1e9),
                )
                for item in self.items
            ]
        return self._readers

    @property
    def manifest(self) -> Manifest:
        """The manifest of the main dataset."""
        return self.readers[0].manifest

    @property
    def shard_digests(self) -> list[str]:
        """SHA-256 of every shard of every dataset: what a run was trained on."""
        return [shard.sha256 for reader in self.readers for shard in reader.manifest.shards]

    @property
    def folder(self) -> Path:
        """Where the main dataset's files lie, but its shards if its root is a URL."""
        if not is_url(self.root):
            return self.readers[0].folder
        if self._small_files is None:
            folder = Path(tempfile.mkdtemp(prefix="tokenwm-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            copy_small_files(self.root, folder)
            self._small_files = folder
        return self._small_files

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields of the batches: frames, or tokens with reward and termination."""
        if self.manifest.kind == "tokens":
            return tuple(name for name in TOKEN_FIELDS if name in self.manifest.features)
        return ("frames",)

    @property
    def strata(self) -> list[Stratum]:
        """Datasets, or parts of them, that training windows are drawn from in fixed shares.

        Raises:
            ShardError: ``num_steps`` is above the length of every training episode.
        """
        if not self._strata:
            self._check_num_steps()
            items = list(zip(self.items, self.readers, strict=True))
            self._strata = make_strata(
                items, self.num_steps, self.fields, self.seed, self.real_fraction
            )
        return self._strata

    @property
    def legs(self) -> list[Leg]:
        """The parts of the run so far, each with a batch size of its own; mostly one."""
        if not self._legs:
            self._legs = [self._next_leg(0, 0, (0,) * len(self.strata))]
        return self._legs

    @property
    def windows_seen(self) -> int:
        """Windows trained on before the trainer's global step, all ranks together."""
        return sum(self._drawn())

    def prepare_data(self) -> None:
        """Check the datasets; Lightning calls this once per machine."""
        if not self.verify or self.on_corrupt == "skip":
            return
        for reader in self.readers:
            if is_url(reader.root):
                continue
            reader.verify()
            num_bytes = sum(shard.num_bytes for shard in reader.manifest.shards)
            logger.info("%s: %.1f MB verified", reader.root, num_bytes / 1e6)

    def train_dataloader(self) -> Loader:
        """Endless batches that begin at the trainer's global step.

        Raises:
            ShardError: ``trainer.limit_train_batches`` is no multiple of
                ``trainer.accumulate_grad_batches``.
        """
        self._check_whole_steps()
        rank, world_size = self._rank()
        # Asked anew at each iteration, since `limit_train_batches` makes Lightning iterate again.
        sampler = GlobalOrderSampler(
            orders=[stratum.order for stratum in self.strata],
            shares=[stratum.share for stratum in self.strata],
            batch_size=self.batch_size,
            start_step=self._num_batches_seen,
            rank=rank,
            world_size=world_size,
            leg=self.legs[-1],
        )
        for stratum in self.strata:
            logger.info("%s: %.2f %% of the windows", stratum.name, 100 * float(stratum.share))
        return self._loader([(part.name, part.windows) for part in self.strata], sampler)

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

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count what was skipped; all ranks together, so that all of them stop.

        Raises:
            CorruptSampleError: More than ``max_corrupt`` episodes were skipped.
        """
        if self.on_corrupt == "skip":
            for sample in self._of_all_ranks(batch.skipped):
                name = f"{sample.root}: {sample.key}"
                if name not in self.corrupt:
                    self.corrupt[name] = sample.reason
                    logger.warning("skipped, %d so far: %s", len(self.corrupt), sample.reason)
            if len(self.corrupt) > self.max_corrupt:
                raise CorruptSampleError(
                    f"{len(self.corrupt)} episodes are damaged, more than max_corrupt "
                    f"{self.max_corrupt}; the last one: {list(self.corrupt.values())[-1]}"
                )
        return batch

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: episodes skipped, windows seen, what their order follows from."""
        state: dict[str, Any] = {"corrupt": dict(self.corrupt)}
        if self.trainer is not None and self._strata:
            state["order"] = self._order_options()
            state["legs"] = [asdict(leg) for leg in self.legs]
            state["step"] = self.trainer.global_step
            state["batches_seen"] = self._num_batches_seen()
            state["windows_seen"] = self._drawn()
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting, and with the first window that was not seen.

        Raises:
            CheckpointError: The windows came in another order than they would from here on.
        """
        self.corrupt = dict(state_dict.get("corrupt", {}))
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        if "order" not in state_dict:
            logger.warning(
                "the checkpoint is of an older tokenwm and does not say which windows were seen: "
                "going on as if batch size, ranks, seed and data.num_steps were as before"
            )
            return
        self.check_order(state_dict)
        legs = [Leg(**{**leg, "drawn": tuple(leg["drawn"])}) for leg in state_dict["legs"]]
        step = state_dict["step"]
        now = self._next_leg(step, state_dict["batches_seen"], tuple(state_dict["windows_seen"]))
        if (legs[-1].batch_windows, legs[-1].accumulate) != (now.batch_windows, now.accumulate):
            legs = [*(leg for leg in legs if leg.first_step < step), now]
        self._legs = legs

    def check_order(self, state_dict: Mapping[str, Any]) -> None:
        """Check that windows come in the order in which they came before this state was saved.

        Raises:
            CheckpointError: Names what differs, and both values.
        """
        before, now = state_dict.get("order", {}), self._order_options()
        if not before:
            return
        step, batches = state_dict["step"], state_dict["batches_seen"]
        names = {**before, **now}
        check_options(
            {name: before.get(name) for name in names},
            {name: now.get(name) for name in names},
            step,
        )
        accumulated, every = state_dict["legs"][-1]["accumulate"], self._accumulate()
        if every != accumulated and batches % every:
            raise CheckpointError(
                f"trainer.accumulate_grad_batches is {every}, but {accumulated} in the run to be "
                f"continued (step {step}): its {batches} batches are no multiple of {every}; give "
                f"a divisor of {batches}, or {REMEDY}"
            )

    def _order_options(self) -> dict[str, Any]:
        """All that the order of the windows follows from, by name, as plain values."""
        options: dict[str, Any] = {"data.seed": self.seed, "data.num_steps": self.num_steps}
        for part in self.strata:
            options[f"the number of windows of {part.name}"] = len(part.windows)
            options[f"the share of {part.name}"] = str(part.share)
        for number, item in enumerate(self.items):
            if item.weighting is not None:
                kind = getattr(item.weighting, "__qualname__", type(item.weighting).__qualname__)
                options[f"weighting of {_name_of_item(number)}"] = kind
        return options

    def _next_leg(self, step: int, batches: int, drawn: tuple[int, ...]) -> Leg:
        return Leg(
            first_step=step,
            first_batch=batches,
            drawn=drawn,
            batch_windows=self.batch_size * self._rank()[1],
            accumulate=self._accumulate(),
        )

    def _accumulate(self) -> int:
        return 1 if self.trainer is None else self.trainer.accumulate_grad_batches

    def _drawn(self) -> list[int]:
        """Windows of each stratum that were seen before the trainer's global step."""
        shares = [stratum.share for stratum in self.strata]
        return self.legs[-1].drawn_before(shares, self._num_batches_seen())

    def _check_num_steps(self) -> None:
        lengths = [
            episode.num_steps
            for reader in self.readers
            for episode in reader.manifest.episodes
            if episode.split == "train"
        ]
        if lengths and self.num_steps > max(lengths):
            raise ShardError(
                f"data.num_steps is {self.num_steps}, but the longest training episode of "
                f"{self.root} has {max(lengths)} steps; use at most {max(lengths)}"
            )

    def _of_all_ranks(self, samples: Sequence[CorruptSample]) -> list[CorruptSample]:
        if self.trainer is None or self._rank()[1] == 1:
            return list(samples)
        strategy = self.trainer.strategy
        count = torch.tensor(len(samples), device=strategy.root_device)
        if not strategy.reduce(count, reduce_op="sum"):  # nearly always: then one number is all
            return []
        parts: list[Any] = [None] * self._rank()[1]
        torch.distributed.all_gather_object(parts, list(samples))
        return [sample for part in parts for sample in part]

    def _check_whole_steps(self) -> None:
        """Lightning ends each round of ``limit_train_batches`` with a step, a whole one or not."""
        if self.trainer is None or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        limit, every = self.trainer.limit_train_batches, self.trainer.accumulate_grad_batches
        # As a float it is a share of an epoch, and Lightning refuses all but 1.0.
        if isinstance(limit, int) and limit % every:
            raise ShardError(
                f"trainer.limit_train_batches {limit} is no multiple of "
                f"trainer.accumulate_grad_batches {every}: every {limit} batches a step would have "
                f"{limit % every} of its {every} batches, and the others would never be trained "
                f"on; use {limit - limit % every or every}, or leave it out and set max_steps"
            )

    def _num_batches_seen(self) -> int:
        return 0 if self.trainer is None else self.legs[-1].batches_before(self.trainer.global_step)

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _fixed_loader(self, split: str) -> Loader:
        windows = WindowDataset(self.readers[0], split, self.num_steps, self.fields)
        rank, world_size = self._rank()
        size = self.val_batch_size
        chosen = evenly_spaced(len(windows), self.num_val_batches * size, rank, world_size)
        places = [(0, window) for window in chosen]
        batches = [places[first : first + size] for first in range(0, len(places), size)]
        return self._loader([(self.manifest.name, windows)], batches)

    def _loader(self, parts: Sequence[tuple[str, WindowDataset]], batches: Any) -> Loader:
        # Always a batch sampler of our own: Lightning then refuses, rather than quietly adds, a
        # distributed sampler on top of the split by rank that is already made here.
        return DataLoader(
            MixedWindows(parts, skip_corrupt=self.on_corrupt == "skip"),
            batch_sampler=batches,
            collate_fn=collate,
            num_workers=self.num_workers,
            worker_init_fn=ignore_signals,
            multiprocessing_context=self.start_method if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )


def ignore_signals(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which all processes of a run get, to the one that trains.

    It needs a worker's batches until it has come to the end of its step; workers end with it.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _name_of_item(number: int) -> str:
    return f"data.mixture[{number - 1}]" if number else "data"
