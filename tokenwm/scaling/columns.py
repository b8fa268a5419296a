"""Which column of a CSV file holds what: named by the user, or guessed and said."""

import difflib
import re
from collections.abc import Mapping, Sequence

from tokenwm.errors import TokenwmError

COLUMN_OF: Mapping[str, str] = {
    "N": "num_parameters",
    "D": "num_tokens",
    "C": "flops",
    "loss": "loss",
    "learning_rate": "learning_rate",
    "seed": "seed",
    "epochs": "num_epochs",
    "steps": "num_steps",
    "seconds": "seconds",
    "status": "status",
    "name": "path",
}
"""Key a user maps a column with → field of a run."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "N": ("n", "num parameters", "parameters", "params", "num params", "model size", "size"),
    "D": ("d", "num tokens", "tokens", "training tokens", "train tokens", "data size"),
    "C": ("c", "flops", "flop", "training flop", "training flops", "train flops", "compute"),
    "loss": ("loss", "l", "val loss", "validation loss", "test loss", "final loss", "eval loss"),
    "learning_rate": ("learning rate", "lr", "peak lr"),
    "seed": ("seed",),
    "epochs": ("num epochs", "epochs"),
    "steps": ("num steps", "steps"),
    "seconds": ("seconds",),
    "status": ("status",),
    "name": ("path", "name", "run", "run name"),
}
"""Names that are taken for a key when nobody maps it, most usual first."""

NEAR = 0.85
"""Least similarity (difflib's ratio) of a column to an alias for it to be guessed."""


def choose_columns(
    header: Sequence[str], given: Mapping[str, str], metrics: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Find a column for every key that has one.

    Args:
        header: Names of the file's columns.
        given: Key → column, as the user said; keys are those of ``COLUMN_OF``.
        metrics: Columns that hold further figures; they are not guessed for anything else.

    Returns:
        Key → column, and notes on what was guessed or will be derived.

    Raises:
        TokenwmError: A key is unknown, a named column is not there, or N, loss, and one of D and C
            cannot be found.
    """
    for key, column in given.items():
        if key not in COLUMN_OF:
            raise TokenwmError(f"unknown key '{key}' for a column; use " + ", ".join(COLUMN_OF))
        _check_there(column, header)
    for column in metrics:
        _check_there(column, header)
    chosen = dict(given)
    notes: list[str] = []
    free = [name for name in header if name not in (*given.values(), *metrics)]
    for near in (1.0, NEAR):  # exact names first, so that a near one cannot take their column
        for key in COLUMN_OF:
            found = None if key in chosen else _guess(key, free, near)
            if found is not None:
                chosen[key] = found
                free.remove(found)
                notes.append(f"column '{found}' was taken for {key}")
    missing = [key for key in ("N", "loss") if key not in chosen]
    if missing or not {"D", "C"} & set(chosen):
        what = " and ".join(missing) or "D or C"
        raise TokenwmError(
            f"no column for {what} among {', '.join(map(repr, header)) or 'no columns'}; map it, "
            f"for example --columns {(missing or ['D'])[0]}='its name'"
        )
    if "D" not in chosen:
        notes.append("no column for tokens: D = C / (6 N)")
    if "C" not in chosen:
        notes.append("no column for FLOPs: C = 6 N D")
    return chosen, notes


def _check_there(column: str, header: Sequence[str]) -> None:
    if column not in header:
        near = difflib.get_close_matches(column, header, n=1)
        guess = f"did you mean '{near[0]}'? " if near else ""
        raise TokenwmError(f"no column '{column}'; {guess}there are: {', '.join(header)}")


def _guess(key: str, free: Sequence[str], near: float) -> str | None:
    """The free column whose name is nearest to an alias of a key; None below ``near``."""
    best, found = near, None
    for alias in ALIASES[key]:
        for column in free:
            likeness = difflib.SequenceMatcher(None, alias, _plain(column)).ratio()
            if (likeness >= best and found is None) or likeness > best:
                best, found = likeness, column
    return found


def _plain(name: str) -> str:
    """Lower case, words apart: ``TrainingTokens`` and ``training_tokens`` are the same."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    return " ".join(re.findall(r"[a-z0-9]+", spaced.lower()))
