"""Findings about mistakes, flicker, endings and rewards, in words."""

import math

from tokenwm.evaluation.figures import Flicker, PlantedCodes, TerminationScore
from tokenwm.evaluation.report.headline import HEADLINE_HORIZON, at_horizon, percent
from tokenwm.evaluation.report.plots import LABELS
from tokenwm.evaluation.results import Evaluation
from tokenwm.pages.words import count


def outcome_sentences(evaluation: Evaluation) -> list[str]:
    """Sentences about mistakes, flicker, endings and rewards."""
    found = [_planted(evaluation.planted), _flicker(evaluation.flicker)]
    return [*filter(None, found), _endings(evaluation.termination), _rewards(evaluation)]


def _planted(planted: PlantedCodes | None) -> str:
    if planted is None:
        return ""
    total = planted.num_planted
    if not total:
        return "No slot of the frames stays the same for long enough to plant a wrong code in it."
    shares = [
        f"{percent(number / total)} {what}"
        for number, what in (
            (planted.num_repaired, "were repaired one step later"),
            (planted.num_copied, "copied on"),
            (planted.num_other, "became another wrong code"),
        )
    ]
    return (
        f"Mistakes: of {count(total, 'wrong code')} planted one at a time into still slots of the "
        f"last observed frame ({count(planted.num_starts, 'start')}, "
        f"{count(planted.num_episodes, 'episode')}), {', '.join(shares)}; unplanted, "
        f"{percent(planted.num_right_unplanted / total)} of these slots are right."
    )


def _flicker(flicker: Flicker | None) -> str:
    if flicker is None:
        return ""
    recorded, *noisy = zip(flicker.noise_levels, flicker.changed, strict=True)
    under = ", ".join(f"{percent(share)} under noise of ±{level}" for level, share in noisy)
    return (
        f"Flicker: {percent(recorded[1])} of the tokens change from one recorded frame to the "
        f"next, {under} of 255 levels ({count(flicker.num_episodes, 'episode')}). What noise "
        "changes cannot be predicted."
    )


def _endings(score: TerminationScore | None) -> str:
    if score is None:
        return "No measured step ends its task, so endings were not scored."
    horizons = [
        f"{horizon}: {hits} of {true}"
        for horizon, (true, hits) in enumerate(
            zip(score.true_per_horizon, score.hits_per_horizon, strict=True), start=1
        )
        if true
    ]
    precision = (
        "none was predicted" if score.precision is None else f"precision {score.precision:.2f}"
    )
    alarms = score.num_predicted - score.num_hits
    return (
        f"Endings: {count(score.num_episodes, 'episode')} that ended, imagined up to the end "
        f"{score.num_true} times among {score.num_steps} measured steps; recall "
        f"{score.recall:.2f} at the very step (by horizon, {', '.join(horizons)}), {precision} "
        f"({score.num_predicted} predicted with a probability of at least {score.threshold:g}, "
        f"{alarms} of them where nothing ended)."
    )


def _rewards(evaluation: Evaluation) -> str:
    errors, squared = evaluation.reward_error, evaluation.reward_squared_error
    if errors is None or squared is None:
        return "Rewards were not recorded or are not modelled."
    horizon = min(HEADLINE_HORIZON, evaluation.num_horizons)
    parts = []
    for name, curve in errors.items():
        root = math.sqrt(squared[name].mean[horizon - 1])
        parts.append(f"{curve.mean[horizon - 1]:.3g} ({root:.3g}) of {LABELS[name]}")
    over = count(len(evaluation.episodes), "episode")
    return (
        f"Reward error at {at_horizon(evaluation, horizon)}, over {over}, mean absolute "
        f"(root mean square): {', '.join(parts)}."
    )
