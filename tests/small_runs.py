"""Runs of a few steps through Lightning, and what they leave behind."""

import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from tokenwm.data.loading.datamodule import EpisodeDataModule


def run(
    folder: Path,
    module: pl.LightningModule,
    root: Path,
    *,
    max_steps: int,
    save_at: int | None = None,
    resume_from: Path | None = None,
    validate_every: int = 2,
    data: dict[str, Any] | None = None,
    callbacks: Sequence[pl.Callback] = (),
    **trainer: Any,
) -> dict[str, Tensor]:
    """Fit a module; returns all weights, buffers and optimizer moments by name."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    saving = [] if save_at is None else [saver(folder, save_at)]
    fitting = pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=max_steps,
        val_check_interval=validate_every,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[*callbacks, *saving],
        **{"logger": False, "enable_checkpointing": save_at is not None, **trainer},
    )
    sizes = {"num_steps": 3, "batch_size": 8, "num_val_batches": 2, "seed": 3, **(data or {})}
    datamodule = EpisodeDataModule(str(root), **sizes)
    checkpoint = None if resume_from is None else str(resume_from)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
        fitting.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    assert fitting.global_step == max_steps
    found = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    for group in fitting.optimizers[0].state.items():
        number = len(found)
        found |= {f"moment {number} {k}": torch.as_tensor(v).clone() for k, v in group[1].items()}
    found["learning rate"] = torch.tensor(fitting.optimizers[0].param_groups[0]["lr"])
    return found


def saver(folder: Path, step: int) -> ModelCheckpoint:
    """Writes ``step=N.ckpt`` every so many steps."""
    return ModelCheckpoint(
        folder,
        filename="{step}",
        every_n_train_steps=step,
        save_top_k=-1,
        enable_version_counter=False,
        save_on_train_epoch_end=False,
    )


def assert_resume_is_exact(
    folder: Path, make: Callable[[], pl.LightningModule], root: Path, **options: Any
) -> dict[str, Tensor]:
    """6 steps in one go equal 3 steps, everything forgotten, and 3 more; bit for bit."""
    torch.manual_seed(0)
    whole = run(folder, make(), root, max_steps=6, save_at=3, **options)
    torch.manual_seed(99)
    checkpoint = folder / "step=3.ckpt"
    resumed = run(folder, make(), root, max_steps=6, save_at=3, resume_from=checkpoint, **options)
    assert whole.keys() == resumed.keys()
    differing = [name for name in whole if not torch.equal(whole[name], resumed[name])]
    assert differing == []
    return whole
