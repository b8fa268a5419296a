"""The task state in a report: a sentence, lines of the table, plots."""

from collections.abc import Mapping

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.words import seconds

SHOWN = ("model", "persistence", "reconstruction", "floor")
"""Curves of each quantity; reading off the last observed frame is in ``metrics.json`` only."""


def task_state_sentence(evaluation: Evaluation) -> str | None:
    """Error of the object after half of the imagined time and at its end, in words."""
    errors = evaluation.task_state
    if errors is None:
        return None
    name, unit = next(iter(errors.units.items()))
    limits = " or ".join(
        f"{name.replace('_', ' ')} {limit:.3g} {errors.units[name]}"
        for name, limit in errors.moved_beyond.items()
    )
    if not errors.num_moved:
        return f"In no start does the object move (by {limits}), so nothing is said of it."
    last = evaluation.num_horizons
    found = []
    for horizon in sorted({max(1, last // 2), last}):
        model, persistence = (
            errors.median[name][kind].mean[horizon - 1] for kind in ("model", "persistence")
        )
        found.append(
            f"{model:.3g} {unit} after {seconds(horizon / evaluation.control_rate)} (persistence "
            f"{persistence:.3g})"
        )
    floor = errors.median[name]["floor"].mean.mean()
    certain = [index + 1 for index, yes in enumerate(errors.gain.is_certain) if yes]
    if not evaluation.can_claim:
        claim = f"nothing can be claimed on fewer than {MIN_EPISODES} episodes"
    elif len(certain) > 1 and certain == list(range(certain[0], certain[-1] + 1)):
        claim = f"nearer than persistence with confidence at horizons {certain[0]} to {certain[-1]}"
    else:
        claim = f"nearer than persistence with confidence at {len(certain)} of {last} horizons"
    return (
        f"The object ({name.replace('_', ' ')}): median error {', '.join(found)} over the "
        f"{errors.num_moved} of {evaluation.num_starts} starts in which it moves (by {limits}); on "
        f"true frames the readout itself errs by {floor:.2g} {unit}. In the mean over all starts, "
        f"{claim}."
    )


def task_state_curves(evaluation: Evaluation) -> dict[str, Mapping[str, Curve]]:
    """Title → medians, of each quantity of the object; ``metrics.json`` has the others too."""
    errors = evaluation.task_state
    if errors is None:
        return {}
    return {
        f"{name.replace('_', ' ')}{f', {errors.units[name]}' if errors.units[name] else ''}": {
            kind: of_kind[kind] for kind in SHOWN
        }
        for name, of_kind in errors.median.items()
        if name in errors.moved_beyond
    }


def task_state_plots(
    evaluation: Evaluation,
) -> list[tuple[str, str, Mapping[str, Curve] | None, str]]:
    """Name, title, curves and caption of the plots of the object."""
    errors = evaluation.task_state
    if errors is None:
        return []
    names = [name for name in errors.median if name in errors.moved_beyond]
    return [
        (
            f"task_state_{name}",
            f"Task state: {title}",
            curves,
            f"Median error over {errors.num_moved} starts in which the object moves, read off "
            "pictures by a small network; lower is better. Persistence is the true task state of "
            "the last observed step. Bands are 95 % intervals over episodes, each about one "
            "horizon alone.",
        )
        for name, (title, curves) in zip(names, task_state_curves(evaluation).items(), strict=True)
    ]
