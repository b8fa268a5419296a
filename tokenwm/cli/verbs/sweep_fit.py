"""``tokenwm sweep fit SWEEP``: the scaling law of a sweep's runs, and what to train next."""

import argparse
import json
from pathlib import Path

from rich.console import Console

from tokenwm.cli.console import console_of, give, say, show_table
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.cli.options import parse
from tokenwm.errors import SweepError, TokenwmError
from tokenwm.scaling.law.fit import FitConfig, SweepFit, fit_sweep
from tokenwm.scaling.law.recommend import Imagination, Machine
from tokenwm.scaling.quantities import number
from tokenwm.scaling.report.report import write_fit
from tokenwm.scaling.report.wording import (
    METHODS_NOTE,
    budget_note,
    choice_rows,
    headline,
    law_rows,
    method_rows,
)
from tokenwm.scaling.runs.runs import RESULT_FILE, read_points
from tokenwm.strict import key_values


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        SweepError: The runs cannot be fitted, or a budget was given that nothing is recommended
            for; the report is written in the second case.
    """
    arguments = parse("sweep fit", argv)
    console = console_of(arguments)
    out = arguments.out or default_folder(arguments.path)
    made_before = MadeBefore("sweep fit", out, arguments, _inputs(arguments.path))
    if made_before.is_kept(arguments, console):
        return 0
    read = read_points(
        arguments.path, key_values("--columns", arguments.columns, str), arguments.metrics
    )
    config = FitConfig(
        budget=arguments.budget,
        delta=arguments.delta,
        num_replicates=arguments.replicates,
        confidence=arguments.confidence,
        seed=arguments.seed,
        drop_highest_loss=arguments.drop_highest_loss,
        drop_shortest=arguments.drop_shortest,
        exclude=key_values("--exclude", arguments.exclude, str),
        machine=Machine(
            tokens_per_step=arguments.tokens_per_step,
            flops_per_second=arguments.flops_per_second,
        ),
        imagination=imagination_from(arguments),
    )
    fit = fit_sweep(read, config)
    files = write_fit(out, arguments.path.resolve().stem, fit)
    print_fit(console, fit)
    say(console, f"report: {files.index}")
    found = json.loads(files.values.read_text(encoding="utf-8"))
    give(arguments, found)
    if config.budget is not None and fit.recommendation.refusals:  # asked again, it says so again
        reasons = "; ".join(fit.recommendation.refusals)
        raise SweepError(f"nothing can be recommended for {number(config.budget)} FLOPs: {reasons}")
    made_before.save(files_below(out), found)
    return 0


def print_fit(console: Console, fit: SweepFit) -> None:
    """Show the choices that were made, the law, the methods side by side, and the answer."""
    for note in fit.notes:
        say(console, f"• {note}")
    for item in fit.left_out:
        say(console, f"• left out {item.path}: {item.reason}")
    percent = f"{100 * fit.config.confidence:.0f} % interval"
    title = f"L = E + A/N^α + B/D^β from {len(fit.points)} runs"
    show_table(console, law_rows(fit), "", "value", percent, title=title, left=0, box=None)
    headings, title = ("method", "N* ~ C to the", "N*", "loss"), f"for {number(fit.budget)} FLOPs"
    show_table(console, method_rows(fit), *headings, title=title, left=4, box=None)
    for caveat in (METHODS_NOTE, budget_note(fit)):
        say(console, f"• {caveat}")
    for method in fit.methods:
        if method.reason:
            say(console, f"• no {method.name}: {method.reason}")
    if not fit.recommendation.refusals:
        for label, figure in choice_rows(fit.recommendation.choice):
            say(console, f"{label:>22}  {figure}")
    for warning in (*fit.warnings, *fit.recommendation.warnings):
        say(console, f"• {warning}", style="yellow")
    for sentence in headline(fit):
        style = "bold red" if sentence.startswith("No recommendation") else None
        say(console, f"• {sentence}", style=style)


def imagination_from(arguments: argparse.Namespace) -> Imagination | None:
    """Read ``--imagined-steps`` and ``--tokens-per-imagined-step``; None if they are not given.

    Raises:
        TokenwmError: One was given without the other, or is not above zero.
    """
    steps, tokens = arguments.imagined_steps, arguments.tokens_per_imagined_step
    if steps is None and tokens is None:
        return None
    if steps is None or tokens is None:
        raise TokenwmError(
            "--imagined-steps and --tokens-per-imagined-step belong together: the cost of "
            "imagining is steps × tokens of each (frame tokens, one for state, one for action)"
        )
    return Imagination(steps=steps, tokens_per_step=tokens)


def _inputs(path: Path) -> list[Path]:
    """The results of a sweep's runs, or the file."""
    return sorted(path.glob(f"*/*/{RESULT_FILE}")) if path.is_dir() else [path]


def default_folder(path: Path) -> Path:
    """``SWEEP/fit`` for a folder, ``NAME-fit`` beside a file."""
    return path / "fit" if path.is_dir() else path.with_name(f"{path.stem}-fit")
