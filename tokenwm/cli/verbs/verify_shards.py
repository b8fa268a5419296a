"""``tokenwm verify-shards DIR|URL``: check every byte of a dataset, name what is damaged."""

from rich.console import Console

from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.verify import Problem, find_problems

EXIT_DAMAGED = 1


def main(argv: list[str]) -> int:
    """Run the verb; returns 1 if anything is wrong."""
    arguments = parse("verify-shards", argv)
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
    rows = ((problem.file, problem.key, problem.message) for problem in problems)
    headings = ("file", "episode", "problem")
    show_table(console, rows, *headings, title="not as the manifest says", left=3)
