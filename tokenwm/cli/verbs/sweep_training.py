"""One run of a sweep as an ordinary training: its config, its callbacks, its result.

``python -m tokenwm.cli.verbs.sweep_training SWEEP RUN DIR DEVICE [FRAMES]`` is what the engines of
``tokenwm sweep run`` start.
"""

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from tokenwm import __version__
from tokenwm.cli.devices import device_from
from tokenwm.cli.options.training import device_options
from tokenwm.cli.training.checkpoints import kept_checkpoint
from tokenwm.cli.training.lightning_cli import launch
from tokenwm.cli.training.run_folder import last_checkpoint
from tokenwm.cli.verbs.world_model import WorldModelCLI
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.data.storage.lock import lock_folder
from tokenwm.errors import SweepError, TokenwmError
from tokenwm.evaluation.held_out import downstream_metrics, held_out_loss
from tokenwm.scaling.runs.runs import FINISHED, RESULT_FILE
from tokenwm.scaling.sweep.drive import DIVERGED, read_result, result_status
from tokenwm.scaling.sweep.plan import RunCost, costs_of
from tokenwm.scaling.sweep.sweep import Run, Sweep, TokenData, load_sweep
from tokenwm.strict import dump_yaml, parse_yaml

SETTINGS_FILE = "run.yaml"
OF_TRANSFORMER = ("dim", "num_layers", "num_heads", "window", "dropout")
OF_OPTIMIZER = ("learning_rate", "weight_decay", "warmup_steps", "schedule", "decay_fraction")
"""Settings of a run that are the network's, and that are the optimizer's."""
CHECKPOINTS = 8
"""Checkpoints for resuming in a run: at most an eighth of it is lost."""


class Diverged(TokenwmError):
    """The loss of a run left all bounds; training on would change nothing."""


class StopDiverged(pl.Callback):
    """Ends a run whose loss is no longer a number, or stays above twice what it began with.

    A model that has not learned anything yet copies the last frame and is not that bad, so an
    average over about 50 steps above twice the first loss is no noise.
    """

    def __init__(self) -> None:
        self._first: float | None = None
        self._average = 0.0

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *arguments: Any
    ) -> None:
        """Look at the loss."""
        loss = float(outputs["loss"])
        if not math.isfinite(loss):
            raise Diverged(f"the loss is {loss} after {trainer.global_step} steps")
        if self._first is None:
            self._first = self._average = loss
        self._average += 0.02 * (loss - self._average)
        if self._average > 2.0 * self._first:
            raise Diverged(
                f"the loss rose from {self._first:.3g} to {self._average:.3g} in "
                f"{trainer.global_step} steps"
            )


class StepClock(pl.Callback):
    """Mean time of a step, without the first few and without validation."""

    WARM_UP = 3

    def __init__(self) -> None:
        self._num_batches, self._begin, self._end = 0, 0.0, 0.0

    def on_train_batch_end(self, *arguments: Any) -> None:
        """Note the time."""
        self._num_batches += 1
        self._end = time.monotonic()
        if self._num_batches == self.WARM_UP:
            self._begin = self._end

    @property
    def seconds_per_step(self) -> float | None:
        """None if there were too few steps."""
        steps = self._num_batches - self.WARM_UP
        return (self._end - self._begin) / steps if steps > 0 else None


def settings_of(run: Run, sweep: Sweep) -> dict[str, Any]:
    """The config of a run, as ``tokenwm world-model fit --config`` takes it; without paths."""
    training = sweep.training
    transformer = run.size.model(training).transformer
    optimizer = training.optimizer(run.learning_rate)
    return {
        "seed_everything": run.seed,
        "model": {
            "model": {
                "transformer": {name: getattr(transformer, name) for name in OF_TRANSFORMER},
                "changed_token_weight": training.changed_token_weight,
            },
            "optimizer": {name: getattr(optimizer, name) for name in OF_OPTIMIZER},
        },
        "data": {
            "num_steps": training.num_steps,
            "batch_size": training.batch_size,
            "seed": run.seed,
        },
        "trainer": {
            "max_steps": run.max_steps,
            # Held-out data are looked at once, at the end, by this module.
            "limit_val_batches": 0,
            "precision": training.precision,
        },
        "checkpoint_every_n_steps": max(1, run.max_steps // CHECKPOINTS),
        "keep_checkpoints_at": list(run.kept_steps),
    }


def begins_from(run: Run, folder: Path) -> Path | None:
    """The trunk's checkpoint that a run begins from; None if it goes on from one of its own."""
    if run.trunk is None or last_checkpoint(folder / run.name) is not None:
        return None
    return kept_checkpoint(folder / run.trunk, run.first_step)


def train(
    sweep: Sweep,
    name: str,
    folder: Path,
    frames: Path | str | None = None,
    device: str = "auto",
) -> None:
    """Train, measure and write the result of one run, unless that was done before.

    Args:
        sweep: The sweep.
        name: Name of the run.
        folder: Folder of the sweep.
        frames: Frame shards, if downstream metrics are wanted.
        device: Name of the device, or ``auto``.

    Raises:
        SweepError: There is no such run, or its folder holds one with other settings.
        TokenwmError: Training or measuring failed.
    """
    data = TokenData.load(sweep.data)
    costs = {cost.run.name: cost for cost in costs_of(sweep, data)}
    if name not in costs:
        raise SweepError(f"the sweep has no run {name!r}; it has {', '.join(costs)}")
    cost, own = costs[name], folder / name
    own.mkdir(parents=True, exist_ok=True)
    with lock_folder(own, wait=True):  # for one that outlived its driver perhaps
        if result_status(cost.run, folder, frames is not None) is not None:
            return
        result = read_result(own)
        if result.get("status") != FINISHED:
            result = _trained(cost, sweep, folder, device)
        if result["status"] == FINISHED and frames is not None and not cost.run.is_check:
            found = downstream_metrics(own / "model", frames, str(device_from(device)))
            result["metrics"] = {**result["metrics"], **found}
        with open_atomically(own / RESULT_FILE) as file:
            file.write((json.dumps(result, indent=2, allow_nan=False) + "\n").encode())


def _trained(cost: RunCost, sweep: Sweep, folder: Path, device: str) -> dict[str, Any]:
    run, own = cost.run, folder / cost.run.name
    settings = settings_of(run, sweep)
    _write_settings(own / SETTINGS_FILE, settings)
    argv = ["fit", "--config", str(own / SETTINGS_FILE), "--data.root", sweep.data]
    argv += ["--trainer.default_root_dir", str(own), *device_options(device)]
    checkpoint = begins_from(run, folder)
    if checkpoint is not None and checkpoint.exists():
        argv += ["--ckpt_path", str(checkpoint)]
    clock = StepClock()
    result: dict[str, Any] = {
        "status": FINISHED,
        "num_parameters": cost.num_parameters,
        "num_tokens": cost.num_tokens,
        "flops": cost.flops,
        "six_nd": 6.0 * cost.num_parameters * cost.num_tokens,
        "learning_rate": run.learning_rate,
        "seed": run.seed,
        "num_epochs": cost.num_epochs,
        "num_steps": run.max_steps,
        "trunk": run.trunk,
        "own_flops": cost.own_flops,
        "tokenwm_version": __version__,
    }
    try:
        launch(WorldModelCLI, argv, [StopDiverged(), clock])
    except Diverged as error:
        return {**result, "status": DIVERGED, "reason": str(error), "loss": None, "metrics": {}}
    per_step = clock.seconds_per_step
    metrics = held_out_loss(
        own / "model",
        sweep.data,
        num_steps=sweep.training.num_steps,
        num_windows=sweep.training.num_val_windows,
        device=str(device_from(device)),
    )
    # Of all steps, as if the run had had no trunk and no interruption.
    seconds = None if per_step is None else per_step * run.max_steps
    return {**result, "loss": metrics.pop("loss"), "seconds": seconds, "metrics": metrics}


def _write_settings(path: Path, settings: dict[str, Any]) -> None:
    if path.exists():
        before = parse_yaml(path.read_text(encoding="utf-8"))
        if before != settings:
            raise SweepError(
                f"{path.parent} holds a run of that name with other settings ({path.name}); give "
                "another --out, or begin anew with --overwrite"
            )
        return
    with open_atomically(path) as file:
        file.write(dump_yaml(settings).encode())


def main(argv: list[str]) -> int:
    """Execute one run; returns the exit code."""
    sweep, name, folder, device, *frames = argv
    try:
        train(load_sweep(sweep), name, Path(folder), frames[0] if frames else None, device)
    except TokenwmError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:  # a checkpoint was written; the next attempt goes on
        return 128 + (interrupt.args[0] if interrupt.args else signal.SIGINT)
    return 0


if __name__ == "__main__":
    if "OMP_NUM_THREADS" in os.environ:
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.exit(main(sys.argv[1:]))
