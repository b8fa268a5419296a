"""The page of a report: HTML with every picture inside, so that one file can be forwarded."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve
from tokenwm.evaluation.report.headline import (
    ALARMS,
    HEADLINE_HORIZON,
    headline,
    table_horizons,
    with_interval,
)
from tokenwm.evaluation.report.pictures import ERROR_RANGE
from tokenwm.evaluation.report.plots import LABELS
from tokenwm.evaluation.results import Evaluation, TerminationScore
from tokenwm.pages.plot_style import Plot
from tokenwm.pages.render import render
from tokenwm.pages.words import count, few

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
            f"{count(evaluation.num_starts, 'start')}, {evaluation.num_horizons} steps imagined "
            f"open loop from {provenance['evaluation']['num_context_frames']} observed frames at "
            f"{evaluation.control_rate:g} Hz"
        ),
        level="alarm" if first.startswith(ALARMS) else "",
        verdict=first,
        sentences=rest,
        tiles=_tiles(evaluation),
        examples=[
            (example.caption, example.strip.read_bytes(), example.film.read_bytes())
            for example in examples
        ],
        error_percent=f"{100 * ERROR_RANGE:.0f}",
        plots=plots,
        table_note=_table_note(evaluation),
        horizons=horizons,
        table=[
            (title, curve and [_cell(curve, horizon, digits) for horizon in horizons])
            for title, curve, digits in table_rows(evaluation)
        ],
        outcomes=" ".join(outcome_sentences(evaluation)),
        skipped=_skipped(evaluation.skipped),
        training=training,
        configuration=[(key.replace("_", " "), _shown(value)) for key, value in provenance.items()],
        version=provenance["versions"]["tokenwm"],
    )


def _tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    gap, run = evaluation.action_gap, evaluation.horizons.longest_confident_run
    book, speed = evaluation.codebook, evaluation.speed
    over = count(len(evaluation.episodes), "episode")
    where = "nowhere" if run is None else f"{run[0]} – {run[1]}"
    certain = (
        f"horizons, all at once with 95 % confidence over {over}; effective horizon "
        f"{evaluation.horizons.effective_horizon}"
    )
    if not evaluation.can_claim:
        where, certain = "–", f"no confidence from {over}; it takes {MIN_EPISODES} at least"
    return [
        ("beats persistence", where, certain),
        (
            "gain over persistence",
            f"{evaluation.psnr_gain.mean[horizon - 1]:+.1f} dB",
            f"PSNR at horizon {horizon}, mean of {over}",
        ),
        (
            "effect of actions",
            "–" if gap is None else f"{gap.mean[horizon - 1]:+.1f} dB",
            f"true over shuffled actions at horizon {horizon}, mean of {over}",
        ),
        (
            "codebook in use",
            f"{100 * book.usage:.0f} %",
            f"{book.num_used} of {book.codebook_size} codes, perplexity {book.perplexity:.0f}"
            + ("; DEAD CODEBOOK" if book.is_dead else ""),
        ),
        (
            "one imagined step",
            f"{speed.milliseconds_per_step:.0f} ms",
            f"{count(speed.batch_size, 'future')} at once on {speed.device}: "
            f"{speed.steps_per_second:.0f} steps per second, "
            f"{speed.tokens_per_pass:.1f} frame tokens per pass",
        ),
    ]


def table_rows(evaluation: Evaluation) -> list[Row]:
    """Lines of the table of figures."""
    rows: list[Row] = [("PSNR, dB", None, 0)]
    rows += [(LABELS[name], curve, 1) for name, curve in evaluation.psnr.items()]
    rows.append(("model − persistence", evaluation.psnr_gain, 2))
    if evaluation.action_gap is not None:
        rows.append(("true − shuffled actions", evaluation.action_gap, 2))
    state = evaluation.state
    units = (state.units if state else "") or "units of the data"
    for title, curves, digits in (
        ("SSIM", evaluation.ssim, 3),
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
    home = (
        ""
        if outside.reconstruction_at_home is not None
        else " How well the tokenizer reconstructs its own val split is not known, so it is not "
        "compared."
    )
    if not evaluation.has_intervals:
        return f"Figures of {over}, so without intervals, which are over episodes.{home}"
    return (
        f"Means over {over}; below each, its 95 % interval (Student's), which is about that "
        "horizon alone. What is said above with confidence is stricter: it holds at all its "
        f"horizons at once, with room for skewed differences.{home}"
    )


def _cell(curve: Curve, horizon: int, digits: int) -> tuple[str, str]:
    """The mean, and its interval where there is one."""
    text = with_interval(curve, horizon, digits).replace("-", "−")
    mean, _, interval = text.partition(" ")
    return mean, interval.strip("()")


def outcome_sentences(evaluation: Evaluation) -> list[str]:
    """Sentences about the figures of endings and rewards."""
    return [_endings(evaluation.termination), _rewards(evaluation)]


def _endings(score: TerminationScore | None) -> str:
    if score is None:
        return "No measured step ends its task, so endings were not scored."
    horizons = [
        f"{horizon}: {hits} of {true}"
        for horizon, (true, hits) in enumerate(
            zip(score.true_per_horizon, score.hits_per_horizon, strict=True), start=1
        )
        if true
    ]
    precision = (
        "none was predicted" if score.precision is None else f"precision {score.precision:.2f}"
    )
    alarms = score.num_predicted - score.num_hits
    return (
        f"Endings: {count(score.num_episodes, 'episode')} that ended, imagined up to the end "
        f"{score.num_true} times among {score.num_steps} measured steps; recall "
        f"{score.recall:.2f} at the very step (by horizon, {', '.join(horizons)}), {precision} "
        f"({score.num_predicted} predicted with a probability of at least {score.threshold:g}, "
        f"{alarms} of them where nothing ended)."
    )


def _rewards(evaluation: Evaluation) -> str:
    errors, squared = evaluation.reward_error, evaluation.reward_squared_error
    if errors is None or squared is None:
        return "Rewards were not recorded or are not modelled."
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    parts = []
    for name, curve in errors.items():
        root = math.sqrt(squared[name].mean[horizon - 1])
        parts.append(f"{curve.mean[horizon - 1]:.3g} ({root:.3g}) of {LABELS[name]}")
    over = count(len(evaluation.episodes), "episode")
    return (
        f"Reward error at horizon {horizon}, over {over}, mean absolute (root mean square): "
        f"{', '.join(parts)}."
    )


def _skipped(skipped: Mapping[str, int]) -> str:
    shown = few([f"{key} ({length} steps)" for key, length in skipped.items()], 8)
    return f"Too short for context and horizon, so not measured: {shown}." if skipped else ""


def _shown(value: Any) -> str:
    """A value as JSON, a list of plain values on one line."""

    def in_one_line(found: re.Match[str]) -> str:
        return " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]")

    text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
    return re.sub(r"\[[^\[\]{}]*\]", in_one_line, text) or "–"
