"""What an evaluation says, in words; bad news as plainly as good."""

from tokenwm.uses.metrics import Curve
from tokenwm.uses.results import Evaluation

HEADLINE_HORIZON = 5
TABLE_HORIZONS = (1, 3, 5, 10, 15, 20)


def table_horizons(evaluation: Evaluation) -> list[int]:
    """Horizons that tables show: the usual ones that were measured, and the last."""
    last = evaluation.num_horizons
    return sorted({horizon for horizon in TABLE_HORIZONS if horizon < last} | {last})


def headline(evaluation: Evaluation) -> list[str]:
    """A few sentences, the most important first."""
    sentences = [_persistence(evaluation), _effective(evaluation), _actions(evaluation)]
    sentences.append(_tokenizer(evaluation))
    if evaluation.codebook.is_dead:
        book = evaluation.codebook
        sentences.insert(
            0,
            f"DEAD CODEBOOK: only {book.num_used} of {book.codebook_size} codes are in use. The "
            "tokenizer has collapsed; nothing below can be trusted before it is trained again.",
        )
    return sentences


def _persistence(evaluation: Evaluation) -> str:
    horizons, gain = evaluation.horizons, evaluation.psnr_gain
    last = evaluation.num_horizons
    run = horizons.longest_confident_run
    if run is not None:
        where = f"at horizon {run[0]}" if run[0] == run[1] else f"from horizon {run[0]} to {run[1]}"
        best = int(gain.mean.argmax())
        return (
            f"The model beats persistence {where} with 95 % confidence (of {last} steps imagined; "
            f"at best by {gain.mean[best]:.1f} dB, at horizon {best + 1})."
        )
    if horizons.first_better is not None and not evaluation.has_intervals:
        best = int(gain.mean.argmax())
        return (
            "On the one episode that was measured the model is better than persistence first at "
            f"horizon {horizons.first_better} (of {last} steps imagined; at best by "
            f"{gain.mean[best]:.1f} dB, at horizon {best + 1})."
        )
    if horizons.first_better is not None:
        return (
            f"The model does not beat persistence with confidence at any horizon up to {last}; its "
            f"mean is better first at horizon {horizons.first_better}."
        )
    best = int(gain.mean.argmax())
    loss = f"{-gain.mean[best]:.1f}"
    at_best = "as good as it" if loss in ("0.0", "-0.0") else f"{loss} dB worse"
    return (
        f"The model does not beat persistence at any horizon up to {last}: at best it is "
        f"{at_best}, at horizon {best + 1}."
    )


def _effective(evaluation: Evaluation) -> str:
    if not evaluation.has_intervals:
        return (
            "With one episode there is no interval over episodes: nothing here is certain, and "
            "there is no effective horizon. More episodes for splits.test in the recipe give one."
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
    if not evaluation.has_intervals:
        return f"True actions minus shuffled ones: {figure} dB at horizon {horizon}."
    if gap.low[horizon - 1] > 0:
        return f"True actions beat shuffled ones by {figure} dB at horizon {horizon}."
    return (
        "True actions are not better than shuffled ones with 95 % confidence at horizon "
        f"{horizon}: {figure} dB."
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
