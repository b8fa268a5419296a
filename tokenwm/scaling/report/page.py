"""The page of a fitted sweep: HTML with every picture inside, readable without a network."""

from collections.abc import Sequence

import numpy as np

import tokenwm
from tokenwm.pages.plot_style import Plot
from tokenwm.pages.render import render
from tokenwm.scaling.law.estimate import Estimate
from tokenwm.scaling.law.fit import SweepFit
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.quantities import number
from tokenwm.scaling.report.wording import (
    METHODS_NOTE,
    budget_note,
    choice_rows,
    headline,
    law_rows,
    method_rows,
    with_interval,
)


def page(fit: SweepFit, name: str, plots: Sequence[Plot]) -> str:
    """The whole page.

    Args:
        fit: The fitted sweep.
        name: Name of the sweep.
        plots: As :func:`tokenwm.scaling.report.plots.make_plots` gives them.
    """
    verdict, *sentences = headline(fit)
    seen = fit.seen
    choice_head, choices = _choices(fit)
    return render(
        "scaling/report/page.html",
        title=f"{name}: scaling law",
        heading="",
        subtitle=f"{len(fit.points)} runs, {_range(seen.log_n)} parameters, {_range(seen.log_d)} "
        f"tokens, {_range(seen.log_c)} FLOPs",
        level="wrong" if fit.recommendation.refusals else "",
        verdict=verdict,
        sentences=sentences,
        tiles=_tiles(fit),
        fit=fit,
        budget_note=budget_note(fit),
        choice_head=choice_head,
        choices=choices,
        methods_note=METHODS_NOTE,
        methods=method_rows(fit),
        silent=[f"{method.name}: {method.reason}" for method in fit.methods if method.reason],
        plots=plots,
        solvers=_solvers(fit),
        confidence=f"{100 * fit.config.confidence:.0f} %",
        law=law_rows(fit),
        levels=_levels(fit),
        rates=_rates(fit),
        runs=_runs(fit),
        left_out=[f"{item.path}: {item.reason}" for item in fit.left_out],
        version=tokenwm.__version__,
    )


def _range(logarithms: Array) -> str:
    low, high = np.exp([logarithms.min(), logarithms.max()])
    return f"{number(float(low))} – {number(float(high))}"


def _tiles(fit: SweepFit) -> list[tuple[str, str, str]]:
    choice, held = fit.recommendation.choice, fit.holdout

    def tile(title: str, value: str, note: str) -> tuple[str, str, str]:
        return title, "refused" if fit.recommendation.refusals else value, note

    def ends(item: Estimate) -> str:
        return f"{number(item.low)} – {number(item.high)}"

    size, tokens, loss = choice.num_parameters, choice.num_tokens, choice.loss
    for_budget = f"parameters for {number(fit.budget)} FLOPs; {ends(size)}"
    per_token = f"nats per token; {loss.low:.3f} – {loss.high:.3f}"
    return [
        tile("best size", number(size.value), for_budget),
        tile("tokens", number(tokens.value), ends(tokens)),
        tile("expected loss", f"{loss.value:.3f}", per_token),
        (
            "hold-out error",
            "–" if held is None else f"{100 * held.median_error:.2f} %",
            "none" if held is None else f"median of {len(held.members)} runs of most compute",
        ),
        ("residuals", f"± {100 * fit.parametric.spread:.2f} %", "robust standard deviation"),
    ]


def _choices(fit: SweepFit) -> tuple[list[str], list[list[str]]]:
    """Names of the columns, and the rows."""
    lifetime = fit.recommendation.lifetime
    rows = [list(row) for row in choice_rows(fit.recommendation.choice)]
    if lifetime is None:
        return ["", "best to train"], rows
    for row, (_, value) in zip(rows, choice_rows(lifetime.choice), strict=True):
        row.append(value)
    rows.append(["imagination FLOPs", "", with_interval(lifetime.imagination_flops)])
    steps = number(lifetime.imagination.steps)
    return ["", "best to train", f"same loss, with {steps} steps imagined"], rows


def _solvers(fit: SweepFit) -> str:
    found = fit.parametric
    return (
        f"Huber loss with δ = {fit.config.delta:g} on log loss. Two solvers: a descent from eight "
        f"starts came to a misfit of {found.misfit_descent:.5g}, the best of {found.num_starts} "
        f"L-BFGS starts to {found.misfit_lbfgs:.5g} ({found.num_agreeing} of them to the minimum "
        f"of {found.misfit:.5g})."
    )


def _levels(fit: SweepFit) -> list[list[str]]:
    return [
        [
            number(float(np.exp(level.profile.log_c))),
            str(len(level.log_losses)),
            number(float(np.exp(level.log_n))),
            f"{np.exp(level.log_loss):.3f}" if np.isfinite(level.log_loss) else "–",
            level.reason or "used",
        ]
        for level in fit.isoflop.levels
    ]


def _rates(fit: SweepFit) -> list[list[str]]:
    return [
        [
            number(check.num_parameters),
            ", ".join(f"{rate:g} → {loss:.4f}" for rate, loss in check.losses),
            f"{check.learning_rate:g}",
            f"{100 * check.excess:.2f} %",
        ]
        for check in fit.rate_checks
    ]


def _runs(fit: SweepFit) -> list[list[str]]:
    predicted = fit.parametric.law.loss(fit.seen.log_n, fit.seen.log_d)
    return [
        [
            point.path,
            number(point.num_parameters),
            number(point.num_tokens),
            number(point.flops),
            f"{point.loss:.4f}",
            f"{predicted[index]:.4f}",
            f"{100 * fit.parametric.residuals[index]:+.2f}",
            f"{fit.parametric.leverage[index]:.2f}",
        ]
        for index, point in enumerate(fit.points)
    ]
