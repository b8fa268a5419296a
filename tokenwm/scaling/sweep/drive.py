"""Train all runs of a sweep: finished ones are skipped, failed ones are tried again.

All state is in the runs' folders, so a driver that was killed is simply started again.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenwm.engines import Engine, Job
from tokenwm.errors import SweepError
from tokenwm.scaling.runs.runs import FINISHED, RESULT_FILE
from tokenwm.scaling.sweep.sweep import Run

LOG_FILE = "log.txt"
DIVERGED = "diverged"

Status = Literal["waiting", "running", "finished", "diverged", "failed", "blocked"]
ENDED: tuple[Status, ...] = ("finished", "diverged", "failed", "blocked")


@dataclass(kw_only=True)
class RunState:
    """The status of a run.

    Attributes:
        run: The run.
        status: ``failed`` after all attempts; ``blocked`` if its trunk ended before its
            checkpoint.
        attempts: Number of times that this driver started it.
        skipped: Whether it was finished before.
    """

    run: Run
    status: Status = "waiting"
    attempts: int = 0
    skipped: bool = False
    job: Job | None = None


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """Settings for driving a sweep.

    Attributes:
        retries: Further attempts of a run that fails.
        metrics: Whether finished runs, but those that check the learning rate, must have downstream
            metrics.
        poll_seconds: Time between two looks at the runs.
    """

    retries: int = 1
    metrics: bool = False
    poll_seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.retries < 0:
            raise SweepError(f"retries={self.retries}; use 0 or more")


def drive(
    runs: Sequence[Run],
    folder: Path,
    engine: Engine,
    *,
    command: Callable[[Run], Sequence[str]],
    begins_from: Callable[[Run], Path | None],
    config: DriveConfig,
    show: Callable[[Sequence[RunState]], None],
) -> list[RunState]:
    """Execute all runs that are not finished, long ones first.

    Args:
        runs: The runs; a trunk before those that begin from it.
        folder: Folder of the sweep.
        engine: Engine that executes them.
        command: Command that executes a run and leaves its ``result.json``.
        begins_from: The checkpoint that a run begins from, if any.
        config: Retries and the like.
        show: Called at every look.

    Returns:
        Where each run stands at the end.
    """
    states = {run.name: _state_before(run, folder, config) for run in runs}
    urgency = _urgency(runs)
    by_urgency = sorted(states.values(), key=lambda state: -urgency[state.run.name])
    try:
        while any(state.status not in ENDED for state in states.values()):
            for state in by_urgency:
                if state.status == "running":
                    _look_at(state, folder, config)
            for state in by_urgency:
                if state.status == "waiting":
                    _set_if_blocked(state, states, begins_from)
                running = sum(other.status == "running" for other in by_urgency)
                if running < engine.parallel and _is_ready(state, states, begins_from):
                    log = folder / state.run.name / LOG_FILE
                    log.parent.mkdir(parents=True, exist_ok=True)
                    state.job = engine.start(command(state.run), log)
                    state.status, state.attempts = "running", state.attempts + 1
            show(by_urgency)
            if any(state.status == "running" for state in by_urgency):
                time.sleep(config.poll_seconds)
    finally:
        for state in by_urgency:
            if state.status == "running" and state.job is not None:
                state.job.cancel()
    return [states[run.name] for run in runs]


def _state_before(run: Run, folder: Path, config: DriveConfig) -> RunState:
    status = result_status(run, folder, config.metrics)
    if status is None:
        return RunState(run=run)
    return RunState(run=run, status=status, skipped=True)


def _look_at(state: RunState, folder: Path, config: DriveConfig) -> None:
    """See whether a running run has ended, and how."""
    assert state.job is not None
    if not state.job.done():
        return
    status = result_status(state.run, folder, config.metrics)
    if status is not None:
        state.status = status
    else:
        state.status = "waiting" if state.attempts <= config.retries else "failed"


def _is_ready(
    state: RunState,
    states: Mapping[str, RunState],
    begins_from: Callable[[Run], Path | None],
) -> bool:
    if state.status != "waiting":
        return False
    checkpoint = begins_from(state.run)
    if state.run.trunk is None or checkpoint is None or checkpoint.exists():
        return True
    # Its checkpoint was removed: the run begins anew, and ends the same.
    return states[state.run.trunk].status == "finished"


def _set_if_blocked(
    state: RunState,
    states: Mapping[str, RunState],
    begins_from: Callable[[Run], Path | None],
) -> None:
    checkpoint = begins_from(state.run)
    if state.run.trunk is None or checkpoint is None or checkpoint.exists():
        return
    if states[state.run.trunk].status in ("diverged", "failed"):
        state.status = "blocked"


def _urgency(runs: Sequence[Run]) -> dict[str, float]:
    """Seconds of a run and of those that wait for it."""
    seconds = {run.name: run.own_steps * run.size.seconds_per_step for run in runs}
    found = dict(seconds)
    for run in runs:
        if run.trunk is not None:
            found[run.trunk] += seconds[run.name]
    return found


def result_status(run: Run, folder: Path, metrics: bool) -> Literal["finished", "diverged"] | None:
    """The end of a run; None if it has not ended, or lacks the downstream metrics asked for.

    Args:
        run: The run.
        folder: Folder of the sweep.
        metrics: Whether they are; a run that only checks the learning rate needs none.
    """
    result = read_result(folder / run.name)
    status = result.get("status")
    metrics = metrics and not run.is_check
    if status == FINISHED and metrics and "rollout_psnr@1" not in result.get("metrics", {}):
        return None
    return status if status in (FINISHED, DIVERGED) else None


def read_result(folder: Path) -> dict[str, Any]:
    """``result.json`` of a run; empty if it is not there or not whole."""
    try:
        values = json.loads((folder / RESULT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
