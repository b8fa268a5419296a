"""The live table of a sweep: what matters is seen, however many runs and however few lines."""

import io
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.text import Text

from tests.unit.scaling.sweeps import small_data, small_sweep
from tokenwm.cli.main import main
from tokenwm.cli.verbs import sweep_run
from tokenwm.cli.verbs.sweep_run import SweepView
from tokenwm.scaling.sweep.drive import RunState, Status
from tokenwm.scaling.sweep.sweep import runs_of, sweep_text

HEIGHT = 24
RUN = runs_of(small_sweep(), small_data().vocabulary)[0]
RESULT = {"loss": 2.5, "metrics": {"frame_accuracy": 0.5}, "reason": "the loss is no number"}


def states_of(folder: Path, statuses: Sequence[Status]) -> list[RunState]:
    """Runs that stand so; the later in the list, the later they ended."""
    states = []
    for index, status in enumerate(statuses):
        run = replace(RUN, name=f"runs/{status}{index:02}")
        states.append(RunState(run=run, status=status))
        result = folder / run.name / "result.json"
        result.parent.mkdir(parents=True, exist_ok=True)
        result.write_text(json.dumps(RESULT))
        os.utime(result, (index, index))
    return states


def screens(
    folder: Path, statuses: Sequence[Status], height: int = HEIGHT, width: int = 100
) -> tuple[list[str], list[str]]:
    """Lines of the terminal while the sweep runs, and those that are left at its end."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, height=height, width=width)
    with SweepView(console, small_sweep(), folder) as view:
        begin = out.tell()
        view.show(states_of(folder, statuses))
        end = out.tell()
    parts = out.getvalue()[begin:end], out.getvalue()[end:]
    during, after = (Text.from_ansi(part).plain.splitlines() for part in parts)
    return during, after


def names(lines: Sequence[str]) -> list[str]:
    return [line.split()[0].removeprefix("runs/") for line in lines if "runs/" in line]


def test_of_more_runs_than_lines_those_are_shown_that_matter(tmp_path: Path) -> None:
    statuses: list[Status] = ["finished"] * 20 + ["waiting"] * 20
    statuses += ["blocked", "diverged", "failed", "failed", "running", "running"]
    during, after = screens(tmp_path, statuses)
    assert len(during) == HEIGHT
    assert "small: 2 running, 2 failed, 1 diverged, 1 blocked, 20 finished" in during[0]
    urgent = ["running44", "running45", "failed42", "failed43", "diverged41", "blocked40"]
    shown = names(during)
    assert shown[:6] == urgent
    assert shown[6:] == [f"finished{index:02}" for index in range(19, 5, -1)]
    assert "26 not shown: 6 finished, 20 waiting" in during[-1]
    assert len(names(after)) == len(statuses)
    assert "not shown" not in "".join(after)


def test_then_come_those_that_wait(tmp_path: Path) -> None:
    during, _ = screens(tmp_path, ["waiting"] * 30 + ["finished", "running"])
    assert names(during)[:4] == ["running31", "finished30", "waiting00", "waiting01"]
    assert f"not shown: {32 - len(names(during))} waiting" in during[-1]


def test_runs_that_fit_are_all_shown(tmp_path: Path) -> None:
    during, _ = screens(tmp_path, ["waiting"] * (HEIGHT - 2))
    assert len(names(during)) == HEIGHT - 2 and len(during) == HEIGHT


def test_a_summary_of_two_lines_and_hardly_any_lines(tmp_path: Path) -> None:
    during, _ = screens(tmp_path / "narrow", ["finished", "running"] * 20, width=60)
    assert len(during) == HEIGHT and "not shown" in during[-1]
    during, _ = screens(tmp_path / "low", ["finished", "running"] * 20, height=3)
    assert len(during) == 3 and "20 running, 20 finished" in during[0]


def test_a_log_is_no_markup(tmp_path: Path) -> None:
    log = tmp_path / "runs" / "running00" / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("reading [/data/tokens]\n")
    during, _ = screens(tmp_path, ["running"])
    assert "reading [/data/tokens]" in during[-1]


def test_a_sweep_begun_anew_on_a_device_says_how_its_runs_stand(
    tmp_path: Path,
    token_shards: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path, folder, commands = tmp_path / "sweep.yaml", tmp_path / "runs", []
    path.write_text(sweep_text(small_sweep(str(token_shards))))

    def drive(runs: Sequence[Any], *_: object, command: Any, **__: object) -> list[RunState]:
        commands.extend(map(command, runs))
        return [RunState(run=run, status="finished") for run in runs]

    monkeypatch.setattr(sweep_run, "drive", drive)
    earlier, other = folder / RUN.name / "result.json", folder / "notes.txt"
    earlier.parent.mkdir(parents=True)
    for file in (earlier, other):
        file.write_text('{"loss": 2.5}')
    arguments = ["sweep", "run", str(path), "--out", str(folder), "--device", "cpu", "--json"]
    assert main(arguments) == 0
    runs = {run["run"]: run for run in json.loads(capsys.readouterr().out)["runs"]}
    assert runs[RUN.name] == {"run": RUN.name, "status": "finished", "loss": 2.5}
    assert {command[-1] for command in commands} == {"cpu"}
    assert main([*arguments, "--overwrite"]) == 0
    assert not earlier.parent.exists() and other.exists()
