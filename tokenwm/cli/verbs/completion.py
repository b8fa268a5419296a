"""``tokenwm completion bash|zsh``: a script with which a shell completes verbs and options."""

import argparse

from tokenwm.cli.main import VERBS
from tokenwm.cli.options import PARSERS, parse
from tokenwm.cli.options.training import OF_STAGE, SUBCOMMANDS, training
from tokenwm.errors import TokenwmError


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        TokenwmError: shtab is not installed.
    """
    shell = parse("completion", argv).shell
    try:
        import shtab
    except ImportError as error:
        raise TokenwmError("completion needs shtab: pip install 'tokenwm[completion]'") from error
    program = whole_program()
    for each in _all_parsers(program):
        for action in each._actions:
            if action.metavar in ("DIR", "DIR|URL", "FILE", "SWEEP", "PATH|URL") or (
                not action.option_strings and action.choices is None
            ):
                action.complete = shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(program, shell))
    return 0


def whole_program() -> argparse.ArgumentParser:
    """One parser with all verbs, of the parsers that each verb has."""
    program = argparse.ArgumentParser("tokenwm")
    verbs = program.add_subparsers()
    steps = {
        "sweep": {words.split()[1]: make() for words, make in PARSERS.items() if " " in words},
        **{verb: {name: training(verb, name) for name in SUBCOMMANDS} for verb in OF_STAGE},
    }
    for verb, summary in VERBS.items():
        own = [PARSERS[verb]()] if verb in PARSERS else []
        added = verbs.add_parser(verb, parents=own, add_help=False, help=summary)
        if verb in steps:
            below = added.add_subparsers()
            for name, step in steps[verb].items():
                below.add_parser(name, parents=[step], add_help=False, help=step.description)
    return program


def _all_parsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    children = [child for action in below for child in action.choices.values()]
    return [parser, *(found for child in children for found in _all_parsers(child))]
