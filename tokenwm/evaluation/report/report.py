"""A report on an evaluation: a page that needs nothing beside it, and its parts as files.

::

    <out>/index.html      everything on one page, offline, no scripts
          metrics.json    every figure; see docs/evaluation.md
          strips/*.png    truth, prediction, error, shuffled actions
          films/*.gif     the same, moving, in real time
          plots/*.png     every figure against the horizon
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.figures import Example
from tokenwm.evaluation.report.page import ExamplePictures, page
from tokenwm.evaluation.report.pictures import (
    Panel,
    absolute_error,
    enlarge,
    film,
    film_strip,
    scale_for,
    side_by_side,
    write_gif,
    write_png,
)
from tokenwm.evaluation.report.plots import make_plots
from tokenwm.evaluation.report.training_curves import plot_training
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.plot_style import Plot
from tokenwm.pages.words import seconds

logger = logging.getLogger(__name__)

STRIP_COLUMNS = 8
"""Imagined steps that a film strip shows, evenly spread, first and last included."""
STRIP_HEIGHT, STRIP_WIDTH = 128, 1600
FILM_HEIGHT = 256


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """The two main files of a report."""

    index: Path
    metrics: Path


def write_report(
    out: Path | str, evaluation: Evaluation, curves: Mapping[str, Path] | None = None
) -> ReportFiles:
    """Write a report; files of an earlier one with the same names are replaced.

    Args:
        out: Folder; made if missing.
        evaluation: The figures and examples.
        curves: Title → ``metrics.csv`` of a training run (Lightning's CSV logger), drawn as an
            extra section. One that cannot be read is logged and left out: it must not cost the
            report.

    Raises:
        TokenwmError: The folder cannot be made or a file cannot be written.
    """
    out = Path(out)
    try:
        for folder in ("strips", "films", "plots"):
            (out / folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TokenwmError(
            f"report folder {out} cannot be made: {error}; choose another"
        ) from error
    examples = [_write_example(out, example, evaluation) for example in evaluation.examples]
    metrics = json.dumps(evaluation.to_dict(), indent=1, allow_nan=False, default=str)
    _write(out / "metrics.json", (metrics + "\n").encode())
    return write_page(out, evaluation, examples, _training_plots(curves or {}))


def write_page(
    out: Path, evaluation: Evaluation, examples: Sequence[ExamplePictures], training: list[Plot]
) -> ReportFiles:
    """Write the page and its plots, beside pictures and figures that are there already."""
    plots = make_plots(evaluation)
    for plot in plots + training:
        _write(out / "plots" / f"{plot.name}.png", plot.png)
    files = ReportFiles(index=out / "index.html", metrics=out / "metrics.json")
    _write(files.index, page(evaluation, examples, plots, training).encode())
    return files


def stem_of(key: str, first_step: int) -> str:
    """Name of the files of an example, without suffix."""
    return f"{key}_{first_step:04d}"


def caption_of(*, key: str, first_step: int, rank: str) -> str:
    """The words above the pictures of an example."""
    return f"{rank}: episode {key} from step {first_step}"


def strip_columns(horizon: int, count: int = STRIP_COLUMNS) -> list[int]:
    """Horizons of a strip's columns, evenly spread over 1 to ``horizon``."""
    return sorted({round(value) for value in np.linspace(1, horizon, min(count, horizon))})


def _write_example(out: Path, example: Example, evaluation: Evaluation) -> ExamplePictures:
    context, truth = side_by_side(example.context), side_by_side(example.truth)
    imagined = {"prediction": side_by_side(example.prediction)}
    errors = {"error": absolute_error(imagined["prediction"], truth)}
    if example.shuffled is not None:
        imagined["shuffled actions"] = side_by_side(example.shuffled)
    rows = {"truth": truth, "prediction": imagined["prediction"], **errors, **imagined}
    name = stem_of(example.key, example.first_step)
    files = ExamplePictures(
        caption=caption_of(key=example.key, first_step=example.first_step, rank=example.rank),
        strip=out / "strips" / f"{name}.png",
        film=out / "films" / f"{name}.gif",
    )
    horizons = strip_columns(len(truth))
    chosen = [horizon - 1 for horizon in horizons]
    scale = scale_for(truth, STRIP_HEIGHT, 1 + len(chosen), STRIP_WIDTH)

    def row(title: str, pictures: Any) -> Any:
        last = np.zeros_like(context[-1:]) if title == "error" else context[-1:]
        return enlarge(np.concatenate([last, pictures[chosen]]), scale)

    strip = film_strip(
        {title: row(title, pictures) for title, pictures in rows.items()},
        [
            "observed",
            *(f"+{h} ({seconds(evaluation.horizon_seconds[h - 1])})" for h in horizons),
        ],
        first_imagined=1,
    )
    write_png(files.strip, strip)
    panels = [
        Panel(
            title=title,
            frames=np.concatenate(
                [np.zeros_like(context) if title == "error" else context, pictures]
            ),
        )
        for title, pictures in rows.items()
    ]
    frames = film(panels, num_observed=len(context), height=FILM_HEIGHT)
    write_gif(files.film, frames, evaluation.control_rate)
    return files


def _training_plots(curves: Mapping[str, Path]) -> list[Plot]:
    plots = []
    for title, path in curves.items():
        try:
            plot = plot_training(title, Path(path))
        except TokenwmError as error:
            logger.warning("no training curves of %s in the report: %s", title, error)
            continue
        if plot is not None:
            plots.append(plot)
    return plots


def _write(path: Path, content: bytes) -> None:
    with open_atomically(path) as file:
        file.write(content)
