"""``tokenwm sweep fit SWEEP``: the scaling law of a sweep's runs, and what to train next."""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tokenwm.cli.console import say
from tokenwm.cli.made_before import MadeBefore, add_overwrite_option, files_below
from tokenwm.cli.verbs.sweep import positive
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
from tokenwm.scaling.runs.columns import COLUMN_OF
from tokenwm.scaling.runs.runs import RESULT_FILE, read_points
from tokenwm.strict import key_values


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code.

    Raises:
        SweepError: The runs cannot be fitted, or a budget was given that nothing is recommended
            for; the report is written in the second case.
    """
    arguments = parser().parse_args(argv)
    console = Console()
    out = arguments.out or default_folder(arguments.path)
    made_before = MadeBefore("sweep fit", out, arguments, _inputs(arguments.path))
    if made_before.stands() and not arguments.overwrite:
        say(console, str(made_before))
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
    if config.budget is not None and fit.recommendation.refusals:  # asked again, it says so again
        reasons = "; ".join(fit.recommendation.refusals)
        raise SweepError(f"nothing can be recommended for {number(config.budget)} FLOPs: {reasons}")
    made_before.save(files_below(out))
    return 0


def print_fit(console: Console, fit: SweepFit) -> None:
    """Show the choices that were made, the law, the methods side by side, and the answer."""
    for note in fit.notes:
        say(console, f"• {note}")
    for item in fit.left_out:
        say(console, f"• left out {item.path}: {item.reason}")
    percent = f"{100 * fit.config.confidence:.0f} % interval"
    law = Table(title=f"L = E + A/N^α + B/D^β from {len(fit.points)} runs", box=None)
    for heading in ("", "value", percent):
        law.add_column(heading, justify="right")
    for row in law_rows(fit):
        law.add_row(*row)
    console.print(law)
    methods = Table(title=f"for {number(fit.budget)} FLOPs", box=None)
    for heading in ("method", "N* ~ C to the", "N*", "loss"):
        methods.add_column(heading)
    for cells in method_rows(fit):
        methods.add_row(*cells)
    console.print(methods)
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
    """What ``--imagined-steps`` and ``--tokens-per-imagined-step`` ask for.

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


def parser() -> argparse.ArgumentParser:
    """The verb's arguments."""
    result = argparse.ArgumentParser(
        prog="tokenwm sweep fit",
        description="Fit L = E + A/N^α + B/D^β to the runs of a sweep, compare with IsoFLOP "
        "parabolas and the loss envelope, check by hold-out, and say what to train for a budget "
        "(see docs/scaling.md).",
    )
    result.add_argument("path", type=Path, help="folder of a sweep, or a CSV file of runs")
    result.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="KEY=COLUMN",
        help="columns of a CSV file, for example N='Model Size' D='Training Tokens'; keys: "
        + ", ".join(COLUMN_OF)
        + "; those not given are guessed from near names",
    )
    result.add_argument(
        "--metrics",
        nargs="+",
        default=[],
        metavar="COLUMN",
        help="further columns of a CSV file to set against compute",
    )
    result.add_argument(
        "--budget",
        type=positive,
        metavar="FLOPS",
        help="training FLOPs to recommend for (default: ten times the most of a run)",
    )
    _add_cost_arguments(result)
    result.add_argument(
        "--drop-highest-loss",
        type=int,
        default=0,
        metavar="K",
        help="leave out the K runs with the highest loss; they are listed (default: %(default)s)",
    )
    result.add_argument(
        "--drop-shortest",
        type=int,
        default=0,
        metavar="K",
        help="of every size, leave out the runs with its K smallest token budgets, which may not "
        "follow the law yet; they are listed (default: %(default)s)",
    )
    result.add_argument(
        "--exclude",
        nargs="+",
        default=[],
        metavar="RUN=REASON",
        help="leave out runs by name; the reason is kept in the report",
    )
    _add_bootstrap_arguments(result)
    result.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the report (default: SWEEP/fit, or NAME-fit beside a CSV file)",
    )
    add_overwrite_option(result)
    return result


def _add_cost_arguments(target: argparse.ArgumentParser) -> None:
    target.add_argument(
        "--imagined-steps",
        type=positive,
        metavar="STEPS",
        help="environment steps the model will imagine in its life; gives the size that is "
        "cheapest to train and imagine with at the same loss",
    )
    target.add_argument(
        "--tokens-per-imagined-step",
        type=positive,
        metavar="TOKENS",
        help="positions of a step: frame tokens, one for state, one for action",
    )
    target.add_argument(
        "--tokens-per-step",
        type=positive,
        metavar="TOKENS",
        help="tokens of an optimizer step, for the number of steps (default: that of the runs)",
    )
    target.add_argument(
        "--flops-per-second",
        type=positive,
        metavar="FLOPS",
        help="throughput of training, for hours (default: that of the largest runs)",
    )


def _add_bootstrap_arguments(target: argparse.ArgumentParser) -> None:
    target.add_argument(
        "--delta",
        type=positive,
        default=1e-3,
        help="of the Huber loss, in log loss (default: %(default)s)",
    )
    target.add_argument(
        "--replicates",
        type=int,
        default=500,
        metavar="R",
        help="of every bootstrap (default: %(default)s)",
    )
    target.add_argument(
        "--confidence", type=float, default=0.9, help="of intervals (default: %(default)s)"
    )
    target.add_argument(
        "--seed", type=int, default=0, help="of every bootstrap (default: %(default)s)"
    )
