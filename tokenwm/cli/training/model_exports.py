"""Callbacks that leave a checkpoint folder, with its origin, at the end of training."""

import subprocess
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

import tokenwm
from tokenwm.checkpoint import (
    check_tokenizer,
    load_tokenizer,
    read_provenance,
    save_tokenizer,
    save_world_model,
)
from tokenwm.data.shards.manifest import manifest_sha256
from tokenwm.parent import value_ranges
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.tokenizer.training import FrameTokenizerModule
from tokenwm.training import TrainingModule
from tokenwm.transformer.training import WorldModelModule

AUGMENTATION = ("max_shift", "noise", "crop")
"""Options of a tokenizer's training that are kept with it: fine-tuning takes them over."""


class _Export(pl.Callback):
    """Writes a checkpoint folder when training ends, with where it comes from.

    Args:
        folder: Folder to write into.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._origin: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Note code and data as they are now; both may have changed when training ends."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        manifest = datamodule.manifest
        self._origin = {
            "tokenwm_version": tokenwm.__version__,
            "code_revision": code_revision(),
            "torch_version": torch.__version__,
            "data": str(datamodule.root),
            "data_name": manifest.name,
            "data_manifest_sha256": manifest_sha256(datamodule.root),
            "data_provenance": manifest.provenance,
        }
        if len(datamodule.items) > 1 or datamodule.real_fraction is not None:
            self._origin["data_mixture"] = [
                {
                    "data": part.windows.reader.root,
                    "name": part.name,
                    "share": float(part.share),
                    "data_manifest_sha256": manifest_sha256(part.windows.reader.root),
                    "data_provenance": part.windows.reader.manifest.provenance,
                }
                for part in datamodule.strata
            ]
        assert isinstance(pl_module, TrainingModule)
        self._origin["learning_rate"] = pl_module.optimizer_config.learning_rate
        self._origin["precision"] = str(trainer.precision)
        options = pl_module.model_options()
        self._origin |= {name: options[name] for name in AUGMENTATION if name in options}
        if pl_module.parent is not None:
            self._origin["parent"] = pl_module.parent.record()
            statistics = (reader.manifest.statistics for reader in datamodule.readers)
            self._origin["value_ranges"] = value_ranges(statistics)

    def _provenance(self, trainer: pl.Trainer) -> dict[str, Any]:
        """Code, data, steps, last figures."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        return {
            **self._origin,
            "steps": trainer.global_step,
            "batch_size": datamodule.batch_size,
            "windows_seen": datamodule.windows_seen,
            # (first step, windows of each step from there on), all ranks together
            "windows_per_step": [
                (leg.first_step, leg.batch_windows * leg.accumulate) for leg in datamodule.legs
            ],
            "num_steps": datamodule.num_steps,
            "metrics": metrics,
        }


class ExportTokenizer(_Export):
    """Writes the tokenizer's checkpoint folder when training ends.

    Args:
        folder: Folder to write into.
    """

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        assert isinstance(pl_module, FrameTokenizerModule)
        if trainer.is_global_zero:
            save_tokenizer(self.folder, pl_module.tokenizer, self._provenance(trainer))


class ExportWorldModel(_Export):
    """Writes the world model's checkpoint folder, tokenizer included, when training ends.

    The last model, not the one with the lowest held-out likelihood: on few episodes that one comes
    long before the model has learned what actions do (docs/results/quickstart.md has the figures).

    Args:
        folder: Folder to write into.
    """

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Check early that the tokenizer is there and is the right one."""
        assert isinstance(pl_module, WorldModelModule)
        check_tokenizer(pl_module.world_model.vocabulary, tokenizer_of(trainer))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it."""
        assert isinstance(pl_module, WorldModelModule)
        whole = gathered_weights(trainer)
        if not trainer.is_global_zero:
            return
        prefix = "world_model."
        manifest = trainer.datamodule.manifest  # type: ignore[attr-defined]
        save_world_model(
            self.folder,
            pl_module.world_model,
            tokenizer_of(trainer),
            self._provenance(trainer),
            control_rate=manifest.control_rate,
            cameras=manifest.cameras,
            tokenizer_provenance=read_provenance(tokenizer_folder(trainer)),
            weights={
                name.removeprefix(prefix): tensor
                for name, tensor in whole.items()
                if name.startswith(prefix)
            },
        )


def gathered_weights(trainer: pl.Trainer) -> dict[str, Any]:
    """All weights of the module, by name. To be called on every rank; the first one gets them."""
    strategy = trainer.strategy
    if not isinstance(strategy, ModelParallelStrategy):
        return strategy.lightning_module_state_dict()
    # Not the strategy's own: that gathers nothing if each rank saves its part for resuming.
    assert strategy.model is not None
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_model_state_dict(strategy.model, options=options)


def tokenizer_of(trainer: pl.Trainer) -> FrameTokenizer:
    """The tokenizer that made the token shards."""
    return load_tokenizer(tokenizer_folder(trainer))


def tokenizer_folder(trainer: pl.Trainer) -> Path:
    """The folder of the tokenizer that ``tokenwm tokenize`` puts beside the token shards."""
    folder: Path = trainer.datamodule.folder  # type: ignore[attr-defined]
    return folder / "tokenizer"


def code_revision(folder: Path = Path(tokenwm.__file__).parents[1]) -> str | None:
    """The git commit of the code, with ``-dirty`` behind it if files differ from it.

    Args:
        folder: What is the top folder of a git checkout, or is not: the code may be installed below
            some other repository.

    Returns:
        None outside of a checkout, or where git does not answer: nobody's training fails for it.
    """
    if not (folder / ".git").exists():
        return None
    command = ["git", "--no-optional-locks", "-C", str(folder)]
    command += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip() or None
