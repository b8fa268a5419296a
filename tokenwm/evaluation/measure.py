"""Imagine from every start and score each step against what really happened.

Memory is bounded by the batch size; only figures are kept.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.metrics import FloatArray, squared_error, ssim
from tokenwm.evaluation.rows import load_future_actions
from tokenwm.imagination.decode import next_frame_logits
from tokenwm.imagination.pixels import anchored
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.starts import RecordedStarts, Start, load_starts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import to_uint8

PICTURES = (
    "model",
    "model_plain",
    "persistence",
    "reconstruction",
    "reconstruction_anchored",
    "shuffled",
)
"""Pictures that are compared with the truth; see ``docs/evaluation.md``."""

ProgressCallback = Callable[[int, int, str], None]
"""Called with steps done, steps in all, and what is being done."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Settings of an evaluation.

    Attributes:
        split: ``test``, ``val`` or ``train``; ``val`` is taken where there is no ``test``.
        num_context_frames: ``C``, observed frames before imagining.
        imagination_horizon: ``H``, imagined steps.
        num_starts: Starts per episode, evenly spaced.
        batch_size: Futures imagined at once; bounds the memory.
        sampling: Greedy by default: PSNR rewards one best guess, and a sample adds its own
            variance.
        seed: Seed of noise and of shuffled actions.
        max_episodes: Measure only that many episodes, evenly spread; None for all.
        num_examples: Starts whose pictures are kept for the report.
    """

    split: str = "test"
    num_context_frames: int = 4
    imagination_horizon: int = 20
    num_starts: int = 4
    batch_size: int = 32
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.0))
    seed: int = 0
    max_episodes: int | None = None
    num_examples: int = 4

    def __post_init__(self) -> None:
        names = ("num_context_frames", "imagination_horizon", "num_starts", "batch_size")
        minimum = dict.fromkeys((*names, "max_episodes"), 1) | {"num_examples": 0, "seed": 0}
        for name, least in minimum.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise TokenwmError(f"{name}={value}; use at least {least}")


@dataclass(kw_only=True)
class RowScores:
    """Scores of every row (start) at every horizon; all arrays ``(rows, H)`` unless said otherwise.

    Attributes:
        mse: Per entry of ``PICTURES``, mean squared error of pixels in [0, 1], over cameras and
            pixels.
        ssim: Structural similarity, per entry of ``PICTURES``.
        token_accuracy: ``model``, ``persistence`` and ``shuffled``: share of frame tokens that are
            right.
        token_nll: Nats per token of the true frame, given the imagined past.
        state_error: ``model``, ``persistence`` and ``quantization`` (the true state through its
            bins): ``(rows, H, state_dim)`` absolute error in the units of the data. Empty without
            state.
        reward: ``model`` and ``truth``. Empty without reward.
        termination_probability: That the action before horizon ``h`` ended the task.
        terminated: Whether it did.
        endings: The same two for starts that were added for endings only (see
            :func:`~tokenwm.evaluation.starts.ending_starts`), in parts of ``(rows, h)`` each.
        ending_keys: Episode of each of these starts.
        passes: Passes through the transformer that each step took.
        step_seconds: Time of each imagined step of a full batch, without scoring and pixels.
    """

    mse: dict[str, FloatArray]
    ssim: dict[str, FloatArray]
    token_accuracy: dict[str, FloatArray]
    token_nll: FloatArray
    state_error: dict[str, FloatArray]
    reward: dict[str, FloatArray]
    termination_probability: FloatArray
    terminated: NDArray[np.bool_]
    passes: FloatArray
    endings: list[tuple[FloatArray, NDArray[np.bool_]]] = field(default_factory=list)
    ending_keys: list[str] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)

    @classmethod
    def empty(cls, num_rows: int, horizon: int, state_dim: int, has_reward: bool) -> "RowScores":
        """Scores to be filled in; what stays empty is NaN."""

        def table(*extra: int) -> FloatArray:
            return np.full((num_rows, horizon, *extra), np.nan)

        kinds = ("model", "persistence", "quantization") if state_dim else ()
        return cls(
            mse={name: table() for name in PICTURES},
            ssim={name: table() for name in PICTURES},
            token_accuracy={name: table() for name in ("model", "persistence", "shuffled")},
            token_nll=table(),
            state_error={name: table(state_dim) for name in kinds},
            reward={name: table() for name in ("model", "truth")} if has_reward else {},
            termination_probability=table(),
            terminated=np.zeros((num_rows, horizon), dtype=np.bool_),
            passes=table(),
        )

    @classmethod
    def joined(cls, parts: Sequence["RowScores"]) -> "RowScores":
        """The rows of several measurements of one configuration, one after another."""

        def join(values: list[Any]) -> Any:
            if isinstance(values[0], dict):
                return {name: join([value[name] for value in values]) for name in values[0]}
            if isinstance(values[0], list):
                return [item for value in values for item in value]
            return np.concatenate(values)

        names = [item.name for item in fields(cls)]
        return cls(**{name: join([getattr(part, name) for part in parts]) for name in names})


def has_measurable_state(model: TokenWorldModel) -> bool:
    """True if the model predicts a state that errors can be measured of (ids have no distance)."""
    return isinstance(model.vocabulary.state, BinTokenizer)


class BatchMeasurement:
    """Scores one batch: the model under the true actions, under shuffled ones, and the baselines.

    Args:
        model: The model.
        batch: Recorded contexts and futures, with the frames of both.
        numbers: ``(B,)`` which rows of the whole evaluation these are.
        config: Settings of imagination.
        scores: The record to fill in.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        batch: RecordedStarts,
        numbers: NDArray[np.int64],
        config: EvaluationConfig,
        scores: RowScores,
    ) -> None:
        self.model, self.batch, self.config, self.scores = model, batch, config, scores
        self.numbers, self.frames = numbers, batch.frames.to(model.device)
        self.num_context = config.num_context_frames
        self.rows = torch.from_numpy(numbers).to(model.device)
        self.context = batch.context(model)
        assert self.context.anchor is not None
        self.observed = self.context.anchor  # (B, cameras, H, W, 3)
        self.observed_tokens = self.context.tokens.frame[:, -1]  # (B, K)
        self.observed_decoded = model.tokenizer.decode_to_unit(self.observed_tokens)
        future = self.frames[:, self.num_context :]
        self.true_tokens = model.tokenizer.encode_sequence(future, self.observed_tokens).unbind(1)

    def measure_true(self, after_step: Callable[[], None]) -> None:
        """Imagine under the recorded actions, and score the baselines beside it."""
        model, config, batch = self.model, self.config, self.batch
        first = self.num_context - 1
        tokens = model.encode_actions(batch.future_actions)
        state = model.start(self.context, seed=config.seed, noise_streams=self.rows)
        for index in range(config.imagination_horizon):
            nll = self._frame_nll(state, tokens[:, index], index)
            self._put(self.scores.token_nll, index, nll)
            _synchronize(model.device)
            began = time.perf_counter()
            state, rollout = model.step_tokens(state, tokens[:, index], config.sampling)
            _synchronize(model.device)
            self.scores.step_seconds.append(time.perf_counter() - began)
            self._score_tokens("model", state.frame_tokens, index)
            self._score_tokens("persistence", self.observed_tokens, index)
            plain, kept = self._decode(state.frame_tokens)
            self._score_pictures("model_plain", plain, index)
            self._score_pictures("model", kept, index)
            plain, kept = self._decode(self.true_tokens[index])
            self._score_pictures("reconstruction", plain, index)
            self._score_pictures("reconstruction_anchored", kept, index)
            self._score_pictures("persistence", self.observed, index)
            assert rollout.row_passes is not None
            self._put(self.scores.passes, index, rollout.row_passes)
            ends = rollout.termination_probability[:, 0]
            self._put(self.scores.termination_probability, index, ends)
            self.scores.terminated[self.numbers, index] = batch.terminated[:, first + index]
            if batch.reward is not None and rollout.reward is not None:
                self._put(self.scores.reward["model"], index, rollout.reward[:, 0])
                self.scores.reward["truth"][self.numbers, index] = batch.reward[:, first + index]
            if rollout.state is not None and self.scores.state_error:
                self._score_state(rollout.state[:, 0].cpu().numpy(), index)
            after_step()

    def measure_shuffled(
        self, actions: NDArray[np.generic], after_step: Callable[[], None]
    ) -> None:
        """Imagine from the same context, under the same noise, with other actions ``(B, H, A)``."""
        tokens = self.model.encode_actions(actions)
        state = self.model.start(self.context, seed=self.config.seed, noise_streams=self.rows)
        for index in range(self.config.imagination_horizon):
            state, _ = self.model.step_tokens(state, tokens[:, index], self.config.sampling)
            self._score_tokens("shuffled", state.frame_tokens, index)
            self._score_pictures("shuffled", self._decode(state.frame_tokens)[1], index)
            after_step()

    def _frame_nll(self, state: WorldState, action: Tensor, index: int) -> Tensor:
        """``(B,)`` nats per token of the true next frame (given the true next state, if any)."""
        truth, next_state = self.true_tokens[index], None
        tokenizer = self.model.vocabulary.state
        if self.batch.state is not None and tokenizer is not None:
            values = self.batch.state[:, self.num_context + index]
            next_state = torch.from_numpy(tokenizer.encode(values).astype(np.int64))
            next_state = next_state.to(truth.device)
        logits = next_frame_logits(
            self.model.world_model, state.decoding, action, truth, next_state
        )  # (B, K, V)
        chosen = logits.gather(-1, truth.unsqueeze(-1)).squeeze(-1)
        return (logits.logsumexp(-1) - chosen).mean(1)

    def _decode(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """``(B, K)`` tokens → plain and anchored pictures, ``(B, cameras, H, W, 3)`` uint8."""
        decoded = self.model.tokenizer.decode_to_unit(tokens)
        kept = anchored(decoded, self.observed_decoded, self.observed.float() / 255.0)
        return to_uint8(decoded), to_uint8(kept)

    def _score_pictures(self, name: str, frames: Tensor, index: int) -> None:
        truth = self.frames[:, self.num_context + index]
        self._put(self.scores.mse[name], index, squared_error(frames, truth))
        self._put(self.scores.ssim[name], index, ssim(frames, truth))

    def _score_tokens(self, name: str, tokens: Tensor, index: int) -> None:
        right = (tokens == self.true_tokens[index]).float().mean(1)
        self._put(self.scores.token_accuracy[name], index, right)

    def _score_state(self, imagined: NDArray[np.float32], index: int) -> None:
        state_tokenizer = self.model.vocabulary.state
        assert self.batch.state is not None and state_tokenizer is not None
        truth = self.batch.state[:, self.num_context + index]
        guesses = {
            "model": imagined,
            "persistence": self.batch.state[:, self.num_context - 1],
            "quantization": state_tokenizer.decode(state_tokenizer.encode(truth)),
        }
        for name, guess in guesses.items():
            self.scores.state_error[name][self.numbers, index] = np.abs(guess - truth)

    def _put(self, table: FloatArray, index: int, values: Tensor) -> None:
        table[self.numbers, index] = values.float().cpu().numpy()


@torch.inference_mode()
def measure(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    donors: NDArray[np.int64] | None,
    config: EvaluationConfig,
    progress: ProgressCallback,
    endings: Mapping[int, Sequence[Start]] | None = None,
) -> RowScores:
    """Score every row.

    Args:
        model: The model.
        reader: Where the rows were recorded.
        rows: Starts.
        donors: The row whose actions each row gets when shuffled; None leaves that out.
        config: How to imagine, and how many rows at a time.
        progress: Called after every step.
        endings: Further starts for endings: number of imagined steps → starts.
    """
    state = model.vocabulary.state
    scores = RowScores.empty(
        len(rows),
        config.imagination_horizon,
        state.num_dimensions if state is not None and has_measurable_state(model) else 0,
        model.vocabulary.has_reward and "reward" in reader.manifest.features,
    )
    batch_size = config.batch_size
    num_batches = -(-len(rows) // batch_size)
    total = num_batches * config.imagination_horizon * (1 if donors is None else 2)
    before_ends = [
        (num_steps, part[first : first + batch_size])
        for num_steps, part in (endings or {}).items()
        for first in range(0, len(part), batch_size)
    ]
    total += sum(num_steps for num_steps, _ in before_ends)
    done = 0

    def after_step() -> None:
        nonlocal done
        done += 1
        progress(done, total, what)

    for number in range(num_batches):
        what = f"batch {number + 1} of {num_batches}"
        numbers = np.arange(number * batch_size, min((number + 1) * batch_size, len(rows)))
        chosen = [rows[int(row)] for row in numbers]
        batch = load_starts(
            reader,
            chosen,
            config.num_context_frames,
            config.imagination_horizon,
            with_future_frames=True,
        )
        measurement = BatchMeasurement(model, batch, numbers, config, scores)
        measurement.measure_true(after_step)
        if donors is not None:
            others = [rows[int(row)] for row in donors[numbers]]
            actions = load_future_actions(
                reader, others, config.num_context_frames, config.imagination_horizon
            )
            measurement.measure_shuffled(actions, after_step)
    what = "endings"
    for num_steps, part in before_ends:
        scores.endings.append(_measure_endings(model, reader, part, num_steps, config, after_step))
        scores.ending_keys += [start.key for start in part]
    return scores


def _measure_endings(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    num_steps: int,
    config: EvaluationConfig,
    after_step: Callable[[], None],
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Probability of an end at each imagined step, and whether it came; ``(rows, num_steps)``."""
    first = config.num_context_frames - 1
    batch = load_starts(reader, rows, config.num_context_frames, num_steps)
    tokens = model.encode_actions(batch.future_actions)
    state = model.start(batch.context(model), seed=config.seed)
    probability = []
    for index in range(num_steps):
        state, rollout = model.step_tokens(state, tokens[:, index], config.sampling)
        probability.append(rollout.termination_probability.float().cpu().numpy())
        after_step()
    return (
        np.concatenate(probability, axis=1).astype(np.float64),
        batch.terminated[:, first : first + num_steps],
    )


def _synchronize(device: torch.device) -> None:
    """Wait for the device, so that a time is a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
