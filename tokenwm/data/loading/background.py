"""Whole shards, compared with their SHA-256 while training goes on."""

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tokenwm.data.shards.ranges import check_digest, copy_of
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.folder import is_url
from tokenwm.errors import ShardError

Files = Sequence[tuple[Path, str, str]]
"""Path of a shard, its name in messages, its SHA-256."""


class BackgroundCheck:
    """A thread that reads files from start to end and keeps the first damage it finds.

    It has the lowest priority (on Linux, where threads have one of their own) and ends with the
    process that made it. Forked processes have no such thread; only the first one tells of damage.

    Args:
        files: One that is not there is passed over: whoever reads it says so.

    Attributes:
        done: Whether all files were read, or damage was found.
    """

    def __init__(self, files: Files) -> None:
        self.done = False
        self._error: ShardError | None = None
        threading.Thread(target=self._run, args=(files,), daemon=True).start()

    def _run(self, files: Files) -> None:
        if sys.platform == "linux":
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        for path, where, sha256 in files:
            try:
                with open(path, "rb") as file:
                    check_digest(file, where, sha256)
            except FileNotFoundError:
                continue
            except OSError as error:
                self._error = ShardError(f"{where} cannot be read: {error}")
                break
            except ShardError as error:
                self._error = error
                break
        self.done = True

    def raise_damage(self) -> None:
        """Tell of damage, if any was found until now.

        Raises:
            ShardError: A file is not what it was.
        """
        if self._error is not None:
            raise self._error


def unchecked_files(readers: Sequence[ShardReader], cache: str | None) -> Files:
    """Shards that nobody has compared with their SHA-256: large datasets, copies of earlier runs.

    Args:
        readers: Of datasets; small local ones are taken to be checked.
        cache: Folder of copies of those behind a URL.
    """

    def found() -> Iterator[tuple[Path, str, str]]:
        for reader in readers:
            for shard in reader.manifest.shards:
                if is_url(reader.root) and cache is not None:
                    copy = Path(cache) / copy_of(shard)
                    if copy.exists():
                        yield copy, f"{copy}, a copy that may be removed,", shard.sha256
                elif not is_url(reader.root) and not reader.is_quick_to_verify:
                    path = reader.folder / shard.path
                    yield path, f"shard {path}", shard.sha256

    return list(found())
