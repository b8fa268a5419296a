"""A fitted sweep as plain values, for ``fit.json``."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import tokenwm
from tokenwm.scaling.law.fit import SweepFit, law_estimates
from tokenwm.strict import plain

FORMAT_VERSION = 2
"""Version of ``fit.json``; rises when a key changes its meaning or goes."""

LEFT_OUT = ("replicates", "mix", "deviation", "members")
"""Fields that are intermediate, or stand there in other words."""

_plain = functools.partial(plain, without=LEFT_OUT)


def as_plain(fit: SweepFit) -> dict[str, Any]:
    """Everything, with NaN as null; natural logarithms are marked by ``log_``."""
    parametric, confidence = fit.parametric, fit.config.confidence
    values: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "tokenwm_version": tokenwm.__version__,
        "seconds": fit.seconds,
        "config": fit.config,
        "notes": fit.notes,
        "warnings": fit.warnings,
        "runs": _runs(fit),
        "left_out": fit.left_out,
        "training_cost": fit.cost,
        "law": law_estimates(fit),
        "solvers": {
            "misfit": parametric.misfit,
            "descent": parametric.misfit_descent,
            "lbfgs": parametric.misfit_lbfgs,
            "lbfgs_starts": parametric.num_starts,
            "lbfgs_starts_at_the_minimum": parametric.num_agreeing,
        },
        "residual_spread": parametric.spread,
        "methods": fit.methods,
        "isoflop": fit.isoflop,
        "envelope": {**_plain(fit.envelope), "runs": _names(fit, fit.envelope.members)},
        "outliers": [{"run": fit.points[item.index].path, **_plain(item)} for item in fit.outliers],
        "num_parameters_without_outliers": fit.size_without_outliers,
        "hold_out": _hold_out(fit),
        "downstream": [
            {
                **_plain(item),
                "runs": _names(fit, item.members),
                "rank_correlation_with_loss": item.rank_correlation,
                "at_budget": item.at(math.log(fit.budget), confidence),
            }
            for item in fit.downstream
        ],
        "learning_rate_checks": [
            {
                **_plain(check),
                "best_learning_rate": check.best[0],
                "excess_loss": check.excess,
            }
            for check in fit.rate_checks
        ],
        "recommendation": fit.recommendation,
        "bootstrap": parametric.replicates,
    }
    result: dict[str, Any] = _plain(values)
    return result


def _runs(fit: SweepFit) -> list[dict[str, Any]]:
    predicted = fit.parametric.law.loss(fit.seen.log_n, fit.seen.log_d)
    held_out = fit.holdout.members if fit.holdout else ()
    return [
        {
            **_plain(point),
            "predicted_loss": float(predicted[index]),
            "residual": float(fit.parametric.residuals[index]),
            "leverage": float(fit.parametric.leverage[index]),
            "on_envelope": index in fit.envelope.members,
            "held_out": index in held_out,
        }
        for index, point in enumerate(fit.points)
    ]


def _hold_out(fit: SweepFit) -> dict[str, Any]:
    held = fit.holdout
    if held is None:
        return {"reason": fit.holdout_reason}
    return {
        "runs": _names(fit, held.members),
        "predicted_loss": held.predicted,
        "error": held.errors,
        "median_absolute_error": held.median_error,
        "largest_absolute_error": held.largest_error,
        "reach": held.reach,
        "median_absolute_error_of_best_known_loss": held.baseline,
        "law": held.law,
    }


def _names(fit: SweepFit, members: Sequence[int]) -> list[str]:
    return [fit.points[index].path for index in members]
