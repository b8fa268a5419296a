"""The findings of an evaluation in words; bad news as plainly as good."""

from tokenwm.evaluation.metrics import MIN_EPISODES, Curve
from tokenwm.evaluation.outside import OutsideTraining
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.words import count as count

HEADLINE_HORIZON = 5
TABLE_HORIZONS = (1, 3, 5, 10, 15, 20)
DEAD_CODEBOOK, OUTSIDE, OTHER_SPLITS = "DEAD CODEBOOK", "OUTSIDE TRAINING", "OTHER SPLITS"
ALARMS = (DEAD_CODEBOOK, OUTSIDE, OTHER_SPLITS)
"""Beginnings of sentences that are to be shown in red."""


def table_horizons(evaluation: Evaluation) -> list[int]:
    """Horizons that tables show: the usual ones that were measured, and the last."""
    last = evaluation.num_horizons
    return sorted({horizon for horizon in TABLE_HORIZONS if horizon < last} | {last})


def headline(evaluation: Evaluation) -> list[str]:
    """A few sentences, the most important first."""
    sentences = [_persistence(evaluation), _effective(evaluation), _actions(evaluation)]
    sentences.append(_tokenizer(evaluation))
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
            f"{OTHER_SPLITS}: the model was trained on the same recordings under other splits, so "
            "it may know some of these episodes. Prepare them with the splits of its training.",
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


def _persistence(evaluation: Evaluation) -> str:
    horizons, gain = evaluation.horizons, evaluation.psnr_gain
    last = evaluation.num_horizons
    known = "training " if evaluation.provenance["split"] == "train" else ""
    over = f"On {count(len(evaluation.episodes), f'{known}episode')}"
    best = int(gain.mean.argmax())
    at_best = f"at best by {gain.mean[best]:.1f} dB, at horizon {best + 1}"
    run = horizons.longest_confident_run
    if run is not None:
        several = f"from horizon {run[0]} to {run[1]} with 95 % confidence for all of these at once"
        where = f"at horizon {run[0]} with 95 % confidence" if run[0] == run[1] else several
        return f"{over} the model beats persistence {where} (of {last} steps imagined; {at_best})."
    if horizons.first_better is not None and not evaluation.can_claim:
        return (
            f"{over} the model's mean is better than persistence's first at horizon "
            f"{horizons.first_better} (of {last} steps imagined; {at_best})."
        )
    if horizons.first_better is not None:
        return (
            f"{over} the model does not beat persistence with confidence at any horizon up to "
            f"{last}; its mean is better first at horizon {horizons.first_better}."
        )
    loss = f"{-gain.mean[best]:.1f}"
    at_best = "as good as it" if loss in ("0.0", "-0.0") else f"{loss} dB worse"
    return (
        f"{over} the model does not beat persistence at any horizon up to {last}: at best it is "
        f"{at_best}, at horizon {best + 1}."
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
        seconds = effective / evaluation.control_rate
        return (
            f"Effective horizon: {effective} steps ({seconds:.1f} s), without a gap from the "
            "first step on."
        )
    if evaluation.horizons.longest_confident_run is None:
        return "Effective horizon: 0 steps."
    return (
        "Counted without a gap from the first step on, the effective horizon is 0: one step ahead "
        "it is not better than repeating the last observed frame with 95 % confidence."
    )


def _actions(evaluation: Evaluation) -> str:
    gap = evaluation.action_gap
    if gap is None:
        return "There was one start only, so actions could not be shuffled."
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    figure = with_interval(gap, horizon, 1)
    over = count(len(evaluation.episodes), "episode")
    if not evaluation.can_claim:
        return f"True actions minus shuffled ones: {figure} dB at horizon {horizon}, over {over}."
    if gap.is_certain[horizon - 1]:
        return f"True actions beat shuffled ones by {figure} dB at horizon {horizon}, over {over}."
    return (
        "True actions are not better than shuffled ones with 95 % confidence at horizon "
        f"{horizon}, over {over}: {figure} dB."
    )


def _tokenizer(evaluation: Evaluation) -> str:
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    psnr = {name: curve.mean[horizon - 1] for name, curve in evaluation.psnr.items()}
    return (
        f"At horizon {horizon} PSNR is {psnr['model']:.1f} dB, of persistence "
        f"{psnr['persistence']:.1f} dB; the tokenizer's own reconstruction of the true frame "
        f"reaches {psnr['reconstruction']:.1f} dB, anchored {psnr['reconstruction_anchored']:.1f} "
        "dB, which is about the best this model could do."
    )


def with_interval(curve: Curve, horizon: int, digits: int) -> str:
    """``2.1 (1.8 to 2.4)``, or the mean only where there is no interval."""
    mean, low, high = (array[horizon - 1] for array in (curve.mean, curve.low, curve.high))
    if low != low:  # NaN: one episode only
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
