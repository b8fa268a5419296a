"""The parts that plots of a sweep share: bands, shades, ticks. Imports Matplotlib when needed."""

from typing import Any

import numpy as np

from tokenwm.pages.plot_style import LineEnd
from tokenwm.scaling.law.lines import Line
from tokenwm.scaling.law.select import SAME
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.quantities import number

MOST_NAMED = 7
"""Sizes or levels of compute that are drawn as lines and named."""


def heights_of(line: Line, x: Array) -> tuple[Array, Array]:
    """Heights (m,) of a line and of its replicates (R, m)."""
    offsets = x - line.centre
    replicates = line.replicates[:, :1] + line.replicates[:, 1:] * offsets
    return line.height + line.slope * offsets, replicates


def interval_of(replicates: Array, confidence: float) -> Array:
    """Lower and upper end, (2, m), of replicates (R, m)."""
    tail = 50.0 * (1.0 - confidence)
    return np.asarray(np.nanpercentile(replicates, [tail, 100.0 - tail], axis=0))


def draw_band(
    axes: Any,
    log_c: Array,
    heights: Array,
    replicates: Array,
    confidence: float,
    colour: str,
    name: str,
) -> LineEnd:
    """Draw exp of a curve (m,) and of the interval of its replicates (R, m) over exp of log C."""
    low, high = interval_of(replicates, confidence)
    axes.plot(np.exp(log_c), np.exp(heights), color=colour, linewidth=1.8)
    axes.fill_between(
        np.exp(log_c), np.exp(low), np.exp(high), color=colour, alpha=0.13, linewidth=0
    )
    return LineEnd(value=float(np.exp(heights[-1])), label=name, colour=colour)


def shades(values: Array) -> list[Any]:
    """Colours from dark (lowest) to light, told apart in grey as well."""
    import matplotlib

    spread = np.ptp(values)
    places = (values - values.min()) / spread if spread > 0 else np.zeros(len(values))
    return list(matplotlib.colormaps["viridis"](0.05 + 0.8 * places))


def spread_out(values: Array) -> Array:
    """At most ``MOST_NAMED`` of the distinct values, evenly spread, ends included."""
    ordered = np.sort(values)
    distinct = ordered[np.concatenate([[True], np.diff(ordered) > np.log1p(SAME)])]
    count = min(MOST_NAMED, len(distinct))
    return np.asarray(distinct[np.linspace(0, len(distinct) - 1, count).round().astype(int)])


def plain_ticks(axes: Any) -> None:
    """Losses as plain numbers on a logarithmic axis that spans less than a decade."""
    from matplotlib.ticker import MaxNLocator, NullFormatter, ScalarFormatter

    axes.yaxis.set_major_locator(MaxNLocator(nbins=6))
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(NullFormatter())


def count_ticks(axis: Any) -> None:
    """Write 10M, not 10⁷, along an axis of parameters."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    axis.set_minor_formatter(NullFormatter())


def limit_to_cloud(axes: Any, x: Array, y: Array) -> None:
    """Show the middle 98 % of a cloud, whose few far points would squeeze the rest."""
    for values, setter in ((x, axes.set_xlim), (y, axes.set_ylim)):
        low, high = np.nanpercentile(values, [1, 99])
        room = 0.15 * (high - low)
        if high > low:
            setter(low - room, high + room)
