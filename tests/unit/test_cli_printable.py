"""Text of strangers is shown as it is, whatever verb shows it."""

import io
from collections.abc import Callable

import pytest
from rich.console import Console

from tokenwm.cli.prepare import print_summary
from tokenwm.cli.printable import printable
from tokenwm.cli.verify_shards import print_problems
from tokenwm.data.manifest import Excluded, Manifest
from tokenwm.data.verify import Problem

HOSTILE = "ümlaut [red]x[/blue] \x1b[2J\r\n"
SHOWN = "ümlaut [red]x[/blue] \ufffd[2J\ufffd\ufffd"


def show_text(console: Console) -> None:
    console.print(printable(HOSTILE))


def show_problem(console: Console) -> None:
    print_problems(console, [Problem(file=HOSTILE, message="is missing")])


def show_what_was_left_out(console: Console) -> None:
    manifest = Manifest(
        kind="frames",
        name="strange",
        control_rate=10.0,
        features={},
        shards=[],
        episodes=[],
        excluded=[Excluded(key="e", reason=HOSTILE)],
    )
    print_summary(console, manifest)


@pytest.mark.parametrize("show", [show_text, show_problem, show_what_was_left_out])
def test_no_markup_and_no_control_characters(show: Callable[[Console], None]) -> None:
    written = io.StringIO()
    show(Console(file=written, width=200))
    assert SHOWN in written.getvalue()
