"""Files of a dataset that a stranger may have made: only what lies inside its folder is read."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import SourceError

MAX_META_BYTES = 256 * 2**20
"""Descriptions of a dataset that are larger are no descriptions."""


def inside(folder: Path, path: Path) -> Path:
    """Follow links and ``..``, and refuse what they lead out of the dataset.

    A copy in the cache of the Hugging Face hub consists of links to the ``blobs`` folder of the
    same dataset; these are followed.

    Args:
        folder: The dataset.
        path: A file in it; need not exist.

    Raises:
        SourceError: It lies elsewhere.
    """
    # Not `resolve`, which raises RuntimeError where links lead round in a circle.
    roots = [Path(os.path.realpath(folder))]
    if folder.parent.name == "snapshots":
        roots.append(Path(os.path.realpath(folder.parent.parent / "blobs")))
    target = Path(os.path.realpath(path))
    if not any(target.is_relative_to(root) for root in roots):
        raise SourceError(
            f"{path} leads out of the dataset, to {target}; only files inside {folder} are read. "
            "If they belong to it, copy them there"
        )
    return path


def read_small(folder: Path, path: Path, most: int | None = None) -> bytes:
    """The content of a file that describes a dataset.

    Raises:
        FileNotFoundError: It does not exist.
        OSError: It cannot be read.
        SourceError: It lies outside the dataset, is absurdly large, or a Git LFS pointer.
    """
    most = MAX_META_BYTES if most is None else most
    size = os.stat(inside(folder, path)).st_size
    refuse_pointer(path, SourceError)
    if size > most:
        raise SourceError(
            f"{path} has {size:,} bytes; at most {most:,} are read of a file that "
            "describes a dataset"
        )
    return path.read_bytes()


def read_object(folder: Path, path: Path, layout: str) -> dict[str, Any]:
    """Keys and values of a JSON file that describes a dataset.

    Args:
        folder: The dataset.
        path: The file.
        layout: What is expected there, for the message.

    Raises:
        SourceError: It is missing, damaged or holds something else.
    """
    try:
        values = json.loads(read_small(folder, path))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing; {layout}") from None
    except SourceError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read: {error}; {layout}") from error
    if not isinstance(values, dict):
        raise SourceError(f"{path} does not hold keys and values; {layout}")
    return values


def update_digest(digest: Any, path: Path, name: str) -> None:
    """Add the name, size and bytes of a file to a digest; of any size, a piece at a time."""
    digest.update(os.fsencode(f"{name}:{path.stat().st_size}:"))
    with path.open("rb") as file:
        hashlib.file_digest(file, lambda: digest)


def checksum_of_sizes(folder: Path, paths: Iterable[Path]) -> str:
    """SHA-256 over names and sizes of files, as hex digits: their bytes are too many to sum up.

    A link that leads nowhere has no size; it costs its episode, which is said there.
    """
    digest = hashlib.sha256()
    for path in sorted(paths):
        name = path.relative_to(folder).as_posix()
        try:
            size = str(path.stat().st_size)
        except OSError:
            size = "none"
        digest.update(os.fsencode(f"{name}:{size}:"))
    return digest.hexdigest()
