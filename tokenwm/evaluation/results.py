"""The findings of an evaluation: plain records, and their form in ``metrics.json``."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, get_type_hints

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import (
    CLAIM_ERROR,
    CONFIDENCE,
    LEAST_SHARES,
    MIN_EPISODES,
    Curve,
    FloatArray,
    GainCurve,
    HorizonSummary,
)
from tokenwm.evaluation.outside import OutsideTraining
from tokenwm.strict import from_plain, plain
from tokenwm.tokenizer.frames import DEAD_CODEBOOK_SHARE

METRICS_VERSION = 2
KEYS = {
    "psnr_gain": "psnr_gain_over_persistence",
    "psnr_gain_plain": "psnr_gain_over_persistence_plain",
    "action_gap": "psnr_action_gap",
    "state": "state_error",
    "outside": "outside_training",
    "horizons": "beats_persistence",
    "skipped": "skipped_episodes",
}
"""Field of :class:`Evaluation` → its key in ``metrics.json``, where they differ."""


@dataclass(frozen=True, kw_only=True)
class StateErrors:
    """Errors of the predicted proprioception.

    Attributes:
        absolute: ``model``, ``persistence``, ``quantization``: absolute error in the units of the
            data, mean over dimensions.
        normalized: Like ``absolute``, in standard deviations of each dimension over the training
            data; dimensions that never move are left out. None if that deviation is not known.
        per_dimension: Like ``absolute``, but per dimension, ``(H, state_dim)``, without
            intervals.
        names: Names of the dimensions; may be empty.
        units: Unit of the data; may be empty.
    """

    absolute: Mapping[str, Curve]
    normalized: Mapping[str, Curve] | None
    per_dimension: Mapping[str, FloatArray]
    names: tuple[str, ...]
    units: str


@dataclass(frozen=True, kw_only=True)
class TerminationScore:
    """Figures of predicted endings, over all imagined steps, those of further starts included.

    The further starts lie before endings, so endings are more frequent here than in the data;
    recall does not depend on that, precision is the better for it.

    Attributes:
        threshold: An ending is predicted where its probability is at least this.
        num_episodes: Episodes whose end was among the imagined steps.
        num_steps: Imagined steps.
        num_true: Steps that really ended the task.
        num_predicted: Steps predicted to.
        num_hits: Steps for which both hold.
        true_per_horizon: ``num_true`` by horizon, ``(H,)``.
        hits_per_horizon: ``num_hits`` by horizon.
    """

    DERIVED: ClassVar = ("recall", "precision", "false_alarm_rate")

    threshold: float
    num_episodes: int
    num_steps: int
    num_true: int
    num_predicted: int
    num_hits: int
    true_per_horizon: tuple[int, ...]
    hits_per_horizon: tuple[int, ...]

    @property
    def recall(self) -> float:
        """Share of endings that were predicted, at the very step."""
        return self.num_hits / self.num_true

    @property
    def precision(self) -> float | None:
        """Share of predicted endings that were real; None if there was none."""
        return self.num_hits / self.num_predicted if self.num_predicted else None

    @property
    def false_alarm_rate(self) -> float | None:
        """Share of steps without an ending at which one was predicted; None if there are none."""
        going_on = self.num_steps - self.num_true
        return (self.num_predicted - self.num_hits) / going_on if going_on else None


@dataclass(frozen=True, kw_only=True)
class CodebookUse:
    """Use of the codebook by the frames of the split.

    Attributes:
        codebook_size: ``V``.
        num_used: Codes that occur at least once.
        usage: ``num_used / codebook_size``.
        perplexity: ``exp`` of the entropy of the codes, in [1, V].
    """

    DERIVED: ClassVar = ("is_dead",)

    codebook_size: int
    num_used: int
    usage: float
    perplexity: float

    @property
    def is_dead(self) -> bool:
        """True if the tokenizer has collapsed."""
        return self.usage < DEAD_CODEBOOK_SHARE


@dataclass(frozen=True, kw_only=True)
class Speed:
    """Time of imagination, tokens only, without decoding pixels.

    Attributes:
        milliseconds_per_step: Median over the steps of full batches.
        batch_size: Futures imagined at once.
        device: Where.
        tokens_per_pass: Frame tokens that a future gains per pass through the transformer, over all
            futures and horizons, each imagined a step at a time: how well drafts are accepted.
    """

    DERIVED: ClassVar = ("steps_per_second",)

    milliseconds_per_step: float
    batch_size: int
    device: str
    tokens_per_pass: float

    @property
    def steps_per_second(self) -> float:
        """Imagined steps of all futures together."""
        return 1000.0 * self.batch_size / self.milliseconds_per_step


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """PSNR of one episode at every horizon, dB, MSE averaged over its starts; ``(H,)`` each."""

    key: str
    first_steps: tuple[int, ...]
    psnr: Mapping[str, FloatArray]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures of one start, for the reader of the report.

    Attributes:
        key: Episode.
        first_step: First step of the context.
        rank: Why this one is shown, in words.
        context: ``(C, cameras, height, width, 3)`` uint8, what was observed.
        truth: ``(H, cameras, height, width, 3)`` uint8, what happened.
        prediction: The future imagined under the true actions.
        shuffled: The future imagined under another episode's actions, or None.
    """

    key: str
    first_step: int
    rank: str
    context: NDArray[np.uint8]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    shuffled: NDArray[np.uint8] | None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Everything an evaluation found; curves are over horizons 1 to ``H``.

    Attributes:
        control_rate: Steps per second, Hz.
        psnr: Per entry of :data:`tokenwm.evaluation.measure.PICTURES`, dB.
        psnr_pooled: PSNR of the MSE over all episodes together; ``(H,)``.
        psnr_gain: Paired difference of ``model`` and ``persistence``, dB.
        psnr_gain_plain: Like ``psnr_gain``, without anchored decoding.
        action_gap: Paired difference of true and shuffled actions, dB (ΔPSNR), or None.
        ssim: Per entry of ``PICTURES``.
        token_accuracy: ``model``, ``persistence`` and ``shuffled``.
        token_nll: ``model`` and ``persistence``, nats per token.
        state: Errors of the state, or None.
        reward_error: ``model`` and ``training_mean``: mean absolute error of the reward, or None.
        reward_squared_error: Mean squared error, which an expectation makes least; the mean of what
            may be is no good guess where the absolute error counts.
        termination: How well endings are foreseen, or None if no measured step ends.
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
    psnr: Mapping[str, Curve]
    psnr_pooled: Mapping[str, FloatArray]
    psnr_gain: GainCurve
    psnr_gain_plain: GainCurve
    action_gap: GainCurve | None
    ssim: Mapping[str, Curve]
    token_accuracy: Mapping[str, Curve]
    token_nll: Mapping[str, Curve]
    state: StateErrors | None
    reward_error: Mapping[str, Curve] | None
    reward_squared_error: Mapping[str, Curve] | None
    termination: TerminationScore | None
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
            "examples": [
                {"key": example.key, "first_step": example.first_step, "rank": example.rank}
                for example in self.examples
            ],
        }

    @classmethod
    def from_dict(cls, metrics: Mapping[str, Any]) -> "Evaluation":
        """An evaluation from what ``metrics.json`` holds; without examples, which are files.

        Raises:
            TokenwmError: It is of another version, or no such table.
        """
        try:
            if metrics["metrics_version"] != METRICS_VERSION:
                raise TokenwmError(
                    f"metrics_version is {metrics['metrics_version']}; expected {METRICS_VERSION}"
                )
            hints = get_type_hints(cls)
            values = {name: from_plain(hints[name], metrics[key]) for name, key in _keys().items()}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TokenwmError(f"these are no metrics of an evaluation: {error!r}") from error
        return cls(**values, examples=())


def _keys() -> dict[str, str]:
    """Field of :class:`Evaluation` → key in ``metrics.json``, of all that is stored as it is."""
    names = (item.name for item in fields(Evaluation) if item.name != "examples")
    return {name: KEYS.get(name, name) for name in names}
