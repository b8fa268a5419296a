"""``tokenwm prepare RECIPE --out DIR``: recorded episodes → frame shards."""

from rich.console import Console

from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.describe import of_manifest
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.data import quality_report
from tokenwm.data.making.dry_run import DryRun, dry_run
from tokenwm.data.making.prepare import prepare
from tokenwm.data.quality_report import PAGE_NAME, REPORT_NAME
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.manifest import GAPS, MANIFEST_NAME, Manifest
from tokenwm.data.storage.folder import join, open_folder
from tokenwm.errors import TokenwmError


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("prepare", argv)
    strict = ["quality.strict=true"] if arguments.strict else []
    recipe = load_recipe(arguments.recipe, [*arguments.set, *strict])
    console = console_of(arguments)
    if arguments.dry_run:
        planned = dry_run(recipe, arguments.workers)
        print_plan(console, planned)
        give(arguments, planned)
        return 0
    if arguments.out is None:
        raise TokenwmError("where to? Give --out DIR, or --dry-run to see what would be made")
    made_before = not arguments.overwrite and holds_dataset(arguments.out)
    with show_progress(console, recipe.name) as progress:
        manifest = prepare(
            recipe,
            arguments.out,
            num_workers=arguments.workers,
            progress=progress,
            overwrite=arguments.overwrite,
            engine=arguments.engine,
        )
    print_summary(console, manifest)
    say(console, f"dataset: {arguments.out}")
    print_verdict(console, arguments.out)
    if made_before:
        say(console, "made before of the same data and options, and kept")
    give(arguments, {"dataset": arguments.out, **of_manifest(manifest)})
    return 0


def print_plan(console: Console, planned: DryRun) -> None:
    """Show what would be made."""
    rows = []
    for split, part in planned.splits.items():
        numbers = (f"{part.num_episodes}", f"{part.num_steps:,}", f"{part.num_shards}")
        rows.append((split, *numbers, f"{part.num_bytes / 1e6:.1f}"))
    headings = ("split", "episodes", "steps", "shards", "MB, about")
    show_table(console, rows, *headings, title=f"{planned.name}: nothing was written")
    say(
        console,
        f"about {planned.seconds / 60:.1f} minutes with {planned.num_workers} worker(s), by "
        f"{planned.num_timed} episode(s) that were read; all others are judged when they are read",
    )
    for key, reason in planned.excluded.items():
        say(console, f"would be left out: {key}: {reason}")
    for gap in planned.gaps:
        say(console, f"declared and found differ: {gap}")


def holds_dataset(out: str) -> bool:
    """True if a folder or URL holds a finished dataset, of whatever kind."""
    return open_folder(out).size(MANIFEST_NAME) is not None


def print_verdict(console: Console, dataset: str) -> None:
    """Show what the quality report begins with, and where it is."""
    if open_folder(dataset).size(REPORT_NAME) is None:
        return  # prepared before there were reports
    verdict = quality_report.read(dataset)["verdict"]
    page = join(dataset, PAGE_NAME)
    say(console, f"quality: {verdict} Report: {page}")


def print_summary(console: Console, manifest: Manifest) -> None:
    """Show how many episodes and steps there are, and what was left out and why."""
    rows = []
    for split, part in of_manifest(manifest)["splits"].items():
        numbers = (f"{part['episodes']}", f"{part['steps']:,}", f"{part['minutes']:.1f}")
        rows.append((split, *numbers, f"{part['shards']}", f"{part['bytes'] / 1e6:.1f}"))
    headings = ("split", "episodes", "steps", "minutes", "shards", "MB")
    title = f"{manifest.name}, {manifest.control_rate:g} Hz"
    show_table(console, rows, *headings, title=title)
    means = manifest.extra.get("train_metadata_mean", {})
    for name, value in means.items():
        say(console, f"mean {name} of the train episodes: {value:.3g}")
    for gap in manifest.extra.get(GAPS, []):
        say(console, f"declared and found differ: {gap['text']}")
    if manifest.excluded:
        left_out = [(item.key, item.reason) for item in manifest.excluded]
        title = f"left out: {len(left_out)} episode(s)"
        show_table(console, left_out, "episode", "reason", title=title, left=2)
