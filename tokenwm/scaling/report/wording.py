"""Figures in words: what the command line and the page say."""

import math

from tokenwm.scaling.law.estimate import Estimate
from tokenwm.scaling.law.fit import SweepFit, law_estimates
from tokenwm.scaling.law.recommend import Choice
from tokenwm.scaling.quantities import number

METHODS_NOTE = (
    "The parametric law uses every run and has a floor E. IsoFLOP parabolas and the loss envelope "
    "read the best size off runs of equal compute and off the best runs; their losses are straight "
    "lines in logarithms, without a floor, so far beyond the runs they are too low."
)
"""Advice on reading the methods side by side, shown wherever their losses are."""
MOST_NAMED = 5
"""Outliers that a sentence names at most; the table of runs has all."""


def with_interval(estimate: Estimate | None, digits: int | None = None) -> str:
    """``3.1M (2.2M – 4.4M)``; digits behind the point where given."""
    if estimate is None:
        return "–"
    write = number if digits is None else (lambda value: f"{value:.{digits}f}")
    if not math.isfinite(estimate.low) or estimate.high - estimate.low <= 1e-9 * estimate.high:
        return write(estimate.value)
    return f"{write(estimate.value)} ({write(estimate.low)} – {write(estimate.high)})"


def headline(fit: SweepFit) -> list[str]:
    """Sentences about the fit, the most important first."""
    recommendation = fit.recommendation
    percent = f"{100 * fit.config.confidence:.0f} %"
    if recommendation.refusals:
        sentences = [f"No recommendation: {'; '.join(recommendation.refusals)}."]
    else:
        sentences = [
            f"{number(recommendation.budget)} FLOPs are best spent on "
            f"{_in_words(recommendation.choice)} ({percent} intervals)."
        ]
        if recommendation.lifetime is not None:
            lifetime = recommendation.lifetime
            sentences.append(
                f"If it will imagine {number(lifetime.imagination.steps)} steps of "
                f"{lifetime.imagination.tokens_per_step:g} tokens, the same loss is cheapest with "
                f"{_in_words(lifetime.choice)}: training {number(lifetime.choice.flops.value)} "
                f"and imagining {number(lifetime.imagination_flops.value)} FLOPs, "
                f"{100 * lifetime.saved.value:.1f} % less in all."
            )
    if fit.holdout is not None:
        holdout = fit.holdout
        sentences.append(
            f"Fitted without the {len(holdout.members)} runs of most compute, the law predicts "
            f"their losses to {100 * holdout.median_error:.2f} % (median; largest "
            f"{100 * holdout.largest_error:.2f} %), over {number(holdout.reach)} times the "
            f"compute; the best loss known by then would be off by {100 * holdout.baseline:.2f} %."
        )
    else:
        sentences.append(f"No hold-out: {fit.holdout_reason}.")
    if fit.rate_checks:
        sentences.append(
            "The learning rates chosen by rule are within "
            f"{100 * max(check.excess for check in fit.rate_checks):.1f} % of the least loss of "
            f"other rates at {len({check.num_parameters for check in fit.rate_checks})} sizes."
        )
    if fit.outliers:
        size = number(fit.size_without_outliers or math.nan)
        what = "outlier stays" if len(fit.outliers) == 1 else "outliers stay"
        named = ", ".join(
            f"{fit.points[outlier.index].path} ({100 * math.expm1(outlier.residual):+.1f} % loss)"
            for outlier in fit.outliers[:MOST_NAMED]
        )
        more = f" and {len(fit.outliers) - MOST_NAMED} more" * (len(fit.outliers) > MOST_NAMED)
        sentences.append(
            f"{len(fit.outliers)} {what} in the fit: {named}{more}; without, N* would be {size}."
        )
    return sentences


def budget_note(fit: SweepFit) -> str:
    """Budget that the figures are for, how far it lies beyond the runs, and whether to act."""
    given = "asked for" if fit.config.budget is not None else "ten times the most of a run"
    text = (
        f"The budget is {number(fit.budget)} FLOPs of training ({given}), "
        f"{number(fit.recommendation.reach)} times the most of a run."
    )
    if fit.recommendation.refusals:
        text += " The figures are shown so that the reasons can be checked; do not act on them."
    return text


def _in_words(choice: Choice) -> str:
    return (
        f"N = {with_interval(choice.num_parameters)} parameters and "
        f"D = {with_interval(choice.num_tokens)} tokens, for a loss of "
        f"{with_interval(choice.loss, 3)} nats per token"
    )


def law_rows(fit: SweepFit) -> list[tuple[str, str, str]]:
    """The numbers of the law: name, value, interval; four digits, as papers print them."""
    return [
        (name, _in_full(item.value), f"{_in_full(item.low)} – {_in_full(item.high)}")
        for name, item in zip(("E", "A", "B", "α", "β"), law_estimates(fit).values(), strict=True)
    ]


def method_rows(fit: SweepFit) -> list[tuple[str, str, str, str]]:
    """The methods side by side: name, exponent of N* over C, N* and loss for the budget."""
    return [
        (
            method.name,
            with_interval(method.exponent, 3),
            with_interval(method.num_parameters),
            with_interval(method.loss, 3),
        )
        for method in fit.methods
    ]


def _in_full(value: float) -> str:
    return f"{value:.4g}" if value < 1e4 else f"{value:.3e}"


def choice_rows(choice: Choice) -> list[tuple[str, str]]:
    """A choice line by line."""
    return [
        ("parameters N", with_interval(choice.num_parameters)),
        ("tokens D", with_interval(choice.num_tokens)),
        ("training FLOPs", with_interval(choice.flops)),
        ("loss, nats per token", with_interval(choice.loss, 3)),
        ("optimizer steps", with_interval(choice.num_steps)),
        ("hours of training", with_interval(choice.hours)),
    ]
