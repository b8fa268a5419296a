"""``tokenwm push PATH OWNER/NAME``: publish a checkpoint or a dataset on the Hugging Face hub."""

import argparse
from pathlib import Path

from rich.console import Console

from tokenwm.cli.console import say
from tokenwm.hub.transfer import push


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    where = push(
        arguments.path, arguments.repository, report=arguments.report, private=arguments.private
    )
    say(Console(), f"pushed {arguments.path} to {where}")
    return 0


def parser() -> argparse.ArgumentParser:
    """Return the verb's arguments."""
    result = argparse.ArgumentParser(
        prog="tokenwm push",
        description="Publish a checkpoint or a dataset on the Hugging Face hub, with a card made "
        "from provenance and report. Local folders and tokens are taken out.",
    )
    result.add_argument("path", type=Path, help="folder of a checkpoint, a run or a dataset")
    result.add_argument("repository", metavar="OWNER/NAME", help="made if it is not there")
    result.add_argument(
        "--report", type=Path, metavar="DIR", help="the model's report, for figures in the card"
    )
    result.add_argument(
        "--private", action="store_true", help="a repository that is made is private"
    )
    return result
