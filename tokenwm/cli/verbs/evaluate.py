"""``tokenwm evaluate MODEL [--data SHARDS]``: measure a world model on held-out episodes."""

import argparse
import math
from pathlib import Path

from rich.console import Console

import tokenwm
from tokenwm.checkpoint import model_folder
from tokenwm.cli.console import console_of, give, printable, say, show_table
from tokenwm.cli.devices import take_device
from tokenwm.cli.made_before import MadeBefore, files_below
from tokenwm.cli.options import parse
from tokenwm.cli.progress import show_progress
from tokenwm.data.shards.tasks import Progress
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.data_of import data_of
from tokenwm.evaluation.evaluate import evaluate_folds
from tokenwm.evaluation.folds import Fold
from tokenwm.evaluation.metrics import Curve
from tokenwm.evaluation.report.headline import ALARMS, headline, table_horizons
from tokenwm.evaluation.report.outcomes import outcome_sentences
from tokenwm.evaluation.report.page import table_rows
from tokenwm.evaluation.report.report import write_report
from tokenwm.evaluation.results import Evaluation
from tokenwm.heads.folder import HEADS
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.pages.words import count, seconds


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("evaluate", argv)
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
        lpips=arguments.lpips,
    )
    console = console_of(arguments)
    models: list[Path] = arguments.model
    if not arguments.data:
        arguments.data = [known_data(console, model) for model in models]
    if len(models) != len(arguments.data) or not models:
        raise TokenwmError(
            f"{count(len(models), 'model')} before --data and "
            f"{count(len(arguments.data), 'folder')} behind it; give MODEL … --data SHARDS …, for "
            "each model its own data, in the same order"
        )
    curves = _curves(arguments)
    out = arguments.out or models[0] / ("report" if len(models) == 1 else "report_folds")
    files = [file for model in models for file in model_files(model)]
    inputs = [*files, *arguments.data, *curves.values()]
    made_before = MadeBefore("evaluate", out, arguments, inputs)
    if made_before.is_kept(arguments, console):
        return 0
    device = take_device(arguments.device, console)
    folds = [
        Fold(model=tokenwm.load(model, device), data=data, model_folder=model)
        for model, data in zip(models, arguments.data, strict=True)
    ]
    with show_progress(console, "evaluate") as show:
        evaluation = evaluate_folds(
            folds,
            config,
            progress=lambda done, total, message: show(
                Progress(stage="steps", done=done, total=total, message=message)
            ),
        )
    report = write_report(out, evaluation, curves)
    made_before.save(files_below(out), {"report": str(report.index), **evaluation.to_dict()})
    print_summary(console, evaluation)
    say(console, f"report: {report.index}")
    give(arguments, made_before.result)
    return 0


def print_summary(console: Console, evaluation: Evaluation) -> None:
    """Show the figures at the usual horizons, and what they say in words."""
    horizons = table_horizons(evaluation)
    over = count(len(evaluation.episodes), "episode")
    title = f"{evaluation.provenance['data_name']}: means over {over}"
    rows = [
        (printable(name, "bold"),)
        if curve is None
        else (f"  {name}", *(_cell(curve, horizon, digits) for horizon in horizons))
        for name, curve, digits in table_rows(evaluation)
    ]
    ahead = (f"{h}\n{seconds(evaluation.horizon_seconds[h - 1])}" for h in horizons)
    show_table(console, rows, "horizon", *ahead, title=title, box=None)
    for sentence in headline(evaluation):
        style = "bold red" if sentence.startswith(ALARMS) else None
        say(console, f"• {sentence}", style=style)
    for sentence in outcome_sentences(evaluation):
        say(console, f"• {sentence}")


def _cell(curve: Curve, horizon: int, digits: int) -> str:
    mean = float(curve.mean[horizon - 1])
    return "–" if math.isnan(mean) else f"{mean:.{digits}f}"


def sampling_from(arguments: argparse.Namespace) -> SamplingConfig:
    """The sampling that ``--temperature``, ``--top-k`` and ``--top-p`` ask for."""
    return SamplingConfig(
        temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p
    )


def model_files(model: Path) -> list[Path]:
    """Files of a model; not of its heads, which evaluations make of them and of data."""
    folder = model_folder(model)
    files = files_below(folder)
    return [file for file in files if HEADS not in file.relative_to(folder).parts]


def known_data(console: Console, model: Path) -> str:
    """The frames that a model was trained on, and say so.

    Raises:
        TokenwmError: They are not known, or no longer there.
    """
    data = data_of(model_folder(model))
    say(console, f"data of {model}: {data}")
    return data


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
