"""The bar that all verbs show: one line per stage, with rate and time left."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn
from rich.progress import Progress as Bar
from rich.table import Column
from rich.text import Text

from tokenwm.data.shards.tasks import Progress, ShowProgress


class Rate(ProgressColumn):
    """Steps per second and time left, both of what this run has done itself.

    Both are estimates of the moment when something was last done. A whole shard ends at once, under
    Slurm all shards of a job: meanwhile the rate would fall and the time left would rise.
    """

    def render(self, task: Task) -> Text:
        """See rich."""
        elapsed = (task.finished_time if task.finished else task.elapsed) or 0.0
        last: float = task.fields["last"]
        now: Progress = task.fields["now"]
        text = f"{int(elapsed)} s"
        if last and now.new_steps:
            rate = now.new_steps / last
            text += f", {rate:,.0f} steps/s" if rate >= 10 else f", {rate:.1f} steps/s"
        if last and now.total > now.done > now.kept and not task.finished:
            estimate = last * (now.total - now.done) / (now.done - now.kept)
            left = max(0, int(estimate - (elapsed - last)))
            text += f", {left // 60}:{left % 60:02} left"
        return Text(text)


@contextmanager
def show_progress(console: Console, title: str, disable: bool = False) -> Iterator[ShowProgress]:
    """Show what is handed to the function that this gives; nothing before it is first called.

    Where the total is not known yet, it is 0.
    """
    columns = (
        TextColumn("{task.fields[title]}", style="bold", markup=False),
        TextColumn("{task.fields[now].stage}", markup=False),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        Rate(),
        # Only the message gives way where the window is narrow.
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, ratio=1)),
    )
    with Bar(*columns, console=console, expand=True, disable=disable) as bar:
        stages: dict[str, TaskID] = {}

        def show(now: Progress) -> None:
            if now.stage not in stages:
                stages[now.stage] = bar.add_task(
                    "", total=now.total or None, title=title, now=now, last=0.0
                )
            stage = stages[now.stage]
            last = bar.tasks[stage].elapsed or 0.0  # seconds, of this stage
            total = now.total or None
            bar.update(
                stage, completed=now.done, total=total, description=now.message, now=now, last=last
            )

        yield show
