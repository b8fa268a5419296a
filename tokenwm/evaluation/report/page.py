"""The page of a report: HTML with every picture inside, so that one file can be forwarded."""

import base64
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve
from tokenwm.evaluation.report.headline import (
    ALARMS,
    HEADLINE_HORIZON,
    count,
    headline,
    table_horizons,
    with_interval,
)
from tokenwm.evaluation.report.pictures import ERROR_RANGE
from tokenwm.evaluation.report.plots import LABELS
from tokenwm.evaluation.results import Evaluation, Example, TerminationScore
from tokenwm.pages.plot_style import PAGE_STYLE, Plot, figure_html

Row = tuple[str, Curve | None, int]
"""Heading, figures and digits of one line of the table; None for a line that is a heading only."""


@dataclass(frozen=True, kw_only=True)
class ExamplePictures:
    """Where the pictures of an example lie."""

    example: Example
    strip: Path
    film: Path


def page(
    evaluation: Evaluation,
    examples: Sequence[ExamplePictures],
    plots: Sequence[Plot],
    training: Sequence[Plot],
) -> str:
    """The whole page."""
    provenance = evaluation.provenance
    first, *rest = headline(evaluation)
    split, name = str(provenance["split"]), str(provenance["data_name"])
    return PAGE.substitute(
        style=PAGE_STYLE,
        title=escape(f"{name}: world model report"),
        name=escape(name),
        subtitle=escape(
            f"{count(len(evaluation.episodes), 'episode')} of split {split}, "
            f"{count(evaluation.num_starts, 'start')}, {evaluation.num_horizons} steps imagined "
            f"open loop from {provenance['evaluation']['num_context_frames']} observed frames at "
            f"{evaluation.control_rate:g} Hz"
        ),
        alarm=" alarm" if first.startswith(ALARMS) else "",
        first=escape(first),
        rest="".join(f"<li>{escape(sentence)}</li>" for sentence in rest),
        tiles=_tiles(evaluation),
        examples="".join(_example(item) for item in examples) or "<p>None were kept.</p>",
        error_percent=f"{100 * ERROR_RANGE:.0f}",
        plots="".join(map(_figure, plots)),
        table_note=_table_note(evaluation),
        table=_table(evaluation),
        outcomes=f"<p>{escape(' '.join(outcome_sentences(evaluation)))}</p>",
        training=_training(training),
        skipped=_skipped(evaluation.skipped),
        configuration=_configuration(provenance),
        version=escape(str(provenance["versions"]["tokenwm"])),
    )


def _tiles(evaluation: Evaluation) -> str:
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    gain, gap, run = (
        evaluation.psnr_gain,
        evaluation.action_gap,
        evaluation.horizons.longest_confident_run,
    )
    book, speed = evaluation.codebook, evaluation.speed
    where = "nowhere" if run is None else f"{run[0]} – {run[1]}"
    over = count(len(evaluation.episodes), "episode")
    certain = (
        f"horizons, all at once with 95 % confidence over {over}; effective horizon "
        f"{evaluation.horizons.effective_horizon}"
    )
    if not evaluation.can_claim:
        where, certain = "–", f"no confidence from {over}; it takes {MIN_EPISODES} at least"
    tiles = [
        ("beats persistence", where, certain),
        (
            "gain over persistence",
            f"{gain.mean[horizon - 1]:+.1f} dB",
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
    return "".join(
        f'<div class="tile"><h3>{escape(title)}</h3><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for title, value, note in tiles
    )


def _example(item: ExamplePictures) -> str:
    example = item.example
    caption = f"{example.rank}: episode {example.key} from step {example.first_step}"
    strip, film = _embed(item.strip, "png"), _embed(item.film, "gif")
    return (
        f'<figure class="example"><figcaption>{escape(caption)}</figcaption>'
        f'<img class="strip" alt="film strip of {escape(caption)}" src="{strip}">'
        f'<img class="film" alt="film of {escape(caption)}" src="{film}"></figure>'
    )


def _embed(path: Path, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _figure(plot: Plot) -> str:
    return figure_html(plot, f"{plot.title} against horizon")


def table_rows(evaluation: Evaluation) -> list[Row]:
    """Lines of the table of figures."""
    rows: list[Row] = [("PSNR, dB", None, 0)]
    rows += [(LABELS[name], curve, 1) for name, curve in evaluation.psnr.items()]
    rows.append(("model − persistence", evaluation.psnr_gain, 2))
    if evaluation.action_gap is not None:
        rows.append(("true − shuffled actions", evaluation.action_gap, 2))
    groups: list[tuple[str, Mapping[str, Curve], int]] = [
        ("SSIM", evaluation.ssim, 3),
        ("frame tokens that are right", evaluation.token_accuracy, 3),
        ("surprise, nats per token", evaluation.token_nll, 3),
    ]
    if evaluation.state is not None:
        units = evaluation.state.units or "units of the data"
        absolute = evaluation.state.absolute
        groups.append((f"state error, {units}", absolute, significant_digits(absolute)))
        if evaluation.state.normalized is not None:
            groups.append(("state error, standard deviations", evaluation.state.normalized, 3))
    if evaluation.reward_error is not None:
        errors = evaluation.reward_error
        groups.append(("reward error", errors, significant_digits(errors)))
    if evaluation.reward_squared_error is not None:
        errors = evaluation.reward_squared_error
        groups.append(("reward error, squared", errors, significant_digits(errors)))
    for title, curves, digits in groups:
        rows.append((title, None, 0))
        rows += [(LABELS[name], curve, digits) for name, curve in curves.items()]
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


def _table(evaluation: Evaluation) -> str:
    horizons = table_horizons(evaluation)
    head = "".join(f"<th>{horizon}</th>" for horizon in horizons)
    body = []
    for title, curve, digits in table_rows(evaluation):
        if curve is None:
            body.append(
                f'<tr class="group"><th colspan="{len(horizons) + 1}">{escape(title)}</th></tr>'
            )
            continue
        cells = "".join(f"<td>{_cell(curve, horizon, digits)}</td>" for horizon in horizons)
        body.append(f"<tr><th>{escape(title)}</th>{cells}</tr>")
    head = f"<thead><tr><th>horizon</th>{head}</tr></thead>"
    return f"<table>{head}<tbody>{''.join(body)}</tbody></table>"


def _cell(curve: Curve, horizon: int, digits: int) -> str:
    text = with_interval(curve, horizon, digits).replace("-", "−")
    mean, _, interval = text.partition(" ")
    return f"{mean}<small>{interval.strip('()')}</small>" if interval else mean


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


def _training(plots: Sequence[Plot]) -> str:
    if not plots:
        return ""
    return f'<h2>Training</h2><div class="plots">{"".join(map(_figure, plots))}</div>'


def _skipped(skipped: Mapping[str, int]) -> str:
    if not skipped:
        return ""
    shown = ", ".join(f"{key} ({length} steps)" for key, length in list(skipped.items())[:8])
    more = f" and {len(skipped) - 8} more" if len(skipped) > 8 else ""
    text = f"Too short for context and horizon, so not measured: {shown}{more}."
    return f'<p class="note">{escape(text)}</p>'


def _configuration(provenance: Mapping[str, Any]) -> str:
    parts = []
    for key, value in provenance.items():
        text = value if isinstance(value, str) else json.dumps(value, indent=1, default=str)
        text = re.sub(r"\[[^\[\]{}]*\]", _in_one_line, text) or "–"
        shown = f"<pre>{escape(text)}</pre>" if "\n" in text else escape(text)
        parts.append(f"<dt>{escape(key.replace('_', ' '))}</dt><dd>{shown}</dd>")
    return f"<dl>{''.join(parts)}</dl>"


def _in_one_line(found: re.Match[str]) -> str:
    """A JSON list of plain values without its line breaks."""
    return " ".join(found.group().split()).replace("[ ", "[").replace(" ]", "]")


PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
