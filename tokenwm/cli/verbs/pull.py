"""``tokenwm pull OWNER/NAME --out DIR``: fetch a checkpoint or a dataset, and check it."""

import argparse
from pathlib import Path

from rich.console import Console

from tokenwm.cli.console import say
from tokenwm.hub.transfer import pull


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    pull(
        arguments.repository,
        arguments.out,
        kind="dataset" if arguments.dataset else "model",
        revision=arguments.revision,
        max_bytes=int(arguments.max_gigabytes * 2**30),
    )
    say(Console(), f"pulled {arguments.repository} to {arguments.out}; every hash is right")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's arguments."""
    result = argparse.ArgumentParser(
        prog="tokenwm pull",
        description="Fetch a checkpoint or a dataset from the Hugging Face hub. Every file is "
        "checked against its hash; code and pickles are never fetched.",
    )
    result.add_argument("repository", metavar="OWNER/NAME")
    result.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    result.add_argument("--dataset", action="store_true", help="a dataset, not a checkpoint")
    result.add_argument("--revision", metavar="NAME", help="branch, tag or commit")
    result.add_argument(
        "--max-gigabytes",
        type=float,
        default=20.0,
        metavar="N",
        help="most that is fetched (default: %(default)s)",
    )
    return result
