"""The driver: order, retries, what is skipped, what is blocked. No training."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.scaling.sweeps import small_data, small_sweep
from tokenwm.engines import Job
from tokenwm.scaling.sweep.drive import DriveConfig, RunState, drive
from tokenwm.scaling.sweep.sweep import Run, runs_of

RUNS = runs_of(small_sweep(), small_data().vocabulary)
TRUNKS = [run.name for run in RUNS if run.trunk is None]


class OneLook:
    """Has ended at the first look."""

    def __init__(self, code: int) -> None:
        self.code = code
        self.stopped = False

    def done(self) -> bool:
        return True

    def result(self) -> int:
        return self.code

    def cancel(self) -> None:
        self.stopped = True


class PretendEngine:
    """Runs a function instead of a command."""

    def __init__(self, parallel: int, act: Callable[[str], int]) -> None:
        self.parallel, self.act = parallel, act
        self.started: list[str] = []

    def start(self, command: Sequence[str], log: Path) -> Job:
        assert log.parent.is_dir()
        self.started.append(command[0])
        return OneLook(self.act(command[0]))

    def close(self) -> None:
        pass


def checkpoint_of(run: Run, folder: Path) -> Path | None:
    return None if run.trunk is None else folder / run.trunk / "kept"


def succeed(folder: Path, name: str, status: str = "finished") -> int:
    result = {"status": status, "metrics": {}}
    (folder / name / "result.json").write_text(json.dumps(result))
    (folder / name / "kept").touch()
    return 0


def run_all(
    folder: Path,
    engine: PretendEngine,
    config: DriveConfig | None = None,
    runs: Sequence[Run] = RUNS,
) -> dict[str, RunState]:
    most = 0

    def show(states: Sequence[RunState]) -> None:
        nonlocal most
        most = max(most, sum(state.status == "running" for state in states))

    states = drive(
        runs,
        folder,
        engine,
        command=lambda run: [run.name],
        begins_from=lambda run: checkpoint_of(run, folder),
        config=config or DriveConfig(poll_seconds=0.0),
        show=show,
    )
    assert most <= engine.parallel
    return {state.run.name: state for state in states}


@pytest.mark.parametrize("parallel", [1, 2, 5])
def test_all_runs_end_and_trunks_come_before_their_branches(tmp_path: Path, parallel: int) -> None:
    engine = PretendEngine(parallel, lambda name: succeed(tmp_path, name))
    states = run_all(tmp_path, engine)
    assert sorted(engine.started) == sorted(run.name for run in RUNS)
    assert all(state.status == "finished" for state in states.values())
    for run in RUNS:
        if run.trunk is not None:
            assert engine.started.index(run.trunk) < engine.started.index(run.name)
    longest = max(RUNS, key=lambda run: run.own_steps * run.size.seconds_per_step)
    assert engine.started[0] == longest.name


def test_what_is_finished_is_skipped(tmp_path: Path) -> None:
    run_all(tmp_path, PretendEngine(1, lambda name: succeed(tmp_path, name)))
    (tmp_path / RUNS[1].name / "result.json").write_text('{"status": "fini')  # not whole
    again = PretendEngine(1, lambda name: succeed(tmp_path, name))
    states = run_all(tmp_path, again)
    assert again.started == [RUNS[1].name]
    assert [state.skipped for state in states.values()] == [True, False, True, True]


def test_finished_runs_are_started_once_more_for_metrics(tmp_path: Path) -> None:
    run_all(tmp_path, PretendEngine(1, lambda name: succeed(tmp_path, name)))

    def measure(name: str) -> int:
        result = {"status": "finished", "metrics": {"rollout_psnr@1": 30.0}}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
        return 0

    engine = PretendEngine(2, measure)
    run_all(tmp_path, engine, DriveConfig(poll_seconds=0.0, metrics=True))
    assert sorted(engine.started) == sorted(run.name for run in RUNS)


def test_checks_of_the_learning_rate_need_no_metrics(tmp_path: Path) -> None:
    check = replace(RUNS[0], name="learning_rate/n16k")
    config = DriveConfig(poll_seconds=0.0, metrics=True)
    for expected in (["learning_rate/n16k"], []):
        engine = PretendEngine(1, lambda name: succeed(tmp_path, name))
        run_all(tmp_path, engine, config, [check])
        assert engine.started == expected


@pytest.mark.parametrize("retries", [0, 2])
def test_a_run_that_fails_is_tried_again_and_then_blocks_its_branches(
    tmp_path: Path, retries: int
) -> None:
    def act(name: str) -> int:
        return 1 if name == TRUNKS[0] else succeed(tmp_path, name)

    engine = PretendEngine(1, act)
    states = run_all(tmp_path, engine, DriveConfig(poll_seconds=0.0, retries=retries))
    assert engine.started.count(TRUNKS[0]) == 1 + retries
    assert states[TRUNKS[0]].status == "failed"
    assert states[RUNS[1].name].status == "blocked"
    assert [states[run.name].status for run in RUNS[2:]] == ["finished"] * 2


def test_a_second_attempt_may_succeed(tmp_path: Path) -> None:
    seen: set[str] = set()

    def act(name: str) -> int:
        first = name not in seen
        seen.add(name)
        return 1 if first else succeed(tmp_path, name)

    states = run_all(tmp_path, PretendEngine(2, act))
    assert {(state.status, state.attempts) for state in states.values()} == {("finished", 2)}


def test_success_without_a_result_is_a_failure(tmp_path: Path) -> None:
    states = run_all(tmp_path, PretendEngine(2, lambda name: 0))
    assert states[TRUNKS[0]].status == "failed"


def test_diverged_runs_are_not_repeated(tmp_path: Path) -> None:
    def act(name: str) -> int:
        code = succeed(tmp_path, name, "diverged")
        if name == TRUNKS[1]:
            (tmp_path / name / "kept").unlink()  # before the step that others begin from
        return code

    engine = PretendEngine(1, act)
    states = run_all(tmp_path, engine)
    assert states[TRUNKS[0]].status == states[RUNS[1].name].status == "diverged"
    assert states[RUNS[3].name].status == "blocked"
    assert max(engine.started.count(name) for name in engine.started) == 1


def test_a_branch_whose_checkpoint_was_removed_begins_anew(tmp_path: Path) -> None:
    def act(name: str) -> int:
        succeed(tmp_path, name)
        (tmp_path / name / "kept").unlink()
        return 0

    states = run_all(tmp_path, PretendEngine(1, act))
    assert {state.status for state in states.values()} == {"finished"}


def test_what_runs_is_stopped_when_the_driver_is(tmp_path: Path) -> None:
    jobs: list[OneLook] = []

    class Endless(PretendEngine):
        def start(self, command: Sequence[str], log: Path) -> Job:
            jobs.append(OneLook(0))
            return jobs[-1]

    def show(states: Sequence[RunState]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        drive(
            RUNS,
            tmp_path,
            Endless(2, lambda name: 0),
            command=lambda run: [run.name],
            begins_from=lambda run: None,
            config=DriveConfig(poll_seconds=0.0),
            show=show,
        )
    assert len(jobs) == 2 and all(job.stopped for job in jobs)
