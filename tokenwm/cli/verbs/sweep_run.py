"""``tokenwm sweep run SWEEP --out DIR``: train every run of a sweep, whatever it takes."""

import argparse
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from tokenwm.cli.console import console_of, give, printable, say
from tokenwm.cli.devices import device_from
from tokenwm.cli.options import parse
from tokenwm.cli.verbs.sweep_training import begins_from
from tokenwm.data.storage.atomic import open_atomically, remove_whole
from tokenwm.data.storage.folder import location, open_folder
from tokenwm.data.storage.lock import lock_folder
from tokenwm.engines import Engine, LocalEngine, RayEngine, SlurmEngine
from tokenwm.errors import TokenwmError
from tokenwm.scaling.runs.runs import RESULT_FILE
from tokenwm.scaling.sweep.drive import LOG_FILE, DriveConfig, RunState, Status, drive, read_result
from tokenwm.scaling.sweep.sweep import Run, Sweep, TokenData, load_sweep, runs_of, sweep_text
from tokenwm.strict import key_values

STYLES: Mapping[Status, str] = {
    "running": "bold cyan",
    "failed": "bold red",
    "diverged": "yellow",
    "blocked": "red",
    "finished": "green",
    "waiting": "dim",
}
"""Style of each status, in the order in which runs are shown: what does not fit is cut."""
LINES_OF_LOG = 3
"""Shown of a run that failed."""


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code: 1 if a run is not finished at the end."""
    arguments = parse("sweep run", argv)
    console, sweep = console_of(arguments), load_sweep(arguments.sweep)
    if arguments.engine == "local":
        say(console, f"on {device_from(arguments.device)}")
    # Runs may be executed on other machines, in other folders.
    sweep = replace(sweep, data=_anywhere(arguments.data or location(sweep.data)))
    runs = runs_of(sweep, TokenData.load(sweep.data).vocabulary)
    folder: Path = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / "sweep.yaml"
    with open_atomically(copy) as file:
        file.write(sweep_text(sweep).encode())
    frames = [] if arguments.evaluate is None else [_anywhere(arguments.evaluate)]
    if frames and not open_folder(frames[0]).names():
        raise TokenwmError(f"--evaluate {arguments.evaluate} is no folder of frame shards")
    if arguments.overwrite:
        _begin_anew(runs, folder)

    def command(run: Run) -> list[str]:
        module = [sys.executable, "-m", "tokenwm.cli.verbs.sweep_training"]
        return [*module, str(copy), run.name, str(folder), arguments.device, *frames]

    signal.signal(signal.SIGTERM, _interrupt)  # so that runs are stopped, as by Ctrl-C
    view = SweepView(console, sweep, folder)
    engine = _engine(arguments)
    try:
        with view:
            states = drive(
                runs,
                folder,
                engine,
                command=command,
                begins_from=lambda run: begins_from(run, folder),
                config=DriveConfig(retries=arguments.retries, metrics=bool(frames)),
                show=view.show,
            )
    finally:
        engine.close()
    code = report(console, states, folder)
    results = [
        {**read_result(folder / state.run.name), "run": state.run.name, "status": state.status}
        for state in states
    ]
    give(arguments, {"folder": folder, "runs": results})
    return code


def _anywhere(data: Path | str) -> str:
    return str(data.resolve()) if isinstance(data, Path) else data


def _begin_anew(runs: Sequence[Run], folder: Path) -> None:
    """Remove the runs' folders; one that is still being trained is an error."""
    for own in (folder / run.name for run in runs):
        if own.is_dir():
            with lock_folder(own):
                remove_whole(own)


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt


def _engine(arguments: argparse.Namespace) -> Engine:
    if arguments.engine == "ray":
        return RayEngine(arguments.workers, gpus=arguments.gpus)
    if arguments.engine == "slurm":
        parameters = key_values("--slurm", arguments.slurm)
        return SlurmEngine(arguments.out / "slurm", arguments.workers, parameters)
    return LocalEngine(arguments.workers)


class SweepView:
    """A live table of the runs; where there is no terminal, a line for each change.

    Args:
        console: Console to print on.
        sweep: The sweep.
        folder: Its folder.
    """

    def __init__(self, console: Console, sweep: Sweep, folder: Path) -> None:
        self.console, self.sweep, self.folder = console, sweep, folder
        self._live: Live | None = None
        self._last: Sequence[RunState] = ()
        self._told: dict[str, tuple[str, int]] = {}

    def __enter__(self) -> "SweepView":
        """Take the terminal."""
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *arguments: Any) -> None:
        """Give it back, with all runs: now it may scroll."""
        if self._live is not None:
            if self._last:
                self._live.update(self.overview(self._last, None))
            self._live.stop()

    def show(self, states: Sequence[RunState]) -> None:
        """Show where the runs stand."""
        if self._live is not None:
            self._last = states
            self._live.update(self.overview(states, self.console.height), refresh=True)
            return
        changed = [s for s in states if self._told.get(s.run.name) != (s.status, s.attempts)]
        for state in changed:
            self._told[state.run.name] = (state.status, state.attempts)
            if state.status != "waiting" or state.attempts:
                line = f"{state.status:9} {state.run.name}  {result_text(state, self.folder)}"
                say(self.console, line.rstrip())
        if changed:
            say(self.console, summary(states))

    def overview(self, states: Sequence[RunState], height: int | None) -> Group:
        """The summary, then the runs, in the order of :data:`STYLES`.

        Args:
            states: Where the runs stand.
            height: Lines that there are: of runs that do not fit, only the number is shown. None:
                as many as it takes.
        """
        head = Text.assemble(printable(self.sweep.name, "bold"), ": ", summary(states))
        ordered = sorted(states, key=self._place)
        if height is None:
            return Group(head, self.table(ordered))
        room = height - len(self.console.render_lines(head)) - 1  # of the headings
        if len(ordered) <= room:
            return Group(head, self.table(ordered))
        shown = max(room - 1, 0)
        more = Text(f"{len(ordered) - shown} not shown: {counts(ordered[shown:])}", style="dim")
        return Group(head, self.table(ordered[:shown]), more)

    def _place(self, state: RunState) -> tuple[int, float]:
        """Sorts runs: by status, of the finished the latest first."""
        age = 0.0
        if state.status == "finished":
            age = -(self.folder / state.run.name / RESULT_FILE).stat().st_mtime
        return list(STYLES).index(state.status), age

    def table(self, states: Sequence[RunState]) -> Table:
        """Runs, a line each."""
        table = Table(box=None, expand=True)
        for heading in ("run", "status", "tries", "steps"):
            table.add_column(heading, no_wrap=True)
        table.add_column("", no_wrap=True, ratio=1)
        for state in states:
            text = result_text(state, self.folder)
            if state.status == "running":
                text = _last_lines(self.folder / state.run.name / LOG_FILE, 1)
            status = Text(state.status, style=STYLES[state.status])
            tries = "kept" if state.skipped else str(state.attempts)
            steps = f"{state.run.first_step}–{state.run.max_steps}"
            table.add_row(printable(state.run.name), status, tries, steps, printable(text))
        return table


def result_text(state: RunState, folder: Path) -> str:
    """Loss and metrics of a run, or why there are none."""
    if state.status == "blocked":
        return f"{state.run.trunk} ended before step {state.run.first_step}"
    if state.status not in ("finished", "diverged"):
        return ""
    result = read_result(folder / state.run.name)
    if state.status == "diverged":
        return str(result.get("reason", ""))
    metrics = "  ".join(f"{name} {value:.4g}" for name, value in result["metrics"].items())
    return f"loss {result['loss']:.4f}  {metrics}"


def counts(states: Sequence[RunState]) -> str:
    """Number of runs of each status, in words."""
    found = {status: sum(state.status == status for state in states) for status in STYLES}
    return ", ".join(f"{count} {status}" for status, count in found.items() if count)


def summary(states: Sequence[RunState]) -> str:
    """Number of runs of each status, and the planned time of those that are left."""
    left = sum(
        state.run.own_steps * state.run.size.seconds_per_step
        for state in states
        if state.status in ("waiting", "running")
    )
    return f"{counts(states)}; about {left / 60:.0f} minutes of training left, over all processes"


def report(console: Console, states: Sequence[RunState], folder: Path) -> int:
    """Say what did not finish and why; returns the exit code."""
    bad = [state for state in states if state.status != "finished"]
    for state in bad:
        say(console, f"{state.status} {state.run.name}", style="bold red")
        log = folder / state.run.name / LOG_FILE
        if state.status == "failed":
            say(console, _last_lines(log, LINES_OF_LOG))
            say(console, f"  all of it: {log}")
        else:
            say(console, f"  {result_text(state, folder)}")
    say(
        console,
        f"{len(states) - len(bad)} of {len(states)} runs are finished; next: tokenwm sweep fit "
        f"{folder}",
    )
    return 1 if any(state.status in ("failed", "blocked") for state in bad) else 0


def _last_lines(path: Path, count: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join([line for line in lines if line.strip()][-count:])
