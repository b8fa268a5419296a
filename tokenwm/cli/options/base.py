"""A parser that all verbs share, and the options that several of them have.

Nothing heavy is imported here or beside it, so that help and mistakes are answered at once.
"""

import argparse
import os
from collections.abc import Callable
from typing import Any, NoReturn

from tokenwm.scaling.quantities import parse_number

ENGINES = ("local", "ray", "slurm")
SIZES = ("debug", "small", "base", "large")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that gives every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False or action.default == []:
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """The parser of one verb.

    Args:
        verb: Its words, as in ``sweep plan``.
        description: What it does.
    """

    def __init__(self, verb: str, description: str) -> None:
        super().__init__(
            prog=f"tokenwm {verb}", description=description, formatter_class=_Help, add_help=False
        )
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        self.flag("-v", "--verbose", help="say more; -vv says everything", action="count")

    def add(
        self,
        *names: str,
        help: str,
        default: Any = None,
        type: Callable[[str], Any] | None = None,
        old: str | None = None,
        **rest: Any,
    ) -> None:
        """An argument whose type follows from its default, if that is a number.

        Args:
            *names: One name of a positional argument, or the spellings of an option.
            help: For the user; the default is added.
            default: Value if it is not given.
            type: What makes a value of the text.
            old: An earlier spelling, which works and is not shown.
            **rest: See ``argparse``.
        """
        if type is None and isinstance(default, int | float):
            type = default.__class__
        if type is not None:
            rest["type"] = type
        if rest.get("nargs") == "+" and names[0].startswith("-"):
            rest.setdefault("action", "extend")
            default = [] if default is None else default
        action = self.add_argument(*names, help=help, default=default, **rest)
        if old is not None:
            hidden = {**rest, "dest": action.dest, "required": False}
            self.add_argument(old, help=argparse.SUPPRESS, default=argparse.SUPPRESS, **hidden)

    def error(self, message: str) -> NoReturn:
        """End with the mistake in one line, without all of the usage."""
        self.exit(2, f"error: {message}; {self.prog} --help shows what there is\n")

    def flag(self, *names: str, help: str, action: str = "store_true") -> None:
        """An option without a value."""
        self.add_argument(*names, help=help, action=action)


def whole(text: str) -> int:
    """A whole number, 0 or more, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below zero")
    return value


def one_or_more(text: str) -> int:
    """A whole number, 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below one")
    return value


def positive(text: str) -> float:
    """A finite number above zero, such as ``3e15`` or ``2T``, for argparse."""
    try:
        value = parse_number(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"{text} is not a finite number above zero, such as 3e15 or 2T"
        )
    return value


def add_json(parser: Parser) -> None:
    """``--json``."""
    parser.flag("--json", help="print the result as JSON on stdout, and all else on stderr")


def add_overwrite(parser: Parser, help: str) -> None:
    """``--overwrite``."""
    parser.flag("--overwrite", help=help)


def add_remake(parser: Parser) -> None:
    """``--overwrite`` of a verb that does nothing if its output was made of the same before."""
    add_overwrite(parser, "make it again, even if it was made of the same data and options before")


def add_device(parser: Parser) -> None:
    """``--device``."""
    parser.add(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, …; auto takes a GPU if it can"
    )


def add_set(parser: Parser, what: str, example: str, **rest: Any) -> None:
    """``--set``."""
    help = f"override values of {what}, for example --set {example}"
    parser.add("--set", nargs="+", metavar="KEY=VALUE", help=help, **rest)


def add_engine(parser: Parser, unit: str, workers: str, default: int | None, **rest: Any) -> None:
    """``--workers`` and ``--engine``: how many at once, and where; the result is the same."""
    where = "a Ray cluster (RAY_ADDRESS, else one here), or Slurm jobs through submitit"
    parser.add("--workers", metavar="N", default=default, help=workers, **rest)
    help = f"where {unit} are made: processes on this machine, {where}"
    parser.add("--engine", choices=ENGINES, default="local", help=help)


def num_cores() -> int:
    """Cores of this machine."""
    return os.cpu_count() or 1
