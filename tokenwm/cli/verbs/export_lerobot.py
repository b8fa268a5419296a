"""``tokenwm export-lerobot DATASET --out DIR``: frame shards → a LeRobot folder."""

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.tasks import Progress
from tokenwm.synthesis.lerobot.export import export_lerobot


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("export-lerobot", argv)
    console = console_of(arguments)
    made_before = MadeBefore("export-lerobot", arguments.out, arguments, [arguments.dataset])
    if made_before.is_kept(arguments, console):
        return 0
    with show_progress(console, "export") as show:
        count = export_lerobot(
            arguments.dataset,
            arguments.out,
            version=arguments.version,
            crf=arguments.crf,
            synthetic_column=arguments.synthetic_column,
            overwrite=arguments.overwrite,
            progress=lambda done, total: show(Progress(stage="episodes", done=done, total=total)),
        )
    result = {"out": arguments.out, "version": arguments.version, "episodes": count}
    made_before.save(files_below(arguments.out), result)
    say(console, f"LeRobot {arguments.version}, {count} episode(s): {arguments.out}")
    give(arguments, result)
    return 0
