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
    found = []
    changed, gap = evaluation.psnr_changed_gain, evaluation.action_gap_changed
    if changed is not None:
        found += [
            (
                "gain where pixels change",
                _decibels(changed, horizon),
                f"PSNR over persistence at {at}, mean of {over}",
            ),
            (
                "effect of actions",
                _decibels(gap, horizon),
                f"true over shuffled actions where pixels change, at {at}, mean of {over}",
            ),
        ]
    else:
        found.append(
            (
                "effect of actions",
                _decibels(evaluation.action_gap, horizon),
                f"true over shuffled actions at {at}, mean of {over}",
            )
        )
    found += [
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


def _beats(evaluation: Evaluation, over: str) -> tuple[str, str, str]:
    """The tile with the horizons at which claims can be made, of changed pixels if known."""
    horizons, where = evaluation.horizons_changed, " where pixels change"
    if horizons is None:
        horizons, where = evaluation.horizons, ""
    title = "beats persistence"
    if not evaluation.can_claim:
        return title, "–", f"no confidence from {over}; it takes {MIN_EPISODES} at least"
    run = horizons.longest_confident_run
    if run is None:
        return title, "nowhere", f"with 95 % confidence over {over}{where}"
    first, last = (seconds(evaluation.horizon_seconds[horizon - 1]) for horizon in run)
    return (
        title,
        f"{first.removesuffix(' s')} – {last}",
        f"horizons {run[0]} to {run[1]}{where}, all at once with 95 % confidence over {over}",
    )


def _decibels(gain: Curve | None, horizon: int) -> str:
    mean = math.nan if gain is None else float(gain.mean[horizon - 1])
    return "–" if math.isnan(mean) else f"{mean:+.1f} dB"
