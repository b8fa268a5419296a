"""What both training stages share: the optimizer, its schedule, and exact resumption.

Lightning's own checkpoint holds weights, optimizer and counters; here the seed of the random
numbers is added, and the data module derives the order of batches from the global step, so a
resumed run equals an uninterrupted one.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from torch import nn

from tokenwm.errors import CheckpointError, TokenwmError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW and its learning-rate schedule.

    Attributes:
        learning_rate: Peak learning rate.
        betas: Decay of the first and second moment.
        weight_decay: Decoupled decay of matrices; vectors (norms, biases) and embeddings are not
            decayed.
        warmup_steps: Steps of linear warm-up.
        schedule: ``cosine`` (Loshchilov & Hutter 2017) or ``wsd``, warm-up, stable, linear decay
            (Hu et al. 2024).
        decay_fraction: Share of the steps that ``wsd`` spends decaying.
        final_fraction: Learning rate at the end, as a share of the peak.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd"] = "wsd"
    decay_fraction: float = 0.5
    final_fraction: float = 0.02

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise TokenwmError(
                f"learning_rate={self.learning_rate} must be positive, "
                f"weight_decay={self.weight_decay} and "
                f"warmup_steps={self.warmup_steps} must not be negative"
            )
        if not 0 < self.decay_fraction <= 1 or not 0 <= self.final_fraction <= 1:
            raise TokenwmError(
                f"decay_fraction={self.decay_fraction} must be in (0, 1], "
                f"final_fraction={self.final_fraction} in [0, 1]"
            )


def learning_rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate at a step as a share of the peak, in [0, 1].

    Args:
        config: The schedule.
        step: Optimizer steps taken so far.
        num_steps: Optimizer steps in all.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
    if config.schedule == "cosine":
        shape = 0.5 * (1.0 + math.cos(math.pi * progress))
    else:
        shape = min(1.0, (1.0 - progress) / config.decay_fraction)
    return config.final_fraction + (1.0 - config.final_fraction) * shape


def last_shared_step(config: OptimizerConfig, num_steps: int) -> int:
    """Step up to which a ``wsd`` run of ``num_steps`` is the same as any longer one.

    After so many steps the weights, the moments and the learning rate do not depend on how long the
    run will be, so runs of several lengths may begin from one checkpoint of the longest of them
    (Hägele et al. 2024) and end, bit for bit, where each would have ended by itself.

    Args:
        config: The schedule.
        num_steps: Optimizer steps in all.

    Raises:
        TokenwmError: The schedule is not ``wsd``, or its decay begins before its warm-up ends.
    """
    if config.schedule != "wsd":
        raise TokenwmError(f"schedule={config.schedule!r} depends on the run's length throughout")
    stable = (1.0 - config.decay_fraction) * (num_steps - config.warmup_steps)
    step = config.warmup_steps + math.floor(stable)
    # Not 1 by a last bit: that learning rate already is another one.
    while step > config.warmup_steps and learning_rate_factor(config, step, num_steps) != 1.0:
        step -= 1
    if step <= config.warmup_steps:
        raise TokenwmError(
            f"{num_steps} steps are too few for warmup_steps={config.warmup_steps} and "
            f"decay_fraction={config.decay_fraction}"
        )
    return step


def parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Divide parameters into decayed matrices and the rest (vectors, embeddings)."""
    embeddings = {
        id(p) for name, p in module.named_parameters() if name.endswith(("table", "slot_embedding"))
    }
    trained = [p for p in module.parameters() if p.requires_grad]

    def decays(parameter: nn.Parameter) -> bool:
        return parameter.ndim >= 2 and id(parameter) not in embeddings

    return [
        {"params": [p for p in trained if decays(p)], "weight_decay": weight_decay},
        {"params": [p for p in trained if not decays(p)], "weight_decay": 0.0},
    ]


class TrainingModule(pl.LightningModule):
    """Base of the two Lightning modules.

    Args:
        optimizer: The optimizer and its schedule.
    """

    def __init__(self, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self._random_seed: int | None = None
        self._seeded_step = -1

    def configure_optimizers(self) -> Any:
        """AdamW with a schedule over ``trainer.max_steps``.

        Raises:
            TokenwmError: The trainer has no ``max_steps``.
        """
        # Not trainer.estimated_stepping_batches: reading it makes Lightning forget the loader's
        # state (issue 20550).
        num_steps = self.trainer.max_steps
        if num_steps < 1:
            raise TokenwmError(
                f"trainer.max_steps is {num_steps}; set it, since training batches never end and "
                "the learning rate follows it"
            )
        config = self.optimizer_config
        optimizer = torch.optim.AdamW(
            parameter_groups(self, config.weight_decay), lr=config.learning_rate, betas=config.betas
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: learning_rate_factor(config, step, num_steps)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed (see :meth:`on_train_batch_start`) and the hashes of the shards."""
        checkpoint["random_seed"] = self._random_seed
        checkpoint["shards"] = self._shards()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed of the run that is resumed.

        Raises:
            CheckpointError: The run was trained on other shards.
        """
        self._random_seed = checkpoint.get("random_seed")
        saved, here = checkpoint.get("shards"), self._shards()
        fits = self._trainer is not None and self.trainer.state.fn == "fit"
        if fits and saved and here and saved != here:
            raise CheckpointError(
                "the run to be continued was trained on other shards than these; the same weights "
                "on other data or tokens are another run: use another --trainer.default_root_dir, "
                "or --resume false"
            )

    def _shards(self) -> list[str]:
        """SHA-256 of every shard of the data at hand."""
        datamodule: Any = getattr(self._trainer, "datamodule", None)  # no trainer, no data
        return list(getattr(datamodule, "shard_digests", ()))

    def on_train_start(self) -> None:
        """Take the seed that the process was given, unless a run is resumed."""
        if self._random_seed is None:
            self._random_seed = torch.initial_seed() % 2**62

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        """Make the random numbers of a step a function of its number.

        Dropout, k-means and dead-code revival draw some, but so do loaders when validation starts,
        and how many depends on their workers: a generator's saved state would not make a resumed
        run equal.
        """
        assert self._random_seed is not None
        if self.global_step != self._seeded_step:  # once, if gradients are accumulated
            # Ranks draw other numbers than each other, or they would drop the same units.
            torch.manual_seed(self._random_seed + self.global_step + self.global_rank * 2**48)
            self._seeded_step = self.global_step

    def log_all(self, stage: str, values: Iterable[tuple[str, Any]], batch_size: int) -> None:
        """Log ``stage/name`` values; at validation the mean over batches and ranks."""
        for name, value in values:
            self.log(
                f"{stage}/{name}",
                value,
                batch_size=batch_size,
                on_step=stage == "train",
                on_epoch=stage != "train",
                sync_dist=stage != "train",
                prog_bar=name == "loss",
            )
