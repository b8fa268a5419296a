"""A sweep from plan to results: on every engine the same, and again after a kill."""

import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.processes import REPOSITORY, running, tokenwm
from tests.small_models import small_tokenizer
from tests.unit.scaling.sweeps import small_size, small_sweep
from tokenwm import engines
from tokenwm.checkpoint import save_tokenizer
from tokenwm.cli.verbs import sweep_fit, sweep_run, sweep_training
from tokenwm.cli.verbs.sweep_training import train
from tokenwm.engines import Job, RayEngine, SlurmEngine
from tokenwm.scaling.runs.runs import read_points
from tokenwm.scaling.sweep.drive import read_result
from tokenwm.scaling.sweep.sweep import Sweep, TokenData, load_sweep, runs_of, sweep_text

pytestmark = [pytest.mark.slow, pytest.mark.timeout(170)]
TOKENS_PER_STEP = 4 * 2 * 5
"""Of the token shards: 4 frame tokens and a state in each of two predicted steps of four rows."""
BUDGETS = (20 * TOKENS_PER_STEP, 40 * TOKENS_PER_STEP)
TRUNK, BRANCH = "runs/n16k_d1.6k_s0", "runs/n16k_d800_s0"


@pytest.fixture(scope="module")
def tokens(token_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Token shards with their tokenizer beside them, as ``tokenwm tokenize`` leaves them."""
    folder = tmp_path_factory.mktemp("sweep") / "tokens"
    shutil.copytree(token_shards, folder)
    save_tokenizer(folder / "tokenizer", small_tokenizer().eval(), {})
    return folder


@pytest.fixture(scope="module")
def sweep(tokens: Path) -> Sweep:
    return small_sweep(str(tokens), sizes=(small_size(token_budgets=BUDGETS),))


class Fork:
    """A run as a fork of the driver, which need not import torch first."""

    def __init__(self, command: Sequence[str], log: Path, threads: int | None) -> None:
        assert command[1:3] == ["-m", sweep_training.__name__]
        context = multiprocessing.get_context("fork")
        self.process = context.Process(target=self.run, args=(command[3:], log))
        self.process.start()

    @staticmethod
    def run(arguments: Sequence[str], log: Path) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.exit(sweep_training.main(list(arguments)))

    def done(self) -> bool:
        return self.process.exitcode is not None

    def result(self) -> int | None:
        self.process.join()
        return self.process.exitcode

    def cancel(self) -> None:
        self.process.kill()
        self.process.join()


def fork_runs() -> None:
    engines._Command = Fork  # type: ignore[assignment, misc]


def fork_runs_in_a_session() -> None:
    os.setsid()
    fork_runs()


def run_sweep(
    sweep: Sweep, folder: Path, *options: str, before: Callable[[], None] | None = fork_runs
) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "mine.yaml"
    path.write_text(sweep_text(sweep))
    done = tokenwm("sweep", "run", path, "--out", folder, *options, before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def finished(sweep: Sweep, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep after its runs, as processes of this machine."""
    folder = tmp_path_factory.mktemp("finished")
    done = run_sweep(sweep, folder, "--parallel", "2", before=None)
    assert "2 of 2 runs are finished" in done
    return folder


def same_results(one: Path, other: Path, names: Sequence[str] = (TRUNK, BRANCH)) -> None:
    for name in names:
        a, b = read_result(one / name), read_result(other / name)
        assert a.pop("seconds") > 0 and b.pop("seconds") > 0
        assert a == b and a["status"] == "finished"
        weights = [
            load_file(folder / name / "model" / "model.safetensors") for folder in (one, other)
        ]
        assert all((weights[0][key] == weights[1][key]).all() for key in weights[0])


def test_results_are_points_that_a_law_is_fitted_to(finished: Path) -> None:
    points = read_points(finished).points
    # What hangs over the ends of these short episodes is no token that was learned from.
    sweep = load_sweep(finished / "mine.yaml")
    filled = TokenData.load(sweep.data).filled(sweep.training.num_steps)
    expected = [BUDGETS[1] * filled, BUDGETS[0] * filled]
    assert [point.num_tokens for point in points] == pytest.approx(expected, rel=0.05)
    for point in points:
        assert point.num_parameters == points[0].num_parameters > 5_000
        assert 1.0 < point.flops / (6 * point.num_parameters * point.num_tokens) < 3.0
        assert 0.1 < point.loss < 10.0
        assert (point.learning_rate, point.seed) == (0.01, 0)
        assert point.num_epochs == point.num_tokens / 125
        assert 0.0 <= point.metrics["frame_accuracy"] <= 1.0


def test_a_branch_ends_where_a_run_of_its_own_would(
    sweep: Sweep, finished: Path, tmp_path: Path
) -> None:
    (size,) = sweep.sizes
    alone = replace(sweep, sizes=(replace(size, token_budgets=BUDGETS[:1]),))
    run_sweep(alone, tmp_path)
    a, b = read_result(finished / BRANCH), read_result(tmp_path / BRANCH)
    assert a["trunk"] == TRUNK and b["trunk"] is None
    assert a["own_flops"] < 0.3 * b["own_flops"]
    assert (a["loss"], a["flops"], a["metrics"]) == (b["loss"], b["flops"], b["metrics"])


def test_a_killed_sweep_ends_as_if_it_had_not_been(
    sweep: Sweep, finished: Path, tmp_path: Path
) -> None:
    """The driver and the run are killed together, as by a power cut, in the middle of a run."""
    path, folder = tmp_path / "sweep.yaml", tmp_path / "out"
    path.write_text(sweep_text(sweep))
    last = folder / TRUNK / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    with running("sweep", "run", path, "--out", folder, before=fork_runs_in_a_session) as driver:
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        assert driver.process.pid is not None
        os.killpg(driver.process.pid, signal.SIGKILL)
    assert last.exists() and not (folder / TRUNK / "result.json").exists()
    assert "2 of 2 runs are finished" in run_sweep(sweep, folder)
    same_results(finished, folder)


def test_what_is_finished_is_left_alone(sweep: Sweep, finished: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    assert "running" not in run_sweep(sweep, finished)
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


def test_downstream_metrics_are_added_to_finished_runs(
    sweep: Sweep, finished: Path, frame_shards: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    done = run_sweep(sweep, folder, "--evaluate", str(frame_shards), "--retries", "0")
    assert "2 of 2" in done
    for point in read_points(folder).points:
        assert {"rollout_psnr@1", "reward_error"} <= point.metrics.keys()
        assert "effective_horizon" not in point.metrics  # one val episode shows none


def test_other_settings_under_the_same_name_are_refused(
    sweep: Sweep, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(finished, folder)
    (folder / BRANCH / "result.json").unlink()
    other = replace(sweep, training=replace(sweep.training, weight_decay=0.3))
    path = tmp_path / "other.yaml"
    path.write_text(sweep_text(other))
    done = tokenwm("sweep", "run", path, "--out", folder, "--retries", 0, before=fork_runs)
    assert done.returncode == 1
    assert "holds a run of that name with other settings" in done.stdout


def test_a_run_that_diverges_is_stopped_and_said_so(sweep: Sweep, tmp_path: Path) -> None:
    wild = replace(small_size(token_budgets=BUDGETS), learning_rate=1e4)
    path = tmp_path / "wild.yaml"
    path.write_text(sweep_text(replace(sweep, sizes=(wild,))))
    done = tokenwm("sweep", "run", path, "--out", tmp_path / "out", before=fork_runs)
    result = read_result(tmp_path / "out" / TRUNK)
    assert result["status"] == "diverged" and result["loss"] is None
    assert "the loss" in result["reason"]
    assert f"diverged {TRUNK}" in done.stdout
    assert done.returncode == 1  # what was to begin from it is blocked


def test_a_plan_is_made_measured_and_can_be_run(tokens: Path, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    sizes = ["--sizes", 2, "--budgets", 2, "--min-parameters", 15e3, "--max-parameters", 4e4]
    shared = ["num_steps=3", "window=2", "batch_size=4", "warmup_steps=2"]
    done = tokenwm(
        "sweep", "plan", tokens, "--budget", 1e9, "--out", path, *sizes, "--set", *shared
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning:" in done.stdout and "record" in done.stdout  # 125 tokens are few
    planned = load_sweep(path)
    assert all(0.001 < size.seconds_per_step < 5.0 for size in planned.sizes)
    assert path.read_text().startswith("# tokenwm sweep plan ")
    done = tokenwm("sweep", "plan", tokens, "--budget", 1e9, "--out", path, "--set", "batchsize=3")
    assert done.returncode == 1
    assert "did you mean 'batch_size'" in done.stderr


@pytest.mark.filterwarnings("ignore")  # of jsonargparse and Lightning, which run in this process
def test_the_debug_sweep_reaches_the_fit(tokens: Path, tmp_path: Path) -> None:
    """All of ``configs/sweep/debug.yaml``, with a tenth of its tokens and in this process."""
    debug = load_sweep(REPOSITORY / "configs" / "sweep" / "debug.yaml")
    sizes = tuple(
        replace(size, token_budgets=tuple(tokens // 10 for tokens in size.token_budgets))
        for size in debug.sizes
    )
    short = replace(debug, data=str(tokens), sizes=sizes)
    runs = runs_of(short, TokenData.load(tokens).vocabulary)
    assert len(runs) == 9
    for run in runs:
        train(short, run.name, tmp_path)
    assert sweep_fit.main([str(tmp_path), "--replicates", "100"]) == 0
    assert "9 runs" in (tmp_path / "fit" / "index.html").read_text()


@pytest.fixture
def sigterm() -> Iterator[None]:
    """The handler of SIGTERM comes back: the verb and Ray set theirs."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


@pytest.mark.filterwarnings("ignore")  # of Ray's own
@pytest.mark.usefixtures("sigterm")
@pytest.mark.parametrize(
    ("name", "package", "kind"), [("ray", "ray", RayEngine), ("slurm", "submitit", SlurmEngine)]
)
def test_engines_give_the_same_results(
    name: str,
    package: str,
    kind: type[RayEngine] | type[SlurmEngine],
    sweep: Sweep,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the first attempt ends without a result. Processes stand in for Slurm's jobs."""
    pytest.importorskip(package, reason=f"pip install 'tokenwm[{name}]'")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setattr(sweep_run, "SlurmEngine", partial(SlurmEngine, cluster="local"))
    start, started = kind.start, []

    def fail_first(engine: Any, command: Sequence[str], log: Path) -> Job:
        started.append(str(log.parent.relative_to(tmp_path)))
        failing = [sys.executable, "-c", "raise SystemExit(3)"]
        return start(engine, command if len(started) > 1 else failing, log)

    monkeypatch.setattr(kind, "start", fail_first)
    path = tmp_path / "mine.yaml"
    path.write_text(sweep_text(sweep))
    options = ["--engine", name, "--parallel", "2"]
    assert sweep_run.main([str(path), "--out", str(tmp_path), *options]) == 0
    assert started == [TRUNK, TRUNK, BRANCH]
    same_results(finished, tmp_path)
