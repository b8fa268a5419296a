"""Plots of a report: every figure against the horizon, with 95 % intervals.

Matplotlib is imported when needed.
"""

from collections.abc import Mapping

import numpy as np

from tokenwm.evaluation.metrics import Curve, GainCurve
from tokenwm.evaluation.report.task_state import task_state_plots
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.plot_style import (
    FAINT,
    LineEnd,
    Plot,
    label_ends,
    new_figure,
    to_png,
)
from tokenwm.pages.words import count

COLOURS = {
    # Okabe & Ito (2008): told apart with every common kind of colour blindness.
    "model": "#0072B2",
    "model_plain": "#56B4E9",
    "persistence": "#6B6B6B",
    "floor": "#CC79A7",
    "reconstruction": "#009E73",
    "reconstruction_anchored": "#009E73",
    "quantization": "#009E73",
    "shuffled": "#D55E00",
    "action_gap": "#D55E00",
    "training_mean": "#6B6B6B",
    "uniform": "#E69F00",
}
LABELS = {
    "model": "model",
    "model_plain": "model, not anchored",
    "persistence": "persistence",
    "floor": "readout of true frames",
    "reconstruction": "reconstruction",
    "reconstruction_anchored": "reconstruction, anchored",
    "quantization": "true state, binned",
    "shuffled": "shuffled actions",
    "action_gap": "true − shuffled",
    "training_mean": "mean of training",
    "uniform": "uniform guess",
}
Subject = tuple[str, str, Mapping[str, Curve] | None, str]
"""File name, title, curves and caption of a plot; None where there are no such figures."""
DASHED = ("reconstruction_anchored", "model_plain")


def make_plots(evaluation: Evaluation) -> list[Plot]:
    """All plots that the evaluation has figures for."""
    return [
        Plot(name=name, title=title, caption=caption, png=_draw(curves, evaluation.control_rate))
        for name, title, curves, caption in [
            *task_state_plots(evaluation),
            *_pictures(evaluation),
            *_predictions(evaluation),
        ]
        if curves is not None
    ]


def _pictures(evaluation: Evaluation) -> list[Subject]:
    over = count(len(evaluation.episodes), "episode")
    bands = f"Bands are 95 % intervals over {over}, each about one horizon alone."
    if not evaluation.has_intervals:
        bands = "Without bands: one episode has no interval over episodes."
    dotted = "Dotted: lower end for all horizons at once, on which claims rest."
    if not evaluation.can_claim:
        dotted = f"Nothing is claimed with confidence from {over}."
    gap = evaluation.action_gap
    return [
        *_changes(evaluation, bands, dotted),
        (
            "psnr",
            "PSNR of the whole picture, dB",
            _chosen(evaluation.psnr),
            "Higher is better. Persistence repeats the last observed frame; reconstruction is the "
            f"tokenizer's picture of the true frame. {bands}",
        ),
        (
            "psnr_gain",
            "PSNR gain over the whole picture, dB",
            {"model": evaluation.psnr_gain, "model_plain": evaluation.psnr_gain_plain},
            "Paired by episode: above zero the model is better than repeating the last observed "
            f"frame. {bands} {dotted}",
        ),
        (
            "ssim",
            "SSIM of the whole picture",
            _chosen(evaluation.ssim),
            f"Higher is better; 1 is identical. {bands}",
        ),
        (
            "action_gap",
            "PSNR lost with shuffled actions, whole picture, dB",
            None if gap is None else {"action_gap": gap},
            "ΔPSNR: true minus shuffled actions, from the same context. Zero means that the model "
            f"ignores its actions. {bands} {dotted}",
        ),
    ]


def _changes(evaluation: Evaluation, bands: str, dotted: str) -> list[Subject]:
    """Plots over the pixels that change; they come first."""
    psnr, gain, changed = evaluation.psnr_changed, evaluation.psnr_changed_gain, evaluation.changed
    if psnr is None or gain is None or changed is None:
        return []
    gains = {"model": gain}
    if evaluation.action_gap_changed is not None:
        gains["action_gap"] = evaluation.action_gap_changed
    return [
        (
            "psnr_changed",
            "PSNR where pixels change, dB",
            _chosen(psnr),
            "Over the pixels that differ from the last observed frame by more than "
            f"{changed.threshold} of 255 levels; persistence is wrong there by definition. {bands}",
        ),
        (
            "psnr_changed_gain",
            "PSNR gain where pixels change, dB",
            gains,
            "Model minus persistence, and true minus shuffled actions from the same context, which "
            f"no model wins by knowing only that something changes. {bands} {dotted}",
        ),
    ]


def _predictions(evaluation: Evaluation) -> list[Subject]:
    state = evaluation.state
    normalized = state.normalized if state else None
    absolute = state.absolute if state else None
    units = f" ({state.units})" if state and state.units else ""
    return [
        (
            "token_accuracy",
            "Frame tokens that are right",
            evaluation.token_accuracy,
            "Share of tokens equal to those of the true frame, open loop.",
        ),
        (
            "token_nll",
            "Surprise at the true frame, nats per token",
            evaluation.token_nll,
            "Lower is better. The model's past is imagined"
            + (", the state of the same step is the true one" if state else "")
            + ". Persistence bets on the old token with the best constant probability at each "
            "horizon. Above the uniform guess the model knows nothing of what it sees.",
        ),
        (
            "state_error",
            f"State error{units}" if normalized is None else "State error, standard deviations",
            absolute if normalized is None else normalized,
            "Mean absolute error of proprioception; lower is better.",
        ),
        (
            "reward_error",
            "Reward error",
            evaluation.reward_error,
            "Mean absolute error of the expected reward; lower is better.",
        ),
    ]


def _chosen(curves: Mapping[str, Curve]) -> dict[str, Curve]:
    """Leave out the model without anchoring: the plot of the gain and the table have it."""
    return {name: curve for name, curve in curves.items() if name != "model_plain"}


def _draw(curves: Mapping[str, Curve], control_rate: float) -> bytes:
    """Each curve with its interval; a difference also with zero and the end that claims rest on."""
    figure, axes = new_figure()
    ends: list[LineEnd] = []
    horizons = np.arange(1, len(next(iter(curves.values())).mean) + 1)
    if any(isinstance(curve, GainCurve) for curve in curves.values()):
        axes.axhline(0.0, color=FAINT, linewidth=1)
    for key, curve in curves.items():
        colour = COLOURS[key]
        axes.plot(
            horizons,
            curve.mean,
            color=colour,
            linestyle=(0, (4, 2)) if key in DASHED else "solid",
            linewidth=2.4 if key == "model" else 1.6,
            marker="o" if len(horizons) == 1 else None,
        )
        if key not in DASHED and np.isfinite(curve.low).any():
            axes.fill_between(
                horizons, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0
            )
        if key not in DASHED and isinstance(curve, GainCurve):
            axes.plot(
                horizons, curve.simultaneous_low, color=colour, linestyle="dotted", linewidth=1.2
            )
        label = "model − persistence" if key == "model" and "action_gap" in curves else LABELS[key]
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
    return to_png(figure)


def table_ticks(num_horizons: int) -> list[int]:
    """Ticks at 1, at round horizons, and at no more than about six in all."""
    sizes = (1, 2, 5, 10, 20, 50, 100, 200, 500)
    step = next((size for size in sizes if num_horizons <= 6 * size), num_horizons)
    return [1, *range(step if step > 1 else 2, num_horizons + 1, step)]
