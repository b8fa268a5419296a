"""The page of a report: HTML with every picture inside, so that one file can be forwarded."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwm.evaluation.metrics import Curve
from tokenwm.evaluation.report.headline import (
    ALARMS,
    headline,
    table_horizons,
    with_interval,
)
from tokenwm.evaluation.report.outcomes import outcome_sentences
from tokenwm.evaluation.report.pictures import ERROR_RANGE
from tokenwm.evaluation.report.plots import LABELS
from tokenwm.evaluation.report.task_state import task_state_curves
from tokenwm.evaluation.report.tiles import tiles
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.plot_style import Plot
from tokenwm.pages.render import render
from tokenwm.pages.words import count, few, seconds

Row = tuple[str, Curve | None, int]
"""Heading, figures and digits of one line of the table; None for a line that is a heading only."""


@dataclass(frozen=True, kw_only=True)
class ExamplePictures:
    """The pictures of one example, as files, and the words above them."""

    caption: str
    strip: Path
    film: Path


def page(
    evaluation: Evaluation,
    examples: Sequence[ExamplePictures],
    plots: Sequence[Plot],
    training: Sequence[Plot],
) -> str:
    """The whole page."""
    provenance, horizons = evaluation.provenance, table_horizons(evaluation)
    first, *rest = headline(evaluation)
    name = str(provenance["data_name"])
    return render(
        "evaluation/report/report.html",
        title=f"{name}: world model report",
        heading=name,
        subtitle=(
            f"{count(len(evaluation.episodes), 'episode')} of split {provenance['split']}, "
            f"{count(evaluation.num_starts, 'start')}, {evaluation.num_horizons} steps "
            f"({seconds(evaluation.horizon_seconds[-1])}) imagined open loop from "
            f"{provenance['evaluation']['num_context_frames']} observed frames at "
            f"{evaluation.control_rate:g} Hz"
        ),
        level="alarm" if first.startswith(ALARMS) else "",
        verdict=first,
        sentences=rest,
        tiles=tiles(evaluation),
        examples=[
            (example.caption, example.strip.read_bytes(), example.film.read_bytes())
            for example in examples
        ],
        error_percent=f"{100 * ERROR_RANGE:.0f}",
        plots=plots,
        table_note=_table_note(evaluation),
        horizons=[(h, seconds(evaluation.horizon_seconds[h - 1])) for h in horizons],
        table=[
            (title, curve and [_cell(curve, horizon, digits) for horizon in horizons])
            for title, curve, digits in table_rows(evaluation)
        ],
        outcomes=outcome_sentences(evaluation),
        skipped=_skipped(evaluation.skipped),
        training=training,
        configuration=[(key.replace("_", " "), _shown(value)) for key, value in provenance.items()],
        version=provenance["versions"]["tokenwm"],
    )


def table_rows(evaluation: Evaluation) -> list[Row]:
    """Lines of the table of figures."""
    rows: list[Row] = []
    for title, medians in task_state_curves(evaluation).items():
        shown = significant_digits(medians)
        rows.append((f"{title}, median error where the object moves", None, 0))
        rows += [(LABELS[name], curve, shown) for name, curve in medians.items()]
    for where, psnr, gain, gap in (
        (
            " where pixels change",
            evaluation.psnr_changed,
            evaluation.psnr_changed_gain,
            evaluation.action_gap_changed,
        ),
        (" of the whole picture", evaluation.psnr, evaluation.psnr_gain, evaluation.action_gap),
    ):
        if psnr is None:
            continue
        rows.append((f"PSNR{where}, dB", None, 0))
        rows += [(LABELS[name], curve, 1) for name, curve in psnr.items()]
        differences = {"model − persistence": gain, "true − shuffled actions": gap}
        rows += [(name, curve, 2) for name, curve in differences.items() if curve is not None]
    state = evaluation.state
    units = (state.units if state else "") or "units of the data"
    for title, curves, digits in (
        ("SSIM where pixels change", evaluation.ssim_changed, 3),
        ("SSIM of the whole picture", evaluation.ssim, 3),
        ("LPIPS", evaluation.lpips, 3),
        ("frame tokens that are right", evaluation.token_accuracy, 3),
        ("surprise, nats per token", evaluation.token_nll, 3),
        (f"state error, {units}", state.absolute if state else None, None),
        ("state error, standard deviations", state.normalized if state else None, 3),
        ("reward error", evaluation.reward_error, None),
        ("reward error, squared", evaluation.reward_squared_error, None),
    ):
        if curves is not None:
            shown = significant_digits(curves) if digits is None else digits
            rows.append((title, None, 0))
            rows += [(LABELS[name], curve, shown) for name, curve in curves.items()]
    return rows


def significant_digits(curves: Mapping[str, Curve], digits: int = 3) -> int:
    """Digits behind the point that show the largest mean with ``digits`` significant ones."""
    largest = max(float(abs(curve.mean).max()) for curve in curves.values())
    if largest == 0:
        return digits
    return max(0, digits - 1 - math.floor(math.log10(largest)))


def _table_note(evaluation: Evaluation) -> str:
    over = count(len(evaluation.episodes), "episode")
    outside = evaluation.outside
    notes = _changed_note(evaluation)
    if outside.reconstruction_at_home is None:
        notes += (
            " How well the tokenizer reconstructs its own val split is not known, so it is not "
            "compared."
        )
    if not evaluation.has_intervals:
        return f"Figures of {over}, so without intervals, which are over episodes.{notes}"
    return (
        f"Means over {over}; below each, its 95 % interval (Student's), which is about that "
        "horizon alone. What is said above with confidence is stricter: it holds at all its "
        f"horizons at once, with room for skewed differences.{notes}"
    )


def _changed_note(evaluation: Evaluation) -> str:
    changed = evaluation.changed
    if changed is None:
        return ""
    share = ", ".join(f"{100 * changed.share[h - 1]:.1f} %" for h in table_horizons(evaluation))
    fewest = min(changed.num_episodes)
    missing = (
        f" At some horizon only {fewest} of {count(len(evaluation.episodes), 'episode')} have any, "
        "and means are over those."
        if fewest < len(evaluation.episodes)
        else ""
    )
    return (
        f" Pixels change where some channel differs by more than {changed.threshold} of 255 levels "
        f"from the last observed frame: {share} of all at these horizons.{missing} By that "
        "definition persistence is wrong at every one of them, and what a model invents elsewhere "
        "does not count there: read the whole picture beside it."
    )


def _cell(curve: Curve, horizon: int, digits: int) -> tuple[str, str]:
    """The mean, and its interval where there is one."""
    text = with_interval(curve, horizon, digits).replace("-", "−")
    mean, _, interval = text.partition(" ")
    return mean, interval.strip("()")


def _skipped(skipped: Mapping[str, int]) -> str:
    shown = few([f"{key} ({length} steps)" for key, length in skipped.items()], 8)
    return f"Too short for context and horizon, so not measured: {shown}." if skipped else ""


def _shown(value: Any) -> str:
    """A value as JSON, a list of plain values on one line."""

    def in_one_line(found: re.Match[str]) -> str:
        return " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]")

    text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
    return re.sub(r"\[[^\[\]{}]*\]", in_one_line, text) or "–"
