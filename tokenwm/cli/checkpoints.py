"""Lightning callbacks that write checkpoints, each whole or not at all."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint

from tokenwm.data.atomic import remove_whole, replace_folder


class ResumingCheckpoint(ModelCheckpoint):
    """Writes the checkpoint for resuming, whole or not at all, every so many steps.

    Lightning alone overwrites the earlier one in place where it lies on another disk than temporary
    files do, and always if it is the folder with a part for each rank that its
    ``ModelParallelStrategy`` makes: killed meanwhile, a half file or parts of two steps were left.

    Args:
        path: File or folder; an older one is replaced.
        every_n_steps: Steps between checkpoints; not validations, a run may have none.
    """

    def __init__(self, path: Path, every_n_steps: int) -> None:
        super().__init__(
            path.parent,
            filename=path.stem,
            every_n_train_steps=every_n_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def _save_checkpoint(self, trainer: pl.Trainer, filepath: str) -> None:
        save = super()._save_checkpoint
        write_whole(trainer, Path(filepath), lambda partial: save(trainer, partial))
        self._last_checkpoint_saved = filepath


class KeptCheckpoints(pl.Callback):
    """Writes the checkpoints of some steps, which stay beside the one for resuming.

    Args:
        folder: Of the run.
        steps: Optimizer steps.
    """

    def __init__(self, folder: Path, steps: Sequence[int]) -> None:
        self.folder = folder
        self.steps = frozenset(steps)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write one if this step is among them."""
        path = kept_checkpoint(self.folder, trainer.global_step)
        # Once, if gradients are accumulated; and a resumed run would write the same again.
        if trainer.global_step in self.steps and not path.exists():
            write_whole(trainer, path, trainer.save_checkpoint)


def kept_checkpoint(folder: Path, step: int) -> Path:
    """Where :class:`KeptCheckpoints` leaves the checkpoint of a step."""
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
