"""``tokenwm heads MODEL``: train what deciding needs on what a finished world model sees."""

from typing import Any

import tokenwm
from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.devices import take_device
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.cli.verbs.evaluate import known_data
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import Progress
from tokenwm.heads.folder import HEADS
from tokenwm.policies.learned import SHARES, train_heads


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("heads", argv)
    console = console_of(arguments)
    data = arguments.data or known_data(console, arguments.model)
    model = tokenwm.load(arguments.model, take_device(arguments.device, console))
    with show_progress(console, "heads") as bar:
        results = train_heads(
            model,
            ShardReader(data),
            arguments.train or list(SHARES),
            mix=[ShardReader(folder) for folder in arguments.mix],
            real_fraction=arguments.real_fraction,
            seconds=60.0 * arguments.minutes,
            chunk=arguments.chunk,
            reach=arguments.reach,
            epochs=arguments.epochs,
            seed=arguments.seed,
            overwrite=arguments.overwrite,
            show=lambda stage, done, total: bar(Progress(stage=stage, done=done, total=total)),
        )
    for name, about in results.items():
        title = f"{name}: {about['split'] or 'no'} episodes, after {about['optimizer_steps']} steps"
        rows = [(key, _shown(value)) for key, value in about["held_out"].items()]
        show_table(console, rows, "held out", "", title=title, box=None)
    assert model.folder is not None
    say(console, f"heads: {model.folder / HEADS}")
    give(arguments, results)
    return 0


def _shown(value: Any) -> str:
    return "–" if value is None else f"{value:.3f}"
