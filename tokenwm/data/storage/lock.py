"""One process at a time in a folder: an advisory lock, which ends with its process however it ends.

It holds for all processes of this machine, and for other machines where the file system passes
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
from typing import TextIO

from tokenwm.errors import ShardError

logger = logging.getLogger(__name__)

LOCK_NAME = ".lock"
HAS_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[Path] = set()
"""Folders that this process has locked: the file's lock keeps out other processes only."""


@contextmanager
def lock_folder(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lock of a folder; its file is removed at the end.

    Where none can be taken (a read-only folder, a file system without locks) that is said, and
    nothing is locked: what then matters is whether the folder can be written to.

    Args:
        folder: An existing folder.
        wait: Wait until the other process lets go of the lock; else that it holds it is an error.

    Raises:
        ShardError: Another process, or another thread of this one, holds the lock; names both.
    """
    path = folder.resolve() / LOCK_NAME
    if path in _held:
        raise ShardError(f"{folder} is in use by this process already; wait for it to end")
    try:
        file = _acquire(path, wait)
    except BlockingIOError as error:
        raise ShardError(
            f"{folder} is in use by {_holder(path)}; wait for it to end, or choose another folder"
        ) from error
    except OSError as error:
        logger.warning("%s cannot be locked: %s; let no other process write there", folder, error)
        file = None
    _held.add(path)
    try:
        yield
    finally:
        _held.remove(path)
        if file is not None:
            path.unlink(missing_ok=True)
            file.close()


def _acquire(path: Path, wait: bool) -> TextIO:
    import fcntl  # not on Windows, where imagining works all the same

    while True:
        with contextlib.ExitStack() as stack:
            file = stack.enter_context(open(path, "a", encoding="utf-8"))
            # Unlike flock's, this lock does not pass to forked children, which may live longer.
            try:
                fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            except PermissionError as error:  # so some systems say that another process holds it
                raise BlockingIOError(*error.args) from error
            except OSError as error:
                if error.errno in HAS_NO_LOCKS:
                    path.unlink(missing_ok=True)  # no process can hold it
                raise
            if _is_at(path, file):  # else its last holder removed it, and others lock a new one
                file.truncate(0)
                file.write(f"process {os.getpid()} on {socket.gethostname()}")
                file.flush()
                stack.pop_all()
                return file


def _is_at(path: Path, file: TextIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except OSError:
        return "another process"
