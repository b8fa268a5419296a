"""Where tasks run: in this process, in a pool of processes, on a Ray cluster, or under Slurm.

A task is a pure, idempotent function of its item that writes its own result, so an engine has one
job: call the function on every item, somewhere, in any order. What a function returns is small (it
says what was done); it must be picklable, as must the function itself.
"""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeVar

from tokenwm.errors import EngineError, TokenwmError

Item = TypeVar("Item")
Result = TypeVar("Result")

ENGINES = ("local", "ray", "slurm")
SLURM_FOLDER = Path(".tokenwm-slurm")
"""Where submitit keeps the jobs' files and logs, in the current folder, which jobs must see too."""


def run_tasks(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    engine: str = "local",
    num_workers: int = 0,
) -> Generator[Result, None, None]:
    """Call a function on every item and yield what it returns, in the order of completion.

    Args:
        function: Picklable; called in worker processes.
        items: Picklable too.
        engine: ``local`` (a pool of spawned processes on this machine), ``ray`` (the cluster that
            ``RAY_ADDRESS`` names, else one on this machine) or ``slurm`` (submitit; on a machine
            without Slurm it starts local processes).
        num_workers: Tasks that run at once. With ``local``, fewer than 2 run in this process.

    Raises:
        EngineError: There is no such engine, it is not installed, or a worker died.
        TokenwmError: A task raised it; no further ones are begun.
    """
    if engine not in ENGINES:
        raise EngineError(f"engine {engine!r} is not one of {', '.join(ENGINES)}")
    num_workers = min(num_workers, len(items))
    if not items:
        return
    if engine == "ray":
        yield from _run_on_ray(function, items, num_workers)
    elif engine == "slurm":
        yield from _run_on_slurm(function, items, num_workers)
    elif num_workers < 2:
        yield from map(function, items)
    else:
        yield from _run_in_pool(function, items, num_workers)


def _run_in_pool(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[Result]:
    """Spawned processes, since forked ones inherit locks of threads that they do not have."""
    context = multiprocessing.get_context("spawn")
    watched, held = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        num_workers, mp_context=context, initializer=_start_worker, initargs=(function, watched)
    )
    remaining = iter(items)
    running: set[Future[Any]] = set()
    try:
        while True:
            # One more than can run at once, so that no worker waits for this process.
            missing = num_workers + 1 - len(running)
            running |= {pool.submit(_run_in_worker, item) for item in islice(remaining, missing)}
            if not running:
                break
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
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


def _run_on_ray(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[Result]:
    """As many tasks at once as asked for; Ray places them, and repeats those whose node dies."""
    try:
        import ray
    except ImportError as error:
        raise _not_installed("ray", error) from error
    started_here = not ray.is_initialized()
    if started_here:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        run = ray.remote(num_cpus=1)(_call)
        shared = ray.put(function)
        remaining = iter(items)
        running: list[Any] = []
        while True:
            missing = max(1, num_workers) - len(running)
            running += [run.remote(shared, item) for item in islice(remaining, missing)]
            if not running:
                return
            done, running = ray.wait(running)
            for reference in done:
                yield _ray_result(reference)
    finally:
        if started_here:
            ray.shutdown()


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def _ray_result(reference: Any) -> Any:
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        # Ray's own message is a page of traceback; ours says what to do.
        raise error.cause if isinstance(error.cause, TokenwmError) else error from None
    except ray.exceptions.RayError as error:
        raise EngineError(f"a task on Ray was lost: {error}; run the same command again") from error


def _run_on_slurm(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[Result]:
    """One job array of ``num_workers`` jobs, each with every ``num_workers``-th item.

    Partition, account, time limit and so on come from sbatch's own variables (``SBATCH_PARTITION``,
    ``SBATCH_ACCOUNT``, ``SBATCH_TIMELIMIT``, …), which win over the job's own directives.
    """
    try:
        import submitit
    except ImportError as error:
        raise _not_installed("slurm", error) from error
    executor = submitit.AutoExecutor(folder=SLURM_FOLDER / "%j")
    executor.update_parameters(name="tokenwm", cpus_per_task=1)
    shares = [items[index :: max(1, num_workers)] for index in range(max(1, num_workers))]
    jobs = executor.map_array(_call_each, [function] * len(shares), shares)
    try:
        for job in submitit.helpers.as_completed(jobs, poll_frequency=1):
            try:
                outcome = job.result()
            except submitit.core.utils.UncompletedJobError as error:
                raise EngineError(
                    f"job {job.job_id} ended before its tasks did; its log is {job.paths.stderr}. "
                    "What is finished is kept: run the same command again"
                ) from error
            if isinstance(outcome, TokenwmError):
                raise outcome
            yield from outcome
    finally:
        for job in jobs:
            if not job.done():
                job.cancel()


def _call_each(function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any] | TokenwmError:
    """A job; an error of ours is handed back as it is, submitit would make text of it."""
    try:
        return [function(item) for item in items]
    except TokenwmError as error:
        return error


def _not_installed(extra: str, error: ImportError) -> EngineError:
    return EngineError(f"engine {extra} is not installed ({error}); pip install 'tokenwm[{extra}]'")
