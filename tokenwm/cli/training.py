"""What ``tokenwm tokenizer`` and ``tokenwm world-model`` share: LightningCLI with our defaults."""

import logging
import shlex
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import ModelParallelStrategy
from rich.console import Console
from torch import distributed

from tokenwm.allocator import keep_freed_memory
from tokenwm.cli.callbacks import Throughput, TrainingProgress
from tokenwm.cli.checkpoints import KeptCheckpoints, ResumingCheckpoint
from tokenwm.cli.data_counts import DataCounts
from tokenwm.cli.export import ExportTokenizer, ExportWorldModel
from tokenwm.data.atomic import older_of
from tokenwm.data.datamodule import EpisodeDataModule
from tokenwm.errors import TokenwmError

_EXPECTED_WARNINGS = (
    "The '.*_dataloader' does not have many workers",  # the loader keeps up from one process
    ".*is not resumable.*",  # it is: its order follows from the global step
    ".*isinstance\\(treespec, LeafSpec\\).*",
    "Checkpoint directory .* exists and is not empty",
    # A run that begins from the checkpoint of another one has other ideas of where and how often.
    "The dirpath has changed from",
    "Be aware that when using `ckpt_path`.*ResumingCheckpoint",
    "LightningCLI's args parameter is intended",
)
LAST_CHECKPOINT = "checkpoints/last.ckpt"
"""Where, in a run's folder, Lightning's checkpoint for resuming lies."""


class TrainingCLI(LightningCLI):
    """LightningCLI with the trainer settings that tokenwm's endless, resumable loader needs."""

    stage: str
    added_callbacks: Sequence[Callback] = ()
    export: Callable[[Path], list[Callback]]

    @property
    def folder(self) -> Path:
        """Folder of the run."""
        return Path(self.config_init[self.subcommand]["trainer"]["default_root_dir"])

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """``fit``, ``validate`` and ``test``; tokenwm has its own verbs for using a model."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate", "test")}

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
                "trainer.default_root_dir": f"runs/{self.stage.replace(' ', '_')}",
            }
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int,
            default=100,
            help="Steps between checkpoints for resuming, written to checkpoints/last.ckpt.",
        )
        parser.add_argument(
            "--keep_checkpoints_at",
            type=list[int],
            default=[],
            help="Steps whose checkpoint stays, as checkpoints/step-N.ckpt: where shorter runs of "
            "the schedule wsd can begin their decay (--ckpt_path).",
        )
        parser.add_argument(
            "--resume",
            type=bool,
            default=True,
            help="Continue from checkpoints/last.ckpt in the run's folder if it is there.",
        )

    def _parse_ckpt_path(self) -> None:
        """Leave hyper-parameters as given; a checkpoint would override them (Lightning 20801)."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        """Add loggers and callbacks that need to know the run's folder."""
        config = self._get(self.config_init, "trainer", default={})
        root = Path(config["default_root_dir"])
        if config.get("logger") in (None, True):
            # Checking a model must not overwrite the log of its training.
            suffix = "" if self.subcommand == "fit" else f"_{self.subcommand}"
            if self.subcommand == "fit":
                keep_earlier_log(root / "logs" / "metrics.csv")
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
                KeptCheckpoints(root, self._get(self.config_init, "keep_checkpoints_at")),
                ResumingCheckpoint(root / LAST_CHECKPOINT, every),
                *type(self).export(root),
                *self.added_callbacks,
            ]
            kwargs["callbacks"] = [*(config.get("callbacks") or []), *callbacks]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        """Find the checkpoint to continue from."""
        values = self.config_init["fit"]
        last = last_checkpoint(Path(values["trainer"]["default_root_dir"]))
        if values["resume"] and not values.get("ckpt_path") and last is not None:
            values["ckpt_path"] = str(last)
        self._read_safely("fit")

    def before_validate(self) -> None:
        """Take the run's last checkpoint if none is given."""
        self._need_checkpoint("validate")

    def before_test(self) -> None:
        """Take the run's last checkpoint if none is given."""
        self._need_checkpoint("test")

    def after_fit(self) -> None:
        """Write the model of a run that was stopped between its last step and its end."""
        root = self.folder
        # What the first rank finds: the others may look while it is still writing, and gathering
        # weights without it would wait for it in vain.
        if not self.trainer.strategy.broadcast((root / "model").exists()):
            for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, ExportTokenizer | ExportWorldModel):
                    callback.on_train_end(self.trainer, self.model)

    def next_command(self) -> list[str]:
        """What to do with the trained model: a verb and its arguments, capitals to be filled in."""
        raise NotImplementedError

    def _need_checkpoint(self, subcommand: str) -> None:
        values = self.config_init[subcommand]
        root = Path(values["trainer"]["default_root_dir"])
        last = last_checkpoint(root)
        if not values.get("ckpt_path"):
            if last is None:
                raise TokenwmError(
                    f"{root / LAST_CHECKPOINT} is not there; give --ckpt_path, or the run's folder "
                    "as --trainer.default_root_dir: an untrained model has nothing to show"
                )
            values["ckpt_path"] = str(last)
        self._read_safely(subcommand)

    def _read_safely(self, subcommand: str) -> None:
        # Our checkpoints hold tensors and numbers only, so nothing need be unpickled; the index of
        # a folder is torch's own, and pickled.
        values = self.config_init[subcommand]
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


def last_checkpoint(root: Path) -> Path | None:
    """The checkpoint to resume a run from: a file, or a folder with a part for each rank."""
    last = root / LAST_CHECKPOINT
    return next((path for path in (last, older_of(last)) if path.exists()), None)


def keep_earlier_log(path: Path) -> None:
    """Rename the log of a run that is continued; Lightning's CSV logger would delete it."""
    if path.exists():
        number = len(list(path.parent.glob("metrics.*.csv")))
        path.rename(path.with_name(f"metrics.{number:03d}.csv"))


def launch(
    cli: type[TrainingCLI],
    module: type[pl.LightningModule],
    argv: list[str],
    verb: str,
    callbacks: Sequence[Callback] = (),
) -> TrainingCLI:
    """Run LightningCLI for one stage.

    Args:
        cli: The stage's CLI class.
        module: Its Lightning module.
        argv: Arguments after the verb.
        verb: The verb, for the usage line.
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
    if not argv or argv[0] not in (*TrainingCLI.subcommands(), "-h", "--help"):
        raise TokenwmError(
            f"usage: tokenwm {verb} fit|validate|test [options]; see tokenwm {verb} fit --help"
        )
    # A subclass, so that one run's callbacks do not stay for the next in the same process.
    stage = type(cli.__name__, (cli,), {"added_callbacks": list(callbacks)})
    try:
        done: TrainingCLI = stage(
            module,
            EpisodeDataModule,
            args=argv,
            seed_everything_default=0,
            save_config_kwargs={"overwrite": True, "config_filename": "training.yaml"},
            parser_kwargs={"prog": f"tokenwm {verb}"},
        )
        leave_process_group()
        return done
    except SystemExit as exit_request:
        # Lightning turns Ctrl-C into exit code 1, as if the run had failed.
        if isinstance(exit_request.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def leave_process_group() -> None:
    """Part from the other ranks, if there are any, once all have got here.

    Lightning does so for NCCL only. Threads of gloo that still run when Python exits abort the
    process now and then ("terminate called without an active exception"), after all work was done.
    """
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def run(
    cli: type[TrainingCLI], module: type[pl.LightningModule], argv: list[str], verb: str
) -> int:
    """:func:`launch` as the body of a verb; returns the exit code."""
    try:
        done = launch(cli, module, argv, verb)
    except SystemExit as exit_request:
        return exit_request.code if isinstance(exit_request.code, int) else 1
    # Here and not in the stage: the quick start and sweeps go on by themselves.
    if done.subcommand == "fit" and done.trainer.is_global_zero:
        Console().print(
            f"model: {done.folder / 'model'}; next: tokenwm {shlex.join(done.next_command())}",
            soft_wrap=True,
            highlight=False,
            markup=False,
        )
    return 0
