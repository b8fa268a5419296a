"""``tokenwm prepare RECIPE --out DIR``: recorded episodes → frame shards."""

import argparse
import os

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table

from tokenwm.data.manifest import SPLITS, Manifest
from tokenwm.data.prepare import prepare
from tokenwm.data.recipe import load_recipe


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = _parser().parse_args(argv)
    recipe = load_recipe(arguments.recipe, arguments.set)
    console = Console()
    columns = (
        TextColumn("[bold]{task.fields[name]}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        # Only the message gives way where the window is narrow.
        TextColumn("{task.description}", table_column=Column(no_wrap=True, ratio=1)),
    )
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task("starting", total=None, name=recipe.name)

        def show(done: int, total: int, message: str) -> None:
            bar.update(task, completed=done, total=total, description=message)

        manifest = prepare(
            recipe,
            arguments.out,
            num_workers=arguments.workers,
            progress=show,
            overwrite=arguments.overwrite,
        )
    print_summary(console, manifest)
    console.print(f"dataset: {arguments.out}", soft_wrap=True, highlight=False)
    return 0


def print_summary(console: Console, manifest: Manifest) -> None:
    """Show how many episodes and steps there are, and what was left out and why."""
    table = Table(title=f"{manifest.name}, {manifest.control_rate:g} Hz")
    table.add_column("split")
    for heading in ("episodes", "steps", "minutes", "MB"):
        table.add_column(heading, justify="right")
    for split in SPLITS:
        steps = manifest.num_steps(split)
        size = sum(shard.num_bytes for shard in manifest.shards if shard.split == split)
        minutes = steps / manifest.control_rate / 60
        episodes = manifest.num_episodes(split)
        table.add_row(split, f"{episodes}", f"{steps:,}", f"{minutes:.1f}", f"{size / 1e6:.1f}")
    console.print(table)
    means = manifest.extra.get("train_metadata_mean", {})
    for name, value in means.items():
        console.print(f"mean {name} of the train episodes: {value:.3g}", highlight=False)
    if not manifest.excluded:
        return
    table = Table(title=f"left out: {len(manifest.excluded)} episode(s)")
    table.add_column("episode")
    table.add_column("reason", overflow="fold")
    for item in manifest.excluded:
        table.add_row(item.key, item.reason)
    console.print(table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokenwm prepare",
        description="Turn recorded episodes into shards, as a recipe says (see docs/data.md).",
    )
    parser.add_argument("recipe", help="recipe file, for example data_recipes/pusht.yaml")
    parser.add_argument("--out", required=True, metavar="DIR", help="folder of the dataset")
    parser.add_argument(
        "--workers",
        type=_count,
        default=os.cpu_count() or 1,
        metavar="N",
        help="processes that load episodes, 0 for none (default: %(default)s); "
        "the result does not depend on it",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="override values of the recipe, for example --set image_size=[128,128]",
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace another dataset in the folder"
    )
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{value} is below zero")
    return value
