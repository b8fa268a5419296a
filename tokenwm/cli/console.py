"""Text for a terminal. Paths, names and reasons are a stranger's: shown as they are, never obeyed.

Neither markup (``[red]``) nor control characters, which could move the cursor, nor names that are
no UTF-8 have an effect. Rich is imported only where it is needed, for `tokenwm --help`'s sake.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, redirect_stdout
from typing import TYPE_CHECKING, Any

from tokenwm import strict

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text


def plain(text: str) -> str:
    """The text without control characters; a line break is one, too."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def plain_lines(text: str) -> str:
    """The text without control characters but for line breaks."""
    return "\n".join(map(plain, text.split("\n")))


def printable(text: str, style: str | None = None) -> "Text":
    """The text as rich shows it, in a table for example: without markup."""
    from rich.text import Text

    return Text(plain(text), style=style or "")


def say(console: "Console", text: str, style: str | None = None) -> None:
    """Print lines as they are; where the window is narrow, the terminal breaks them."""
    from rich.text import Text

    console.print(Text(plain_lines(text), style=style or ""), soft_wrap=True)


def show_table(
    console: "Console",
    rows: Iterable[Sequence["str | Text"]],
    *headings: str,
    title: str = "",
    left: int = 1,
    **look: Any,
) -> None:
    """Print a table; what is not rich's own text is printed as it is, and folded.

    Args:
        console: Console to print on.
        rows: Cells of each row.
        headings: Of the columns; without any, a row is a name and its value.
        title: Of the table.
        left: Columns flush left, with text; those behind them hold numbers.
        look: Options of rich's table.
    """
    from rich.table import Table

    table = Table(title=printable(title) if title else None, show_header=bool(headings), **look)
    for index, heading in enumerate(headings or ("", "")):
        is_text = index < left or not headings
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for row in rows:
        table.add_row(*(printable(cell) if isinstance(cell, str) else cell for cell in row))
    console.print(table)


def console_of(arguments: argparse.Namespace) -> "Console":
    """The console for people: stderr if ``--json`` keeps stdout for the result."""
    from rich.console import Console

    return Console(stderr=getattr(arguments, "json", False))


def keep_stdout(as_json: bool) -> AbstractContextManager[Any]:
    """Send to stderr what others print meanwhile, such as Lightning, if stdout is for JSON."""
    return redirect_stdout(sys.stderr) if as_json else nullcontext()


def give(arguments: argparse.Namespace, result: Any) -> None:
    """Print a verb's result on stdout, if ``--json`` asks for it."""
    if arguments.json:
        print_json(result)


def print_json(result: Any) -> None:
    """Print plain values, arrays and paths; NaN becomes null."""
    print(json.dumps(strict.plain(result), indent=1, allow_nan=False, default=str))
