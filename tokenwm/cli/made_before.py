"""Record of what an output was made of, so that a verb given twice does nothing."""

import argparse
import hashlib
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenwm
from tokenwm.cli.console import give, say
from tokenwm.data.shards.manifest import MANIFEST_NAME, manifest_sha256
from tokenwm.data.storage.atomic import open_atomically

if TYPE_CHECKING:
    from rich.console import Console

_SAYS_NOTHING = ("out", "overwrite", "json", "verbose")


class MadeBefore:
    """The record of what an output was made of, a file ``.VERB.json`` beside it.

    A verb given twice does nothing the second time; with other options, or inputs whose content has
    changed, it makes its output again.

    Args:
        verb: Name of the verb.
        out: Folder of the output.
        arguments: All options of the verb.
        inputs: Files and folders whose content counts; of a dataset its manifest, which holds the
            checksums of all else. One that is not there is for the verb to complain about.

    Attributes:
        result: Result of the verb, as ``--json`` prints it; None until it stands or is saved.
    """

    result: Any = None

    def __init__(
        self, verb: str, out: Path, arguments: argparse.Namespace, inputs: Iterable[Path | str]
    ) -> None:
        self.out = out
        self._path = out / f".{verb.replace(' ', '_')}.json"
        options = {
            name: str([*map(str, value)] if isinstance(value, list) else value)
            for name, value in vars(arguments).items()
            if name not in _SAYS_NOTHING
        }
        self._made_of: dict[str, Any] = {
            "tokenwm_version": tokenwm.__version__,
            "options": options,
            "inputs": {str(path): _digest(path) for path in inputs},
        }

    def stands(self) -> bool:
        """True if the output is there, whole and made of the same."""
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            files, self.result = record.pop("files"), record.pop("result", None)
            return record == self._made_of and all(
                _digest(self.out / name) == digest for name, digest in files.items()
            )
        except (OSError, ValueError, AttributeError, KeyError):
            return False

    def save(self, files: Iterable[Path], result: Any = None) -> None:
        """Record what these files of the output were made of, and what was found."""
        self.result = result
        digests = {str(path.relative_to(self.out)): _digest(path) for path in files}
        record = {**self._made_of, "result": result, "files": digests}
        with open_atomically(self._path) as file:
            file.write(json.dumps(record, indent=1, default=str).encode() + b"\n")

    def is_kept(self, arguments: argparse.Namespace, console: "Console") -> bool:
        """True if the verb has nothing to do; says so, and gives the result again."""
        if arguments.overwrite or not self.stands():
            return False
        say(console, str(self))
        give(arguments, self.result)
        return True

    def __str__(self) -> str:
        return (
            f"{self.out}: made before of the same data and options, and kept; --overwrite makes it "
            "again"
        )


def files_below(folder: Path) -> list[Path]:
    """All files of a folder and its folders but records, in order."""
    return sorted(
        path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".")
    )


def _digest(path: Path | str) -> str | None:
    """SHA-256 of what a file, a folder or a dataset's URL holds; None if there is nothing."""
    if isinstance(path, str):
        with suppress(OSError):
            return manifest_sha256(path)
        return None
    if (path / MANIFEST_NAME).is_file():
        path = path / MANIFEST_NAME
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if not path.is_dir():
        return None
    parts = [f"{file.relative_to(path)} {_digest(file)}" for file in files_below(path)]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
