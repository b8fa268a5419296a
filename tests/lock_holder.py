"""Another process that holds the lock of a folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CODE = """
import os
import sys
import time
from pathlib import Path

from tokenwm.data.storage.lock import lock_folder

print("waiting", flush=True)
with lock_folder(Path(sys.argv[1]), wait=True):
    if len(sys.argv) > 2:
        there, born = os.pipe()
        if os.fork() == 0:
            os.write(born, b"1")
            time.sleep(60)
            os._exit(0)
        os.read(there, 1)  # a child that has not begun yet holds what it was born with
    print("locked", flush=True)
    sys.stdin.read()
"""


def start_lock_holder(folder: Path, *options: str) -> subprocess.Popen[str]:
    """A process that waits for the lock, prints a line, and holds it until its input ends."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", CODE, str(folder), *options]
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    return process


@contextmanager
def locked_by_another_process(
    folder: Path, *, forks: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """Let another process hold the lock until the context ends; ``forks``: with a child."""
    with start_lock_holder(folder, *(["forks"] if forks else [])) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
