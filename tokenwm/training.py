"""The base of both training stages: the optimizer, its schedule, and exact resumption.

Lightning's own checkpoint holds weights, optimizer and counters; here the seed of the random
numbers and the options are added, and the data module knows which windows were seen, so a resumed
run equals an uninterrupted one, or is refused. The learning rate of a step is a function of its
number: nothing that a checkpoint holds can contradict the options.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import nn
from torch.distributed.tensor import DTensor

from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.parent import Parent
from tokenwm.resume import REMEDY, check_options, check_shapes, named_options


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
        decay_spans: Steps at which the decay of ``wsd`` begins, or is planned anew, each with the
            step at which it is to end from there on; the last one is ``trainer.max_steps``. Instead
            of ``decay_fraction``: a run by the clock (``--minutes``) records its own.
        final_fraction: Learning rate at the end, as a share of the peak.
    """

    learning_rate: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.1
    warmup_steps: int = 100
    schedule: Literal["cosine", "wsd"] = "wsd"
    decay_fraction: float = 0.5
    decay_spans: tuple[tuple[int, int], ...] = ()
    final_fraction: float = 0.02

    def __post_init__(self) -> None:
        if self.learning_rate <= 0 or self.weight_decay < 0 or self.warmup_steps < 0:
            raise TokenwmError(
                f"learning_rate={self.learning_rate} must be positive, "
                f"weight_decay={self.weight_decay} and "
                f"warmup_steps={self.warmup_steps} must not be negative"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise TokenwmError(f"betas={self.betas}: both must be in [0, 1)")
        if not 0 < self.decay_fraction <= 1 or not 0 <= self.final_fraction <= 1:
            raise TokenwmError(
                f"decay_fraction={self.decay_fraction} must be in (0, 1], "
                f"final_fraction={self.final_fraction} in [0, 1]"
            )
        starts = [start for start, _ in self.decay_spans]
        if self.decay_spans and (
            self.schedule != "wsd"
            or sorted(set(starts)) != starts
            or any(not 0 <= start <= end for start, end in self.decay_spans)
        ):
            raise TokenwmError(
                f"decay_spans={self.decay_spans} must be (start, end) with rising starts, none "
                f"after its end, and schedule={self.schedule!r} must be wsd"
            )


def learning_rate_factor(config: OptimizerConfig, step: int, num_steps: int) -> float:
    """Learning rate at a step as a share of the peak, in [0, 1].

    Args:
        config: The schedule.
        step: Optimizer steps taken so far.
        num_steps: Optimizer steps in all; below 1 if nobody knows yet, then ``wsd`` is stable.
    """
    spans = config.decay_spans
    if spans and step >= spans[0][0]:
        shape = _decay_left(config, step)
    elif step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    elif spans or num_steps < 1:
        return 1.0
    else:
        progress = min(1.0, (step - config.warmup_steps) / max(1, num_steps - config.warmup_steps))
        if config.schedule == "cosine":
            shape = 0.5 * (1.0 + math.cos(math.pi * progress))
        else:
            shape = min(1.0, (1.0 - progress) / config.decay_fraction)
    return config.final_fraction + (1.0 - config.final_fraction) * shape


def _decay_left(config: OptimizerConfig, step: int) -> float:
    """The part of the decay that is left, in [0, 1]; steps before a new span do not feel it."""
    spans, final = config.decay_spans, config.final_fraction
    left = 1.0
    if spans[0][0] < config.warmup_steps and final < 1.0:  # from where the warm-up had got to
        left = max(0.0, ((spans[0][0] + 1) / config.warmup_steps - final) / (1.0 - final))
    for index, (start, end) in enumerate(spans):
        is_last = index + 1 == len(spans)
        until = step if is_last else min(step, spans[index + 1][0])
        left *= max(0, end - until) / (end - start) if end > start else 0.0
        if until == step:
            break
    return left


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


def adamw(module: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimizer of a module's parameters, in one pass over them."""
    groups = parameter_groups(module, config.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=config.betas, fused=True)
    # Fused, it could undo the scaling of 16-mixed by itself, and Lightning then refuses to clip.
    # This leaves that to Lightning.
    optimizer._step_supports_amp_scaling = False
    return optimizer


def _optimizer_of(checkpoint: Mapping[str, Any]) -> OptimizerConfig:
    values = dict(checkpoint["optimizer"])
    values["betas"] = tuple(values["betas"])
    values["decay_spans"] = tuple((start, end) for start, end in values["decay_spans"])
    return OptimizerConfig(**values)


class TrainingModule(pl.LightningModule):
    """Base of the two Lightning modules.

    Args:
        optimizer: The optimizer and its schedule.

    Attributes:
        ends_by_clock: Whether a callback decides when the decay begins and ends; else
            ``trainer.max_steps`` does.
        parent: A finished model to begin from, set before fitting; None begins with random weights.
    """

    def __init__(self, optimizer: OptimizerConfig) -> None:
        super().__init__()
        self.optimizer_config = optimizer
        self.ends_by_clock = False
        self.parent: Parent | None = None
        self._random_seed: int | None = None
        self._seeded_step = -1

    @property
    def num_steps(self) -> int:
        """Optimizer steps in all; -1 while the clock has not decided yet."""
        if not self.ends_by_clock:
            return self.trainer.max_steps
        spans = self.optimizer_config.decay_spans
        return spans[-1][1] if spans else -1

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; :meth:`on_train_batch_start` sets the learning rate of each step.

        Raises:
            TokenwmError: The trainer has no ``max_steps``.
        """
        # Not trainer.estimated_stepping_batches: reading it makes Lightning forget the loader's
        # state (issue 20550).
        config = self.optimizer_config
        if self.trainer.max_steps < 1 and not self.ends_by_clock:
            raise TokenwmError(
                f"trainer.max_steps is {self.trainer.max_steps}; set it, since training batches "
                "never end and the learning rate follows it"
            )
        if config.decay_spans and self.num_steps != config.decay_spans[-1][1]:
            raise TokenwmError(
                f"model.optimizer.decay_spans end at step {config.decay_spans[-1][1]}, but "
                f"trainer.max_steps is {self.num_steps}; give the same number to both"
            )
        return adamw(self, config)

    def options(self) -> dict[str, Any]:
        """All options that weights follow from, by name, as a checkpoint keeps them.

        The order of the windows is the data module's.
        """
        options = named_options(self.model_options(), "model.")
        options["trainer.precision"] = str(self.trainer.precision)
        options["trainer.gradient_clip_val"] = self.trainer.gradient_clip_val
        algorithm = self.trainer.gradient_clip_algorithm
        options["trainer.gradient_clip_algorithm"] = getattr(algorithm, "value", "norm")
        # A checkpoint's weights are the averaged ones, if there is a callback that averages.
        callbacks: list[pl.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]
        averaging = [type(each).__name__ for each in callbacks if isinstance(each, WeightAveraging)]
        options["the averaging of weights (trainer.callbacks)"] = ", ".join(averaging) or "none"
        options["the model to begin from (--from)"] = self.parent and self.parent.identity
        plain: dict[str, Any] = json.loads(json.dumps(options))  # tuples become lists
        return plain

    def model_options(self) -> dict[str, Any]:
        """Options of the subclass, as nested plain values."""
        return {}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the options, the seed of the random numbers and the hashes of the shards."""
        checkpoint["random_seed"] = self._random_seed
        checkpoint["shards"] = self._shards()
        checkpoint["options"] = self.options()
        checkpoint["optimizer"] = json.loads(json.dumps(asdict(self.optimizer_config)))
        checkpoint["num_steps"] = self.num_steps

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the seed and, by the clock, with the decay of the run that is resumed.

        Raises:
            CheckpointError: The run cannot be continued, or its model has other sizes.
        """
        if self._trainer is not None and self.trainer.state.fn == "fit":
            self.check_continues(checkpoint)
            if self.ends_by_clock and "optimizer" in checkpoint:
                spans = _optimizer_of(checkpoint).decay_spans
                self.optimizer_config = replace(self.optimizer_config, decay_spans=spans)
        self._random_seed = checkpoint.get("random_seed")
        check_shapes(checkpoint.get("state_dict", {}), self.state_dict())

    def check_continues(self, checkpoint: Mapping[str, Any]) -> None:
        """Check that a run can be continued with these options as if it always had had them.

        Args:
            checkpoint: As :meth:`on_save_checkpoint` left it; weights need not be there.

        Raises:
            CheckpointError: Names what differs and both values.
        """
        saved, here = checkpoint.get("shards"), self._shards()
        if saved and here and saved != here:
            raise CheckpointError(
                "the run to be continued was trained on other shards than these; the same weights "
                f"on other data or tokens are another run: {REMEDY}"
            )
        step = checkpoint["global_step"]
        if 0 < self.trainer.max_steps < step:
            raise CheckpointError(
                f"trainer.max_steps is {self.trainer.max_steps}, but the run to be continued is at "
                f"step {step} already: {REMEDY}"
            )
        check_options(checkpoint.get("options", {}), self.options(), step)
        if "optimizer" in checkpoint:
            self._check_schedule(_optimizer_of(checkpoint), checkpoint["num_steps"], step)

    def _check_schedule(self, before: OptimizerConfig, num_steps_before: int, step: int) -> None:
        """Accept another schedule where all steps done would have been the same with it."""
        now, num_steps = self.optimizer_config, self.trainer.max_steps
        if self.ends_by_clock:
            now, num_steps = replace(now, decay_spans=before.decay_spans), -1
        options_before, options = (
            {**named_options(asdict(config), "model.optimizer."), "trainer.max_steps": count}
            for config, count in ((before, num_steps_before), (now, num_steps))
        )
        always = [f"model.optimizer.{name}" for name in ("learning_rate", "weight_decay", "betas")]
        check_options({name: options_before[name] for name in always}, options, step)
        for done in range(step):
            factors = (
                learning_rate_factor(before, done, num_steps_before),
                learning_rate_factor(now, done, num_steps),
            )
            if factors[0] != factors[1]:
                name = next(name for name in options if options[name] != options_before[name])
                raise CheckpointError(
                    f"{name} is {options[name]}, but {options_before[name]} in the run to be "
                    f"continued (step {step}): the learning rate of its step {done} would be "
                    f"another one; {REMEDY}, or begin from a checkpoint kept before (--ckpt_path)"
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
        """Make the learning rate and the random numbers of a step functions of its number.

        Dropout, k-means and dead-code revival draw some, but so do loaders when validation starts,
        and how many depends on their workers: a generator's saved state would not make a resumed
        run equal.
        """
        assert self._random_seed is not None
        if self.global_step != self._seeded_step:  # once, if gradients are accumulated
            # Ranks draw other numbers than each other, or they would drop the same units.
            torch.manual_seed(self._random_seed + self.global_step + self.global_rank * 2**48)
            self._seeded_step = self.global_step
            config = self.optimizer_config
            factor = learning_rate_factor(config, self.global_step, self.num_steps)
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = factor * config.learning_rate

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Log the learning rate and the norm of the gradient, before it is clipped."""
        if (self.global_step + 1) % self.trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        gradients = [p.grad for p in self.parameters() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):
            norm = norm.full_tensor()
        self.log("train/learning_rate", optimizer.param_groups[0]["lr"])
        self.log("train/gradient_norm", norm)

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
