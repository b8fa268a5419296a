"""The page of a fitted sweep: HTML with every picture inside, readable without a network."""

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

import numpy as np

import tokenwm
from tokenwm.pages.plot_style import PAGE_STYLE, Plot, figure_html
from tokenwm.scaling.law.estimate import Estimate
from tokenwm.scaling.law.fit import SweepFit
from tokenwm.scaling.law.solve import Array
from tokenwm.scaling.number import number
from tokenwm.scaling.report.wording import (
    METHODS_NOTE,
    budget_note,
    choice_rows,
    headline,
    law_rows,
    with_interval,
)

PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))


def page(fit: SweepFit, name: str, plots: Sequence[Plot]) -> str:
    """The whole page.

    Args:
        fit: What was found.
        name: Of the sweep.
        plots: As :func:`tokenwm.scaling.report.plots.make_plots` gives them.
    """
    first, *rest = headline(fit)
    seen, recommendation = fit.seen, fit.recommendation
    return PAGE.substitute(
        style=PAGE_STYLE,
        title=escape(f"{name}: scaling law"),
        subtitle=escape(
            f"{len(fit.points)} runs, {_range(seen.log_n)} parameters, {_range(seen.log_d)} "
            f"tokens, {_range(seen.log_c)} FLOPs"
        ),
        alarm=" alarm" if recommendation.refusals else "",
        first=escape(first),
        rest="".join(f"<li>{escape(sentence)}</li>" for sentence in rest),
        tiles=_tiles(fit),
        warnings=_list("Warnings", (*fit.warnings, *recommendation.warnings)),
        budget_note=escape(budget_note(fit)),
        choices=_choices(fit),
        methods_note=escape(METHODS_NOTE),
        methods=_methods(fit),
        silent=_list(
            "Without an answer", [f"{m.name}: {m.reason}" for m in fit.methods if m.reason]
        ),
        plots="".join(figure_html(plot, plot.title) for plot in plots),
        replicates=fit.config.num_replicates,
        solvers=escape(_solvers(fit)),
        law=_table(
            ["", "value", f"{100 * fit.config.confidence:.0f} % interval"],
            law_rows(fit),
        ),
        levels=_levels(fit),
        rates=_rates(fit),
        num_runs=len(fit.points),
        runs=_runs(fit),
        left_out=_list("Left out", [f"{item.path}: {item.reason}" for item in fit.left_out]),
        notes=_list("Assumed while reading", fit.notes),
        version=escape(tokenwm.__version__),
        seconds=f"{fit.seconds:.1f}",
    )


def _range(logarithms: Array) -> str:
    low, high = np.exp([logarithms.min(), logarithms.max()])
    return f"{number(float(low))} – {number(float(high))}"


def _ends(item: Estimate) -> str:
    return f"{number(item.low)} – {number(item.high)}"


def _tiles(fit: SweepFit) -> str:
    recommendation, held = fit.recommendation, fit.holdout
    choice = recommendation.choice
    refused = bool(recommendation.refusals)
    tiles = [
        (
            "best size",
            "refused" if refused else number(choice.num_parameters.value),
            f"parameters for {number(recommendation.budget)} FLOPs; {_ends(choice.num_parameters)}",
        ),
        (
            "tokens",
            "refused" if refused else number(choice.num_tokens.value),
            _ends(choice.num_tokens),
        ),
        (
            "expected loss",
            "refused" if refused else f"{choice.loss.value:.3f}",
            f"nats per token; {choice.loss.low:.3f} – {choice.loss.high:.3f}",
        ),
        (
            "hold-out error",
            "–" if held is None else f"{100 * held.median_error:.2f} %",
            "none" if held is None else f"median of {len(held.members)} runs of most compute",
        ),
        ("residuals", f"± {100 * fit.parametric.spread:.2f} %", "robust standard deviation"),
    ]
    return "".join(
        f'<div class="tile"><h3>{escape(title)}</h3><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for title, value, note in tiles
    )


def _choices(fit: SweepFit) -> str:
    recommendation = fit.recommendation
    columns = [choice_rows(recommendation.choice)]
    head = ["", "best to train"]
    if recommendation.lifetime is not None:
        lifetime = recommendation.lifetime
        columns.append(choice_rows(lifetime.choice))
        head.append(f"same loss, with {number(lifetime.imagination.steps)} steps imagined")
    rows = [
        [label, *(column[row][1] for column in columns)]
        for row, (label, _) in enumerate(columns[0])
    ]
    if recommendation.lifetime is not None:
        rows.append(
            ["imagination FLOPs", "", with_interval(recommendation.lifetime.imagination_flops)]
        )
    return _table(head, rows)


def _methods(fit: SweepFit) -> str:
    head = ["method", "N* grows as C to the", "N* for the budget", "loss, nats per token"]
    return _table(
        head,
        [
            [
                method.name,
                with_interval(method.exponent, 3),
                with_interval(method.num_parameters),
                with_interval(method.loss, 3),
            ]
            for method in fit.methods
        ],
    )


def _solvers(fit: SweepFit) -> str:
    found = fit.parametric
    return (
        f"Huber loss with δ = {fit.config.delta:g} on log loss. Two solvers: a descent from "
        f"eight starts came to a misfit of {found.misfit_descent:.5g}, the best of {found.num_starts} L-BFGS "
        f"starts to {found.misfit_lbfgs:.5g} ({found.num_agreeing} of them to the minimum of "
        f"{found.misfit:.5g})."
    )


def _levels(fit: SweepFit) -> str:
    if not fit.isoflop.levels:
        return f"<p>{escape(fit.isoflop.reason)}.</p>"
    rows = [
        [
            number(float(np.exp(level.profile.log_c))),
            str(len(level.log_losses)),
            number(float(np.exp(level.log_n))),
            f"{np.exp(level.log_loss):.3f}" if np.isfinite(level.log_loss) else "–",
            level.reason or "used",
        ]
        for level in fit.isoflop.levels
    ]
    return (
        '<div class="scroll">'
        + _table(["FLOPs", "losses", "best size", "loss there", "use"], rows)
        + "</div>"
    )


def _rates(fit: SweepFit) -> str:
    if not fit.rate_checks:
        return "<p>No runs at other rates than the rule's.</p>"
    rows = [
        [
            number(check.num_parameters),
            ", ".join(f"{rate:g} → {loss:.4f}" for rate, loss in check.losses),
            f"{check.learning_rate:g}",
            f"{100 * check.excess:.2f} %",
        ]
        for check in fit.rate_checks
    ]
    head = ["N", "rates → loss", "rate by rule", "above the best"]
    return f'<div class="scroll">{_table(head, rows)}</div>'


def _runs(fit: SweepFit) -> str:
    predicted = fit.parametric.law.loss(fit.seen.log_n, fit.seen.log_d)
    rows = [
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
    head = ["run", "N", "D", "FLOPs", "loss", "law", "log loss above it, %", "leverage"]
    return _table(head, rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = []
    for first, *cells in rows:
        inner = "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        body.append(f"<tr><th>{escape(first)}</th>{inner}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _list(title: str, lines: Iterable[str]) -> str:
    items = "".join(f"<li>{escape(line)}</li>" for line in lines)
    return f"<h3>{escape(title)}</h3><ul>{items}</ul>" if items else ""
