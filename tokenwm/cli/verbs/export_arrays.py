"""``tokenwm export-arrays DATASET --out DIR``: frame shards → robomimic HDF5 or NPZ files."""

from tokenwm.cli.console import console_of, give, say
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.tasks import Progress
from tokenwm.synthesis.arrays import export_arrays


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("export-arrays", argv)
    console = console_of(arguments)
    made_before = MadeBefore("export-arrays", arguments.out, arguments, [arguments.dataset])
    if made_before.is_kept(arguments, console):
        return 0
    with show_progress(console, "export") as show:
        number = export_arrays(
            arguments.dataset,
            arguments.out,
            arguments.layout,
            overwrite=arguments.overwrite,
            progress=lambda done, total: show(Progress(stage="episodes", done=done, total=total)),
        )
    result = {"out": arguments.out, "layout": arguments.layout, "episodes": number}
    made_before.save(files_below(arguments.out), result)
    say(console, f"{arguments.layout}, {number} episode(s): {arguments.out}")
    give(arguments, result)
    return 0
