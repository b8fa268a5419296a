"""``tokenwm evaluate MODEL --data SHARDS``: measure a world model on held-out episodes."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

import tokenwm
from tokenwm.allocator import keep_freed_memory
from tokenwm.checkpoint import model_folder
from tokenwm.cli.console import printable, say
from tokenwm.cli.made_before import MadeBefore, add_overwrite_option, files_below
from tokenwm.data.storage.folder import location
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.evaluate import evaluate_folds
from tokenwm.evaluation.folds import Fold
from tokenwm.evaluation.measure import EvaluationConfig
from tokenwm.evaluation.report.headline import ALARMS, count, headline, table_horizons
from tokenwm.evaluation.report.page import outcome_sentences, table_rows
from tokenwm.evaluation.report.report import write_report
from tokenwm.evaluation.results import Evaluation
from tokenwm.imagination.sampling import SamplingConfig


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parser().parse_args(argv)
    config = EvaluationConfig(
        split=arguments.split,
        num_context_frames=arguments.context,
        imagination_horizon=arguments.horizon,
        num_starts=arguments.starts,
        batch_size=arguments.batch_size,
        sampling=sampling_from(arguments),
        seed=arguments.seed,
        max_episodes=arguments.episodes,
        num_examples=arguments.examples,
    )
    if len(arguments.model) != len(arguments.data):
        raise TokenwmError(
            f"{count(len(arguments.model), 'model')} before --data and "
            f"{count(len(arguments.data), 'folder')} behind it; give MODEL … --data SHARDS …, for "
            "each model its own data, in the same order"
        )
    curves = _curves(arguments)
    name = "report" if len(arguments.model) == 1 else "report_folds"
    out = arguments.out or arguments.model[0] / name
    console = Console()
    inputs = [*map(model_folder, arguments.model), *arguments.data, *curves.values()]
    made_before = MadeBefore("evaluate", out, arguments, inputs)
    if made_before.stands() and not arguments.overwrite:
        say(console, str(made_before))
        return 0
    keep_freed_memory()
    device = device_from(arguments.device)
    folds = [
        Fold(model=tokenwm.load(model, device), data=data, model_folder=model)
        for model, data in zip(arguments.model, arguments.data, strict=True)
    ]
    columns = (
        TextColumn("evaluate", style="bold", markup=False),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("steps, {task.description}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("starting", total=None)
        evaluation = evaluate_folds(
            folds,
            config,
            progress=lambda done, total, message: bar.update(
                task, completed=done, total=total, description=message
            ),
        )
    files = write_report(out, evaluation, curves)
    made_before.save(files_below(out))
    print_summary(console, evaluation)
    say(console, f"report: {files.index}")
    return 0


def print_summary(console: Console, evaluation: Evaluation) -> None:
    """Show the figures at the usual horizons, and what they say in words."""
    horizons = table_horizons(evaluation)
    over = count(len(evaluation.episodes), "episode")
    title = f"{evaluation.provenance['data_name']}: means over {over}"
    table = Table(title=printable(title), box=None)
    table.add_column("horizon")
    for horizon in horizons:
        table.add_column(f"{horizon}", justify="right")
    for title, curve, digits in table_rows(evaluation):
        if curve is None:
            table.add_row(printable(title, style="bold"))
        else:
            cells = (f"{curve.mean[horizon - 1]:.{digits}f}" for horizon in horizons)
            table.add_row(printable(f"  {title}"), *cells)
    console.print(table)
    for sentence in headline(evaluation):
        style = "bold red" if sentence.startswith(ALARMS) else None
        say(console, f"• {sentence}", style=style)
    for sentence in outcome_sentences(evaluation):
        say(console, f"• {sentence}")


def sampling_from(arguments: argparse.Namespace) -> SamplingConfig:
    """The sampling that ``--temperature``, ``--top-k`` and ``--top-p`` ask for."""
    return SamplingConfig(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
    )


def device_from(name: str) -> torch.device:
    """A device by its name.

    Raises:
        TokenwmError: There is no such device here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise TokenwmError(f"--device {name} cannot be used: {reason}; try cpu") from error
    return device


def add_model_arguments(target: argparse.ArgumentParser) -> None:
    """``MODEL --data SHARDS`` and how to imagine: arguments of ``imagine``."""
    target.add_argument("model", type=Path, help="run or checkpoint folder of the world model")
    target.add_argument(
        "--data",
        type=location,
        required=True,
        metavar="SHARDS",
        help="folder or URL of frame shards made by tokenwm prepare",
    )
    add_imagining_arguments(target)


def _add_fold_arguments(target: argparse.ArgumentParser) -> None:
    """``MODEL … --data SHARDS …``, as many of these as of those."""
    target.add_argument(
        "model",
        nargs="*",
        type=Path,
        help="run or checkpoint folder of the world model; of folds, one each (they are measured "
        "as one, see docs/evaluation.md)",
    )
    target.add_argument(
        "--data",
        nargs="+",
        type=location,
        required=True,
        metavar="SHARDS",
        help="folder or URL of frame shards made by tokenwm prepare; of folds, one each in the "
        "same order",
    )


def add_imagining_arguments(target: argparse.ArgumentParser) -> None:
    """Arguments that ``evaluate`` and ``imagine`` share."""
    target.add_argument(
        "--context",
        type=int,
        default=4,
        metavar="C",
        help="observed frames before imagining (default: %(default)s)",
    )
    target.add_argument(
        "--horizon",
        type=int,
        default=20,
        metavar="H",
        help="imagined steps (default: %(default)s)",
    )
    target.add_argument(
        "--device", default="cpu", help="cpu, cuda, cuda:1, … (default: %(default)s)"
    )


def add_sampling_arguments(target: argparse.ArgumentParser, temperature: float) -> None:
    """Arguments about noise that ``evaluate`` and ``imagine`` share."""
    target.add_argument(
        "--temperature",
        type=float,
        default=temperature,
        metavar="T",
        help="0 always takes the most likely token, 1 draws as the model believes; else at least "
        "0.0001 (default: %(default)s)",
    )
    target.add_argument(
        "--top-k", type=int, metavar="K", help="draw from the K most likely tokens only"
    )
    target.add_argument(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the most likely tokens that hold P of the probability only "
        "(default: %(default)s, all)",
    )
    target.add_argument(
        "--seed",
        type=int,
        default=0,
        help="seed of everything random; the same seed gives the same future (default: 0)",
    )


def parser() -> argparse.ArgumentParser:
    """The verb's arguments."""
    result = argparse.ArgumentParser(
        prog="tokenwm evaluate",
        description="Imagine held-out episodes open loop, measure every step beside persistence, "
        "reconstruction and shuffled actions, and write a report (see docs/evaluation.md).",
    )
    _add_fold_arguments(result)
    add_imagining_arguments(result)
    result.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="folder of the report (default: MODEL/report; of folds, report_folds of the first)",
    )
    result.add_argument(
        "--split",
        default="test",
        choices=["train", "val", "test"],
        help="episodes to measure; val is taken where there is no test (default: %(default)s)",
    )
    result.add_argument(
        "--starts",
        type=int,
        default=4,
        metavar="N",
        help="starts per episode, evenly spaced (default: %(default)s)",
    )
    result.add_argument(
        "--episodes",
        type=int,
        metavar="N",
        help="measure only N episodes, evenly spread over the split (default: all)",
    )
    result.add_argument(
        "--batch-size",
        type=int,
        default=32,
        metavar="B",
        help="futures imagined at once; bounds the memory (default: %(default)s)",
    )
    result.add_argument(
        "--examples",
        type=int,
        default=4,
        metavar="N",
        help="starts to show as pictures, from best to worst (default: %(default)s)",
    )
    result.add_argument(
        "--curves",
        action="append",
        default=[],
        metavar="TITLE=CSV",
        help="metrics.csv of a training run to draw as well; may be repeated. The model's own is "
        "found in MODEL/logs",
    )
    add_sampling_arguments(result, temperature=0.0)
    add_overwrite_option(result)
    return result


def _curves(arguments: argparse.Namespace) -> dict[str, Path]:
    curves: dict[str, Path] = {}
    for text in arguments.curves:
        title, separator, path = text.partition("=")
        if not separator or not title or not Path(path).is_file():
            raise TokenwmError(f"--curves {text}: expected TITLE=CSV with a file that is there")
        curves[title] = Path(path)
    for number, model in enumerate(arguments.model):
        own = model / "logs" / "metrics.csv"
        if own.is_file():
            fold = f", fold {number}" if len(arguments.model) > 1 else ""
            curves.setdefault(f"world model{fold}", own)
    return curves
