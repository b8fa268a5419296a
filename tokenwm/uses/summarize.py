"""Scores of single starts → figures over episodes, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tokenwm.data.manifest import Manifest
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.uses.measure import RowScores
from tokenwm.uses.metrics import (
    Curve,
    FloatArray,
    bootstrap_curve,
    copy_nll,
    psnr_from_mse,
    summarize_gain,
)
from tokenwm.uses.results import EpisodeResult, StateErrors, TerminationScore
from tokenwm.uses.starts import Starts

TERMINATION_THRESHOLD = 0.5


def summarize_scores(
    model: TokenWorldModel,
    manifest: Manifest,
    starts: Starts,
    scores: RowScores,
    seed: int,
) -> dict[str, Any]:
    """Scores of rows → fields of :class:`Evaluation`: means over starts, then over episodes."""
    keys = [row.key for row in starts.rows]

    def curve(values: FloatArray) -> Curve:
        return bootstrap_curve(over_episodes(values, keys), seed=seed)

    def difference(left: FloatArray, right: FloatArray) -> Curve:
        return bootstrap_curve(left - right, seed=seed)

    mse = {n: table for n, table in scores.mse.items() if not np.isnan(table).any()}
    psnr = {name: psnr_from_mse(over_episodes(table, keys)) for name, table in mse.items()}
    gain = difference(psnr["model"], psnr["persistence"])
    accuracy = scores.token_accuracy
    nll = {
        "model": scores.token_nll,
        "persistence": copy_nll(accuracy["persistence"], model.vocabulary.codebook_size),
    }
    return {
        "psnr": {name: bootstrap_curve(values, seed=seed) for name, values in psnr.items()},
        "psnr_pooled": {name: psnr_from_mse(table.mean(axis=0)) for name, table in mse.items()},
        "psnr_gain": gain,
        "psnr_gain_plain": difference(psnr["model_plain"], psnr["persistence"]),
        "action_gap": difference(psnr["model"], psnr["shuffled"]) if "shuffled" in psnr else None,
        "ssim": {name: curve(scores.ssim[name]) for name in mse},
        "token_accuracy": {n: curve(t) for n, t in accuracy.items() if not np.isnan(t).any()},
        "token_nll": {name: curve(table) for name, table in nll.items()},
        "state": _state_errors(manifest, scores, keys, seed),
        "reward_error": _reward_errors(manifest, scores, keys, seed, np.abs),
        "reward_squared_error": _reward_errors(manifest, scores, keys, seed, np.square),
        "termination": _termination(scores),
        "horizons": summarize_gain(gain),
        "episodes": tuple(
            EpisodeResult(
                key=key,
                first_steps=tuple(row.first_step for row in starts.rows if row.key == key),
                psnr={name: values[index] for name, values in psnr.items()},
            )
            for index, key in enumerate(starts.keys)
        ),
    }


def over_episodes(values: FloatArray, keys: Sequence[str]) -> FloatArray:
    """Mean over the starts of each episode: ``(rows, ...)`` → ``(episodes, ...)``, order kept."""
    names = list(dict.fromkeys(keys))
    groups = np.array([names.index(key) for key in keys])
    return np.stack([values[groups == index].mean(axis=0) for index in range(len(names))])


def _state_errors(
    manifest: Manifest, scores: RowScores, keys: Sequence[str], seed: int
) -> StateErrors | None:
    if not scores.state_error:
        return None
    feature = manifest.features["state"]
    std = np.asarray(manifest.statistics.get("state", {}).get("std", ()), dtype=np.float64)
    moves = std > 1e-6
    normalized = None
    if moves.any():
        normalized = {
            name: bootstrap_curve(
                over_episodes((errors[..., moves] / std[moves]).mean(-1), keys), seed=seed
            )
            for name, errors in scores.state_error.items()
        }
    return StateErrors(
        absolute={
            name: bootstrap_curve(over_episodes(errors.mean(-1), keys), seed=seed)
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
    manifest: Manifest,
    scores: RowScores,
    keys: Sequence[str],
    seed: int,
    size: Callable[[FloatArray], FloatArray],
) -> Mapping[str, Curve] | None:
    if not scores.reward:
        return None
    truth = scores.reward["truth"]
    guesses = {"model": scores.reward["model"]}
    mean = manifest.statistics.get("reward", {}).get("mean")
    if mean is not None:
        guesses["training_mean"] = np.full_like(truth, float(np.ravel(mean)[0]))
    return {
        name: bootstrap_curve(over_episodes(size(guess - truth), keys), seed=seed)
        for name, guess in guesses.items()
    }


def _termination(scores: RowScores) -> TerminationScore | None:
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
    return TerminationScore(
        threshold=TERMINATION_THRESHOLD,
        num_steps=int(steps.sum()),
        num_true=int(true.sum()),
        num_predicted=int(predicted.sum()),
        num_hits=int(hits.sum()),
        true_per_horizon=tuple(true.tolist()),
        hits_per_horizon=tuple(hits.tolist()),
    )
