"""The runs of a sweep as points (N, D, C, loss), read from run folders or from a CSV file."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenwm.errors import SweepError, TokenwmError
from tokenwm.scaling.runs.columns import choose_columns
from tokenwm.scaling.runs.csv_table import read_table, run_names, run_values, unread_cells

FINISHED = "finished"
RESULT_FILE = "result.json"
RUNS_FOLDER = "runs"
CHECKS_FOLDER = "learning_rate"
"""Runs that check the learning rate; beside ``runs``, since a law is not fitted to them."""


@dataclass(frozen=True, kw_only=True)
class RunPoint:
    """One finished training run.

    Attributes:
        path: Its folder relative to the sweep, or its name or line in a CSV file; no two are alike.
        num_parameters: N, matmul parameters with the head, without tables that are only looked up.
        num_tokens: D, positions predicted in training, repeats counted each time.
        flops: C, floating point operations of training.
        loss: Held-out nats per token.
        learning_rate: Peak learning rate; None if not recorded.
        seed: Seed of the run; None if not recorded.
        num_epochs: Times that each token of the data was seen; None if not recorded.
        num_steps: Optimizer steps; None if not recorded.
        seconds: Time of training alone; None if not recorded.
        status: ``finished``; only finished runs become points.
        metrics: Further held-out figures, such as ``rollout_psnr@5``, ``effective_horizon`` or
            ``reward_error``; finite.
    """

    path: str
    num_parameters: float
    num_tokens: float
    flops: float
    loss: float
    learning_rate: float | None = None
    seed: int | None = None
    num_epochs: float | None = None
    num_steps: float | None = None
    seconds: float | None = None
    status: str = FINISHED
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class LeftOut:
    """A run that is not fitted, and why."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Points:
    """The runs that were read.

    Attributes:
        points: Runs that can be fitted, in the order of the source.
        left_out: Runs that cannot, each with its reason.
        notes: Assumptions made while reading (columns guessed, tokens or FLOPs derived).
        rate_checks: Runs at other learning rates than the rule's, which are not fitted.
    """

    points: tuple[RunPoint, ...]
    left_out: tuple[LeftOut, ...] = ()
    notes: tuple[str, ...] = ()
    rate_checks: tuple[RunPoint, ...] = ()


def read_points(
    path: Path | str,
    columns: Mapping[str, str] | None = None,
    metrics: Sequence[str] = (),
) -> Points:
    """Read a sweep folder or a CSV file.

    A sweep folder holds ``runs/*/result.json``, each with the fields of :class:`RunPoint` as keys
    (``path`` is the folder), and perhaps ``learning_rate/*/result.json``, which check the rate. A
    CSV file has one run a line. Where it has no column for tokens or for FLOPs, that one follows
    from C = 6 N D, and a note says so.

    Args:
        path: The folder or file.
        columns: For a CSV file, ``{"N": "Model Size", ...}``; keys are those of ``COLUMN_OF``.
            Keys not given are guessed from near names.
        metrics: For a CSV file, further columns to read into ``RunPoint.metrics``.

    Raises:
        SweepError: There is no such file, nothing in it can be fitted, it is not CSV, or a column
            is not there or in doubt.
    """
    path = Path(path)
    if path.is_dir():
        if columns or metrics:
            raise SweepError(
                f"{path} is a folder of runs, whose result.json name their values themselves; "
                "columns can be named for a CSV file only"
            )
        read = _read_folder(path)
    elif path.is_file():
        read = _read_csv(path, columns or {}, metrics)
    else:
        raise SweepError(f"{path} does not exist; give a sweep folder or a CSV file")
    if not read.points:
        reasons = "; ".join(f"{item.path}: {item.reason}" for item in read.left_out[:5])
        raise SweepError(f"{path} holds no finished run ({reasons or 'it is empty'})")
    return read


def _read_folder(folder: Path) -> Points:
    if not (folder / RUNS_FOLDER).is_dir():
        raise SweepError(f"{folder} has no folder '{RUNS_FOLDER}': give the folder of a sweep")
    left_out: list[LeftOut] = []
    points = list(_results(folder / RUNS_FOLDER, "", left_out))
    checks = list(_results(folder / CHECKS_FOLDER, f"{CHECKS_FOLDER}/", left_out))
    return Points(points=tuple(points), left_out=tuple(left_out), rate_checks=tuple(checks))


def _results(parent: Path, prefix: str, left_out: list[LeftOut]) -> Iterator[RunPoint]:
    """Runs of a folder; those that cannot be fitted are added to ``left_out``."""
    for run in sorted(parent.glob("*/")):
        try:
            yield _point(prefix + run.name, _read_result(run / RESULT_FILE))
        except SweepError as error:
            left_out.append(LeftOut(path=prefix + run.name, reason=str(error)))


def _read_result(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise SweepError(f"has no {path.name}: it has not finished")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SweepError(f"{path.name} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise SweepError(f"{path.name} holds a {type(values).__name__}, expected keys and values")
    return values


def _read_csv(path: Path, columns: Mapping[str, str], metrics: Sequence[str]) -> Points:
    table = read_table(path)
    try:
        chosen, notes = choose_columns(table.header, columns, metrics)
    except TokenwmError as error:
        raise SweepError(f"{path}: {error}") from error
    notes += unread_cells(table.lines, chosen, metrics)
    points: list[RunPoint] = []
    left_out: list[LeftOut] = []
    names = run_names(table.lines, chosen.get("name"))
    for name, line in zip(names, table.lines, strict=True):
        try:
            points.append(_point(name, run_values(line, chosen, metrics)))
        except SweepError as error:
            left_out.append(LeftOut(path=name, reason=str(error)))
    return Points(points=tuple(points), left_out=tuple(left_out), notes=tuple(notes))


def _point(name: str, values: Mapping[str, Any]) -> RunPoint:
    """Check one run's values.

    Raises:
        SweepError: Something is missing, not finite or not above zero, or the run has failed.
    """
    status = str(values.get("status", FINISHED))
    if status.lower() != FINISHED:
        raise SweepError(f"its status is '{status}'")
    fields: dict[str, Any] = {}
    for key in ("num_parameters", "num_tokens", "flops", "loss"):
        value = values.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise SweepError(f"{key} is {value!r}, expected a number")
        if not (math.isfinite(value) and value > 0):
            raise SweepError(f"{key} is {value:g}, expected a finite number above zero")
        fields[key] = float(value)
    for key in ("learning_rate", "num_epochs", "num_steps", "seconds", "seed"):
        value = values.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            fields[key] = int(value) if key == "seed" else float(value)
    extra = values.get("metrics") or {}
    metrics = {
        key: float(value)
        for key, value in extra.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }
    return RunPoint(path=name, **fields, metrics=metrics)
