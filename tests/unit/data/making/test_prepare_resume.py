"""Kill −9 anywhere, run again: the same bytes as without the kill."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit.data.making.prepare_child import SECONDS, prepare_small
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import ShardError

NUM_KILLS = 20
CHILD = [sys.executable, "-m", "tests.unit.data.making.prepare_child"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_at_any_line_and_resumed_is_as_if_never_killed(tmp_path: Path) -> None:
    subprocess.run([*CHILD, "lines", str(tmp_path), str(NUM_KILLS)], check=True, cwd=os.getcwd())
    expected = contents(tmp_path / "whole")
    manifest = ShardReader(tmp_path / "whole", verify=True).manifest
    assert len(manifest.shards) == 10
    assert [item.key for item in manifest.excluded] == ["e0003", "e0005"]
    finished_before = set()
    for index in range(NUM_KILLS):
        folder = tmp_path / str(index)
        if folder.is_dir():
            finished_before.add(len(list(folder.glob(".*.record"))))
        prepare_small(folder)
        assert contents(folder) == expected
    assert len(finished_before) > 4  # the kills did fall all over the run


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.fixture(scope="module")
def never_killed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What ``CHILD`` leaves in its folder."""
    out = tmp_path_factory.mktemp("whole") / "out"
    prepare_small(out, seconds=SECONDS)
    return contents(out)


def test_workers_end_with_their_killed_parent(
    tmp_path: Path, never_killed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen([*CHILD, "pool", str(out)], start_new_session=True)
    wait_until(lambda: len(list(out.glob(".*.record"))) >= 2)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of_group(process.pid))
    manifest = prepare_small(out, seconds=SECONDS)
    assert contents(out) == never_killed
    assert len(manifest.shards) == 10


def test_a_second_run_at_the_same_time_is_refused(
    tmp_path: Path, never_killed: dict[str, bytes]
) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([*CHILD, "pool", str(out)]) as process:
        wait_until(lambda: len(list(out.glob(".*.record"))) >= 1)
        message = f"{out} is in use by process {process.pid} on .*another folder"
        with pytest.raises(ShardError, match=message):
            prepare_small(out, seconds=SECONDS)
    assert process.returncode == 0
    assert contents(out) == never_killed


def processes_of_group(group: int) -> bool:
    try:
        os.killpg(group, 0)  # asks only whether there is one
    except ProcessLookupError:
        return False
    return True
