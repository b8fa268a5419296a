"""The findings of an evaluation in words; bad news as plainly as good."""

from collections.abc import Mapping

import numpy as np

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve, GainCurve, HorizonSummary
from tokenwm.evaluation.outside import OutsideTraining
from tokenwm.evaluation.report.task_state import task_state_sentence
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.words import count, seconds

HEADLINE_HORIZON = 5
TABLE_HORIZONS = (1, 3, 5, 10, 15, 20)
DEAD_CODEBOOK, OUTSIDE, OTHER_SPLITS = "DEAD CODEBOOK", "OUTSIDE TRAINING", "OTHER SPLITS"
ALARMS = (DEAD_CODEBOOK, OUTSIDE, OTHER_SPLITS)
"""Beginnings of sentences that are to be shown in red."""


def table_horizons(evaluation: Evaluation) -> list[int]:
    """Horizons that tables show: the usual ones that were measured, and the last."""
    last = evaluation.num_horizons
    return sorted({horizon for horizon in TABLE_HORIZONS if horizon < last} | {last})


def at_horizon(evaluation: Evaluation, horizon: int) -> str:
    """``horizon 5 (0.5 s)``."""
    return f"horizon {horizon} ({seconds(horizon / evaluation.control_rate)})"


def headline(evaluation: Evaluation) -> list[str]:
    """A few sentences, the most important first: the object, what changes, the whole picture."""
    of_object = task_state_sentence(evaluation)
    sentences = [] if of_object is None else [of_object]
    sentences += [*_about_change(evaluation), *_about_pictures(evaluation)]
    sentences += _likelihood(evaluation)
    if evaluation.num_models > 1:
        sentences.append(
            f"{evaluation.num_models} models were measured, each on the episodes held out from it: "
            "the figures are about models trained this way on average. Each was trained on "
            "episodes that others were measured on, so what they find is not independent, and "
            "intervals over episodes may be somewhat too narrow."
        )
    outside = evaluation.outside
    if outside.is_notable:
        place = 0 if outside.is_far else len(sentences)
        sentences.insert(place, _outside(outside))
    if evaluation.has_other_splits:
        sentences.insert(
            0,
            f"{OTHER_SPLITS}: the model, or one it was fine-tuned from, was trained on the same "
            "recordings under other splits, so it may know some of these episodes. Prepare them "
            "with the splits of its training.",
        )
    if evaluation.codebook.is_dead:
        book = evaluation.codebook
        sentences.insert(
            0,
            f"{DEAD_CODEBOOK}: only {book.num_used} of {book.codebook_size} codes are in use. The "
            "tokenizer has collapsed; nothing below can be trusted before it is trained again.",
        )
    return sentences


def _outside(outside: OutsideTraining) -> str:
    found = [
        f"{percent(item.share)} of the {item.name} values lie beyond the range of the training "
        f"data (worst: {item.worst_dimension}, {percent(item.worst_share)}"
        + (f", by up to {item.worst_excess:.2g} of that range)" if item.worst_excess else ")")
        + (f", {percent(item.clipped_share)} beyond all bins" if item.clipped_share else "")
        for item in outside.values
        if item.is_notable
    ]
    if outside.has_other_pictures:
        found.append(
            f"the tokenizer's reconstruction reaches {outside.reconstruction:.1f} dB, on "
            f"its own val split {outside.reconstruction_at_home:.1f} dB"
        )
    if not outside.is_far:
        return f"Partly outside of what was trained on: {'; '.join(found)}."
    return f"{OUTSIDE}: {'; '.join(found)}. What follows is about such data."


def percent(share: float) -> str:
    """``12 %``, ``1.5 %``."""
    return f"{100 * share:.{0 if share >= 0.0995 else 1}f} %"


def _about_change(evaluation: Evaluation) -> list[str]:
    """Sentences about what changes in the picture; none of reports that have no such figures."""
    gain, horizons = evaluation.psnr_changed_gain, evaluation.horizons_changed
    psnr, changed = evaluation.psnr_changed, evaluation.changed
    if gain is None or horizons is None or psnr is None or changed is None:
        return []
    if not np.isfinite(gain.mean).any():
        return [
            f"Nothing is said about change: no pixel changed by more than {changed.threshold} of "
            "255 levels after the last observed frame."
        ]
    where = _persistence(evaluation, "Where pixels change", gain, horizons)
    sentences = [f"{where} {_figures(evaluation, psnr)}"]
    gap = evaluation.action_gap_changed
    if gap is not None:
        fair = "Persistence is wrong there by definition; other actions are the fairer baseline."
        sentences.append(f"{fair} {_actions(evaluation, gap)}")
    return sentences


def _about_pictures(evaluation: Evaluation) -> list[str]:
    """Sentences about whole pictures, most of which stay as they are."""
    where = "Over the whole picture"
    beats = _persistence(evaluation, where, evaluation.psnr_gain, evaluation.horizons)
    sentences = [f"{beats} {_figures(evaluation, evaluation.psnr)}", _effective(evaluation)]
    if evaluation.action_gap is None:
        sentences.append("There was one start only, so actions could not be shuffled.")
    elif evaluation.action_gap_changed is None:
        sentences.append(_actions(evaluation, evaluation.action_gap))
    return sentences


def _persistence(
    evaluation: Evaluation, where: str, gain: GainCurve, horizons: HorizonSummary
) -> str:
    """The comparison with persistence, in whole pictures or in what changes."""
    last = evaluation.num_horizons
    known = "training " if evaluation.provenance["split"] == "train" else ""
    over = f"{where}, on {count(len(evaluation.episodes), f'{known}episode')}"
    best = int(np.nanargmax(gain.mean))
    at_best = at_horizon(evaluation, best + 1)
    most = f"At best it wins by {gain.mean[best]:.1f} dB, at {at_best} of {last}."
    run = horizons.longest_confident_run
    if run is not None and run[0] == run[1]:
        return (
            f"{over} the model beats persistence at {at_horizon(evaluation, run[0])} with 95 % "
            f"confidence. {most}"
        )
    if run is not None:
        first, end = (seconds(horizon / evaluation.control_rate) for horizon in run)
        return (
            f"{over} the model beats persistence from horizon {run[0]} to {run[1]} "
            f"({first.removesuffix(' s')} to {end}) with 95 % confidence for all of these at once. "
            f"{most}"
        )
    if horizons.first_better is not None:
        first = at_horizon(evaluation, horizons.first_better)
        if not np.isfinite(gain.simultaneous_low).any():
            return f"{over} the model's mean is better than persistence's first at {first}. {most}"
        return (
            f"{over} the model does not beat persistence with confidence at any horizon up to "
            f"{last}; its mean is better first at {first}."
        )
    loss = f"{-gain.mean[best]:.1f}"
    at_most = "as good as it" if loss in ("0.0", "-0.0") else f"{loss} dB worse"
    return (
        f"{over} the model does not beat persistence at any horizon up to {last}: at best it is "
        f"{at_most}, at {at_best}."
    )


def _effective(evaluation: Evaluation) -> str:
    if not evaluation.can_claim:
        return (
            f"{count(len(evaluation.episodes), 'episode')} cannot show anything with confidence, "
            f"and give no effective horizon; that takes {MIN_EPISODES} at least. Hold out more "
            "with splits.test in the recipe, or every one in turn with splits.folds "
            "(docs/evaluation.md)."
        )
    effective = evaluation.horizons.effective_horizon
    if effective:
        ahead = seconds(effective / evaluation.control_rate)
        return (
            f"Effective horizon: {effective} steps ({ahead}), without a gap from the first step on."
        )
    if evaluation.horizons.longest_confident_run is None:
        return "Effective horizon: 0 steps."
    return (
        "Counted without a gap from the first step on, the effective horizon is 0: one step ahead "
        "it is not better than repeating the last observed frame with 95 % confidence."
    )


def _actions(evaluation: Evaluation, gap: GainCurve) -> str:
    horizon = _headline_horizon(gap)
    figure = with_interval(gap, horizon, 1)
    at = f"at {at_horizon(evaluation, horizon)}"
    over = count(len(evaluation.episodes), "episode")
    if not evaluation.can_claim:
        return f"True actions minus shuffled ones: {figure} dB {at}, over {over}."
    if gap.is_certain[horizon - 1]:
        return f"True actions beat shuffled ones by {figure} dB {at}, over {over}."
    return (
        f"True actions are not better than shuffled ones with 95 % confidence {at}, over {over}: "
        f"{figure} dB."
    )


def _figures(evaluation: Evaluation, curves: Mapping[str, Curve]) -> str:
    horizon = _headline_horizon(curves["model"])
    psnr = {name: curve.mean[horizon - 1] for name, curve in curves.items()}
    return (
        f"At {at_horizon(evaluation, horizon)} its PSNR is {psnr['model']:.1f} dB, persistence's "
        f"{psnr['persistence']:.1f} dB, and that of the true frame through the tokenizer, about "
        f"the best this model could do, {psnr['reconstruction_anchored']:.1f} dB."
    )


def _headline_horizon(curve: Curve) -> int:
    """The usual horizon, or the known one nearest to it: pixels may change sooner or later only."""
    known = np.flatnonzero(np.isfinite(curve.mean)) + 1
    return int(min(known, key=lambda horizon: abs(horizon - HEADLINE_HORIZON)))


def _likelihood(evaluation: Evaluation) -> list[str]:
    """A sentence if probabilities of the model mean nothing; bad news only."""
    nll = evaluation.token_nll
    if "uniform" not in nll:
        return []
    worse = np.flatnonzero(nll["model"].mean >= nll["uniform"].mean)
    if not len(worse):
        return []
    return [
        "The model's likelihood of the true frame is no better than that of a uniform guess at "
        f"{len(worse)} of {evaluation.num_horizons} horizons, the first "
        f"{at_horizon(evaluation, int(worse[0]) + 1)}: how sure it is means little there."
    ]


def with_interval(curve: Curve, horizon: int, digits: int) -> str:
    """``2.1 (1.8 to 2.4)``, or the mean only where there is no interval."""
    mean, low, high = (array[horizon - 1] for array in (curve.mean, curve.low, curve.high))
    if mean != mean:  # NaN: no episode has it
        return "–"
    if low != low:  # NaN: one episode only
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
