"""The few figures that stand out at the top of a report."""

import math

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve
from tokenwm.evaluation.report.headline import HEADLINE_HORIZON, at_horizon
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.words import count, seconds


def tiles(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """Title, figure and explanation of each tile."""
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    book, speed = evaluation.codebook, evaluation.speed
    at = at_horizon(evaluation, horizon)
    over = count(len(evaluation.episodes), "episode")
    gap, where = evaluation.action_gap_changed, " where pixels change,"
    if gap is None:
        gap, where = evaluation.action_gap, ""
    found = [
        *_object(evaluation),
        (
            "effect of actions",
            _decibels(gap, horizon),
            f"true over shuffled actions{where} at {at}, mean of {over}",
        ),
        (
            "gain, whole picture",
            _decibels(evaluation.psnr_gain, horizon),
            f"PSNR over persistence at {at}, mean of {over}",
        ),
        _beats(evaluation, over),
    ]
    planted = evaluation.planted
    if planted is not None and planted.repair_rate is not None:
        found.append(
            (
                "mistakes repaired",
                f"{100 * planted.repair_rate:.0f} %",
                f"of {count(planted.num_planted, 'planted wrong code')}, one step later",
            )
        )
    return [
        *found,
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


def _object(evaluation: Evaluation) -> list[tuple[str, str, str]]:
    """A tile for each quantity of the object, half of the imagined time ahead."""
    errors, horizon = evaluation.task_state, max(1, evaluation.num_horizons // 2)
    if errors is None or not errors.num_moved:
        return []
    found = []
    for name in errors.moved_beyond:
        model, persistence = (
            errors.median[name][kind].mean[horizon - 1] for kind in ("model", "persistence")
        )
        over = count(errors.num_moved, "start")
        text = f"persistence {persistence:.3g}, at {at_horizon(evaluation, horizon)}; median of "
        found.append(
            (
                f"{name.replace('_', ' ')} off by",
                f"{model:.3g} {errors.units[name]}".strip(),
                f"{text}{over} in which it moves",
            )
        )
    return found


def _beats(evaluation: Evaluation, over: str) -> tuple[str, str, str]:
    """The tile with the horizons at which claims can be made of the whole picture.

    Not of the pixels that change: there persistence is wrong by definition.
    """
    title = "beats persistence"
    if not evaluation.can_claim:
        return title, "–", f"no confidence from {over}; it takes {MIN_EPISODES} at least"
    run = evaluation.horizons.longest_confident_run
    if run is None:
        return title, "nowhere", f"whole picture, with 95 % confidence over {over}"
    first, last = (seconds(evaluation.horizon_seconds[horizon - 1]) for horizon in run)
    return (
        title,
        f"{first.removesuffix(' s')} – {last}",
        f"horizons {run[0]} to {run[1]}, whole picture, all at once with 95 % confidence over "
        f"{over}",
    )


def _decibels(gain: Curve | None, horizon: int) -> str:
    mean = math.nan if gain is None else float(gain.mean[horizon - 1])
    return "–" if math.isnan(mean) else f"{mean:+.1f} dB"
