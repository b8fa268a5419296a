"""Prepares in processes of its own, which are killed.

``python -m tests.unit.data.making.prepare_child lines FOLDER COUNT`` forks a process per kill, as
imports cost more than a run; each kills itself with signal 9 before a random line is run.
``… pool FOLDER`` prepares with two workers, to be killed from outside.
"""

import os
import random
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import tokenwm
from tests.unit.data.readers.cheap_source import cheap_recipe
from tokenwm.data.making import plan
from tokenwm.data.making.prepare import prepare
from tokenwm.data.shards.manifest import Manifest

PACKAGE = os.path.dirname(tokenwm.__file__)
NAMES = (
    "engines",
    "data/making/builder",
    "data/making/prepare",
    "data/shards/tar",
    "data/shards/tasks",
    "data/storage/atomic",
    "data/storage/folder",
    "data/storage/lock",
)
SECONDS = 0.05
"""That an episode takes to load in ``pool``."""
CODE = {os.path.join(PACKAGE, f"{name}.py") for name in NAMES}
"""Where processes are killed: the files that write something, or say what is written when."""


class LineCounter:
    """A trace function that counts lines of ``CODE`` and kills the process at one."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self.last = last

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code.co_filename not in CODE:
            return None
        if event == "line":
            self.count += 1
            if self.count == self.last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self


def prepare_small(folder: Path | str, *, seconds: float = 0.0, **options: Any) -> Manifest:
    """Ten shards of up to four episodes each, of which each takes some seconds to load."""
    before, plan.SHARD_BYTES = plan.SHARD_BYTES, (4 * 6 * 3 * 8 * 8, 2**20)
    try:
        return prepare(cheap_recipe(seconds=seconds), folder, **options)
    finally:
        plan.SHARD_BYTES = before


def kill_at_random_lines(folder: Path, count: int) -> None:
    """Fill ``folder/0`` to ``folder/{count - 1}`` with what killed runs leave."""
    counter = LineCounter(None)
    sys.settrace(counter)
    prepare_small(folder / "whole")
    sys.settrace(None)
    generator = random.Random(0)
    for index in range(count):
        last = generator.randrange(1, counter.count)
        pid = os.fork()
        if pid == 0:
            sys.settrace(LineCounter(last))
            prepare_small(folder / str(index))
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            raise SystemExit(f"run {index} ended with {status}, it should have been killed")


if __name__ == "__main__":
    if sys.argv[1] == "lines":
        kill_at_random_lines(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        prepare_small(Path(sys.argv[2]), num_workers=2, seconds=SECONDS)
