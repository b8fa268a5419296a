"""Plots of a fitted sweep. Matplotlib is imported when needed."""

import numpy as np

from tokenwm.pages.plot_style import (
    CYCLE,
    FAINT,
    INK,
    LineEnd,
    Plot,
    label_ends,
    new_figure,
    to_png,
)
from tokenwm.scaling.law.downstream import Downstream
from tokenwm.scaling.law.fit import SweepFit
from tokenwm.scaling.law.law import best_log_n
from tokenwm.scaling.quantities import number
from tokenwm.scaling.report.drawing import (
    count_ticks,
    draw_band,
    heights_of,
    interval_of,
    limit_to_cloud,
    plain_ticks,
    shades,
    spread_out,
)

BLUE, RED, GREEN, PINK, ORANGE, SKY = CYCLE


@np.errstate(over="ignore", invalid="ignore", divide="ignore")
def make_plots(fit: SweepFit) -> list[Plot]:
    """All plots that the sweep has figures for."""
    plots = [_losses(fit)]
    if fit.has_optimum:
        plots.append(_optimum(fit))
    if fit.isoflop.levels:
        plots.append(_parabolas(fit))
    plots.append(_residuals(fit))
    if fit.holdout is not None:
        plots.append(_holdout(fit))
    plots.append(_exponents(fit))
    if fit.has_optimum:
        plots.append(_sizes(fit))
    return plots + [_downstream(fit, item) for item in fit.downstream if item.line is not None]


def _losses(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    seen, law = fit.seen, fit.parametric.law
    colours = shades(seen.log_n)
    axes.scatter(np.exp(seen.log_c), np.exp(seen.log_loss), c=colours, s=16, zorder=3)
    ends = []
    centres = spread_out(seen.log_n)
    for centre, colour in zip(centres, shades(centres), strict=True):
        per_token = fit.cost.log_flops_per_token(centre)
        log_c = np.linspace(seen.log_d.min(), seen.log_d.max(), 60) + per_token
        log_c = log_c[(log_c >= seen.log_c.min() - 0.3) & (log_c <= seen.log_c.max() + 0.3)]
        if not len(log_c):
            continue
        loss = law.loss(centre, log_c - per_token)
        axes.plot(np.exp(log_c), loss, color=colour, linewidth=1.3, alpha=0.9)
        ends.append(
            LineEnd(value=float(loss[-1]), label=f"N = {number(np.exp(centre))}", colour=colour)
        )
    if fit.has_optimum:
        log_c = np.linspace(seen.log_c.min(), seen.log_c.max(), 80)
        log_n = best_log_n(law, fit.cost, log_c)
        best = law.loss(log_n, log_c - fit.cost.log_flops_per_token(log_n))
        axes.plot(np.exp(log_c), best, color=INK, linewidth=2, linestyle=(0, (4, 2)))
        ends.append(LineEnd(value=float(best[-1]), label="best size", colour=INK))
    axes.set(xscale="log", yscale="log", xlabel="FLOPs of training")
    plain_ticks(axes)
    label_ends(axes, ends)
    return Plot(
        name="loss_flops",
        title="Loss, nats per token, against compute",
        caption="Points are runs, dark for small models; lines are the law for some of the sizes. "
        "Dashed: the best that the law says any size reaches.",
        png=to_png(figure),
    )


def _optimum(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    seen, confidence = fit.seen, fit.config.confidence
    log_c = np.linspace(seen.log_c.min(), np.log(fit.budget), 60)
    axes.scatter(np.exp(seen.log_c), np.exp(seen.log_n), s=7, color="#C8C8C8", zorder=1)
    many = np.stack([best_log_n(fit.parametric.replicates, fit.cost, value) for value in log_c])
    best = best_log_n(fit.parametric.law, fit.cost, log_c)
    ends = [draw_band(axes, log_c, best, many.T, confidence, BLUE, "parametric law")]
    chosen = [level for level in fit.isoflop.levels if not level.reason]
    places = [
        (
            "IsoFLOP",
            RED,
            fit.isoflop.size,
            np.array([level.profile.log_c for level in chosen]),
            np.array([level.log_n for level in chosen]),
        ),
        (
            "envelope",
            GREEN,
            fit.envelope.size,
            seen.log_c[list(fit.envelope.members)],
            seen.log_n[list(fit.envelope.members)],
        ),
    ]
    for name, colour, line, x, y in places:
        axes.scatter(np.exp(x), np.exp(y), s=20, facecolors="white", edgecolors=colour, zorder=4)
        if line is not None:
            heights, replicates = heights_of(line, log_c)
            ends.append(draw_band(axes, log_c, heights, replicates, confidence, colour, name))
    axes.axvline(fit.budget, color=FAINT, linewidth=1, linestyle=(0, (2, 2)))
    axes.set(xscale="log", yscale="log", xlabel="FLOPs of training (dotted: the budget)")
    count_ticks(axes.yaxis)
    label_ends(axes, ends)
    return Plot(
        name="frontier",
        title="Best size, parameters, against compute",
        caption=f"Bands are {100 * confidence:.0f} % intervals. Circles: optima of the IsoFLOP "
        "parabolas and runs on the loss envelope; grey: all runs.",
        png=to_png(figure),
    )


def _parabolas(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    levels = fit.isoflop.levels
    compute = np.array([level.profile.log_c for level in levels])
    shown = spread_out(compute)
    colours = shades(shown)
    ends = []
    for level in levels:
        profile = level.profile
        nearest = int(np.abs(shown - profile.log_c).argmin())
        if abs(shown[nearest] - profile.log_c) > 1e-9:
            continue
        colour = colours[nearest]
        grid = np.linspace(profile.log_n.min(), profile.log_n.max(), 60)
        curve = np.exp(np.polyval(level.parabola[::-1], grid - profile.log_n.mean()))
        style = (0, (2, 2)) if level.reason else "solid"
        axes.plot(np.exp(grid), curve, color=colour, linewidth=1.3, linestyle=style)
        axes.scatter(np.exp(profile.log_n), np.exp(level.log_losses), s=13, color=colour)
        if not level.reason:
            place = np.exp(level.log_n), np.exp(level.log_loss)
            axes.scatter(*place, s=90, marker="*", color=colour, edgecolors="white", zorder=4)
        label = f"{number(np.exp(profile.log_c))} FLOPs"
        ends.append(LineEnd(value=float(curve[-1]), label=label, colour=colour))
    axes.set(xscale="log", yscale="log", xlabel="parameters N")
    count_ticks(axes.xaxis)
    plain_ticks(axes)
    label_ends(axes, ends)
    how = (
        "Losses are interpolated along the runs of each size. " if fit.isoflop.interpolated else ""
    )
    return Plot(
        name="isoflop",
        title="Loss, nats per token, at equal compute",
        caption=f"Parabolas of log loss over log N; stars are their lowest points. {how}Dotted: "
        "not used, see the table for the reason.",
        png=to_png(figure),
    )


def _residuals(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    percent = 100.0 * fit.parametric.residuals
    flops = np.exp(fit.seen.log_c)
    spread = 100.0 * fit.parametric.spread
    axes.axhspan(-spread, spread, color=FAINT, alpha=0.15, linewidth=0)
    axes.axhline(0.0, color=FAINT, linewidth=1)
    area = 14.0 + 160.0 * fit.parametric.leverage
    axes.scatter(flops, percent, s=area, c=shades(fit.seen.log_n), alpha=0.85, linewidths=0)
    far = [outlier.index for outlier in fit.outliers]
    axes.scatter(flops[far], percent[far], s=110, facecolors="none", edgecolors=RED, linewidths=1.4)
    axes.set(xscale="log", xlabel="FLOPs of training")
    named = [
        LineEnd(value=float(percent[index]), label=fit.points[index].path[:24], colour=RED)
        for index in far[:8]
    ]
    spread_end = LineEnd(value=spread, label=f"± {spread:.2f} % (robust)", colour=FAINT)
    label_ends(axes, [*named, spread_end])
    return Plot(
        name="residuals",
        title="Loss above the law, %",
        caption="Measured over predicted loss; large points have much leverage, dark ones are "
        "small models. Ringed: outliers, which stay in the fit. A pattern is a law that does not "
        "hold.",
        png=to_png(figure),
    )


def _holdout(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    held = fit.holdout
    assert held is not None
    flops = np.exp(fit.seen.log_c)
    kept = np.setdiff1d(np.arange(len(flops)), held.members)
    predicted = held.law.loss(fit.seen.log_n, fit.seen.log_d)
    percent = 100.0 * (predicted / np.exp(fit.seen.log_loss) - 1.0)
    axes.axhline(0.0, color=FAINT, linewidth=1)
    axes.scatter(flops[kept], percent[kept], s=14, color="#C8C8C8")
    members = list(held.members)
    axes.scatter(flops[members], percent[members], s=26, color=RED, zorder=3)
    axes.set(xscale="log", xlabel="FLOPs of training")
    label_ends(
        axes,
        [
            LineEnd(value=float(np.median(percent[members])), label="held out", colour=RED),
            LineEnd(value=float(np.median(percent[kept])), label="fitted", colour=FAINT),
        ],
    )
    return Plot(
        name="hold_out",
        title="Prediction error of runs held out, %",
        caption=f"The law fitted to the grey runs alone predicts the {len(members)} runs of most "
        f"compute, up to {number(held.reach)} times as much. Above zero: it expected more loss.",
        png=to_png(figure),
    )


def _exponents(fit: SweepFit) -> Plot:
    laws, law = fit.parametric.replicates, fit.parametric.law
    figure, axes = new_figure()
    axes.scatter(laws.alpha, laws.beta, s=9, color=BLUE, alpha=0.35, linewidths=0)
    axes.scatter(law.alpha, law.beta, s=70, marker="*", color=RED, zorder=3)
    axes.set(xlabel="α, exponent of size")
    limit_to_cloud(axes, laws.alpha, laws.beta)
    return Plot(
        name="bootstrap_exponents",
        title="Bootstrap: β, exponent of data, against α",
        caption="Each point is the law fitted with other weights on the runs; the star is the fit. "
        "A long thin cloud means that the runs fix a combination of the two only.",
        png=to_png(figure),
    )


def _sizes(fit: SweepFit) -> Plot:
    figure, axes = new_figure()
    log_c = np.log(fit.budget)
    clouds = []
    for laws in (fit.parametric.replicates, fit.parametric.law):
        log_n = best_log_n(laws, fit.cost, log_c)
        clouds.append(
            (np.exp(log_n), laws.loss(log_n, log_c - fit.cost.log_flops_per_token(log_n)))
        )
    axes.scatter(*clouds[0], s=9, color=BLUE, alpha=0.35, linewidths=0)
    axes.scatter(*clouds[1], s=70, marker="*", color=RED, zorder=3)
    axes.set(xlabel="best size N*, parameters")
    limit_to_cloud(axes, *clouds[0])
    count_ticks(axes.xaxis)
    return Plot(
        name="bootstrap_sizes",
        title=f"Bootstrap: loss that {number(fit.budget)} FLOPs buy, against size",
        caption="Best size and its expected loss, nats per token, of each replicate; the star is "
        "the fit.",
        png=to_png(figure),
    )


def _downstream(fit: SweepFit, item: Downstream) -> Plot:
    assert item.line is not None
    figure, axes = new_figure()
    seen = fit.seen
    members = list(item.members)
    log_c = np.linspace(seen.log_c[members].min(), seen.log_c[members].max(), 40)
    heights, replicates = heights_of(item.line, log_c)
    if item.is_power_law:
        heights, replicates = np.exp(heights), np.exp(replicates)
    low, high = interval_of(replicates, fit.config.confidence)
    axes.plot(np.exp(log_c), heights, color=BLUE, linewidth=2)
    axes.fill_between(np.exp(log_c), low, high, color=BLUE, alpha=0.15, linewidth=0)
    axes.scatter(np.exp(seen.log_c), item.values, s=16, c=shades(seen.log_n), zorder=3)
    axes.set(xscale="log", xlabel="FLOPs of training")
    form = "power law" if item.is_power_law else "line over log C"
    label_ends(axes, [LineEnd(value=float(heights[-1]), label=form, colour=BLUE)])
    follows = "follows the loss" if item.follows_loss else "does not clearly follow the loss"
    correlation = item.rank_correlation.value if item.rank_correlation else float("nan")
    return Plot(
        name="downstream_" + "".join(c if c.isalnum() else "_" for c in item.name),
        title=item.name,
        caption=f"It {follows} (rank correlation {correlation:.2f}). The line goes through "
        f"{len(members)} runs"
        + (" on the loss envelope." if len(members) < np.isfinite(item.values).sum() else "."),
        png=to_png(figure),
    )
