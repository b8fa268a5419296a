"""Every engine runs the same tasks; what comes out does not depend on it."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.unit.data.making.prepare_child import prepare_small
from tokenwm.data.making.prepare import prepare
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import Progress
from tokenwm.engines import run_tasks
from tokenwm.errors import EngineError, EpisodeError, ShardError

REPOSITORY = Path(__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture
def engine_options(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, Any]]:
    """Keyword arguments that choose an engine, which is skipped if it is not installed."""
    engine, workers = request.param
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))  # workers must find the tests, too
    monkeypatch.chdir(tmp_path)
    if engine == "ray":
        ray = pytest.importorskip("ray", reason="ray is not installed (extra 'ray')")
        if not ray.is_initialized():
            ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
            request.addfinalizer(ray.shutdown)
    elif engine == "slurm":
        pytest.importorskip("submitit", reason="submitit is not installed (extra 'slurm')")
    yield {"engine": engine, "num_workers": workers}


EVERY_ENGINE = pytest.mark.parametrize(
    "engine_options",
    [
        pytest.param(("local", 0), id="inline"),
        pytest.param(("local", 2), id="pool"),
        pytest.param(("ray", 2), id="ray"),
        pytest.param(("slurm", 2), id="slurm", marks=pytest.mark.slow),
    ],
    indirect=True,
)


@dataclass(frozen=True)
class Square:
    bad: int = -1

    def __call__(self, item: int) -> int:
        if item == self.bad:
            raise EpisodeError(f"episode {item}: broken")
        return item * item


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::ResourceWarning")
@EVERY_ENGINE
def test_the_dataset_does_not_depend_on_the_engine(
    engine_options: dict[str, Any], tmp_path: Path
) -> None:
    assert sorted(run_tasks(Square(), range(5), **engine_options)) == [0, 1, 4, 9, 16]
    with pytest.raises(EpisodeError, match="^episode 3: broken$"):
        list(run_tasks(Square(bad=3), range(5), **engine_options))
    seen: list[Progress] = []
    out = tmp_path / "out"
    prepare_small(out, progress=seen.append, **engine_options)
    prepare_small(tmp_path / "expected")
    assert contents(out) == contents(tmp_path / "expected")
    assert max(now.done for now in seen) == 40
    ShardReader(out, verify=True)


def test_unknown_engine() -> None:
    with pytest.raises(EngineError, match="'spark' is not one of local, ray, slurm"):
        list(run_tasks(Square(), [1], engine="spark"))


@pytest.mark.parametrize(("engine", "module"), [("ray", "ray"), ("slurm", "submitit")])
def test_an_engine_that_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, engine: str, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EngineError, match=rf"pip install 'tokenwm\[{engine}\]'"):
        list(run_tasks(Square(), [1], engine=engine))


def die(item: int) -> None:
    os._exit(9)


def test_a_worker_that_dies_is_an_error() -> None:
    with pytest.raises(EngineError, match="a worker process died.*fewer --workers"):
        list(run_tasks(die, [1, 2], num_workers=2))


def test_an_abandoned_run_leaves_no_workers() -> None:
    import multiprocessing

    results = run_tasks(Square(), range(10), num_workers=2)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []


def test_no_tasks_start_nothing() -> None:
    assert list(run_tasks(Square(), [], num_workers=8)) == []


def test_workers_that_write_elsewhere_are_noticed() -> None:
    """``memory://`` stands for a disk that only one machine has."""
    pytest.importorskip("fsspec", reason="fsspec is not installed (extra 'remote')")
    from tests.unit.data.readers.cheap_source import cheap_recipe

    with pytest.raises(ShardError, match="was made, but not here; workers must write to the same"):
        prepare(cheap_recipe(), "memory://elsewhere", num_workers=2)
