"""Where runs are executed: as processes here, as tasks of Ray, or as jobs of Slurm.

An engine starts a command and says whether it has ended; which command, in which order, and what
is tried again is the driver's business (:mod:`tokenwm.scaling.sweep.drive`), so results do not
depend on
the engine. A run writes into its folder, which all machines must see.
"""

import logging
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from tokenwm.errors import SweepError

KILLED = 137  # 128 + SIGKILL, as shells report it


class Job(Protocol):
    """A command that was started."""

    def poll(self) -> int | None:
        """Its exit code, or None while it has not ended."""

    def stop(self) -> None:
        """Ask it to end."""


class Engine(Protocol):
    """Starts commands."""

    parallel: int
    """Commands at once."""

    def start(self, command: Sequence[str], log: Path) -> Job:
        """Start a command; its output is appended to ``log``."""

    def close(self) -> None:
        """Give back what the engine holds."""


def execute(command: Sequence[str], log: str, threads: int | None) -> int:
    """Run a command to its end, on whichever machine; returns the exit code."""
    with open(log, "ab") as output:
        return subprocess.run(
            command, stdout=output, stderr=subprocess.STDOUT, env=_environment(threads), check=False
        ).returncode


def _environment(threads: int | None) -> Mapping[str, str]:
    limits = (
        {}
        if threads is None
        else dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    )
    return {**os.environ, **limits, "PYTHONUNBUFFERED": "1"}


class LocalEngine:
    """Processes on this machine, which share its cores evenly.

    Args:
        parallel: Processes at once.
    """

    def __init__(self, parallel: int = 1) -> None:
        self.parallel = parallel
        self.threads = threads_for(parallel)

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`."""
        with open(log, "ab") as output:
            return _Process(
                subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=_environment(self.threads),
                )
            )

    def close(self) -> None:
        """Nothing to give back."""


def threads_for(parallel: int) -> int:
    """Threads of each of so many processes: those that the user set, else a share of the cores."""
    return int(os.environ.get("OMP_NUM_THREADS", max(1, (os.cpu_count() or 1) // parallel)))


class _Process:
    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process

    def poll(self) -> int | None:
        return self.process.poll()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class RayEngine:
    """Tasks of a Ray cluster: the one that ``RAY_ADDRESS`` names, else one on this machine.

    Args:
        parallel: Tasks at once.
        gpus: GPUs of each.

    Raises:
        SweepError: Ray is not installed, or the cluster cannot run one task.
    """

    def __init__(self, parallel: int = 1, gpus: float = 0.0) -> None:
        try:
            import ray
        except ImportError as error:
            raise SweepError("--engine ray needs Ray: pip install 'tokenwm[ray]'") from error
        self.parallel = parallel
        self.threads = threads_for(parallel)
        self._ray: Any = ray
        here = None if "RAY_ADDRESS" in os.environ else self.threads * parallel
        ray.init(
            num_cpus=here, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
        )
        available = self._ray.cluster_resources()
        if available.get("CPU", 0) < self.threads or available.get("GPU", 0) < gpus:
            ray.shutdown()
            raise SweepError(
                f"a run needs {self.threads} CPUs and {gpus:g} GPUs; the cluster has "
                f"{available.get('CPU', 0):g} and {available.get('GPU', 0):g}"
            )
        self._task = ray.remote(execute).options(
            num_cpus=self.threads, num_gpus=gpus, max_retries=0
        )

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`."""
        return _RayTask(self._ray, self._task.remote(list(command), str(log), self.threads))

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        self._ray.shutdown()


class _RayTask:
    def __init__(self, ray: Any, reference: Any) -> None:
        self.ray, self.reference = ray, reference

    def poll(self) -> int | None:
        done, _ = self.ray.wait([self.reference], timeout=0)
        if not done:
            return None
        try:
            return int(self.ray.get(self.reference))
        except self.ray.exceptions.RayError:  # its machine went away, or it was cancelled
            return KILLED

    def stop(self) -> None:
        self.ray.cancel(self.reference, force=True)


class SlurmEngine:
    """Jobs of Slurm, through submitit.

    Args:
        folder: Where submitit keeps its files; all machines must see it.
        parallel: Jobs submitted at once.
        parameters: Of submitit, such as ``slurm_partition``, ``timeout_min``, ``gpus_per_node``.
        cluster: ``slurm``, or ``local`` for processes here, to try it without Slurm.

    Raises:
        SweepError: submitit or Slurm is not there, or a parameter is unknown.
    """

    def __init__(
        self,
        folder: Path,
        parallel: int = 1,
        parameters: Mapping[str, Any] | None = None,
        cluster: Literal["slurm", "local"] = "slurm",
    ) -> None:
        try:
            import submitit
        except ImportError as error:
            raise SweepError(
                "--engine slurm needs submitit: pip install 'tokenwm[slurm]'"
            ) from error
        self.parallel = parallel
        try:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self._executor.update_parameters(name="tokenwm", **(parameters or {}))
        except (RuntimeError, NameError, ValueError) as error:
            raise SweepError(f"--engine slurm: {error}") from error
        self._failed = submitit.core.utils.UncompletedJobError, submitit.core.utils.FailedJobError

    def start(self, command: Sequence[str], log: Path) -> Job:
        """See :class:`Engine`. Slurm gives the job its cores, and torch uses those."""
        return _SlurmJob(
            self._executor.submit(execute, list(command), str(log), None), self._failed
        )

    def close(self) -> None:
        """Nothing to give back."""


class _SlurmJob:
    def __init__(self, job: Any, failed: tuple[type[Exception], ...]) -> None:
        self.job, self.failed = job, failed

    def poll(self) -> int | None:
        if not self.job.done():
            return None
        try:
            return int(self.job.result())
        except self.failed:  # timed out, preempted, or its node went away
            return KILLED

    def stop(self) -> None:
        self.job.cancel()
