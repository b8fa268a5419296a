"""Lightning callbacks of the command line: progress, throughput, pictures."""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from rich.console import Console

from tokenwm.cli.console import say
from tokenwm.cli.progress import show_progress
from tokenwm.cli.training.model_exports import tokenizer_of
from tokenwm.data.loading.datamodule import EpisodeDataModule
from tokenwm.data.loading.windows import Batch
from tokenwm.data.shards.tasks import Progress, ShowProgress
from tokenwm.evaluation.report.pictures import absolute_error, film_strip, side_by_side, write_png
from tokenwm.flops import FlopCount, tokenizer_flops, world_model_flops
from tokenwm.imagination.decode import prefill
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.sequence.tokens import Tokens
from tokenwm.throughput import measured_peak_flops
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.tokenizer.training import FrameTokenizerModule
from tokenwm.training import TrainingModule
from tokenwm.transformer.training import WorldModelModule, tokens_of

SHOWN = ("loss", "psnr", "frame_nll", "frame_accuracy", "changed_accuracy", "codebook_usage")


class TrainingProgress(pl.Callback):
    """One line: stage, step, figures, rate, time left; plain lines where there is no terminal.

    Args:
        stage: Name of the stage that is trained.
        every_n_steps: Steps between plain lines.
    """

    def __init__(self, stage: str, every_n_steps: int = 100) -> None:
        self.stage = stage
        self.every_n_steps = every_n_steps
        self.console = Console()
        self._bar = ExitStack()
        self._show: ShowProgress | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the line."""
        if not trainer.is_global_zero:
            return
        self._begin, self._first_step = time.monotonic(), trainer.global_step
        self._say(f"on {pl_module.device}, {trainer.precision}")
        if trainer.global_step:
            self._say(f"resuming at {_step_of(trainer)}{_windows_seen(trainer)}")
        is_plain = not self.console.is_terminal
        self._show = self._bar.enter_context(show_progress(self.console, self.stage, is_plain))

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Move the line on."""
        step = trainer.global_step
        if self._show is None or (step % 10 and step != trainer.max_steps):
            return
        total, new = _num_steps(trainer), step - self._first_step
        figures = _figures(trainer.callback_metrics, "train")
        counts = {"done": step, "total": total, "kept": self._first_step, "new_steps": new}
        self._show(Progress(stage="steps", message=figures, **counts))
        if not self.console.is_terminal and step % self.every_n_steps == 0:
            rate = new / max(1e-9, time.monotonic() - self._begin)
            left = f"  {(total - step) / max(rate, 1e-9):.0f} s left" if total else ""
            self._say(f"{_step_of(trainer)}  {figures}  {rate:.1f} steps/s{left}")

    def on_validation_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        """Print what validation found."""
        if self._show is not None and not trainer.sanity_checking:
            figures = _figures(trainer.callback_metrics, "val")
            self._say(f"step {trainer.global_step}  held out: {figures}")

    def on_train_end(self, *arguments: Any) -> None:
        """Give the terminal back."""
        self._bar.close()
        self._show = None

    def on_exception(self, *arguments: Any) -> None:
        """Give the terminal back."""
        self.on_train_end()

    def _say(self, text: str) -> None:
        say(self.console, f"{self.stage}  {text}")


def _num_steps(trainer: pl.Trainer) -> int:
    """Steps in all; 0 while the clock has not decided yet."""
    module = trainer.lightning_module
    num_steps = module.num_steps if isinstance(module, TrainingModule) else trainer.max_steps
    return max(0, num_steps)


def _step_of(trainer: pl.Trainer) -> str:
    total = _num_steps(trainer)
    return f"step {trainer.global_step}" + (f" of {total}" if total else "")


def _windows_seen(trainer: pl.Trainer) -> str:
    """Text of the windows that a resumed run has seen, and of a new batch size."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not isinstance(data, EpisodeDataModule):
        return ""
    *earlier, leg = data.legs
    text = f", after {data.windows_seen:,} windows"
    if earlier and leg.first_step == trainer.global_step:
        now, before = (part.batch_windows * part.accumulate for part in (leg, earlier[-1]))
        text += f"; from here on {now} windows a step, {before} before"
    return text


def _figures(metrics: Mapping[str, Any], stage: str) -> str:
    found = [(name, metrics.get(f"{stage}/{name}")) for name in SHOWN]
    return "  ".join(f"{name} {float(value):.3f}" for name, value in found if value is not None)


class Throughput(pl.Callback):
    """Logs samples per second and model FLOPs utilisation while training; validation is left out.

    Utilisation is the operations of forward and backward (:mod:`tokenwm.flops`) per second
    over the rate of a large matrix product, measured on the same device.
    """

    def __init__(self) -> None:
        self._flops_per_batch = 0.0
        self._peak = float("inf")
        self._is_paused = False

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Go on with the clock after validation."""
        if self._is_paused:
            self._since, self._is_paused = time.monotonic(), False

    def on_validation_start(self, *arguments: Any) -> None:
        """Stop the clock until the next batch begins."""
        self._is_paused = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        """Log whenever the trainer logs."""
        step = trainer.global_step
        if not self._flops_per_batch:
            self._measure(trainer, pl_module, batch)
            self._restart(step)
            return
        now = time.monotonic()
        self._seconds += now - self._since
        self._since = now
        self._num_batches += 1
        if step == self._last_step or step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        rate = self._num_batches / max(1e-9, self._seconds)
        pl_module.log("train/windows_per_second", rate * len(batch.keys) * trainer.world_size)
        pl_module.log("train/mfu", rate * self._flops_per_batch / self._peak)
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        tokens = float(data.windows_seen * self._tokens_per_window)
        pl_module.log("train/tokens_seen", tokens)
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._seconds, self._num_batches, self._last_step = 0.0, 0, step
        self._since = time.monotonic()

    def _measure(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch) -> None:
        """Count operations and find the peak, without touching random state."""
        device = pl_module.device
        dtype = torch.bfloat16 if "bf16" in str(trainer.precision) else torch.float32
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            self._peak = measured_peak_flops(device, dtype)
            count = _flops_of(pl_module, batch)
            self._flops_per_batch = count.training
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        filled = sum(float(part.share) * part.windows.filled for part in data.strata)
        self._tokens_per_window = filled * count.num_tokens / len(batch.keys)


def _flops_of(module: pl.LightningModule, batch: Batch) -> FlopCount:
    rows, num_steps = batch.step_valid.shape
    if isinstance(module, WorldModelModule):
        return world_model_flops(
            module.model_config,
            module.world_model.vocabulary,
            num_steps=num_steps,
            batch_size=rows,
        )
    assert isinstance(module, FrameTokenizerModule)
    return tokenizer_flops(module.tokenizer, rows * num_steps)


class RolloutPictures(pl.Callback):
    """Draws truth, prediction and error of a validation batch, open loop, decoded from tokens.

    Logs ``val/tokens_per_pass`` of what it imagined, see :attr:`DecodedSteps.tokens_per_pass`.

    Args:
        folder: Folder for the PNGs.
        num_rows: Episodes in the picture.
        num_context_steps: Observed steps before imagining.
    """

    def __init__(self, folder: Path, num_rows: int = 2, num_context_steps: int = 2) -> None:
        self.folder = folder
        self.num_rows = num_rows
        self.num_context_steps = num_context_steps
        self._tokens: Tokens | None = None
        self._tokenizer: FrameTokenizer | None = None

    def on_validation_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Keep the longest windows of the first batch, without their padding."""
        if batch_idx == 0:
            tokens, lengths = tokens_of(batch), batch.step_valid.sum(1)
            rows = lengths.argsort(descending=True, stable=True)[: self.num_rows]
            self._tokens = tokens.rows(rows).steps(slice(int(lengths[rows].min())))

    @torch.no_grad()
    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Imagine and draw."""
        if trainer.sanity_checking or not trainer.is_global_zero or self._tokens is None:
            return
        assert isinstance(pl_module, WorldModelModule)
        if pl_module.device_mesh is not None:
            return  # one rank alone holds a share of the weights and cannot imagine
        tokens, first = self._tokens, self.num_context_steps
        num_steps = tokens.frame.shape[1]
        if num_steps <= first:
            return
        if self._tokenizer is None:
            self._tokenizer = tokenizer_of(trainer).to(pl_module.device)
        model = pl_module.world_model.eval()
        state = prefill(model, tokens.steps(slice(first)))
        actions = tokens.action[:, first - 1 : num_steps - 1]
        _, imagined_steps = decode_steps_speculatively(
            model, state, actions, SamplingConfig(temperature=0)
        )
        truth = self._tokenizer.decode_frames(tokens.frame[:, first:])
        imagined = self._tokenizer.decode_frames(imagined_steps.frame_tokens)
        strip = _strip(truth.cpu().numpy(), imagined.cpu().numpy())
        self.folder.mkdir(parents=True, exist_ok=True)
        write_png(self.folder / f"step_{trainer.global_step:07d}.png", strip)
        tokens_per_pass = {"val/tokens_per_pass": imagined_steps.tokens_per_pass}
        for logger in trainer.loggers:
            logger.log_metrics(tokens_per_pass, step=trainer.global_step)
            if isinstance(logger, pl.loggers.TensorBoardLogger):
                logger.experiment.add_image(
                    "rollout", np.asarray(strip), trainer.global_step, dataformats="HWC"
                )


def _strip(truth: Any, imagined: Any) -> Any:
    """``(B, H, cameras, h, w, 3)`` uint8, twice → a picture with truth, imagined, error of each."""
    rows = {}
    for number, (frames, guess) in enumerate(zip(truth, imagined, strict=True), start=1):
        frames, guess = side_by_side(frames), side_by_side(guess)
        rows[f"truth {number}"], rows[f"imagined {number}"] = frames, guess
        rows[f"error {number}"] = absolute_error(guess, frames)
    return film_strip(rows, [f"+{step}" for step in range(1, truth.shape[1] + 1)])
