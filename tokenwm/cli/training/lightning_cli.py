"""LightningCLI with our defaults, for ``tokenwm tokenizer`` and ``tokenwm world-model``."""

import atexit
import logging
import os
import shlex
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
import torch
import yaml
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console
from torch import distributed

from tokenwm.allocator import keep_freed_memory
from tokenwm.checkpoint import read_provenance
from tokenwm.cli.console import keep_stdout, print_json, say
from tokenwm.cli.options.training import SUBCOMMANDS, lightning_arguments
from tokenwm.cli.training.callbacks import Throughput, TrainingProgress
from tokenwm.cli.training.checkpoints import KeptCheckpoints, ResumingCheckpoint
from tokenwm.cli.training.clock import Clock
from tokenwm.cli.training.data_counts import DataCounts
from tokenwm.cli.training.model_exports import ExportTokenizer, ExportWorldModel
from tokenwm.cli.training.parents import load_parent, with_inherited_options
from tokenwm.cli.training.run_folder import (
    CONFIG_NAME,
    LAST_CHECKPOINT,
    keep_earlier,
    last_checkpoint,
    read_without_weights,
    steps_of_model,
)
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.resume import REMEDY
from tokenwm.training import TrainingModule

_EXPECTED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # the loader keeps up from one process
    ".*is not resumable.*",  # it is: its order follows from the global step
    ".*isinstance\\(treespec, LeafSpec\\).*",
    "Checkpoint directory .* exists and is not empty",
    "Experiment logs directory .* exists and is not empty",  # earlier logs are kept
    # A run that is continued by steps and not by the clock, or was begun by an older tokenwm.
    "Be aware that when using `ckpt_path`.*(ResumingCheckpoint|Clock)",
    "LightningCLI's args parameter is intended",
    "You passed .* but AMP with fp16 is not supported on CPU",  # it is refused
)
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed", "32", "bf16", "16")
"""Values of trainer.precision that training works with: weights are float32 in all of them."""
LEAST_VALUES = {
    "checkpoint_every_n_steps": 1,
    "seed_everything": 0,
    "trainer.accumulate_grad_batches": 1,
    "trainer.gradient_clip_val": 0,
    "trainer.log_every_n_steps": 1,
    "trainer.val_check_interval": 1,
}
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    (
        *("checkpoint_every_n_steps", int, 100),
        "Steps between checkpoints for resuming, written to checkpoints/last.ckpt.",
    ),
    (
        *("keep_checkpoints_at", list[int], []),
        "Steps whose checkpoint stays, as checkpoints/step-N.ckpt: where shorter runs of the "
        "schedule wsd can begin their decay (--ckpt_path).",
    ),
    (
        *("minutes", float | None, None),
        "Train for so long instead of trainer.max_steps, start-up and validation included; the "
        "clock begins the decay of the schedule wsd. The steps that came of it are written to "
        "logs/training.yaml, which as --config repeats the run.",
    ),
    (
        *("reserve_steps", int, 0),
        "Of those minutes, what so many steps take is kept for what follows training.",
    ),
    (
        *("from", str | None, None),
        "Fine-tune this model, a folder of a checkpoint or of a run: sizes, windows and batches "
        "are its own.",
    ),
    (
        *("resume", bool, True),
        "Continue from checkpoints/last.ckpt in the run's folder if it is there.",
    ),
)
"""Options of tokenwm, beside Lightning's: name, type, default, help."""


class TrainingCLI(LightningCLI):
    """LightningCLI with the trainer settings that tokenwm's endless, resumable loader needs."""

    verb: str
    module: type[TrainingModule]
    added_callbacks: Sequence[Callback] = ()
    export: Callable[[Path], list[Callback]]
    finished_at: int | None = None
    """Steps of a run that had ended before, so that there is nothing to do; else None."""
    clock: Clock | None = None

    @property
    def stage(self) -> str:
        """Name of the stage that is trained, in words."""
        return self.verb.replace("-", " ")

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config_init[self.subcommand]["trainer"]["default_root_dir"])

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``validate`` and ``test``; tokenwm has its own verbs for using a model."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in SUBCOMMANDS}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Set tokenwm's defaults of the trainer and add its own options."""
        parser.set_defaults(
            {
                "trainer.max_epochs": -1,
                "trainer.check_val_every_n_epoch": None,
                "trainer.use_distributed_sampler": False,
                "trainer.gradient_clip_val": 1.0,
                "trainer.log_every_n_steps": 20,
                "trainer.num_sanity_val_steps": 0,
                "trainer.enable_progress_bar": False,
                "trainer.enable_model_summary": False,
                "trainer.default_root_dir": f"runs/{self.verb.replace('-', '_')}",
            }
        )
        for name, kind, default, help in OPTIONS:
            parser.add_argument(f"--{name}", type=kind, default=default, help=help)

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Check numbers that Lightning takes as they are.

        Raises:
            TokenwmError: One is too small.
        """
        super().parse_arguments(parser, args)
        values = self.config[self.config["subcommand"]]
        for name, least in LEAST_VALUES.items():
            *folders, key = name.split(".")
            value = (values[folders[0]] if folders else values).get(key)
            if type(value) in (int, float) and value < least:
                raise TokenwmError(f"{name} is {value}; it must be at least {least}")

    def _parse_ckpt_path(self) -> None:
        """Leave hyper-parameters as given; a checkpoint would override them (Lightning 20801)."""

    def before_instantiate_classes(self) -> None:
        """Let the clock, if there is one, be all that ends the run."""
        values = self.config[self.subcommand]
        if values.get("minutes") is not None:
            values["trainer"]["max_steps"] = -1
            self.clock = Clock(60.0 * values["minutes"], values["reserve_steps"])

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add loggers and callbacks that need to know the run's folder."""
        config = self._get(self.config_init, "trainer", default={})
        root = Path(config["default_root_dir"])
        if any(path.is_file() for path in (root, *root.parents)):
            raise TokenwmError(
                f"trainer.default_root_dir (--out) is {root}, where a file lies; give a folder"
            )
        precision = str(config.get("precision") or "32-true")
        if precision not in PRECISIONS:
            raise TokenwmError(
                f"trainer.precision is {precision}; training works with {', '.join(PRECISIONS[:3])}"
            )
        if config.get("logger") in (None, True):
            # Checking a model must not overwrite the log of its training.
            suffix = "" if self.subcommand == "fit" else f"_{self.subcommand}"
            kwargs["logger"] = [
                CSVLogger(root, name=None, version=f"logs{suffix}"),
                TensorBoardLogger(root, name=None, version=f"tensorboard{suffix}"),
            ]
        if self.subcommand == "fit":
            every = self._get(self.config_init, "checkpoint_every_n_steps")
            callbacks = [
                TrainingProgress(self.stage),
                Throughput(),
                DataCounts(),
                *([self.clock] if self.clock is not None else []),
                KeptCheckpoints(root, self._get(self.config_init, "keep_checkpoints_at")),
                ResumingCheckpoint(root / LAST_CHECKPOINT, every),
                *type(self).export(root),
                *self.added_callbacks,
            ]
            kwargs["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        trainer: pl.Trainer = super().instantiate_trainer(**kwargs)
        if precision.startswith("16") and trainer.precision != "16-mixed":
            raise TokenwmError(
                f"trainer.precision is {precision}, which needs a GPU; on this device use "
                "bf16-mixed or 32-true"
            )
        return trainer

    def before_fit(self) -> None:
        """Find the checkpoint to continue from, and see whether it can be, or has ended.

        Raises:
            CheckpointError: The run cannot be continued with these options.
        """
        values, root = self.config_init["fit"], self.folder
        if values["from"] is not None:
            self.model.parent = load_parent(self.verb, values["from"])
        last = last_checkpoint(root)
        if values["resume"] and not values.get("ckpt_path") and last is not None:
            values["ckpt_path"] = str(last)
        self._read_safely()
        if values.get("ckpt_path"):
            checkpoint = read_without_weights(Path(values["ckpt_path"]))
            self._check_continues(checkpoint)
            step, of_model = checkpoint["global_step"], steps_of_model(root / "model")
            if checkpoint.get("has_ended") or step == self.trainer.max_steps:
                self.finished_at = step if of_model == step else None
            elif "options" not in checkpoint and of_model == self.trainer.max_steps:
                self.finished_at = of_model  # older tokenwm had no checkpoint of the last step
        elif values["resume"]:
            self.finished_at = self._steps_without_checkpoint()
        if self.finished_at is None and self.trainer.is_global_zero:
            for name in ("metrics.csv", CONFIG_NAME):
                keep_earlier(root / "logs" / name)

    def fit(self, **kwargs: Any) -> None:
        """Train, unless that was done before."""
        if self.finished_at is None:
            self.trainer.fit(**kwargs)
        elif self.trainer.is_global_zero:
            say(
                Console(),
                f"{self.stage}: finished before, at step {self.finished_at}, and kept; "
                f"to train again, {REMEDY}",
            )

    def _check_continues(self, checkpoint: dict[str, Any]) -> None:
        """Refuse other options before anything in the run's folder is changed."""
        module = self.model
        assert isinstance(module, TrainingModule)
        module.trainer = self.datamodule.trainer = self.trainer
        self.trainer.datamodule = self.datamodule  # type: ignore[attr-defined]
        module.ends_by_clock = self.clock is not None
        module.check_continues(checkpoint)
        self.datamodule.check_order(checkpoint.get(type(self.datamodule).__qualname__, {}))
        seed, before = self.config["fit"]["seed_everything"], checkpoint.get("random_seed")
        if type(seed) is int and before is not None and seed != before:
            raise CheckpointError(
                f"seed_everything is {seed}, but {before} in the run to be continued "
                f"(step {checkpoint['global_step']}): {REMEDY}"
            )

    def _steps_without_checkpoint(self) -> int | None:
        """Steps of a finished run whose checkpoint is not there; older tokenwm often left none.

        Raises:
            CheckpointError: It was not trained for as many steps as are wanted now.
        """
        steps, wanted = steps_of_model(self.folder / "model"), self.trainer.max_steps
        if steps is None or steps == wanted or self.clock is not None:
            return steps
        raise CheckpointError(
            f"{self.folder / 'model'} was trained for {steps} steps and has no checkpoint to "
            f"continue from, but trainer.max_steps is {wanted}: {REMEDY}"
        )

    def before_validate(self) -> None:
        """Take the run's last checkpoint if none is given."""
        values, last = self.config_init[self.subcommand], last_checkpoint(self.folder)
        if not values.get("ckpt_path"):
            if last is None:
                raise TokenwmError(
                    f"{self.folder / LAST_CHECKPOINT} is not there; give --ckpt_path, or the run's "
                    "folder as --trainer.default_root_dir: an untrained model has nothing to show"
                )
            values["ckpt_path"] = str(last)
        self._read_safely()

    before_test = before_validate

    def after_fit(self) -> None:
        """Write what a run that was stopped between its last step and its end has not."""
        if self.finished_at is not None:
            return
        root, step = self.folder, self.trainer.global_step
        # What the first rank finds: the others may look while it is still writing, and gathering
        # weights without it would wait for it in vain.
        if not self.trainer.strategy.broadcast(steps_of_model(root / "model") == step):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging | ExportTokenizer | ExportWorldModel):
                    callback.on_train_end(self.trainer, self.model)
        if self.clock is not None and self.trainer.is_global_zero:
            self._record_steps(root / "logs" / CONFIG_NAME)

    def _record_steps(self, path: Path) -> None:
        """Put the steps that the clock decided on in the place of the minutes."""
        if not path.is_file():  # other loggers than ours
            return
        assert isinstance(self.model, TrainingModule)
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        values |= {"minutes": None, "reserve_steps": 0}
        values["trainer"]["max_steps"] = self.model.num_steps
        spans = self.model.optimizer_config.decay_spans
        values["model"]["optimizer"]["decay_spans"] = [list(span) for span in spans]
        with open_atomically(path) as file:
            file.write(yaml.safe_dump(values, sort_keys=False).encode())

    def next_command(self) -> list[str]:
        """The next command: a verb and its arguments, of which capitals are to be filled in."""
        raise NotImplementedError

    def _read_safely(self) -> None:
        # Our checkpoints hold tensors and numbers only, so nothing need be unpickled; the index of
        # a folder is torch's own, and pickled.
        values = self.config_init[self.subcommand]
        values["weights_only"] = True
        path = values.get("ckpt_path")
        in_parts = path and Path(path).is_dir()
        if in_parts and not isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise TokenwmError(
                f"{path} is a folder with a part for each rank, which ModelParallelStrategy wrote "
                "and which nothing else reads; give the same --trainer.strategy as before (the "
                "number of devices may differ). With its option save_distributed_checkpoint=false "
                "a checkpoint is one file that any strategy reads"
            )


def launch(
    cli: type[TrainingCLI], argv: list[str], callbacks: Sequence[Callback] = ()
) -> TrainingCLI:
    """Run LightningCLI for one stage.

    Args:
        cli: The stage's CLI class.
        argv: Arguments after the verb.
        callbacks: Callbacks to add to those of the stage.

    Returns:
        The stage, which has run.

    Raises:
        TokenwmError: A setting or the data is at fault.
        SystemExit: An argument is wrong, or help was asked for.
        KeyboardInterrupt: The run was interrupted; it goes on from its last checkpoint.
    """
    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    # A subclass, so that one run's callbacks do not stay for the next in the same process.
    argv = with_inherited_options(cli.verb, argv)
    stage = type(cli.__name__, (cli,), {"added_callbacks": list(callbacks)})
    try:
        done: TrainingCLI = stage(
            cli.module,
            EpisodeDataModule,
            args=argv,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True, "config_filename": CONFIG_NAME},
            parser_kwargs={
                "prog": f"tokenwm {cli.verb}",  # and no usage with 150 options before each mistake
                **{name: {"usage": f"tokenwm {cli.verb} {name} [options]"} for name in SUBCOMMANDS},
            },
        )
        leave_process_group()
        return done
    except SIGTERMException:  # before the first step or in a check of a model: nothing to be saved
        raise KeyboardInterrupt(signal.SIGTERM) from None
    except SystemExit as exit_request:
        # Lightning turns Ctrl-C into exit code 1, as if the run had failed.
        if isinstance(exit_request.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt(*exit_request.__context__.args) from None
        raise
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise TokenwmError(
            f"out of memory: {str(error).splitlines()[0]}; use a smaller --data.batch_size (and "
            "--trainer.accumulate_grad_batches), --data.num_steps or model"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """True if an error says that memory, of whatever device, did not suffice."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "can't allocate memory" in str(error)


def leave_process_group() -> None:
    """Part from the other ranks, if there are any, once all have got here.

    Lightning does so for NCCL only.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def run(cli: type[TrainingCLI], argv: list[str]) -> int:
    """:func:`launch` as the body of a verb; returns the exit code."""
    as_json = "--json" in argv
    try:
        with keep_stdout(as_json):
            done = launch(cli, lightning_arguments(cli.verb, argv))
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 1
    result: dict[str, Any] = {"metrics": done.trainer.callback_metrics}
    # Here and not in the stage: the quick start and sweeps go on by themselves.
    if done.subcommand == "fit":
        model, following = done.folder / "model", f"tokenwm {shlex.join(done.next_command())}"
        if done.trainer.is_global_zero:
            say(Console(stderr=as_json), f"model: {model}; next: {following}")
        known = read_provenance(model)
        result = {"model": model, "steps": known.get("steps"), "metrics": known.get("metrics")}
        result["next"] = following
    if as_json and done.trainer.is_global_zero:
        print_json(result)
    if done.trainer.world_size > 1:
        end_process()
    return 0


def end_process() -> NoReturn:
    """End a rank whose work is done, without taking Python apart.

    FSDP's parameters and Lightning hold gloo's process groups, whose threads so outlive
    :func:`leave_process_group`. One that lets go of a tensor while Python is taken apart aborts the
    process ("terminate called without an active exception") now and then.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
