"""Engines that run tasks: this process, others of this machine, a Ray cluster, Slurm.

:func:`run_tasks` calls a function on every item: shards are made and checked so. An :class:`Engine`
starts commands: the runs of a sweep. Either way a task is idempotent and writes its own result, so
that an engine has one job, to run it somewhere in any order; what is done first, and what is tried
again, is the caller's business, and results do not depend on the engine.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from tokenwm.errors import EngineError, TokenwmError

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("local", "ray", "slurm")
SLURM_FOLDER = Path(".tokenwm-slurm")
"""Folder of the jobs' files and logs, in the current folder, which jobs must see too."""
POLL_SECONDS = 0.02
"""Between two looks at tasks that run here or on Ray; at those of Slurm it is a second."""


class Job(Protocol):
    """Work that was given to an engine; the futures of concurrent.futures and submitit are such."""

    def done(self) -> bool:
        """True once the job has ended, well or not."""

    def result(self) -> Any:
        """The function's return value, or the command's exit code."""

    def cancel(self) -> Any:
        """Ask it to end."""


class Engine(Protocol):
    """Starts commands."""

    parallel: int
    """Commands at once."""

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start a command; its output is appended to ``log``, in a folder that all machines see."""

    def close(self) -> None:
        """Give back what the engine holds."""


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    engine: str = "local",
    num_workers: int = 0,
) -> Generator[Result, None, None]:
    """Call a function on every item and yield what it returns, in the order of completion.

    Args:
        function: Picklable; called in worker processes. What it returns is picklable and small.
        items: Picklable too.
        engine: ``local`` (a pool of spawned processes on this machine), ``ray`` (the cluster that
            ``RAY_ADDRESS`` names, else one on this machine) or ``slurm`` (submitit; on a machine
            without Slurm it starts local processes).
        num_workers: Tasks that run at once. With ``local``, fewer than 2 run in this process.
            With ``slurm``, the jobs of one array, each with every ``num_workers``-th item;
            partition, account, time limit and so on come from sbatch's own variables
            (``SBATCH_PARTITION``, ``SBATCH_ACCOUNT``, ``SBATCH_TIMELIMIT``, …).

    Raises:
        EngineError: There is no such engine, it is not installed, or a worker died.
        TokenwmError: A task raised it; no further ones are begun.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    num_workers = min(num_workers, len(items))
    if not items:
        return
    if engine == "local" and num_workers < 2:
        yield from map(function, items)
        return
    num_workers = max(1, num_workers)
    if engine == "local":
        with _pool(function, num_workers) as submit:
            # One more than can run at once, so that no worker waits for this process.
            yield from _results(submit, items, num_workers + 1)
    elif engine == "ray":
        with contextlib.closing(RayEngine(num_workers, threads=1, retries=3)) as ray:
            yield from _results(partial(ray.submit, ray.share(function)), items, num_workers)
    else:
        slurm = SlurmEngine(SLURM_FOLDER / "%j", parameters={"cpus_per_task": 1}, cluster=None)
        shares = [items[index::num_workers] for index in range(num_workers)]
        submit = partial(slurm.submit, _call_each, function)
        for outcomes in _results(submit, shares, num_workers, slurm.array, seconds=1.0):
            yield from outcomes


def _results(
    submit: Callable[[Any], Job],
    items: Sequence[Any],
    at_once: int,
    together: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
    seconds: float = POLL_SECONDS,
) -> Iterator[Any]:
    """Yield the results of all items' jobs in the order of completion; raise the first error."""
    remaining = iter(items)
    running: list[Job] = []
    try:
        while True:
            new = list(islice(remaining, at_once - len(running)))
            if new:
                with together():
                    running += [submit(item) for item in new]
            if not running:
                return
            ended = [job for job in running if job.done()]
            running = [job for job in running if job not in ended]
            for job in ended:
                outcome = job.result()
                if isinstance(outcome, TokenwmError):
                    raise outcome
                yield outcome
            if not ended:
                time.sleep(seconds)
    finally:
        for job in running:
            job.cancel()


def _attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function and return a TokenwmError of it: raised, Ray and submitit make text of it."""
    try:
        return function(*arguments)
    except TokenwmError as error:
        return error


def _call_each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    return [function(item) for item in items]


def _run_command(command: Sequence[str], log: str, threads: int | None) -> int:
    return _Command(command, Path(log), threads).result()


class _Command:
    """A :class:`Job` that is a process."""

    def __init__(self, command: Sequence[str], log: Path, threads: int | None) -> None:
        names = () if threads is None else ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
        limits = dict.fromkeys(names, str(threads))
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **limits, "PYTHONUNBUFFERED": "1"},
            )

    def done(self) -> bool:
        return self.process.poll() is not None

    def result(self) -> int:
        return self.process.wait()

    def cancel(self) -> None:
        self.process.terminate()
        self.process.wait()


def threads_for(parallel: int) -> int:
    """Threads of each of so many processes: those that the user set, else a share of the cores."""
    return int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // parallel)))


class LocalEngine:
    """Commands as processes on this machine, which share its cores evenly.

    Args:
        parallel: Processes at once.
    """

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`."""
        return _Command(command, log, threads_for(self.parallel))

    def close(self) -> None:
        """Nothing to give back."""


@contextlib.contextmanager
def _pool(function: Callable[[Any], Any], num_workers: int) -> Iterator[Callable[[Any], Job]]:
    """Spawned processes, since forked ones inherit locks of threads that they do not have."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(function, watched)
    )
    try:
        yield lambda item: pool.submit(_run_in_worker, item)
        pool.shutdown(wait=True)
    except BrokenProcessPool as error:
        raise EngineError(
            "a worker process died, most likely for lack of memory; what is finished is kept, "
            "run again with fewer --workers"
        ) from error
    finally:
        held.close()  # an unfinished task is given up at once: it is done anew, never continued
        pool.shutdown(wait=True, cancel_futures=True)
        watched.close()


_worker_function: Callable[[Any], Any] | None = None


def _start_worker(function: Callable[[Any], Any], watched: Connection) -> None:
    """Keep the function in this worker, leave Ctrl-C to the parent, and end when it ends."""
    global _worker_function
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_function = function
    threading.Thread(target=_end_with_parent, args=(watched,), daemon=True).start()


def _end_with_parent(watched: Connection) -> None:
    """Wait until the parent closes its end or dies, also by kill −9; a worker would stay else."""
    with contextlib.suppress(EOFError, OSError):
        watched.recv()
    os._exit(1)


def _run_in_worker(item: Any) -> Any:
    assert _worker_function is not None
    return _worker_function(item)


@dataclass(frozen=True)
class _RemoteJob:
    """A :class:`Job` elsewhere, which can be lost."""

    done: Callable[[], bool]
    get: Callable[[], Any]
    cancel: Callable[[], Any]
    lost: type[Exception]
    name: Callable[[], str]

    def result(self) -> Any:
        try:
            return self.get()
        except self.lost as error:
            raise EngineError(
                f"{self.name()} ended before its tasks did ({error}); what is finished is kept: "
                "run the same command again"
            ) from error


class RayEngine:
    """Tasks of a Ray cluster: the one that ``RAY_ADDRESS`` names, else one on this machine.

    Args:
        parallel: Tasks at once.
        threads: CPUs of each; None divides those of this machine.
        gpus: GPUs of each.
        retries: How often Ray itself repeats a task whose machine went away.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot run one task.
    """

    def __init__(
        self, parallel: int = 1, *, threads: int | None = None, gpus: float = 0, retries: int = 0
    ) -> None:
        try:
            import ray
        except ImportError as error:
            raise _not_installed("ray", error) from error
        self._ray: Any = ray
        self.parallel, self.threads = parallel, threads or threads_for(parallel)
        self._started_here = not ray.is_initialized()
        if self._started_here:
            self._ray.init(
                num_cpus=None if "RAY_ADDRESS" in os.environ else self.threads * parallel,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
        available = self._ray.cluster_resources()
        if available.get("CPU", 0) < self.threads or available.get("GPU", 0) < gpus:
            self.close()
            raise EngineError(
                f"a task needs {self.threads} CPUs and {gpus:g} GPUs; the cluster has "
                f"{available.get('CPU', 0):g} and {available.get('GPU', 0):g}"
            )
        options = {"num_cpus": self.threads, "num_gpus": gpus, "max_retries": retries}
        self._task = self._ray.remote(_attempt).options(**options)

    def share(self, value: Any) -> Any:
        """Give the cluster a value once, to hand to many tasks."""
        return self._ray.put(value)

    def submit(self, function: Any, *arguments: Any) -> Job:
        """Call a function somewhere; an error of ours is returned, not raised."""
        reference = self._task.remote(function, *arguments)
        return _RemoteJob(
            done=lambda: bool(self._ray.wait([reference], timeout=0)[0]),
            get=lambda: self._ray.get(reference),
            cancel=lambda: self._ray.cancel(reference, force=True),
            lost=self._ray.exceptions.RayError,
            name=lambda: "a task on Ray",
        )

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`."""
        return self.submit(_run_command, list(command), str(log), self.threads)

    def close(self) -> None:
        """Leave a cluster that was joined here; one that was started here ends."""
        if self._started_here:
            self._ray.shutdown()


class SlurmEngine:
    """Jobs of Slurm, through submitit. Slurm gives them their cores, and torch uses those.

    Args:
        folder: Where submitit keeps its files; all machines must see it.
        parallel: Jobs submitted at once.
        parameters: Options for submitit: ``slurm_partition``, ``timeout_min``, ….
        cluster: ``slurm``; ``local`` for processes here, to try it without Slurm; None for
            whichever there is.

    Raises:
        EngineError: submitit or Slurm is not there, or a parameter is unknown.
    """

    def __init__(
        self,
        folder: Path,
        parallel: int = 1,
        parameters: Mapping[str, Any] | None = None,
        cluster: Literal["slurm", "local"] | None = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise _not_installed("slurm", error) from error
        self.parallel = parallel
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(name="tokenwm", **(parameters or {}))
        except (RuntimeError, NameError, ValueError) as error:
            raise EngineError(f"engine slurm: {error}") from error
        self._lost = submitit.core.utils.UncompletedJobError
        self.array = self._executor.batch
        """A context: jobs that are submitted in it are one array."""

    def submit(self, function: Any, *arguments: Any) -> Job:
        """Call a function in a job; an error of ours is returned, not raised."""
        job = self._executor.submit(_attempt, function, *arguments)
        return _RemoteJob(
            # Not job.done and so on: what a job of an array is, is known when all are submitted.
            done=lambda: bool(job.done()),
            get=lambda: job.result(),
            cancel=lambda: job.cancel(),
            lost=self._lost,
            name=lambda: f"job {job.job_id} (log: {job.paths.stderr})",
        )

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`."""
        return self.submit(_run_command, list(command), str(log), None)

    def close(self) -> None:
        """Nothing to give back."""


def _not_installed(extra: str, error: ImportError) -> EngineError:
    return EngineError(f"engine {extra} is not installed ({error}); pip install 'tokenwm[{extra}]'")
