"""What an evaluation found: plain records, and their form in ``metrics.json``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.evaluation.metrics import (
    CLAIM_ERROR,
    CONFIDENCE,
    LEAST_SHARES,
    MIN_EPISODES,
    Curve,
    FloatArray,
    GainCurve,
    HorizonSummary,
    plain,
)
from tokenwm.evaluation.outside import OutsideTraining
from tokenwm.tokenizer.frames import DEAD_CODEBOOK_SHARE

METRICS_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class StateErrors:
    """Errors of the predicted proprioception.

    Attributes:
        absolute: ``model``, ``persistence``, ``quantization``: absolute error in the units of the
            data, mean over dimensions.
        normalized: The same, each dimension divided by its standard deviation over the training
            data; dimensions that never move are left out. None if that deviation is not known.
        per_dimension: The same as ``absolute`` per dimension, ``(H, state_dim)``, without
            intervals.
        names: Names of the dimensions; may be empty.
        units: Unit of the data; may be empty.
    """

    absolute: Mapping[str, Curve]
    normalized: Mapping[str, Curve] | None
    per_dimension: Mapping[str, FloatArray]
    names: tuple[str, ...]
    units: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "absolute": _curves(self.absolute),
            "normalized": None if self.normalized is None else _curves(self.normalized),
            "per_dimension": {name: plain(table) for name, table in self.per_dimension.items()},
            "names": list(self.names),
            "units": self.units,
        }


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
        """Share of the steps that ended nothing at which an ending was predicted; None: no such."""
        going_on = self.num_steps - self.num_true
        return (self.num_predicted - self.num_hits) / going_on if going_on else None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        rates = ("recall", "precision", "false_alarm_rate")
        return {**asdict(self), **{name: getattr(self, name) for name in rates}}


@dataclass(frozen=True, kw_only=True)
class CodebookUse:
    """How much of the codebook the frames of the split use.

    Attributes:
        codebook_size: ``V``.
        num_used: Codes that occur at least once.
        usage: ``num_used / codebook_size``.
        perplexity: ``exp`` of the entropy of the codes, in [1, V].
    """

    codebook_size: int
    num_used: int
    usage: float
    perplexity: float

    @property
    def is_dead(self) -> bool:
        """Whether the tokenizer has collapsed."""
        return self.usage < DEAD_CODEBOOK_SHARE

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "is_dead": self.is_dead}


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

    milliseconds_per_step: float
    batch_size: int
    device: str
    tokens_per_pass: float

    @property
    def steps_per_second(self) -> float:
        """Imagined steps of all futures together."""
        return 1000.0 * self.batch_size / self.milliseconds_per_step

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {**asdict(self), "steps_per_second": self.steps_per_second}


@dataclass(frozen=True, kw_only=True)
class EpisodeResult:
    """PSNR of one episode at every horizon, dB, MSE averaged over its starts; ``(H,)`` each."""

    key: str
    first_steps: tuple[int, ...]
    psnr: Mapping[str, FloatArray]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "key": self.key,
            "first_steps": list(self.first_steps),
            "psnr": {name: plain(values) for name, values in self.psnr.items()},
        }


@dataclass(frozen=True, kw_only=True)
class Example:
    """Pictures of one start, for the reader of the report.

    Attributes:
        key: Episode.
        first_step: First step of the context.
        rank: Why this one is shown, in words.
        context: ``(C, cameras, height, width, 3)`` uint8, what was observed.
        truth: ``(H, cameras, height, width, 3)`` uint8, what happened.
        prediction: What was imagined under the true actions.
        shuffled: What was imagined under another episode's actions, or None.
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
        psnr_pooled: The same, but of the MSE over all episodes together; ``(H,)``.
        psnr_gain: Paired difference of ``model`` and ``persistence``, dB.
        psnr_gain_plain: The same without anchored decoding.
        action_gap: Paired difference of true and shuffled actions, dB (ΔPSNR), or None.
        ssim: Per entry of ``PICTURES``.
        token_accuracy: ``model``, ``persistence`` and ``shuffled``.
        token_nll: ``model`` and ``persistence``, nats per token.
        state: Errors of the state, or None.
        reward_error: ``model`` and ``training_mean``: mean absolute error of the reward, or None.
        reward_squared_error: The same of the square, which an expectation makes least; the mean of
            what may be is no good guess where the absolute error counts.
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
        """Whether there are intervals: they are over episodes, and one episode has no spread."""
        return len(self.episodes) > 1

    @property
    def can_claim(self) -> bool:
        """True if there are enough episodes to claim anything with confidence."""
        return len(self.episodes) >= MIN_EPISODES

    def to_dict(self) -> dict[str, Any]:
        """What ``metrics.json`` holds; null where there is no value, never NaN."""
        return {
            "metrics_version": METRICS_VERSION,
            "horizons": list(range(1, self.num_horizons + 1)),
            "control_rate": self.control_rate,
            "num_episodes": len(self.episodes),
            "num_starts": self.num_starts,
            "num_models": self.num_models,
            "has_other_splits": self.has_other_splits,
            "intervals": {
                "kind": "student_t",
                "over": "episodes",
                "confidence": CONFIDENCE,
                "min_episodes_for_claims": MIN_EPISODES,
                "simultaneous_error": CLAIM_ERROR,
                "simultaneous_shares": max(self.num_horizons, LEAST_SHARES),
            },
            "outside_training": self.outside.to_dict(),
            "beats_persistence": asdict(self.horizons),
            "psnr": _curves(self.psnr),
            "psnr_pooled": {name: plain(values) for name, values in self.psnr_pooled.items()},
            "psnr_gain_over_persistence": self.psnr_gain.to_dict(),
            "psnr_gain_over_persistence_plain": self.psnr_gain_plain.to_dict(),
            "psnr_action_gap": None if self.action_gap is None else self.action_gap.to_dict(),
            "ssim": _curves(self.ssim),
            "token_accuracy": _curves(self.token_accuracy),
            "token_nll": _curves(self.token_nll),
            "state_error": None if self.state is None else self.state.to_dict(),
            "reward_error": None if self.reward_error is None else _curves(self.reward_error),
            "reward_squared_error": None
            if self.reward_squared_error is None
            else _curves(self.reward_squared_error),
            "termination": None if self.termination is None else self.termination.to_dict(),
            "codebook": self.codebook.to_dict(),
            "speed": self.speed.to_dict(),
            "episodes": [episode.to_dict() for episode in self.episodes],
            "skipped_episodes": dict(self.skipped),
            "provenance": dict(self.provenance),
        }


def _curves(curves: Mapping[str, Curve]) -> dict[str, Any]:
    return {name: curve.to_dict() for name, curve in curves.items()}
