"""The one way files of a dataset and folders of a checkpoint are written: whole or not at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from tokenwm.data.storage.lock import hold_lock
from tokenwm.errors import ShardError

STALE_SECONDS = 24 * 3600.0
"""Age of a half-filled folder from which on its writer is taken to be gone."""
PARTIAL = re.compile(r"\..+\.[0-9a-f]{8}\.partial")
"""Names of half-written files; their random part keeps two processes that write one file apart."""


@contextmanager
def open_atomically(path: Path | str) -> Iterator[BinaryIO]:
    """Write a file so that it appears under ``path`` whole or not at all.

    The bytes go to ``.{name}.{random}.partial`` beside it, are synced to disk, and are then
    renamed. A failure removes the partial file; a kill leaves it (see :func:`partials_of`), and
    nothing reads files of that name.

    Raises:
        ShardError: The file cannot be written, for example because the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
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


def make_folder(folder: Path) -> None:
    """Make a folder for results, and those above it; it may be there.

    Raises:
        ShardError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ShardError(f"folder {folder} cannot be made: {error}; choose another") from error


def partials_of(folder: Path) -> list[Path]:
    """Half-written files in a folder: what :func:`open_atomically` leaves when it is killed."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if PARTIAL.fullmatch(path.name))


@contextmanager
def make_folder_atomically(folder: Path | str) -> Iterator[Path]:
    """Fill a sibling folder, which then takes the place of ``folder``; whole or not at all.

    A failure removes it and leaves what was there before. A kill leaves
    ``{name}.{random}.partial``, which a call after :data:`STALE_SECONDS` removes. Of two processes
    that fill one folder the later one to finish is right, and neither disturbs the other. Errors
    pass unchanged.
    """
    folder = Path(folder)
    _remove_stale(folder)
    partial = folder.with_name(f"{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, folder)
    except BaseException:
        remove_whole(partial)
        raise


def replace_folder(new: Path, folder: Path) -> None:
    """Move ``new`` to ``folder``; what was there is kept until the new one is in its place.

    If the process is killed in between, it lies in ``{name}.older``, see :func:`older_of`.
    """
    older = older_of(folder)
    with hold_lock(folder.with_name(f".{folder.name}.lock")):  # others that replace it
        if folder.exists():
            remove_whole(older)
            os.replace(folder, older)
        try:
            os.replace(new, folder)
        except BaseException:
            if older.exists():
                os.replace(older, folder)
            raise
        remove_whole(older)


def _remove_stale(folder: Path) -> None:
    """Remove what calls for ``folder`` left when they were killed long ago."""
    ours = re.compile(rf"{re.escape(folder.name)}(\.[0-9a-f]{{8}})?\.partial")
    if not folder.parent.is_dir():
        return
    for path in folder.parent.iterdir():
        if ours.fullmatch(path.name):
            with suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > STALE_SECONDS:
                    remove_whole(path)


def older_of(folder: Path) -> Path:
    """The path at which :func:`replace_folder` keeps the folder that is being replaced."""
    return folder.with_name(folder.name + ".older")


def remove_whole(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to disk, so that a rename in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
