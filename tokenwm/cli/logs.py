"""Log messages as lines on stderr: warnings once, more with ``-v`` and ``-vv``."""

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from tokenwm.cli.console import plain_lines

LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


class _Lines(logging.Handler):
    """Prints each message the first time that it comes."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage()
        if record.levelno >= logging.WARNING:
            text = f"{record.levelname.lower()}: {text}"
        if text not in self._said:
            self._said.add(text)
            print(plain_lines(text), file=sys.stderr)


@contextmanager
def logged(verbosity: int) -> Iterator[None]:
    """Print what is logged meanwhile; Python's own warnings become one line each."""
    logger, handler, level = logging.getLogger("tokenwm"), _Lines(), LEVELS[verbosity]
    level_before, format_before = logger.level, warnings.formatwarning
    logger.addHandler(handler)
    logger.setLevel(level)
    if verbosity < 2:
        warnings.formatwarning = lambda message, *_, **__: f"warning: {message}\n"
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        warnings.formatwarning = format_before
