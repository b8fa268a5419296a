"""Lightning callbacks for runs that are stopped from outside."""

import os
import signal
from typing import Any

import lightning.pytorch as pl


class KillAt(pl.Callback):
    """Sends the process a signal, by default one that ends it without warning.

    Args:
        step: Optimizer steps before that.
        number: The signal.
        in_validation: Wait for the validation that follows the step.
    """

    def __init__(
        self, step: int, number: int = int(signal.SIGKILL), in_validation: bool = False
    ) -> None:
        self.step = step
        self.number = number
        self.in_validation = in_validation

    def on_train_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step and self.number != signal.SIGKILL:
            self._send(not self.in_validation)

    def on_train_batch_end(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step and self.number == signal.SIGKILL:
            self._send(not self.in_validation)

    def on_validation_batch_start(self, trainer: pl.Trainer, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            self._send(self.in_validation)

    def _send(self, is_time: bool) -> None:
        if is_time:
            os.kill(os.getpid(), self.number)
