"""The options of every verb, apart from what verbs do, so that help needs nothing heavy."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tokenwm.cli.options import data, models, sweeps
from tokenwm.cli.options.base import Parser


def _parser(words: str, text: str) -> Parser:
    description, options = text.split("\n\n", 1)
    return Parser(words, description, options)


PARSERS: Mapping[str, Callable[[], Parser]] = {
    words: partial(_parser, words, text)
    for words, text in {**data.TEXTS, **models.TEXTS, **sweeps.TEXTS}.items()
}
"""Words of a verb → its parser; ``training.py`` has those of ``tokenizer`` and ``world-model``."""


def parse(words: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a verb, given its words and the arguments behind them."""
    return PARSERS[words]().parse_args(argv)
