"""The one way a file of a dataset is written: whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tokenwm.errors import ShardError


@contextmanager
def open_atomically(path: Path | str) -> Iterator[BinaryIO]:
    """Write a file so that it appears under ``path`` whole or not at all.

    The bytes go to ``.{name}.partial`` beside it, are synced to disk, and are then renamed. A
    failure removes the partial file; a kill leaves it, and nothing reads files of that name.

    Raises:
        ShardError: The file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        try:
            with open(partial, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            sync_folder(path.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise ShardError(
            f"{path} could not be written: {error}. Nothing of it was kept; "
            "free space or choose another folder, then run again"
        ) from error


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
