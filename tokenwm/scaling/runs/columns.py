"""The columns of a CSV file that hold a run's figures: named by the user, or known by their names."""

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

NEEDED = ("N", "D", "C", "loss")
"""Keys a law cannot do without, but for one of D and C, which follows from the other."""

ALIASES: Mapping[str, tuple[str, ...]] = {
    "N": ("n", "num parameters", "parameters", "params", "num params", "model size", "size"),
    "D": ("d", "num tokens", "tokens", "training tokens", "train tokens", "data size"),
    "C": ("c", "flops", "flop", "training flop", "training flops", "train flops", "compute"),
    "loss": (
        *("val loss", "validation loss", "valid loss", "test loss", "eval loss", "held out loss"),
        *("loss", "l", "final loss"),  # beside one of the above, likely that of training
    ),
    "learning_rate": ("learning rate", "lr", "peak lr", "peak learning rate"),
    "seed": ("seed",),
    "epochs": ("num epochs", "epochs", "epoch"),
    "steps": ("num steps", "steps", "step"),
    "seconds": ("seconds",),
    "status": ("status",),
    "name": ("path", "name", "run", "run name"),
}
"""Names that are taken for a key when nobody maps it, the preferred first, however written."""

_PREFIXES = "kilo|mega|giga|tera|peta|exa|zetta"
PREFIXED = re.compile(rf"\b([kmbgtpez]|{_PREFIXES})(?=(flops?|params?|parameters|tokens?)\b)")
"""``gflops``: the scale and the unit are one word."""
SCALE = re.compile(
    rf"[kmbgtpez]|[kmgt]i?b|mn|mio|bn|tn|(thousand|million|billion|trillion|{_PREFIXES})s?"
    r"|x?\d+e\d+|e\d+|x?\d+[kmbgt]?|log\d*|ln|bits?|%"
)
"""Words that say a column is not in plain units: ``Params (M)``, ``tokens_1e9``, ``log N``."""

def choose_columns(
    header: Sequence[str], given: Mapping[str, str], metrics: Sequence[str]
) -> tuple[dict[str, str], list[str]]:
    """Find a column for every key that has one.

    Args:
        header: Names of the file's columns.
        given: Key → column, as the user said; keys are those of ``COLUMN_OF``.
        metrics: Columns that hold further figures; they are not guessed for anything else.

    Returns:
        Key → column, and notes on what was taken for what, and what will be derived.

    Raises:
        TokenwmError: A key is unknown, a named column is not there, N, loss, and one of D and C
            cannot be found, or the only column for one of them is not in plain units.
    """
    for key in given:
        if key not in COLUMN_OF:
            raise TokenwmError(f"unknown key '{key}' for a column; use " + ", ".join(COLUMN_OF))
    for column in (*given.values(), *metrics):
        if column not in header:
            raise TokenwmError(f"no column '{column}'; there are: {', '.join(header)}")
    chosen = dict(given)
    notes = [
        f"column '{column}' is read for {key} as it stands, though its name has "
        f"'{' '.join(_scale(column))}': {key} is taken in plain units"
        for key, column in given.items()
        if key in NEEDED and _scale(column)
    ]
    free = [name for name in header if name and name not in (*given.values(), *metrics)]
    for key in COLUMN_OF:
        found = None if key in chosen else _named(key, [c for c in free if not _scale(c)])
        if found is not None:
            chosen[key] = found
            free.remove(found)
            notes.append(f"column '{found}' was taken for {key}")
    _check_found(chosen, header, free)
    if "D" not in chosen:
        notes.append("no column for tokens: D = C / (6 N)")
    if "C" not in chosen:
        notes.append("no column for FLOPs: C = 6 N D")
    return chosen, notes


def _check_found(chosen: Mapping[str, str], header: Sequence[str], free: Sequence[str]) -> None:
    """Refuse to go on without a needed column, or past one in other units."""
    for key in NEEDED:
        scaled = None if key in chosen else _named(key, free)
        if scaled is not None:
            raise TokenwmError(
                f"column '{scaled}' is near {key}, but '{' '.join(_scale(scaled))}' in its name "
                f"says that it is not in plain units; add a column that is, or, if it is, say "
                f"--columns {key}='{scaled}'"
            )
    missing = [key for key in ("N", "loss") if key not in chosen]
    if missing or not {"D", "C"} & set(chosen):
        what = " and ".join(missing) or "D or C"
        raise TokenwmError(
            f"no column for {what} among {', '.join(map(repr, header)) or 'no columns'}; map it, "
            f"for example --columns {(missing or ['D'])[0]}='its name'"
        )


def _named(key: str, columns: Sequence[str]) -> str | None:
    """The first column that bears a name of the key, scale aside, the preferred name first."""
    plain = {
        " ".join(word for word in _words(column) if not SCALE.fullmatch(word)): column
        for column in reversed(columns)
    }
    return next((plain[alias] for alias in ALIASES[key] if alias in plain), None)


def _scale(name: str) -> list[str]:
    """Words of a name that say its column is not in plain units."""
    return [word for word in _words(name) if SCALE.fullmatch(word)]


def _words(name: str) -> list[str]:
    """In lower case: ``TrainingTokens`` and ``training_tokens`` are the same."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    plain = " ".join(re.findall(r"[a-z0-9]+|%", spaced.lower()))
    return PREFIXED.sub(r"\1 ", plain).split()
