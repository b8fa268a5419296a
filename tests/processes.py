"""``tokenwm …`` as a process of its own that need not import torch first.

Each is a fork of a server that has done so: its start takes milliseconds instead of seconds. The
runs of a sweep and the second of two ranks are started by ``python -m`` all the same.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
VERBS = (
    "evaluate",
    "imagine",
    "quickstart",
    "serve",
    "sweep_run",
    "tokenize",
    "tokenizer",
    "world_model",
)

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        *(f"tokenwm.cli.verbs.{verb}" for verb in VERBS),
        "tests.unit.data.loading.test_training_resume",  # kills soon after the start
    ]
)


@dataclass(frozen=True)
class Running:
    """A process and where its output goes."""

    process: ForkServerProcess
    stdout: Path
    stderr: Path

    def send_signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout: float) -> int | None:
        """Its exit code, -N after signal N, or None if it still runs."""
        self.process.join(timeout)
        return self.process.exitcode


@contextmanager
def running(*arguments: object, before: Callable[[], None] | None = None) -> Iterator[Running]:
    """A verb that runs with one thread; what is left of it at the end is killed.

    ``before`` is called in its process, before the verb.
    """
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "SDL_VIDEODRIVER": "dummy"}
    environment["PYTHONPATH"] = str(REPOSITORY)  # for processes that it starts
    with tempfile.TemporaryDirectory() as folder:
        outputs = (Path(folder, "stdout"), Path(folder, "stderr"))
        for path in outputs:
            path.touch()
        words = list(map(str, arguments))
        process = PROCESSES.Process(target=_run, args=(words, environment, outputs, before))
        process.start()
        try:
            yield Running(process, *outputs)
        finally:
            process.kill()
            process.join()


def tokenwm(
    *arguments: object, timeout: float = 170, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a verb to its end, see :func:`running`."""
    with running(*arguments, **options) as verb:
        code = verb.wait(timeout)
        assert code is not None, f"tokenwm {arguments[0]} runs for more than {timeout} s"
        outputs = (verb.stdout.read_text(), verb.stderr.read_text())
    return subprocess.CompletedProcess(["tokenwm", *map(str, arguments)], code, *outputs)


def must(*arguments: object) -> str:
    """Run a verb that has to succeed; returns what it printed."""
    done = tokenwm(*arguments)
    assert done.returncode == 0, f"{' '.join(done.args)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _run(
    words: Sequence[str],
    environment: Mapping[str, str],
    outputs: Sequence[Path],
    before: Callable[[], None] | None,
) -> None:
    import torch

    from tokenwm import __main__ as program

    os.environ.clear()
    os.environ.update(environment)
    os.chdir(REPOSITORY)
    for descriptor, path in enumerate(outputs, start=1):
        os.dup2(os.open(path, os.O_WRONLY), descriptor)
    # So Lightning starts further ranks by ``python -m``.
    sys.modules["__main__"], sys.argv = program, ["tokenwm", *words]
    torch.set_num_threads(1)
    if before is not None:
        before()
    sys.exit(program.main(words))
