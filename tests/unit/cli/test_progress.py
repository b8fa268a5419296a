"""The line of progress: estimates that do not run away while a shard is being made."""

import io

from rich.console import Console

from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.tasks import Progress


def last_line(updates: list[tuple[float, Progress]], until: float) -> str:
    """What the line says at a time, seconds, after updates at theirs."""
    now = 0.0
    out = io.StringIO()
    console = Console(file=out, width=200, force_terminal=True, get_time=lambda: now)
    with show_progress(console, "data") as show:
        for now, progress in updates:  # noqa: B007, the clock reads it
            show(progress)
        now = until
    return [line for line in out.getvalue().splitlines() if "data" in line][-1]


def test_between_two_shards_the_rate_stands_and_the_time_left_counts_down() -> None:
    begun = (0.0, Progress(stage="shards", done=0, total=8))
    kept = (0.0, Progress(stage="shards", done=2, total=8, kept=2))
    done = (10.0, Progress(stage="shards", done=4, total=8, kept=2, new_steps=200))
    assert "left" not in last_line([begun, kept], 5.0)
    for until, shown in (
        (10.0, "10 s, 20 steps/s, 0:20 left"),
        (14.0, "14 s, 20 steps/s, 0:16 left"),
        (99.0, "99 s, 20 steps/s, 0:00 left"),
    ):
        assert shown in last_line([begun, kept, done], until)
    end = (40.0, Progress(stage="shards", done=8, total=8, kept=2, new_steps=800))
    line = last_line([begun, kept, done, end], 50.0)
    assert "40 s, 20 steps/s" in line and "left" not in line
