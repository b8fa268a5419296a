"""Files that come with tokenwm: recipes and configs."""

from pathlib import Path

import tokenwm
from tokenwm.errors import TokenwmError


def find_file(path: str | Path) -> Path:
    """A config or recipe by its path, or as shipped with tokenwm.

    Raises:
        TokenwmError: It is in neither place.
    """
    package = Path(tokenwm.__file__).parent
    for root in (Path(), package.parent, package):
        if (root / path).is_file():
            return root / path
    raise TokenwmError(f"{path} is not there, and tokenwm ships no file of that name")
