"""Parsers of verbs, each written as the text of its help, and the options that several share.

Nothing heavy is imported here or beside it, so that help and mistakes are answered at once.

A line of such a text is ``--name METAVAR = default  help``, and goes on where the next is indented.
The metavar gives the type (:data:`TYPES`); without one the option is a flag. ``!`` behind it stands
for required, ``…`` for several values, ``{a,b}`` for the choices, and ``--new|--old`` for an
earlier spelling, which works and is not shown. A name without dashes is a positional argument.
``+ NAME …`` stands for options that several verbs share (:data:`SHARED`).
"""

import argparse
import ast
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from tokenwm.data.storage.folder import location
from tokenwm.scaling.quantities import parse_number

_LINE = re.compile(
    r"(?P<name>[\w.-]+)(?:\|(?P<old>[\w-]+))?(?: (?P<metavar>[^\s!…]+))?(?P<required>!)?"
    r"(?P<several> …)?(?: = (?P<default>\S+))?  (?P<help>.+)"
)


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


TYPES: Mapping[str, Callable[[str], Any]] = {
    **dict.fromkeys(("N", "K", "SEED"), int),
    **dict.fromkeys(("X", "FLOPS/S"), float),
    **dict.fromkeys(("FLOPS", "STEPS", "TOKENS", "DELTA", "SECONDS", "MINUTES"), positive),
    **dict.fromkeys(("DIR", "FILE", "PATH", "SWEEP"), Path),
    **dict.fromkeys(("DIR|URL", "PATH|URL"), location),
    "WORKERS": whole,
    "RUNS": one_or_more,
}
"""Metavar → what makes a value of a text; of others the default's type, or text."""

SHARED: Mapping[str, str] = {
    "JSON": "--json  print the result as JSON on stdout, and all else on stderr",
    "DEVICE": "--device NAME = auto  auto, cpu, cuda, cuda:1, …; auto takes a GPU if there is one",
    "REMAKE": "--overwrite  make it again, even if it was made of the same data and options before",
    "ANEW": "--overwrite  begin anew instead of continuing",
    "ENGINE": "--engine {local,ray,slurm} = local  where: processes on this machine, a Ray cluster "
    "(RAY_ADDRESS, else one on this machine), or Slurm jobs through submitit",
}
"""Options that several verbs have, alike."""
NUM_CORES = os.cpu_count() or 1


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Help that gives every default that says something."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_something = action.default not in (None, False, [])
        return super()._get_help_string(action) if says_something else action.help


class Parser(argparse.ArgumentParser):
    """The parser of one verb.

    Args:
        verb: Its words, as in ``sweep plan``.
        description: Text that says what the verb does.
        options: Their text, see above.
    """

    def __init__(self, verb: str, description: str, options: str) -> None:
        description = " ".join(description.split())
        super().__init__(
            prog=f"tokenwm {verb}", description=description, formatter_class=_Help, add_help=False
        )
        self.add_argument("-h", "--help", action="help", help="show this help and exit")
        help = "say more; -vv says everything"
        self.add_argument("-v", "--verbose", action="count", help=help)
        self.add_options(options)

    def add_options(self, text: str, group: str | None = None) -> None:
        """Add what a text describes, in a group of its own if that has a title."""
        target = self if group is None else self.add_argument_group(group)
        for line in filter(None, re.sub(r"\n {2,}", " ", text).split("\n")):
            shared = [SHARED[name] for name in line[2:].split()] if line[0] == "+" else [line]
            for option in shared:
                found = _LINE.fullmatch(option)
                assert found is not None, option
                _add(target, **found.groupdict())

    def error(self, message: str) -> NoReturn:
        """End with the mistake in one line, without all of the usage."""
        self.exit(2, f"error: {message}; {self.prog} --help shows what there is\n")


def _add(
    target: Any,
    *,
    name: str,
    old: str | None,
    metavar: str | None,
    required: str | None,
    several: str | None,
    default: str | None,
    help: str,
) -> None:
    is_option = name.startswith("-")
    if metavar is None and is_option:
        target.add_argument(name, action="store_true", help=help)
        return
    value = _value(default)
    given: dict[str, Any] = {"metavar": metavar}
    if metavar is not None and metavar.startswith("{"):
        given = {"choices": metavar.strip("{}").split(",")}
    elif metavar in TYPES or isinstance(value, int | float):
        given["type"] = TYPES.get(metavar or "", type(value))
    if several:
        given |= {"nargs": "+", "action": "extend"} if is_option else {"nargs": "*"}
        value = [] if is_option and not required else None
    if required:
        given["required"] = True
    action = target.add_argument(name, default=value, help=help, **given)
    if old is not None:
        given |= {"dest": action.dest, "required": False, "default": argparse.SUPPRESS}
        target.add_argument(old, help=argparse.SUPPRESS, **given)


def _value(text: str | None) -> Any:
    """A number if it is one, else the text."""
    try:
        return None if text is None else ast.literal_eval(text)
    except (SyntaxError, ValueError):
        return text
