"""Gain curves made by hand, and evaluations that have them."""

from dataclasses import replace

import numpy as np

from tokenwm.evaluation.metrics import GainCurve, summarize_gain
from tokenwm.evaluation.results import Evaluation


def curve(mean: list[float], half: float = 0.5) -> GainCurve:
    """Of an interval of one horizon alone half as wide as what holds at all of them."""
    values = np.array(mean)
    return GainCurve(
        mean=values, low=values - half / 2, high=values + half / 2, simultaneous_low=values - half
    )


def with_gain(evaluation: Evaluation, gain: GainCurve, num_episodes: int = 6) -> Evaluation:
    """The evaluation, as if it had so many episodes and this gain, and less where pixels change.

    The random model's likelihood is worse than uniform; here it is not.
    """
    nll = evaluation.token_nll["uniform"]
    return replace(
        evaluation,
        token_nll={**evaluation.token_nll, "model": replace(nll, mean=nll.mean - 1)},
        psnr_gain=gain,
        psnr_changed_gain=replace(gain, mean=gain.mean - 0.1),
        horizons=summarize_gain(gain),
        episodes=(evaluation.episodes * num_episodes)[:num_episodes],
    )
