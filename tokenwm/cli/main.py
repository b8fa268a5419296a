"""``tokenwm VERB ...``: finds the verb's module, runs its ``main``, makes errors into messages.

Nothing heavy is imported here (no torch, no rich), so that ``tokenwm --help`` answers at once; a
verb's module is imported when the verb runs.
"""

import errno
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from tokenwm import __version__
from tokenwm.cli.console import plain_lines
from tokenwm.errors import TokenwmError

VERBS: Mapping[str, str] = {
    "quickstart": "every stage from a recipe (Push-T by default) to a report, in 15 minutes",
    "inspect": "say what a folder of recordings holds; write a recipe",
    "prepare": "record or read episodes, as a recipe says, and write frame shards",
    "verify-shards": "check every byte of a dataset, and name what is damaged",
    "export-lerobot": "write frame shards as a LeRobot folder",
    "export-arrays": "write frame shards as a robomimic HDF5 file or NPZ files",
    "tokenizer": "fit, validate or test the frame tokenizer",
    "tokenize": "turn frame shards into token shards",
    "world-model": "fit, validate or test the world model",
    "heads": "train what deciding needs: action prior, distance to a goal, doubt",
    "imagine": "imagine futures of a recorded episode, as GIF, MP4 and NPZ",
    "play": "steer the imagined robot in the browser: keys, pointer, undo, compare",
    "synthesize": "imagine episodes that never happened, and write them as frame shards",
    "control": "let the model decide in a simulator: plan, act, observe; success and films",
    "evaluate": "compare imagined with recorded episodes, and write a report",
    "sweep": "plan, run and fit scaling laws: which size and how many tokens for a budget",
    "serve": "imagine, score and encode for other processes, over HTTP",
    "push": "publish a checkpoint or a dataset on the Hugging Face hub",
    "pull": "fetch a checkpoint or a dataset from there and check it",
    "info": "say what a dataset, checkpoint, run, sweep or report is and came from",
    "report": "write a report's page again, from its figures",
    "completion": "print a completion script for bash or zsh",
}
"""Verb → one line of help; :func:`module_of` has the ``main(argv) -> int`` that runs it."""

KEPT: Mapping[str, str] = {
    "quickstart": "finished stages and the last checkpoint are",
    "sweep run": "finished runs and the last checkpoints of others are",
    "tokenizer fit": "the last checkpoint, if there is one yet, is",
    "world-model fit": "the last checkpoint, if there is one yet, is",
    "prepare": "finished shards are",
    "tokenize": "finished shards are",
    "synthesize": "finished shards are",
}
"""Words of a verb → what an interrupted one keeps, so that the same command goes on."""

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_SIGNALLED = 128  # plus the signal, as shells report it

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors that a user can mend wherever they arise, in Lightning's or matplotlib's files as well."""

TRACEBACK_VARIABLE = "TOKENWM_TRACEBACK"

verb_began = 0.0
"""Time at which the verb was called, on the monotonic clock: before its module was imported."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``tokenwm`` with the given arguments.

    Args:
        argv: Arguments after the program's name; None takes those of the process.

    Returns:
        0 on success, 1 after an error the user can mend, 2 after a wrong verb, 130 after Ctrl-C,
        141 where nobody reads its output any more, 143 after a SIGTERM that training was stopped
        by; otherwise what the verb's own ``main`` returns.
    """
    try:
        try:
            return _run(sys.argv[1:] if argv is None else argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # who reads the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_SIGNALLED + signal.SIGPIPE


def _run(argv: Sequence[str]) -> int:
    arguments, verbosity = take_verbosity(argv)
    if arguments[:1] == ["help"]:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(help_text())
        return EXIT_OK
    verb, *rest = arguments
    if verb in ("-V", "--version"):
        print(f"tokenwm {__version__}")
        return EXIT_OK
    if verb not in VERBS:
        print(unknown_verb_message(verb), file=sys.stderr)
        return EXIT_USAGE
    return run_verb(verb, rest, verbosity)


def module_of(verb: str) -> str:
    """Name of a verb's module."""
    return f"tokenwm.cli.verbs.{verb.replace('-', '_')}"


def take_verbosity(argv: Sequence[str]) -> tuple[list[str], int]:
    """Arguments without ``-v``, ``-vv``, ``--verbose``, and how often these were given."""
    amount = {"-v": 1, "-vv": 2, "--verbose": 1}
    rest = [word for word in argv if word not in amount]
    return rest, min(2, sum(amount.get(word, 0) for word in argv))


def run_verb(verb: str, argv: list[str], verbosity: int = 0) -> int:
    """Import the module of a known verb and run it, with errors and Ctrl-C made into messages.

    Args:
        verb: A key of ``VERBS``.
        argv: The arguments after the verb.
        verbosity: How much is logged, 0 to 2.

    Returns:
        The exit code, see :func:`main`.
    """
    global verb_began
    verb_began = time.monotonic()
    from tokenwm.cli.logs import logged

    try:
        check_arguments(verb, argv)
        with logged(verbosity):
            verb_main: Callable[[list[str]], int] = importlib.import_module(module_of(verb)).main
            return verb_main(argv)
    except TokenwmError as error:
        if os.environ.get(TRACEBACK_VARIABLE) == "1":
            import traceback

            traceback.print_exc()
        print(plain_lines(f"error: {error}"), file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        path = error.filename2 or error.filename  # of a copy, its target
        where = f" ({path})" if path else ""
        message = f"error: {error.strerror}{where}; free space, then run the same command again"
        print(plain_lines(message), file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted: {what_is_kept(verb, argv)}", file=sys.stderr)
        return EXIT_SIGNALLED + (interrupt.args[0] if interrupt.args else signal.SIGINT)


def check_arguments(verb: str, argv: Sequence[str]) -> None:
    """Answer a call for help, or a mistake, before the verb's module is imported.

    Raises:
        SystemExit: Help was given, or an option is wrong.
        TokenwmError: The same, of a training.
    """
    from tokenwm.cli.options import PARSERS
    from tokenwm.cli.options.training import lightning_arguments

    words = 2 if verb == "sweep" else 1
    parser = PARSERS.get(" ".join([verb, *argv][:words]))
    if parser is not None:
        parser().parse_args(argv[words - 1 :])
    elif verb in ("tokenizer", "world-model"):
        lightning_arguments(verb, argv)


def what_is_kept(verb: str, argv: list[str]) -> str:
    """Say what Ctrl-C leaves of a verb's work and what the same command then does."""
    words = " ".join([verb, *argv][:2])
    kept = next((what for start, what in KEPT.items() if f"{words} ".startswith(f"{start} ")), "")
    if not kept:
        return "nothing of this run is kept; the same command begins anew"
    return f"{kept} kept; run the same command again to continue from there"


def help_text() -> str:
    """Return what ``tokenwm --help`` prints: every verb with its line of help."""
    width = max(map(len, VERBS))
    lines = [f"  {verb:<{width}}  {summary}" for verb, summary in VERBS.items()]
    return "\n".join(
        [
            f"tokenwm {__version__}: token world models for robot learning",
            "",
            "usage: tokenwm VERB [options]      tokenwm help VERB      tokenwm --version",
            "",
            *lines,
            "",
            "Begin with: tokenwm quickstart",
            "Every verb: -v says more, -vv all; those with a result: --json prints it as JSON.",
            f"Errors are one line; with {TRACEBACK_VARIABLE}=1 set they show where they arose.",
        ]
    )


def unknown_verb_message(verb: str) -> str:
    """Return the message for a word that is no verb, with the nearest verb if one is near."""
    import difflib

    nearest = difflib.get_close_matches(verb, VERBS, n=1)
    suggestion = f"did you mean '{nearest[0]}'?" if nearest else f"verbs: {', '.join(VERBS)}"
    return f"error: unknown verb '{verb}'; {suggestion} (tokenwm --help lists all)"


if __name__ == "__main__":
    sys.exit(main())
