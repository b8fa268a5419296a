"""``tokenwm export-lerobot DATASET --out DIR``: frame shards → a LeRobot folder."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from tokenwm.cli.console import say
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.data.storage.folder import location
from tokenwm.synthesis.lerobot.export import VERSIONS, export_lerobot


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = _parser().parse_args(argv)
    console = Console()
    made_before = MadeBefore("export-lerobot", arguments.out, arguments, [arguments.dataset])
    if made_before.stands():
        say(console, f"{arguments.out}: exported before from the same data, and kept")
        return 0
    with Progress(console=console) as bar:
        task = bar.add_task("episodes", total=None)
        count = export_lerobot(
            arguments.dataset,
            arguments.out,
            version=arguments.version,
            crf=arguments.crf,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
        )
    made_before.save(files_below(arguments.out))
    say(console, f"LeRobot {arguments.version}, {count} episode(s): {arguments.out}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenwm export-lerobot",
        description="Write the episodes of frame shards as a LeRobot folder (see docs/formats.md).",
    )
    parser.add_argument("dataset", type=location, help="frame shards, a folder or a URL")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    parser.add_argument(
        "--version",
        choices=VERSIONS,
        default=VERSIONS[0],
        help="of LeRobot's format (default: %(default)s)",
    )
    parser.add_argument(
        "--crf",
        type=int,
        default=10,
        metavar="N",
        help="quality of the videos, 0 to 51, smaller is better (default: %(default)s)",
    )
    return parser
