"""Lightning callbacks that write checkpoints, each whole or not at all."""

import os
import signal
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import Checkpoint

from tokenwm.data.storage.atomic import remove_whole, replace_folder

_STOPPING = "\nstopping at the end of this step, with a checkpoint; Ctrl-C again stops at once\n"


class ResumingCheckpoint(Checkpoint):
    """Writes the checkpoint for resuming: every so many steps, at the last, and when asked to stop.

    Ctrl-C and SIGTERM, with which Slurm announces the end of a job, end the run after the step at
    hand (in validation after the batch at hand), on all ranks at once, if any of them is asked to.

    Lightning alone overwrites the earlier one in place where it lies on another disk than temporary
    files do, and always if it is the folder with a part for each rank that its
    ``ModelParallelStrategy`` makes: killed meanwhile, a half file or parts of two steps were left.

    Args:
        path: File or folder; an older one is replaced.
        every_n_steps: Steps between checkpoints; not validations, a run may have none.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        self.path = path
        self.every_n_steps = every_n_steps
        self._step = self._saved_at = -1
        self._asked_by = 0
        self._handlers: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the signals; Lightning's own handlers have been set by now."""
        self._step = trainer.global_step
        self._asked_by = 0
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._handlers[number] = signal.signal(number, self._note)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Write one if it is time to, at the end of a whole step.

        Raises:
            KeyboardInterrupt: The run was asked to stop; its argument is the signal.
        """
        if trainer.global_step == self._step:
            return  # gradients of a part of the step only
        self._step = trainer.global_step
        asked_by = self._of_all_ranks(trainer)
        if asked_by or _has_ended(trainer) or self._step % self.every_n_steps == 0:
            self._save(trainer)
        if asked_by:
            raise KeyboardInterrupt(asked_by)

    def on_validation_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Stop within validation, which may be long; what it had not measured is left out.

        Raises:
            KeyboardInterrupt: The run was asked to stop; its argument is the signal.
        """
        if self._handlers and not trainer.sanity_checking:
            asked_by = self._of_all_ranks(trainer)
            if asked_by:
                self._save(trainer)
                raise KeyboardInterrupt(asked_by)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the last one, where something else than the number of steps ended the run.

        Raises:
            KeyboardInterrupt: The signal came too late to stop the run, but others may follow it.
        """
        if self._saved_at != trainer.global_step:
            self._save(trainer)
        self.on_exception()
        if self._asked_by:
            raise KeyboardInterrupt(self._asked_by)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Note whether something else than the number of steps ended the run here."""
        checkpoint["has_ended"] = trainer.should_stop

    def _save(self, trainer: pl.Trainer) -> None:
        write_whole(trainer, self.path, trainer.save_checkpoint)
        self._saved_at = trainer.global_step

    def _note(self, number: int, frame: Any) -> None:
        if self._asked_by and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        self._asked_by = number
        os.write(2, _STOPPING.encode())  # print may be at work already

    def _of_all_ranks(self, trainer: pl.Trainer) -> int:
        if trainer.world_size == 1:
            return self._asked_by
        asked_by = torch.tensor(self._asked_by, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(asked_by, reduce_op="max"))

    def on_exception(self, *arguments: Any) -> None:
        """Give the signals back."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}


def _has_ended(trainer: pl.Trainer) -> bool:
    return trainer.should_stop or trainer.global_step == trainer.max_steps


class KeptCheckpoints(pl.Callback):
    """Writes the checkpoints of some steps, which stay beside the one for resuming.

    Args:
        folder: Folder of the run.
        steps: Optimizer steps.
    """

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        self.folder = folder
        self.steps = frozenset(steps)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Write one if this step is among them."""
        path = kept_checkpoint(self.folder, trainer.global_step)
        # Once, if gradients are accumulated; and a resumed run would write the same again.
        if trainer.global_step in self.steps and not path.exists():
            write_whole(trainer, path, trainer.save_checkpoint)


def kept_checkpoint(folder: Path, step: int) -> Path:
    """The path at which :class:`KeptCheckpoints` leaves the checkpoint of a step."""
    return folder / "checkpoints" / f"step-{step}.ckpt"


def write_whole(trainer: pl.Trainer, path: Path, save: Callable[[str], object]) -> None:
    """Write a checkpoint beside its place and move it there; to be called on every rank."""
    partial = path.with_name(path.name + ".partial")
    if trainer.is_global_zero:
        remove_whole(partial)
    trainer.strategy.barrier()
    try:
        save(str(partial))
    except OSError:
        remove_whole(partial)
        raise
    if trainer.is_global_zero:
        replace_folder(partial, path)
    trainer.strategy.barrier()
