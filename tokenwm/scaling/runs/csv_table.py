"""A CSV file of runs, one a line: its lines as named cells, and these as values of a run."""

import codecs
import csv
import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwm.errors import SweepError
from tokenwm.scaling.runs.columns import COLUMN_OF, NEEDED

DELIMITERS = ",;\t"
COMMENT = "#"
GROUPS_OF_THREE = re.compile(r"[+-]?[1-9]\d{0,2}(,\d{3})+(\.\d*)?")
"""``10,000,000``; a decimal comma cannot look like this where only whole numbers make sense."""
TEXTS = ("status", "name")
COUNTS = ("N", "D", "C", "steps")
FLOPS_PER_PARAMETER_AND_TOKEN = 6.0
"""Operations of training: two of a forward pass (multiply, add), four of a backward pass."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line below the header that is not empty.

    Attributes:
        number: In the file, from 1; the last one where a quoted cell holds line breaks.
        cells: Name of a column → text without blanks around it, empty where there is none.
        fault: Why the cells cannot be trusted; empty if they can.
    """

    number: int
    cells: Mapping[str, str]
    fault: str = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """The file: names of its columns, and at least one line."""

    header: tuple[str, ...]
    lines: tuple[Line, ...]


def read_table(path: Path) -> Table:
    """Read a file delimited by commas, semicolons or tabs, in UTF-8, or UTF-16 with its mark.

    Comments (``#``) above the header, and lines without any text, are passed over.

    Raises:
        SweepError: The file is in another encoding, has a quote that does not close, no header, a
            column twice, or no line below its header.
    """
    rows = _rows(path, _text(path))
    number, header = next(rows, (0, []))
    while header and not header[-1]:  # a delimiter at the end of the line names no column
        header.pop()
    if not header:
        raise SweepError(f"{path} is empty; expected names of columns, then one run a line")
    if all(read_number(name) is not None for name in header if name):
        raise SweepError(
            f"{path}, line {number}: expected names of columns, found numbers; put a line of names "
            f"above them, without '{COMMENT}', which begins a comment"
        )
    twice = [name for name, count in Counter(header).items() if name and count > 1]
    if twice:
        raise SweepError(
            f"{path} has {len(header)} columns, several named '{twice[0]}'; rename one"
        )
    lines = tuple(_line(number, cells, header) for number, cells in rows)
    if not lines:
        raise SweepError(f"{path} has no runs: nothing stands below its header in line {number}")
    return Table(header=tuple(header), lines=lines)


def read_number(text: str, *, whole: bool = False) -> float | None:
    """The number a cell holds; None if it is something else, or could be read in two ways.

    Args:
        text: The cell.
        whole: It counts something, so that commas between groups of three digits are no decimals.
    """
    if whole and GROUPS_OF_THREE.fullmatch(text):
        text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return None


def _text(path: Path) -> str:
    content = path.read_bytes()
    marked = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if marked else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise SweepError(
            f"{path} is not {'UTF-16, as its first bytes say' if marked else 'UTF-8'} "
            f"(byte {error.start}: {error.reason}); save it as CSV in UTF-8, for example "
            "iconv -f LATIN1 -t UTF-8 OLD > NEW"
        ) from error
    if "\0" in text:
        raise SweepError(f"{path} holds zero bytes, so it is not UTF-8; save it as CSV in UTF-8")
    return text


def _rows(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Line number and cells of the header and all lines below it that hold text."""
    lines = list(io.StringIO(text, newline=""))  # splits as csv asks for, unlike str.splitlines
    start = next((at for at, line in enumerate(lines) if not _is_comment(line)), len(lines))
    lines = lines[start:]
    number = start + 1
    try:
        # Strict, since a quote that does not close would swallow the runs below it.
        reader = csv.reader(lines, delimiter=_delimiter(lines), skipinitialspace=True, strict=True)
        for row in reader:
            number = start + reader.line_num
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield number, cells
            number += 1
    except csv.Error as error:
        raise SweepError(
            f"{path}, from line {number}: {error}; close each quote, and write one inside a quoted "
            "cell twice"
        ) from error


def _is_comment(line: str) -> bool:
    """True if a line above the header is empty or a comment; spreadsheets put these in quotes."""
    return not line.strip() or line.lstrip(' "').startswith(COMMENT)


def _delimiter(lines: Sequence[str]) -> str:
    """The one that gives the header most columns."""
    return max(DELIMITERS, key=lambda one: len(next(csv.reader(lines, delimiter=one), [])))


def _line(number: int, cells: Sequence[str], header: Sequence[str]) -> Line:
    fault = ""
    if any(cells[len(header) :]):
        fault = (
            f"it has {len(cells)} cells for {len(header)} named columns; quote text that holds the "
            "delimiter, and write decimals with a point"
        )
    padded = [*cells, *[""] * (len(header) - len(cells))]
    return Line(number=number, cells=dict(zip(header, padded, strict=False)), fault=fault)


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
