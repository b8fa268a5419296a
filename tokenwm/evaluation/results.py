"""The findings of an evaluation: plain records, and their form in ``metrics.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, get_type_hints

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.figures import (
    ChangedPixels,
    CodebookUse,
    EpisodeResult,
    Example,
    Flicker,
    PlantedCodes,
    Speed,
    StateErrors,
    TerminationScore,
)
from tokenwm.evaluation.metrics import (
    CLAIM_ERROR,
    CONFIDENCE,
    LEAST_SHARES,
    MIN_EPISODES,
    Curve,
    FloatArray,
    GainCurve,
    HorizonSummary,
    summarize_gain,
)
from tokenwm.evaluation.outside import OutsideTraining
from tokenwm.evaluation.task_state import TaskStateErrors
from tokenwm.strict import from_plain, plain

METRICS_VERSION = 3
KEYS = {
    "psnr_gain": "psnr_gain_over_persistence",
    "psnr_gain_plain": "psnr_gain_over_persistence_plain",
    "action_gap": "psnr_action_gap",
    "psnr_changed_gain": "psnr_changed_gain_over_persistence",
    "action_gap_changed": "psnr_changed_action_gap",
    "nll_gain": "nll_gain_over_uniform",
    "state": "state_error",
    "outside": "outside_training",
    "horizons": "beats_persistence",
    "skipped": "skipped_episodes",
}
"""Field of :class:`Evaluation` → its key in ``metrics.json``, where they differ."""


SINCE_3 = (
    "changed",
    "psnr_changed",
    "psnr_changed_gain_over_persistence",
    "psnr_changed_action_gap",
    "ssim_changed",
    "lpips",
    "nll_gain_over_uniform",
    "planted",
    "flicker",
    "task_state",
)
"""Keys that version 2 did not have."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation found; curves are over horizons 1 to ``H``.

    Attributes:
        control_rate: Steps per second, Hz.
        changed: The pixels that changed since the last observed frame; None in reports of older
            versions, as everything ``_changed``.
        psnr_changed: PSNR over these pixels, dB; otherwise like ``psnr``.
        psnr_changed_gain: Paired difference of ``model`` and ``persistence`` there, dB.
        action_gap_changed: Paired difference of true and shuffled actions there, dB, or None.
        ssim_changed: Mean of the SSIM map over these pixels.
        psnr: Per entry of :data:`tokenwm.evaluation.scores.PICTURES`, dB.
        psnr_pooled: PSNR of the MSE over all episodes together; ``(H,)``.
        psnr_gain: Paired difference of ``model`` and ``persistence``, dB.
        psnr_gain_plain: Like ``psnr_gain``, without anchored decoding.
        action_gap: Paired difference of true and shuffled actions, dB (ΔPSNR), or None.
        ssim: Per entry of ``PICTURES``.
        lpips: Per entry of ``PICTURES``, or None if it was not asked for.
        token_accuracy: ``model``, ``persistence`` and ``shuffled``.
        token_nll: ``model``, ``persistence`` and ``uniform``, nats per token.
        nll_gain: Paired difference of ``uniform`` and ``model``, nats per token; above zero the
            model is better. None in reports of older versions.
        planted: What becomes of wrong codes in the last observed frame, or None.
        flicker: Tokens that change from frame to frame with and without noise, or None.
        state: Errors of the state, or None.
        reward_error: ``model`` and ``training_mean``: mean absolute error of the reward, or None.
        reward_squared_error: Mean squared error, which an expectation makes least; the mean of what
            may be is no good guess where the absolute error counts.
        termination: How well endings are foreseen, or None if no measured step ends.
        task_state: Errors of where the object is, or None if the dataset does not know.
        num_models: How many models were measured, each on episodes held out from it.
        has_other_splits: Whether the data are those of the training divided otherwise, so that the
            model may know episodes that are held out now.
        outside: How far the measured episodes lie outside what was trained on.
        codebook: Use of the codebook; of several models the one that uses least of its own.
        speed: Time of imagination; of several models the first one's.
        horizons: Where the model beats persistence.
        episodes: Per episode.
        skipped: Key → steps of episodes that were too short.
        examples: Pictures; not in ``metrics.json``.
        provenance: Model, data, versions and settings.
    """

    control_rate: float
    changed: ChangedPixels | None
    psnr_changed: Mapping[str, Curve] | None
    psnr_changed_gain: GainCurve | None
    action_gap_changed: GainCurve | None
    ssim_changed: Mapping[str, Curve] | None
    psnr: Mapping[str, Curve]
    psnr_pooled: Mapping[str, FloatArray]
    psnr_gain: GainCurve
    psnr_gain_plain: GainCurve
    action_gap: GainCurve | None
    ssim: Mapping[str, Curve]
    lpips: Mapping[str, Curve] | None
    token_accuracy: Mapping[str, Curve]
    token_nll: Mapping[str, Curve]
    nll_gain: GainCurve | None
    planted: PlantedCodes | None
    flicker: Flicker | None
    state: StateErrors | None
    reward_error: Mapping[str, Curve] | None
    reward_squared_error: Mapping[str, Curve] | None
    termination: TerminationScore | None
    task_state: TaskStateErrors | None
    num_models: int
    has_other_splits: bool
    outside: OutsideTraining
    codebook: CodebookUse
    speed: Speed
    horizons: HorizonSummary
    episodes: tuple[EpisodeResult, ...]
    skipped: Mapping[str, int]
    examples: tuple[Example, ...]
    provenance: Mapping[str, Any]

    @property
    def num_horizons(self) -> int:
        """``H``."""
        return len(self.psnr_gain.mean)

    @property
    def horizon_seconds(self) -> list[float]:
        """Seconds from the last observed frame to each horizon, ``(H,)``."""
        return [horizon / self.control_rate for horizon in range(1, self.num_horizons + 1)]

    @property
    def horizons_changed(self) -> HorizonSummary | None:
        """Horizons at which the model beats persistence on changed pixels."""
        gain = self.psnr_changed_gain
        return None if gain is None else summarize_gain(gain)

    @property
    def num_starts(self) -> int:
        """Starts of all episodes together."""
        return sum(len(episode.first_steps) for episode in self.episodes)

    @property
    def has_intervals(self) -> bool:
        """True if there are intervals: they are over episodes, and one episode has no spread."""
        return len(self.episodes) > 1

    @property
    def can_claim(self) -> bool:
        """True if there are enough episodes to claim anything with confidence."""
        return len(self.episodes) >= MIN_EPISODES

    def to_dict(self) -> dict[str, Any]:
        """The content of ``metrics.json``; null where there is no value, never NaN."""
        return {
            "metrics_version": METRICS_VERSION,
            "horizons": list(range(1, self.num_horizons + 1)),
            "horizon_seconds": self.horizon_seconds,
            "num_episodes": len(self.episodes),
            "num_starts": self.num_starts,
            "intervals": {
                "kind": "student_t",
                "over": "episodes",
                "confidence": CONFIDENCE,
                "min_episodes_for_claims": MIN_EPISODES,
                "simultaneous_error": CLAIM_ERROR,
                "simultaneous_shares": max(self.num_horizons, LEAST_SHARES),
            },
            **{key: plain(getattr(self, name)) for name, key in _keys().items()},
            "beats_persistence_changed": plain(self.horizons_changed),
            "beats_uniform": plain(self.nll_gain and summarize_gain(self.nll_gain)),
            "examples": [
                {"key": example.key, "first_step": example.first_step, "rank": example.rank}
                for example in self.examples
            ],
        }

    @classmethod
    def from_dict(cls, metrics: Mapping[str, Any]) -> "Evaluation":
        """An evaluation from what ``metrics.json`` holds; without examples, which are files.

        Of version 2 there are no figures of changed pixels, planted codes and flicker.

        Raises:
            TokenwmError: It is of another version, or no such table.
        """
        try:
            version = metrics["metrics_version"]
            if version not in (2, METRICS_VERSION):
                raise TokenwmError(f"metrics_version is {version}; expected 2 or {METRICS_VERSION}")
            hints = get_type_hints(cls)
            known = _with_clipped(_with_keys_since_3(metrics) if version == 2 else metrics)
            values = {name: from_plain(hints[name], known[key]) for name, key in _keys().items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TokenwmError(f"these are no metrics of an evaluation: {error!r}") from error
        return cls(**values, examples=())


def _keys() -> dict[str, str]:
    """Field of :class:`Evaluation` → key in ``metrics.json``, of all that is stored as it is."""
    names = (item.name for item in fields(Evaluation) if item.name != "examples")
    return {name: KEYS.get(name, name) for name in names}


def _with_clipped(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Reports from before bins had a margin: all values outside were clipped, ids never are."""
    outside = metrics["outside_training"]
    values = [
        {"clipped_share": item["share"] if item["worst_excess"] else 0.0, **item}
        for item in outside["values"]
    ]
    return {**metrics, "outside_training": {**outside, "values": values}}


def _with_keys_since_3(metrics: Mapping[str, Any]) -> dict[str, Any]:
    episodes = [{"psnr_changed": None, **episode} for episode in metrics["episodes"]]
    return {**dict.fromkeys(SINCE_3), **metrics, "episodes": episodes}
