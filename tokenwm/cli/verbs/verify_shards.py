"""``tokenwm verify-shards DIR|URL``: check every byte of a dataset, name what is damaged."""

from rich.console import Console
from rich.table import Table

from tokenwm.cli.console import console_of, give, printable, say
from tokenwm.cli.options.data import verify_shards as parser
from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.verify import Problem, find_problems

EXIT_DAMAGED = 1


def main(argv: list[str]) -> int:
    """Run the verb; returns 1 if anything is wrong."""
    arguments = parser().parse_args(argv)
    console = console_of(arguments)
    with show_progress(console, "verify") as progress:
        problems = find_problems(
            arguments.dataset, num_workers=arguments.workers, progress=progress
        )
    found = [vars(problem) for problem in problems]
    give(arguments, {"dataset": arguments.dataset, "problems": found})
    if problems:
        print_problems(console, problems)
        say(
            console,
            f"{arguments.dataset}: {len(problems)} problem(s). Copy these files again, or make the "
            "dataset again with --overwrite.",
        )
        return EXIT_DAMAGED
    manifest = Manifest.load(arguments.dataset)
    num_bytes = sum(shard.num_bytes for shard in manifest.shards)
    num_steps = sum(manifest.num_steps(split) for split in SPLITS)
    say(
        console,
        f"{arguments.dataset}: {len(manifest.shards)} shards of {manifest.kind}, "
        f"{len(manifest.episodes)} episodes, {num_steps:,} steps, {num_bytes / 1e6:.1f} MB: every "
        "byte is as the manifest says",
    )
    return 0


def print_problems(console: Console, problems: list[Problem]) -> None:
    """Show everything that is wrong."""
    table = Table(title="not as the manifest says")
    table.add_column("file", overflow="fold")
    table.add_column("episode", overflow="fold")
    table.add_column("problem", overflow="fold")
    for problem in problems:
        table.add_row(*map(printable, (problem.file, problem.key, problem.message)))
    console.print(table)
