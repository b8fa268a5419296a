"""Locks between processes, which end with their process however it ends (``filelock``).

They hold for all processes of this machine, and for other machines where the file system passes
locks on.
"""

import contextlib
import errno
import logging
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from tokenwm.errors import ShardError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
HAS_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)


@contextmanager
def hold_lock(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold the lock that a file stands for; the file names its holder and is removed at the end.

    Where none can be taken (a read-only folder, a file system without locks) that is said, and
    nothing is locked: what then matters is whether the folder can be written to.

    Args:
        path: The file, in an existing folder.
        wait: Wait until nobody else holds it, of this process neither.

    Raises:
        filelock.Timeout: Somebody holds it, and ``wait`` is False.
    """
    lock = FileLock(path)
    try:
        lock.acquire(blocking=wait)
        path.write_text(_own_name(), encoding="utf-8")
    except Timeout:
        raise
    except OSError as error:
        where = path.parent
        logger.warning("%s cannot be locked: %s; let no other process write there", where, error)
        if error.errno in HAS_NO_LOCKS:
            path.unlink(missing_ok=True)  # no process can hold it
    try:
        yield
    finally:
        if lock.is_locked:
            path.unlink(missing_ok=True)  # who waits for it sees that, and makes a new one
            lock.release()


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of an existing folder.

    Args:
        folder: The folder.
        wait: Wait until another process lets go of it; else that it holds it is an error.

    Raises:
        ShardError: Another process, or another thread of this one, holds the lock; names both.
    """
    path = folder.resolve() / LOCK_NAME
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(path, wait=False))
        except Timeout:
            holder = _holder(path)
            if not wait or holder == _own_name():
                who = "this process already" if holder == _own_name() else holder
                remedy = "wait for it to end, or choose another folder"
                raise ShardError(f"{folder} is in use by {who}; {remedy}") from None
            stack.enter_context(hold_lock(path))
        yield


def _own_name() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"


def _holder(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8") or "another process"
    return "another process"
