"""Git LFS pointers: what lies in a clone in place of the large files until they are downloaded."""

from pathlib import Path

from tokenwm.errors import TokenwmError

BEGINNING = b"version https://git-lfs.github.com/spec/"
"""First bytes of every pointer."""
MAX_BYTES = 1024
"""A larger file is none, as Git LFS says itself."""


def is_pointer(path: Path) -> bool:
    """True if a file is a pointer; False if it is none or is not there."""
    try:
        if path.stat().st_size > MAX_BYTES or not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(len(BEGINNING)) == BEGINNING
    except OSError:
        return False


def pointer_message(path: Path | str) -> str:
    """Text that says what a pointer is and how to get the file."""
    return f"{path} is a Git LFS pointer, not the file: run git lfs pull"


def refuse_pointer(path: Path, error: type[TokenwmError], where: str = "") -> None:
    """Say plainly that a file has not been downloaded; call it wherever a file of data is opened.

    Args:
        path: The file; need not exist.
        error: Class of the error to raise.
        where: Put before the message, for example ``episode a: ``.

    Raises:
        TokenwmError: It is a pointer; of the given class.
    """
    if is_pointer(path):
        raise error(where + pointer_message(path))
