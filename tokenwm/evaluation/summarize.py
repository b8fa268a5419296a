"""Scores of single starts → figures over episodes, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenwm.data.shards.manifest import Manifest
from tokenwm.evaluation.figures import (
    ChangedPixels,
    EpisodeResult,
    PlantedCodes,
    StateErrors,
    TerminationScore,
)
from tokenwm.evaluation.metrics import (
    Curve,
    FloatArray,
    GainCurve,
    copy_nll,
    gain_curve,
    interval_curve,
    mean_of_known,
    psnr_from_mse,
    summarize_gain,
)
from tokenwm.evaluation.pixels import CHANGE_THRESHOLD
from tokenwm.evaluation.planted import OUTCOMES
from tokenwm.evaluation.scores import RowScores
from tokenwm.evaluation.task_state import summarize_task_state
from tokenwm.imagination.starts import Starts
from tokenwm.imagination.token_world_model import TokenWorldModel

TERMINATION_THRESHOLD = 0.5


def summarize_scores(
    model: TokenWorldModel, manifests: Sequence[Manifest], starts: Starts, scores: RowScores
) -> dict[str, Any]:
    """Scores of rows → fields of :class:`Evaluation`: means over starts, then over episodes.

    Args:
        model: The model that was measured; of several of one configuration, any.
        manifests: The dataset that each row's model was trained on: errors are set against
            the figures of the training data.
        starts: The rows.
        scores: Scores of the rows.
    """
    keys = [row.key for row in starts.rows]

    def curve(values: FloatArray) -> Curve:
        return interval_curve(over_episodes(values, keys))

    mse = {n: table for n, table in scores.mse.items() if not np.isnan(table).any()}
    psnr = {name: psnr_from_mse(over_episodes(table, keys)) for name, table in mse.items()}
    changed = {name: psnr_from_mse(over_episodes(scores.mse_changed[name], keys)) for name in mse}
    gain = gain_curve(psnr["model"] - psnr["persistence"])
    accuracy = scores.token_accuracy
    num_codes = model.vocabulary.codebook_size
    nll = {
        "model": scores.token_nll,
        "persistence": copy_nll(accuracy["persistence"], num_codes),
        "uniform": np.full_like(scores.token_nll, np.log(num_codes)),
    }
    return {
        "changed": _changed_pixels(scores, keys),
        "psnr_changed": {name: interval_curve(values) for name, values in changed.items()},
        "psnr_changed_gain": gain_curve(changed["model"] - changed["persistence"]),
        "action_gap_changed": _action_gap(changed),
        "ssim_changed": {name: curve(scores.ssim_changed[name]) for name in mse},
        "psnr": {name: interval_curve(values) for name, values in psnr.items()},
        "psnr_pooled": {name: psnr_from_mse(table.mean(axis=0)) for name, table in mse.items()},
        "psnr_gain": gain,
        "psnr_gain_plain": gain_curve(psnr["model_plain"] - psnr["persistence"]),
        "action_gap": _action_gap(psnr),
        "ssim": {name: curve(scores.ssim[name]) for name in mse},
        "lpips": {name: curve(scores.lpips[name]) for name in mse} if scores.lpips else None,
        "token_accuracy": {n: curve(t) for n, t in accuracy.items() if not np.isnan(t).any()},
        "token_nll": {name: curve(table) for name, table in nll.items()},
        "nll_gain": gain_curve(over_episodes(nll["uniform"] - nll["model"], keys)),
        "planted": _planted(scores, keys),
        "state": _state_errors(manifests, scores, keys),
        "reward_error": _reward_errors(manifests, scores, keys, np.abs),
        "reward_squared_error": _reward_errors(manifests, scores, keys, np.square),
        "termination": _termination(scores, keys),
        "task_state": summarize_task_state(manifests, scores.task_state, keys),
        "horizons": summarize_gain(gain),
        "episodes": tuple(
            EpisodeResult(
                key=key,
                first_steps=tuple(row.first_step for row in starts.rows if row.key == key),
                psnr={name: values[index] for name, values in psnr.items()},
                psnr_changed={name: values[index] for name, values in changed.items()},
            )
            for index, key in enumerate(starts.keys)
        ),
    }


def over_episodes(values: FloatArray, keys: Sequence[str]) -> FloatArray:
    """Mean over the starts of each episode: ``(rows, ...)`` → ``(episodes, ...)``, order kept.

    Starts without a value (NaN) are left out; an episode where none has one has none itself.
    """
    names = list(dict.fromkeys(keys))
    groups = np.array([names.index(key) for key in keys])
    return np.stack([mean_of_known(values[groups == index]) for index in range(len(names))])


def _action_gap(psnr: Mapping[str, FloatArray]) -> GainCurve | None:
    """The gap of true and shuffled actions, from the PSNR of each episode; None without those."""
    return gain_curve(psnr["model"] - psnr["shuffled"]) if "shuffled" in psnr else None


def _changed_pixels(scores: RowScores, keys: Sequence[str]) -> ChangedPixels:
    has_changed = np.where(scores.share_changed > 0, 1.0, 0.0)
    return ChangedPixels(
        threshold=CHANGE_THRESHOLD,
        share=over_episodes(scores.share_changed, keys).mean(axis=0),
        num_starts=tuple(has_changed.sum(axis=0).astype(int).tolist()),
        num_episodes=tuple((over_episodes(has_changed, keys) > 0).sum(axis=0).tolist()),
    )


def _planted(scores: RowScores, keys: Sequence[str]) -> PlantedCodes:
    counts = dict(zip(OUTCOMES, scores.planted.sum(axis=0).tolist(), strict=True))
    per_start = scores.planted[:, :3].sum(axis=1)
    return PlantedCodes(
        num_planted=int(per_start.sum()),
        num_repaired=counts["repaired"],
        num_copied=counts["copied"],
        num_other=counts["other"],
        num_right_unplanted=counts["right_unplanted"],
        num_starts=int((per_start > 0).sum()),
        num_episodes=len({key for key, number in zip(keys, per_start, strict=True) if number}),
    )


def _state_errors(
    manifests: Sequence[Manifest], scores: RowScores, keys: Sequence[str]
) -> StateErrors | None:
    if not scores.state_error:
        return None
    feature = manifests[0].features["state"]
    deviations = [manifest.statistics.get("state", {}).get("std", ()) for manifest in manifests]
    std = np.asarray(deviations, dtype=np.float64)  # (rows, state_dim), or (rows, 0)
    moves = (std > 1e-6).all(axis=0)
    normalized = None
    if moves.any():
        std = std[:, None, moves]
        normalized = {
            name: interval_curve(over_episodes((errors[..., moves] / std).mean(-1), keys))
            for name, errors in scores.state_error.items()
        }
    return StateErrors(
        absolute={
            name: interval_curve(over_episodes(errors.mean(-1), keys))
            for name, errors in scores.state_error.items()
        },
        normalized=normalized,
        per_dimension={
            name: over_episodes(errors, keys).mean(axis=0)
            for name, errors in scores.state_error.items()
        },
        names=feature.names,
        units=feature.units,
    )


def _reward_errors(
    manifests: Sequence[Manifest],
    scores: RowScores,
    keys: Sequence[str],
    size: Callable[[FloatArray], FloatArray],
) -> Mapping[str, Curve] | None:
    if not scores.reward:
        return None
    truth = scores.reward["truth"]
    guesses = {"model": scores.reward["model"]}
    means = [manifest.statistics.get("reward", {}).get("mean", ()) for manifest in manifests]
    if all(np.size(mean) for mean in means):
        per_row = np.asarray(means, dtype=np.float64).reshape(-1, 1)
        guesses["training_mean"] = np.broadcast_to(per_row, truth.shape)
    return {
        name: interval_curve(over_episodes(size(guess - truth), keys))
        for name, guess in guesses.items()
    }


def _termination(scores: RowScores, keys: Sequence[str]) -> TerminationScore | None:
    horizon = scores.terminated.shape[1]
    steps, true, predicted, hits = np.zeros((4, horizon), dtype=np.int64)
    for probability, ended in [
        (scores.termination_probability, scores.terminated),
        *scores.endings,
    ]:
        foreseen, first = probability >= TERMINATION_THRESHOLD, slice(0, ended.shape[1])
        steps[first] += len(ended)
        true[first] += ended.sum(axis=0)
        predicted[first] += foreseen.sum(axis=0)
        hits[first] += (foreseen & ended).sum(axis=0)
    if not true.any():
        return None
    with_end = {key for key, row in zip(keys, scores.terminated, strict=True) if row.any()}
    return TerminationScore(
        threshold=TERMINATION_THRESHOLD,
        num_episodes=len(with_end.union(scores.ending_keys)),
        num_steps=int(steps.sum()),
        num_true=int(true.sum()),
        num_predicted=int(predicted.sum()),
        num_hits=int(hits.sum()),
        true_per_horizon=tuple(true.tolist()),
        hits_per_horizon=tuple(hits.tolist()),
    )
