"""Plots of a report: every figure against the horizon, with 95 % intervals.

Matplotlib is imported when needed.
"""

from collections.abc import Mapping

import numpy as np

from tokenwm.evaluation.metrics import Curve, GainCurve
from tokenwm.evaluation.report.headline import count
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.plot_style import (
    FAINT,
    LineEnd,
    Plot,
    label_ends,
    new_figure,
    to_png,
)

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


def make_plots(evaluation: Evaluation) -> list[Plot]:
    """All plots that the evaluation has figures for."""
    rate = evaluation.control_rate
    over = count(len(evaluation.episodes), "episode")
    bands = f"Bands are 95 % intervals over {over}, each about one horizon alone."
    if not evaluation.has_intervals:
        bands = "Without bands: one episode has no interval over episodes."
    dotted = "Dotted: lower end for all horizons at once, on which claims rest."
    if not evaluation.can_claim:
        dotted = f"Nothing is claimed with confidence from {over}."
    plots = [
        _plot(
            "psnr",
            "PSNR, dB",
            _chosen(evaluation.psnr),
            rate,
            "Higher is better. Persistence repeats the last observed frame; reconstruction is the "
            f"tokenizer's picture of the true frame. {bands}",
        ),
        _plot(
            "psnr_gain",
            "PSNR gain over persistence, dB",
            {"model": evaluation.psnr_gain, "model_plain": evaluation.psnr_gain_plain},
            rate,
            "Paired by episode: above zero the model is better than repeating the last observed "
            f"frame. {bands} {dotted}",
            zero=True,
        ),
        _plot(
            "ssim",
            "SSIM",
            _chosen(evaluation.ssim),
            rate,
            f"Higher is better; 1 is identical. {bands}",
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
                f"model ignores its actions. {bands} {dotted}",
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
            "Lower is better. The model's past is imagined"
            + (", the state of the same step is the true one" if evaluation.state else "")
            + ". Persistence bets on the old token with the best constant probability at each "
            "horizon.",
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
    figure, axes = new_figure()
    ends: list[LineEnd] = []
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
        if key not in DASHED and isinstance(curve, GainCurve):
            axes.plot(
                horizons, curve.simultaneous_low, color=colour, linestyle="dotted", linewidth=1.2
            )
        label = (labels or LABELS)[key]
        ends.append(LineEnd(value=float(curve.mean[-1]), label=label, colour=colour))
    axes.set_xlim(1, max(2, horizons[-1]))
    axes.set_xticks(table_ticks(len(horizons)))
    axes.set_xlabel("horizon, steps")
    seconds = axes.secondary_xaxis(
        "top", functions=(lambda step: step / control_rate, lambda second: second * control_rate)
    )
    seconds.set_xlabel("seconds", color=FAINT, fontsize=8)
    seconds.tick_params(colors=FAINT, labelsize=8)
    seconds.spines["top"].set_visible(False)
    label_ends(axes, ends)
    return Plot(name=name, title=title, caption=caption, png=to_png(figure))


def table_ticks(num_horizons: int) -> list[int]:
    """Ticks at 1, at round horizons, and at no more than about six in all."""
    sizes = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    step = next((size for size in sizes if num_horizons <= 6 * size), num_horizons)
    return [1, *range(step if step > 1 else 2, num_horizons + 1, step)]
