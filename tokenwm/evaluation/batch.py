"""One batch of starts: imagined, and scored step by step beside its baselines."""

import time
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.evaluation.config import EvaluationConfig
from tokenwm.evaluation.metrics import FloatArray
from tokenwm.evaluation.pixels import Comparison
from tokenwm.evaluation.planted import count_outcomes
from tokenwm.evaluation.scores import RowScores
from tokenwm.evaluation.task_state import TaskStateReadings
from tokenwm.imagination.decode import next_frame_logits
from tokenwm.imagination.pixels import anchored
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState
from tokenwm.tokenizer.frames import to_uint8
from tokenwm.tokenizer.perceptual import PerceptualLoss


class BatchMeasurement:
    """Scores one batch: the model under the true actions, under shuffled ones, and the baselines.

    Args:
        model: The model.
        batch: Recorded contexts and futures, with the frames of both.
        numbers: ``(B,)`` which rows of the whole evaluation these are.
        config: Settings of imagination.
        scores: The record to fill in.
        perceptual: LPIPS, if its distances are wanted too.
        readings: Task states that are read off pictures, where the dataset holds them.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        batch: RecordedStarts,
        numbers: NDArray[np.int64],
        config: EvaluationConfig,
        scores: RowScores,
        perceptual: PerceptualLoss | None = None,
        readings: TaskStateReadings | None = None,
    ) -> None:
        self.perceptual, self.readings = perceptual, readings
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
        self.true_tokens = model.tokenizer.encode_sequence(
            future, self.observed_tokens
        )  # (B, H, K)

    def measure_true(self, after_step: Callable[[], None]) -> None:
        """Imagine under the recorded actions, and score the baselines beside it."""
        model, config, batch = self.model, self.config, self.batch
        first = self.num_context - 1
        tokens = model.encode_actions(batch.future_actions)
        state = model.start(self.context, seed=config.seed, noise_streams=self.rows)
        if self.readings is not None:
            self.readings.add_observed(self.observed, self.numbers)
        for index in range(config.imagination_horizon):
            nll = self._frame_nll(state, tokens[:, index], index)
            self._put(self.scores.token_nll, index, nll)
            _synchronize(model.device)
            began = time.perf_counter()
            state, rollout = model.step_tokens(state, tokens[:, index], config.sampling)
            _synchronize(model.device)
            self.scores.step_seconds.append(time.perf_counter() - began)
            if index == 0:
                self._measure_planted(state.frame_tokens)
            self._score_tokens("model", state.frame_tokens, index)
            self._score_tokens("persistence", self.observed_tokens, index)
            plain, kept = self._decode(state.frame_tokens)
            true_plain, true_kept = self._decode(self.true_tokens[:, index])
            pictures = {
                "model_plain": plain,
                "model": kept,
                "reconstruction": true_plain,
                "reconstruction_anchored": true_kept,
                "persistence": self.observed,
            }
            self._score_pictures(pictures, index)
            if self.readings is not None:
                truth = self.frames[:, self.num_context + index]
                self.readings.add({**pictures, "floor": truth}, self.numbers, index)
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
            self._score_pictures({"shuffled": self._decode(state.frame_tokens)[1]}, index)
            after_step()

    def _measure_planted(self, unplanted: Tensor) -> None:
        """Plant wrong codes into the last observed frame, see :mod:`tokenwm.evaluation.planted`."""
        actions = self.model.encode_actions(self.batch.future_actions[:, :1])[:, 0]
        counts = count_outcomes(
            self.model,
            self.context,
            self.true_tokens,
            actions,
            unplanted,
            rows=self.numbers,
            seed=self.config.seed,
        )
        self.scores.planted[self.numbers] = counts

    def _frame_nll(self, state: WorldState, action: Tensor, index: int) -> Tensor:
        """``(B,)`` nats per token of the true next frame (given the true next state, if any)."""
        truth, next_state = self.true_tokens[:, index], None
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

    def _score_pictures(self, pictures: Mapping[str, Tensor], index: int) -> None:
        """Score pictures ``(B, cameras, H, W, 3)`` uint8 of one step, by name."""
        truth = self.frames[:, self.num_context + index]
        comparison = Comparison(truth, self.observed)
        self._put(self.scores.share_changed, index, comparison.changed.float().flatten(1).mean(1))
        for name, frames in pictures.items():
            for figure, values in comparison.scores(frames)._asdict().items():
                self._put(getattr(self.scores, figure)[name], index, values)
            if self.perceptual is not None:
                distance = self.perceptual.of_frames(frames, truth)
                self._put(self.scores.lpips[name], index, distance)

    def _score_tokens(self, name: str, tokens: Tensor, index: int) -> None:
        right = (tokens == self.true_tokens[:, index]).float().mean(1)
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


def _synchronize(device: torch.device) -> None:
    """Wait for the device, so that a time is a time."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
