"""Losses of a training run as a plot, from the ``metrics.csv`` of Lightning's CSV logger."""

import csv
import math
import re
from pathlib import Path

from tokenwm.errors import TokenwmError
from tokenwm.pages.plot_style import (
    CYCLE,
    LineEnd,
    Plot,
    label_ends,
    new_figure,
    to_png,
)

Points = list[tuple[int, float]]
"""Optimizer step and value."""
PREFIX = "training_"
"""Beginning of the file names of these plots, by which they are known among the others."""
CAPTION = "Thin: on training batches. Thick: on held-out sequences, teacher-forced."
LOG_FROM = 30.0
"""The axis is logarithmic where the largest loss is this many times the smallest."""


def plot_training(title: str, path: Path) -> Plot | None:
    """Draw the losses: those of training thin, those of validation thick, one colour per loss.

    Args:
        title: Name of the run.
        path: Its ``metrics.csv``.

    Returns:
        The plot, or None if the file has no losses in it yet.

    Raises:
        TokenwmError: The file cannot be read.
    """
    losses = read_losses(path)
    if not losses:
        return None
    figure, axes = new_figure()
    kinds = list(dict.fromkeys(name.rpartition("/")[2] for name in losses))[: len(CYCLE)]
    ends = []
    for name, points in losses.items():
        stage, _, kind = name.rpartition("/")
        if kind not in kinds:
            continue
        colour = CYCLE[kinds.index(kind)]
        steps, values = zip(*points, strict=True)
        if stage == "train":
            axes.plot(steps, values, color=colour, linewidth=1.0, alpha=0.55)
        else:
            axes.plot(steps, values, color=colour, linewidth=2.0, marker="o", markersize=3.5)
        label = f"{stage} {kind}".strip().replace("_", " ")
        ends.append(LineEnd(value=float(values[-1]), label=label, colour=colour))
    everything = [value for points in losses.values() for _, value in points]
    if min(everything) > 0 and max(everything) > LOG_FROM * min(everything):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)
    label_ends(axes, ends)
    return Plot(
        name=PREFIX + re.sub(r"[^A-Za-z0-9-]+", "_", title),
        title=f"Training: {title}",
        caption=CAPTION,
        png=to_png(figure),
    )


def stored_plots(folder: Path) -> list[Plot]:
    """The plots of training curves among the files of an earlier report."""
    return [
        Plot(
            name=path.stem,
            title="Training: " + path.stem.removeprefix(PREFIX).replace("_", " "),
            caption=CAPTION,
            png=path.read_bytes(),
        )
        for path in sorted(folder.glob(f"{PREFIX}*.png"))
        if not path.is_symlink()
    ]


def read_losses(path: Path) -> dict[str, Points]:
    """Columns of a ``metrics.csv`` whose names hold ``loss`` or ``nll``.

    A run that was continued has earlier logs beside it, ``metrics.000.csv`` and so on; what they
    hold of steps that were done again is left out.

    Raises:
        TokenwmError: The file is missing or is not such a table.
    """
    losses: dict[str, Points] = {}
    for log in (*sorted(path.parent.glob(f"{path.stem}.*{path.suffix}")), path):
        for name, points in _read_log(log).items():
            earlier = [point for point in losses.get(name, []) if point[0] < points[0][0]]
            losses[name] = earlier + points
    return losses


def _read_log(path: Path) -> dict[str, Points]:
    losses: dict[str, Points] = {}
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if "step" not in (reader.fieldnames or ["step"]):
                raise ValueError("it has no column 'step'")
            for row in reader:
                for name, text in row.items():
                    if text and name and ("loss" in name or "nll" in name):
                        value = float(text)
                        if math.isfinite(value):
                            losses.setdefault(name, []).append((int(row["step"]), value))
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise TokenwmError(
            f"{path} cannot be read as training curves: {error}; give the metrics.csv of "
            "Lightning's CSVLogger"
        ) from error
    return losses
