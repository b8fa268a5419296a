"""The look that all plots share: frame, colours, names at the ends of lines.

Matplotlib is imported when needed.
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito (2008): told apart with every common kind of colour blindness."""
INK = "#262626"
FAINT = "#8C8C8C"
SIZE = (6.4, 3.7)  # inches
MARGINS = {"left": 0.09, "right": 0.73, "bottom": 0.14, "top": 0.87}
"""Equal in all plots, so that they line up side by side; the right one holds the names."""
DPI = 144
LABEL_GAP = 11.0
"""Least distance of two names at the right, in points."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One finished plot.

    Attributes:
        name: File name without suffix.
        title: Subject of the plot.
        caption: How to read it, in a sentence or two.
        png: The picture.
    """

    name: str
    title: str
    caption: str
    png: bytes


@dataclass(frozen=True, kw_only=True)
class LineEnd:
    """The name to write where a line ends, at the height of its last value."""

    value: float
    label: str
    colour: str


def new_figure() -> tuple["Figure", Any]:
    """An empty figure and its axes."""
    # No pyplot: it keeps global state and every figure alive.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(**MARGINS)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    return figure, axes


def label_ends(axes: Any, ends: Sequence[LineEnd]) -> None:
    """Write each line's name at its right end, pushed apart where they would overlap."""
    to_points = 72.0 / axes.figure.dpi
    ends = [end for end in ends if math.isfinite(end.value)]
    # Settles limits, so that heights in points are right.
    axes.figure.draw_without_rendering()
    heights = [float(axes.transData.transform((1, end.value))[1]) * to_points for end in ends]
    for end, height, place in zip(ends, heights, spread_apart(heights, LABEL_GAP), strict=True):
        axes.annotate(
            end.label,
            (1.0, end.value),
            xycoords=("axes fraction", "data"),
            xytext=(6, place - height),
            textcoords="offset points",
            color=end.colour,
            fontsize=9,
            va="center",
            annotation_clip=False,
        )


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move numbers as little as needed so that no two are closer than ``gap``; order is kept."""
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    groups: list[tuple[float, int]] = []  # centre and size of neighbours that touch
    for index in order:
        centre, size = heights[index], 1
        while groups and centre - groups[-1][0] < gap * (size + groups[-1][1]) / 2:
            below, count = groups.pop()
            centre = (below * count + centre * size) / (count + size)
            size += count
        groups.append((centre, size))
    places = [
        centre + gap * (index - (size - 1) / 2) for centre, size in groups for index in range(size)
    ]
    result = [0.0] * len(heights)
    for index, place in zip(order, places, strict=True):
        result[index] = place
    return result


def to_png(figure: "Figure") -> bytes:
    """The finished picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()
