"""A Lightning data module over datasets; resumes at the exact batch."""

import logging
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as pl
from torch.utils.data import DataLoader

from tokenwm.data.loading.background import BackgroundCheck, unchecked_files
from tokenwm.data.loading.loader import check_arguments, make_loader
from tokenwm.data.loading.mixture import MixedWindows, MixtureItem, Stratum, make_strata
from tokenwm.data.loading.order import Leg, Weighting, evenly_spaced
from tokenwm.data.loading.resume import (
    CorruptEpisodes,
    RunPlace,
    check_whole_steps,
    of_all_ranks,
    weighting_options,
)
from tokenwm.data.loading.windows import Batch, WindowDataset, collate
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.ranges import copy_small_files
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.folder import is_url

logger = logging.getLogger(__name__)

Loader = DataLoader[Any]
TOKEN_FIELDS = ("frame_tokens", "state_tokens", "action_tokens", "reward", "terminated")


class EpisodeDataModule(pl.LightningDataModule):
    """Windows of recorded episodes, shuffled for training, fixed for validation.

    Training batches never end: stop with ``max_steps`` and validate with ``val_check_interval``
    in steps and ``check_val_every_n_epoch: null``. Their order follows from the seed and the
    trainer's global step, so a resumed run sees what an uninterrupted one would. Resumed with
    another batch size or number of ranks it goes on with the first window it has not seen; with
    another order it is refused. Keep ``val_check_interval`` a multiple of
    ``accumulate_grad_batches``: a checkpoint in the middle of an accumulated step has lost the
    gradients of its first part. ``limit_train_batches`` must be one, if it is set.

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
        verify: Whether to check the SHA-256 of every shard before training; of more than a GiB, the
            sum of each episode when it is first read, and shards in the background. Shards behind
            a URL are checked when they are copied to the cache.
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
        loader: How training windows are read: offset seeks each of them in a shuffle of all;
            stream reads shards from start to end, for stores where seeking is dear.
        shuffle_windows: Windows that each process of the stream loader shuffles at a time; it holds
            twice as many, with all the steps of their episodes.

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
        loader: Literal["offset", "stream"] = "offset",
        shuffle_windows: int = 4096,
    ) -> None:
        super().__init__()
        check_arguments(locals())
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
        self.cache = cache
        self.cache_gigabytes = cache_gigabytes
        self.start_method = start_method
        self.loader = loader
        self.shuffle_windows = shuffle_windows
        self.corrupt = CorruptEpisodes(max_corrupt)
        self._readers: list[ShardReader] = []
        self._strata: list[Stratum] = []
        self._place: RunPlace | None = None
        self._small_files: Path | None = None
        self._background: BackgroundCheck | None = None

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
            for reader in self._readers:
                checked_before = reader.is_quick_to_verify and not is_url(reader.root)
                reader.check_episodes |= self.verify and not checked_before
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
        """The main dataset's folder; of a URL, a local copy of all of its files but the shards."""
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
            items = list(zip(self.items, self.readers, strict=True))
            self._strata = make_strata(
                items, self.num_steps, self.fields, self.seed, self.real_fraction
            )
        return self._strata

    @property
    def place(self) -> RunPlace:
        """The place of the run in its training windows."""
        if self._place is None:
            options: dict[str, Any] = {"data.seed": self.seed, "data.num_steps": self.num_steps}
            options["data.loader"] = self.loader
            if self.loader == "stream":
                options["data.shuffle_windows"] = self.shuffle_windows
            self._place = RunPlace(
                self.strata,
                options | weighting_options(self.items),
                batch_size=self.batch_size,
                world_size=self._rank()[1],
                accumulate=1 if self.trainer is None else self.trainer.accumulate_grad_batches,
                lanes_per_rank=max(1, self.num_workers),
            )
        return self._place

    @property
    def legs(self) -> list[Leg]:
        """The parts of the run so far, each with a batch size of its own; mostly one."""
        return self.place.legs

    @property
    def windows_seen(self) -> int:
        """Windows trained on before the trainer's global step, all ranks together."""
        return sum(self.place.drawn_before(self._step()))

    def prepare_data(self) -> None:
        """Check the datasets; Lightning calls this once per machine."""
        if not self.verify or self.on_corrupt == "skip" or self.loader == "stream":
            return  # the last two check each episode when it is read
        for reader in self.readers:
            if is_url(reader.root):
                continue
            reader.verify(shards=reader.is_quick_to_verify)
            num_bytes = sum(shard.num_bytes for shard in reader.manifest.shards)
            when = "verified" if reader.is_quick_to_verify else "are verified as they are read"
            logger.info("%s: %.1f MB %s", reader.root, num_bytes / 1e6, when)
        files = unchecked_files(self.readers, self.cache)
        if files and self._background is None:
            self._background = BackgroundCheck(files)

    def train_dataloader(self) -> Loader:
        """Endless batches that begin at the trainer's global step.

        Raises:
            ShardError: ``trainer.limit_train_batches`` is no multiple of
                ``trainer.accumulate_grad_batches``.
        """
        check_whole_steps(self.trainer)
        for stratum in self.strata:
            logger.info("%s: %.2f %% of the windows", stratum.name, 100 * float(stratum.share))
        # Asked anew at each iteration, since `limit_train_batches` makes Lightning iterate again.
        batches = self.place.batches(self._rank()[0], self._step, self.on_corrupt == "skip")
        return make_loader(*batches, self.num_workers, self.start_method)

    def val_dataloader(self) -> Loader | list[Loader]:
        """A loader of fixed validation windows; none when fitting a dataset without a val split."""
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if fitting and self.manifest.num_episodes("val") == 0:
            logger.warning("%s has no val split: training without validation", self.root)
            return []
        return self._fixed_loader("val")

    def test_dataloader(self) -> Loader:
        """A loader of fixed test windows."""
        return self._fixed_loader("test")

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Count what was skipped; all ranks together, so that all of them stop.

        Raises:
            CorruptSampleError: More than ``max_corrupt`` episodes were skipped.
            ShardError: A shard was found damaged in the background: by the first rank of each node,
                which alone looks for it; what launched the others ends them.
        """
        if self._background is not None:
            self._background.raise_damage()
        if self.on_corrupt == "skip":
            self.corrupt.add(of_all_ranks(batch.skipped, self.trainer))
        return batch

    def state_dict(self) -> dict[str, Any]:
        """State for a checkpoint: episodes skipped, windows seen, what their order follows from."""
        state: dict[str, Any] = {"corrupt": dict(self.corrupt)}
        if self.trainer is not None and self._strata:
            state |= self.place.state(self._step())
        return state

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on counting, and with the first window that was not seen.

        Raises:
            CheckpointError: The windows came in another order than they would from here on.
        """
        self.corrupt.update(state_dict.get("corrupt", {}))
        if self.trainer is not None and self.trainer.state.fn != "fit":
            return
        if "order" not in state_dict:
            logger.warning(
                "the checkpoint is of an older tokenwm and does not say which windows were seen: "
                "going on as if batch size, ranks, seed and data.num_steps were as before"
            )
            return
        self._place = None
        self.place.go_on(state_dict)

    def check_order(self, state_dict: Mapping[str, Any]) -> None:
        """Check that windows come in the order in which they came before this state was saved.

        Raises:
            CheckpointError: Names what differs, and both values.
        """
        self.place.check(state_dict)

    def _step(self) -> int:
        return 0 if self.trainer is None else self.trainer.global_step

    def _rank(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _fixed_loader(self, split: str) -> Loader:
        windows = WindowDataset(self.readers[0], split, self.num_steps, self.fields)
        size = self.val_batch_size
        chosen = evenly_spaced(len(windows), self.num_val_batches * size, *self._rank())
        places = [(0, window) for window in chosen]
        batches = [places[first : first + size] for first in range(0, len(places), size)]
        parts = [(self.manifest.name, windows)]
        dataset = MixedWindows(parts, skip_corrupt=self.on_corrupt == "skip")
        return make_loader(dataset, batches, collate, self.num_workers, self.start_method)
