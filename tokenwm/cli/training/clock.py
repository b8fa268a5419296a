"""Lightning callback: training that ends in time, whatever else the machine does meanwhile."""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import lightning.pytorch as pl

from tokenwm.errors import TokenwmError
from tokenwm.training import TrainingModule

PACE_STEPS = 64
"""Latest steps whose mean time is the pace of the machine."""
TOLERANCE = 0.1
"""Part of the steps left by which the pace may change before the end of the decay is moved."""
FEW_STEPS = 20
"""Steps before its end from which on a decay is only shortened, never made longer."""


class Clock(pl.Callback):
    """Trains for a given time: warm-up, stable, then a decay that the clock alone begins.

    It begins when ``decay_fraction`` of the time is left and has as many steps as fit into that at
    the pace of the latest ones. Where the pace changes, what is left of it is stretched or
    shortened, so the learning rate always arrives at its end in time. The steps at which that was
    decided are ``decay_spans`` of the optimizer's options: with them and the number of steps the
    run can be repeated without a clock, bit for bit.

    Args:
        seconds: Time for all, from the moment this is made: validation and checkpoints included.
            Of an earlier part of the run, the time up to its checkpoint counts.
        reserve_steps: What is to be done after training, in training steps: so much of the time is
            kept for it, at the pace of the machine, but at most half.
        now: Seconds of a clock.

    Attributes:
        seconds_used: Time used so far.
        seconds_before: The part of it that belongs to an earlier part of the run.

    Raises:
        TokenwmError: There is no time, or the schedule is not ``wsd``.
    """

    def __init__(
        self,
        seconds: float,
        reserve_steps: int = 0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        if not seconds > 0 or reserve_steps < 0:
            raise TokenwmError(
                f"minutes={seconds / 60:g} must be above 0, and "
                f"reserve_steps={reserve_steps} at least 0"
            )
        self.seconds = seconds
        self.reserve_steps = reserve_steps
        self._now = now
        self._began, self.seconds_before = now(), 0.0
        self.seconds_used = 0.0
        self._durations: deque[float] = deque(maxlen=PACE_STEPS)
        self._step, self._last, self._is_warm = -1, 0.0, False
        self._validation_began, self._validation_seconds = 0.0, -1.0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Take the end of the run out of the trainer's hands."""
        assert isinstance(pl_module, TrainingModule)
        schedule = pl_module.optimizer_config.schedule
        if schedule != "wsd":
            raise TokenwmError(
                f"model.optimizer.schedule is {schedule}, but only wsd can end by the clock: "
                "leave --minutes away and set --trainer.max_steps, or use wsd"
            )
        pl_module.ends_by_clock = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin to measure the pace; end at once a run that had come to its end."""
        assert isinstance(pl_module, TrainingModule)
        self._step, self._last = trainer.global_step, self._time(trainer)
        if 0 < pl_module.num_steps <= trainer.global_step:
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note when it begins."""
        self._validation_began = self._time(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Learn how long it takes: there is one at the end, too."""
        self._last = self._time(trainer)  # it is no part of a step
        self._validation_seconds = self._last - self._validation_began

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *arguments: Any
    ) -> None:
        """Decide on the rest of the run, after each whole step."""
        step = trainer.global_step
        if step == self._step:
            return
        assert isinstance(pl_module, TrainingModule)
        now = self._time(trainer)
        if self._is_warm:  # the first step may compile, and measures the machine
            self._durations.append(now - self._last)
        self._step, self._last, self._is_warm = step, now, True
        self.seconds_used = self.seconds_before + now - self._began
        if self._durations:
            self._plan(trainer, pl_module, step)
        trainer.should_stop = 0 < pl_module.num_steps <= step

    def state_dict(self) -> dict[str, Any]:
        """The time used; the plan is among the optimizer's options."""
        return {"seconds_used": self.seconds_used}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.seconds_before = self.seconds_used = state_dict["seconds_used"]

    def _plan(self, trainer: pl.Trainer, module: TrainingModule, step: int) -> None:
        """Begin the decay, or move its end."""
        config, spans = module.optimizer_config, module.optimizer_config.decay_spans
        pace = max(1e-9, sum(self._durations) / len(self._durations))
        validation = self._validation_seconds
        if validation < 0:  # none yet: a batch is about half a step
            validation = 0.5 * pace * sum(trainer.num_val_batches)
        kept = min(self.reserve_steps * pace, 0.5 * self.seconds)
        usable = self.seconds - kept - validation
        left = usable - self.seconds_used
        fitting = max(0, int(left / pace))
        planned = spans[-1][1] - step if spans else 0
        if not spans:
            is_time = left <= config.decay_fraction * usable or fitting <= 1
            fitting = max(1, fitting)
        else:
            changed = abs(fitting - planned) > TOLERANCE * planned
            is_time = planned > 0 and changed and (fitting < planned or planned > FEW_STEPS)
        if is_time:
            module.optimizer_config = replace(config, decay_spans=(*spans, (step, step + fitting)))

    def _time(self, trainer: pl.Trainer) -> float:
        """The first rank's clock, so that all ranks decide alike."""
        return float(trainer.strategy.broadcast(self._now()))
