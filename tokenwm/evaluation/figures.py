"""The parts of an evaluation: plain records of figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.evaluation.metrics import Curve, FloatArray
from tokenwm.tokenizer.frames import has_collapsed


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
class ChangedPixels:
    """The pixels that changed since the last observed frame, on which figures ``_changed`` are.

    Attributes:
        threshold: 8-bit levels by which some channel of such a pixel differs, at least.
        share: Share of all pixels, mean over episodes, ``(H,)``.
        num_starts: Starts with such a pixel, by horizon; the others count for nothing there.
        num_episodes: Episodes with such a start, by horizon.
    """

    threshold: int
    share: FloatArray
    num_starts: tuple[int, ...]
    num_episodes: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class PlantedCodes:
    """Fate of single wrong codes in still slots of the last observed frame, one step later.

    Attributes:
        num_planted: Planted codes.
        num_repaired: Of these, slots that the model shows right again.
        num_copied: Slots that keep the wrong code.
        num_other: Slots that show another wrong code.
        num_right_unplanted: Slots that the model shows right if nothing is planted there.
        num_starts: Starts with at least one.
        num_episodes: Episodes with at least one.
    """

    DERIVED: ClassVar = ("repair_rate", "copy_rate")

    num_planted: int
    num_repaired: int
    num_copied: int
    num_other: int
    num_right_unplanted: int
    num_starts: int
    num_episodes: int

    @property
    def repair_rate(self) -> float | None:
        """Share that was repaired; None if no slot was still."""
        return self.num_repaired / self.num_planted if self.num_planted else None

    @property
    def copy_rate(self) -> float | None:
        """Share that was copied; None if no slot was still."""
        return self.num_copied / self.num_planted if self.num_planted else None


@dataclass(frozen=True, kw_only=True)
class Flicker:
    """Share of frame tokens that change from one recorded frame to the next, mean over episodes.

    Attributes:
        noise_levels: Largest 8-bit level of the uniform noise that is added to every pixel of every
            frame; 0 is the frames as recorded.
        changed: The share under each of these, in [0, 1].
        num_episodes: Episodes.
    """

    noise_levels: tuple[int, ...]
    changed: tuple[float, ...]
    num_episodes: int


@dataclass(frozen=True, kw_only=True)
class CodebookUse:
    """Use of the codebook by the frames of the split.

    Attributes:
        codebook_size: ``V``.
        num_used: Codes that occur at least once.
        usage: ``num_used / codebook_size``.
        perplexity: ``exp`` of the entropy of the codes, in [1, V].
        reconstruction: PSNR of frames through the tokenizer, dB; None in reports of before.
    """

    DERIVED: ClassVar = ("is_dead",)

    codebook_size: int
    num_used: int
    usage: float
    perplexity: float
    reconstruction: float | None = None

    @property
    def is_dead(self) -> bool:
        """True if the tokenizer has collapsed."""
        return has_collapsed(self.usage, self.reconstruction or 0.0)


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
    """PSNR of one episode at every horizon, dB, MSE averaged over its starts; ``(H,)`` each.

    Attributes:
        key: Episode.
        first_steps: First step of the context of each start.
        psnr: Per entry of ``PICTURES``.
        psnr_changed: Over changed pixels, NaN where there are none; None in older reports.
    """

    key: str
    first_steps: tuple[int, ...]
    psnr: Mapping[str, FloatArray]
    psnr_changed: Mapping[str, FloatArray] | None


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
