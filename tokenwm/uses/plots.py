"""Plots of a report: every figure against the horizon, with 95 % intervals.

Matplotlib is imported when needed.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tokenwm.errors import TokenwmError
from tokenwm.uses.metrics import Curve
from tokenwm.uses.results import Evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    # Okabe & Ito (2008): told apart with every common kind of colour blindness.
    "model": "#0072B2",
    "model_plain": "#56B4E9",
    "persistence": "#6B6B6B",
    "reconstruction": "#009E73",
    "reconstruction_anchored": "#009E73",
    "quantization": "#009E73",
    "shuffled": "#D55E00",
    "training_mean": "#6B6B6B",
}
LABELS = {
    "model": "model",
    "model_plain": "model, not anchored",
    "persistence": "persistence",
    "reconstruction": "reconstruction",
    "reconstruction_anchored": "reconstruction, anchored",
    "quantization": "true state, binned",
    "shuffled": "shuffled actions",
    "training_mean": "mean of training",
}
DASHED = ("reconstruction_anchored", "model_plain")
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
INK = "#262626"
FAINT = "#8C8C8C"
SIZE = (6.4, 3.7)
DPI = 144
LABEL_GAP = 11.0
"""Least distance of two labels at the right, in points."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One finished plot.

    Attributes:
        name: File name without suffix.
        title: What it shows.
        caption: How to read it, in a sentence or two.
        png: The picture.
    """

    name: str
    title: str
    caption: str
    png: bytes


def make_plots(evaluation: Evaluation) -> list[Plot]:
    """All plots that the evaluation has figures for."""
    rate = evaluation.control_rate
    observed = "Bands are 95 % intervals over episodes."
    plots = [
        _plot(
            "psnr",
            "PSNR, dB",
            _chosen(evaluation.psnr),
            rate,
            "Higher is better. Persistence repeats the last observed frame; reconstruction is the "
            f"tokenizer's picture of the true frame. {observed}",
        ),
        _plot(
            "psnr_gain",
            "PSNR gain over persistence, dB",
            {"model": evaluation.psnr_gain, "model_plain": evaluation.psnr_gain_plain},
            rate,
            "Paired by episode: above zero the model is better than repeating the last observed "
            "frame.",
            zero=True,
        ),
        _plot(
            "ssim",
            "SSIM",
            _chosen(evaluation.ssim),
            rate,
            f"Higher is better; 1 is identical. {observed}",
        ),
    ]
    if evaluation.action_gap is not None:
        plots.append(
            _plot(
                "action_gap",
                "PSNR lost with shuffled actions, dB",
                {"shuffled": evaluation.action_gap},
                rate,
                "ΔPSNR: true minus shuffled actions, from the same context. Zero means that the "
                "model ignores its actions.",
                zero=True,
                labels={"shuffled": "true − shuffled"},
            )
        )
    plots += [
        _plot(
            "token_accuracy",
            "Frame tokens that are right",
            evaluation.token_accuracy,
            rate,
            "Share of tokens equal to those of the true frame, open loop.",
        ),
        _plot(
            "token_nll",
            "Surprise at the true frame, nats per token",
            evaluation.token_nll,
            rate,
            "Lower is better. The model's past is imagined. Persistence bets on the old token with "
            "the best constant probability at each horizon.",
        ),
    ]
    state = evaluation.state
    if state is not None:
        units = f" ({state.units})" if state.units else ""
        title = (
            f"State error{units}"
            if state.normalized is None
            else "State error, standard deviations"
        )
        plots.append(
            _plot(
                "state_error",
                title,
                state.absolute if state.normalized is None else state.normalized,
                rate,
                "Mean absolute error of proprioception; lower is better.",
            )
        )
    if evaluation.reward_error is not None:
        caption = "Mean absolute error of the expected reward; lower is better."
        plots.append(_plot("reward_error", "Reward error", evaluation.reward_error, rate, caption))
    return plots


def _chosen(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Leave out the model without anchoring: the plot of the gain and the table have it."""
    return {name: curve for name, curve in curves.items() if name != "model_plain"}


def _plot(
    name: str,
    title: str,
    curves: Mapping[str, Curve],
    control_rate: float,
    caption: str,
    *,
    zero: bool = False,
    labels: Mapping[str, str] | None = None,
) -> Plot:
    figure, axes = _figure()
    ends: list[tuple[float, str, str]] = []
    horizons = np.arange(1, len(next(iter(curves.values())).mean) + 1)
    if zero:
        axes.axhline(0.0, color=FAINT, linewidth=1)
    for key, curve in curves.items():
        colour = COLOURS[key]
        style = (0, (4, 2)) if key in DASHED else "solid"
        width = 2.4 if key == "model" else 1.6
        marker = "o" if len(horizons) == 1 else None
        axes.plot(
            horizons, curve.mean, color=colour, linestyle=style, linewidth=width, marker=marker
        )
        if key not in DASHED and np.isfinite(curve.low).all():
            axes.fill_between(
                horizons, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0
            )
        ends.append((float(curve.mean[-1]), (labels or LABELS)[key], colour))
    axes.set_xlim(1, max(2, horizons[-1]))
    axes.set_xlabel("horizon, steps")
    axes.xaxis.get_major_locator().set_params(integer=True)
    seconds = axes.secondary_xaxis(
        "top", functions=(lambda step: step / control_rate, lambda second: second * control_rate)
    )
    seconds.set_xlabel("seconds", color=FAINT, fontsize=8)
    seconds.tick_params(colors=FAINT, labelsize=8)
    seconds.spines["top"].set_visible(False)
    _label_ends(axes, ends)
    return Plot(name=name, title=title, caption=caption, png=_to_png(figure))


def plot_training(title: str, path: Path) -> Plot | None:
    """Losses of a training run from the ``metrics.csv`` that Lightning's CSV logger writes.

    Returns:
        The plot, or None if the file has no losses in it yet.

    Raises:
        TokenwmError: The file cannot be read.
    """
    curves = read_losses(path)
    if not curves:
        return None
    figure, axes = _figure()
    ends = []
    for index, (name, points) in enumerate(curves.items()):
        steps, values = zip(*points, strict=True)
        colour = CYCLE[index % len(CYCLE)]
        marker = "o" if len(points) < 40 else None
        axes.plot(steps, values, color=colour, linewidth=1.4, marker=marker, markersize=3)
        ends.append((float(values[-1]), name, colour))
    if all(value > 0 for points in curves.values() for _, value in points):
        axes.set_yscale("log")
    axes.set_xlabel("optimizer step")
    axes.set_xlim(left=0)
    _label_ends(axes, ends)
    return Plot(
        name=f"training_{title}".replace(" ", "_"),
        title=f"Training: {title}",
        caption=f"Losses logged while training ({path.name}).",
        png=_to_png(figure),
    )


def read_losses(path: Path) -> dict[str, list[tuple[int, float]]]:
    """Columns of a ``metrics.csv`` that hold losses: name → (step, value), at most six of them.

    Raises:
        TokenwmError: The file is missing or is no table with a ``step`` column.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TokenwmError(f"{path} cannot be read as training curves: {error}") from error
    if rows and "step" not in rows[0]:
        raise TokenwmError(
            f"{path} has no column 'step'; give the metrics.csv of Lightning's CSVLogger"
        )
    curves: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, text in row.items():
            is_loss = any(word in (name or "").lower() for word in ("loss", "nll"))
            if is_loss and text and not name.endswith("_epoch") and math.isfinite(float(text)):
                curves.setdefault(name, []).append((int(row["step"]), float(text)))
    return dict(list(curves.items())[: len(CYCLE)])


def _figure() -> tuple["Figure", Any]:
    # No pyplot: it keeps global state and every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    return figure, axes


def _label_ends(axes: Any, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name at its right end, pushed apart where they would overlap."""
    to_points = 72.0 / axes.figure.dpi
    axes.autoscale_view()
    # Settles limits and layout, so that heights in points are right.
    axes.figure.draw_without_rendering()
    wanted = []
    for value, label, colour in ends:
        height = axes.transData.transform((0, value))[1] if math.isfinite(value) else 0.0
        wanted.append((height * to_points, value, label, colour))
    for place, (height, value, label, colour) in zip(
        spread_apart([height for height, *_ in wanted], LABEL_GAP), wanted, strict=True
    ):
        if not math.isfinite(value):
            continue
        axes.annotate(
            label,
            (1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(6, place - height),
            textcoords="offset points",
            color=colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move numbers as little as needed so that no two are closer than ``gap``; order is kept."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[list[float]] = []  # [centre, size] of neighbours that touch
    for index in order:
        groups.append([heights[index], 1.0])
        while len(groups) > 1 and (
            groups[-1][0] - groups[-2][0] < gap * (groups[-1][1] + groups[-2][1]) / 2
        ):
            centre, size = groups.pop()
            below = groups[-1]
            below[0] = (below[0] * below[1] + centre * size) / (below[1] + size)
            below[1] += size
    places = [
        centre + gap * (index - (size - 1) / 2)
        for centre, size in groups
        for index in range(int(size))
    ]
    result = [0.0] * len(heights)
    for index, place in zip(order, places, strict=True):
        result[index] = place
    return result


def _to_png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
