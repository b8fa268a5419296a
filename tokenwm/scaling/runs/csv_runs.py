"""The runs of a CSV file, one a line, under the names that :class:`RunPoint` gives its values."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tokenwm.errors import SweepError
from tokenwm.scaling.runs.columns import COLUMN_OF, NEEDED
from tokenwm.scaling.runs.csv_table import Line, read_number

TEXTS = ("status", "name")
COUNTS = ("N", "D", "C", "steps")
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""Of training: two of a forward pass (multiply, add), four of a backward pass."""


def run_names(lines: Sequence[Line], column: str | None) -> list[str]:
    """A name for each line that no other one has: a cell of ``column``, or the line's number."""
    names = [(line.cells[column] if column else "") or f"line {line.number}" for line in lines]
    count = Counter(names)
    return [
        name if count[name] == 1 else f"{name} (line {line.number})"
        for name, line in zip(names, lines, strict=True)
    ]


def run_values(line: Line, chosen: Mapping[str, str], metrics: Sequence[str]) -> dict[str, Any]:
    """Values of a run: field of :class:`RunPoint` → number, ``status`` → text.

    Args:
        line: Its line.
        chosen: Key → column, as ``choose_columns`` gives them.
        metrics: Columns of further figures.

    Raises:
        SweepError: The line has too many cells, or no number where a law needs one.
    """
    if line.fault:
        raise SweepError(line.fault)
    values: dict[str, Any] = {}
    for key, column in chosen.items():
        text = line.cells[column]
        number = read_number(text, whole=key in COUNTS)
        if key == "status" and text:
            values["status"] = text
        elif key not in TEXTS and number is not None:
            values[COLUMN_OF[key]] = number
        elif key in NEEDED:
            raise SweepError(
                f"'{column}' is {text!r}, expected a number in plain units, such as 1e9 or 2.5"
            )
    figures = {column: read_number(line.cells[column]) for column in metrics}
    values["metrics"] = {key: value for key, value in figures.items() if value is not None}
    return _with_derived(values, chosen)


def unread_cells(
    lines: Sequence[Line], chosen: Mapping[str, str], metrics: Sequence[str]
) -> Iterator[str]:
    """A note for each column with cells that a law can do without and that are no numbers."""
    columns = {column: key for key, column in chosen.items() if key not in (*TEXTS, *NEEDED)}
    for column in (*columns, *metrics):
        whole = columns.get(column) in COUNTS
        unread = [
            line
            for line in lines
            if line.cells[column] and read_number(line.cells[column], whole=whole) is None
        ]
        if unread:
            first = unread[0]
            yield (
                f"column '{column}': {len(unread)} of {len(lines)} cells are no plain numbers and "
                f"are ignored (the first is {first.cells[column]!r} in line {first.number})"
            )


def _with_derived(values: dict[str, Any], chosen: Mapping[str, str]) -> dict[str, Any]:
    per_token = FLOPS_PER_PARAMETER_AND_TOKEN * values["num_parameters"]
    if "D" not in chosen:
        values["num_tokens"] = values["flops"] / per_token if per_token else math.nan
    if "C" not in chosen:
        values["flops"] = values["num_tokens"] * per_token
    return values
