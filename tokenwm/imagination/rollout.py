"""Imagination: from a few real steps and a sequence of actions to what would happen.

Actions and states are binned on the host first; from ``start`` on everything stays on the device.
"""

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.checkpoint import LoadedWorldModel, load_world_model
from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.context import Context, check_context, rows_of, zero_tokens
from tokenwm.imagination.decode import decode_steps, prefill, prefill_pausing
from tokenwm.imagination.passes import compile_passes, passes_are_compiled
from tokenwm.imagination.pausing import Pausing, finish
from tokenwm.imagination.pixels import decode_pixels
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape
from tokenwm.tokenizer.actions import ContinuousTokenizer, ScalarTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import Tokens, WorldModel

logger = logging.getLogger(__name__)

MOST_SPARE_CACHES = 4
"""Caches that are kept for imaginations of the same sizes, where passes are recorded on them."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """``H`` imagined steps; entry ``h`` is what ``actions[:, h]`` led to.

    Attributes:
        frame_tokens: ``(B, H, K)`` int64.
        state_tokens: ``(B, H, P)`` int64, or None.
        reward: ``(B, H)`` float32, expected reward of each action; zeros if none was recorded.
        termination_probability: ``(B, H)`` float32 in [0, 1].
        frame_nll: ``(B, H)`` float32, nats per token, the model's surprise at what it drew.
        context: What it started from.
        num_passes: Passes through the transformer; ``K`` a step without speculation.
    """

    frame_tokens: Tensor
    state_tokens: Tensor | None
    reward: Tensor
    termination_probability: Tensor
    frame_nll: Tensor
    context: Context
    num_passes: int

    @property
    def tokens_per_pass(self) -> float:
        """Frame tokens that each row gained per pass, on average: how well drafts were accepted."""
        return self.frame_tokens[0].numel() / self.num_passes


class TokenWorldModel:
    """A world model with its tokenizers, ready to imagine.

    Get one with :func:`tokenwm.load`. Not thread-safe; one instance per thread.

    Args:
        loaded: What a checkpoint folder holds.
        dtype: In which the transformer computes, see :func:`load`.

    Attributes:
        tokenizer: Frame tokenizer.
        world_model: Transformer with its embeddings and heads.
        vocabulary: Sizes and meanings of all tokens.
        control_rate: Steps per second, Hz.
        cameras: Names of the cameras, in order.
        provenance: Where model and data came from.
        speculative: Whether many tokens are drawn in a pass, or one. The tokens are the same.
        approximation: Set it to give up exactness for a fixed number of passes per frame; None, the
            default, is exact.
        max_rows: Most rows that are imagined at once; found by trying when memory runs out.
    """

    def __init__(self, loaded: LoadedWorldModel, dtype: torch.dtype = torch.float32) -> None:
        self.tokenizer: FrameTokenizer = loaded.tokenizer
        self.world_model: WorldModel = loaded.world_model.frozen(dtype)
        self.vocabulary: Vocabulary = loaded.world_model.vocabulary
        self.control_rate = loaded.control_rate
        self.cameras = loaded.cameras
        self.provenance: Mapping[str, Any] = loaded.provenance
        self.speculative = True
        self.approximation: Approximation | None = None
        self.max_rows = sys.maxsize
        # Of finished imaginations, with the CUDA graphs that were recorded on them.
        self._spare_caches: dict[tuple[int, ...], KVCache] = {}
        self._warned: set[str] = set()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.world_model.slot_embedding.device

    @torch.inference_mode()
    def context(
        self,
        frames: NDArray[np.uint8] | Tensor,
        actions: NDArray[Any] | Tensor,
        states: NDArray[Any] | Tensor | None = None,
    ) -> Context:
        """Tokenize observed steps.

        Args:
            frames: ``(B, C, cameras, H, W, 3)`` uint8 in [0, 255].
            actions: ``(B, C - 1, A)`` or ``(B, C, A)`` in the units of the data; the action at the
                last step, which is still to be chosen, is not read.
            states: ``(B, C, state_dim)`` in the units of the data; needed if the model has a state.

        Raises:
            TokenwmError: A shape does not fit, or the state is missing.
        """
        frames = torch.as_tensor(frames)
        tokenizer, vocabulary = self.tokenizer, self.vocabulary
        sizes = check_shape(
            "frames", frames, ("B", "C", tokenizer.num_cameras, *tokenizer.image_size, 3)
        )
        num_steps = sizes["C"]
        if (states is None) != (vocabulary.state is None):
            wanted = "needs" if vocabulary.state is not None else "does not take"
            raise TokenwmError(
                f"the model {wanted} a state; give "
                f"states={'(B, C, state_dim)' if states is None else None}"
            )
        past = _to_numpy(actions)[:, : num_steps - 1]
        action_tokens = torch.zeros(
            (sizes["B"], num_steps, vocabulary.action.num_dimensions), dtype=torch.int64
        )
        check_shape("actions", past, (sizes["B"], num_steps - 1, vocabulary.action.num_dimensions))
        action_tokens[:, : num_steps - 1] = torch.from_numpy(
            self._encode("action", vocabulary.action, past)
        )
        state_tokens = None
        if states is not None and vocabulary.state is not None:
            known = _to_numpy(states)
            check_shape("states", known, (sizes["B"], num_steps, vocabulary.state.num_dimensions))
            state_tokens = torch.from_numpy(self._encode("state", vocabulary.state, known))
            state_tokens = state_tokens.to(self.device)
        frames = frames.to(self.device)
        tokens = Tokens(
            tokenizer.encode_frames(frames), state_tokens, action_tokens.to(self.device)
        )
        return Context(tokens=tokens, anchor=frames[:, -1])

    @torch.inference_mode()
    def start(
        self, context: Context, *, seed: int = 0, noise_streams: Tensor | None = None
    ) -> DecodeState:
        """Read a context; the result waits for the first action. See :func:`decode.prefill`.

        Raises:
            TokenwmError: The context is empty or has a token outside its vocabulary.
        """
        check_context(self.world_model, context.tokens)
        if noise_streams is not None:
            noise_streams = noise_streams.to(self.device)
        return prefill(self.world_model, context.tokens, seed=seed, noise_streams=noise_streams)

    @torch.inference_mode()
    def step(
        self, state: DecodeState, action_tokens: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[DecodeState, StepOutcome]:
        """Take one action, ``(B, A)`` int64 tokens. The given state must not be used again."""
        state, decoded = self._decode(state, action_tokens[:, None], sampling)
        return state, StepOutcome(
            decoded.reward[:, 0], decoded.termination_probability[:, 0], decoded.frame_nll[:, 0]
        )

    @torch.inference_mode()
    def imagine(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | Tensor = 0,
        noise_streams: Tensor | None = None,
    ) -> Rollout:
        """Imagine what a sequence of actions leads to, open loop.

        Args:
            context: Where to start.
            actions: ``(B, H, A)`` in the units of the data, or ``(B * n, H, A)``: ``n`` candidates
                for every row of the context, next to one another. The context is then read once.
            sampling: How ids are drawn; temperature 1 by default, ``SamplingConfig(temperature=0)``
                is greedy.
            seed: Seed of all noise, or ``(B,)`` int64, one for each row of actions.
            noise_streams: ``(B,)`` int64, number of each row's stream of noise; 0, 1, 2, … by
                default. Rows with the same number, context and actions have the same future. As
                many as actions has rows.

        Raises:
            TokenwmError: A shape does not fit.
        """
        return finish(
            self.imagine_pausing(
                context,
                actions,
                chunk_steps=None,
                sampling=sampling,
                seed=seed,
                noise_streams=noise_streams,
            )
        )

    @torch.inference_mode()
    def imagine_pausing(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        *,
        chunk_steps: int | None,
        sampling: SamplingConfig | None = None,
        seed: int | Tensor = 0,
        noise_streams: Tensor | None = None,
    ) -> Pausing[Rollout]:
        """:meth:`imagine` as a generator that pauses, with the same tokens; close it to stop.

        Between pauses at most ``chunk_steps`` steps are read or decoded, of at most ``max_rows``
        rows; None for all. Few make more passes: rows wait for one another at every pause.
        """
        tokens = self.encode_actions(actions)
        num_rows, num_actions = context.tokens.frame.shape[0], self.vocabulary.action.num_dimensions
        sizes = check_shape("actions", tokens, ("B", "H", num_actions))
        if sizes["H"] < 1:
            raise TokenwmError("actions has no step; at least one action is needed to imagine")
        if sizes["B"] < num_rows or sizes["B"] % num_rows:
            raise ShapeError(
                f"actions has {sizes['B']} rows for a context of {num_rows}; give as many, or a "
                "multiple: that many candidates for each row"
            )
        if noise_streams is None:
            noise_streams = torch.arange(sizes["B"])
        check_shape("noise_streams", noise_streams, (sizes["B"],))
        check_context(self.world_model, context.tokens)
        seeds = torch.as_tensor(seed).expand(sizes["B"])
        noise = seeds.to(self.device), noise_streams.to(self.device)
        decoded = yield from self._imagine(context.tokens, tokens, noise, sampling, chunk_steps)
        return Rollout(**decoded._asdict(), context=context.repeat(sizes["B"] // num_rows))

    def _imagine(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        chunk_steps: int | None,
    ) -> Pausing[DecodedSteps]:
        """Imagine all rows at once, or in two parts if they do not fit into memory.

        Noise belongs to seeds and streams, not to places in a batch, so the result is the same.
        """
        batch, num_rows = len(actions), len(context.frame)
        if batch <= self.max_rows:
            try:
                return (
                    yield from self._imagine_at_once(context, actions, noise, sampling, chunk_steps)
                )
            except RuntimeError as error:
                if not _is_out_of_memory(error) or (batch == 1 and not self._spare_caches):
                    raise
            # Outside the except clause: its traceback, and so the memory, is gone here.
            if self._spare_caches:
                self._free_memory()
                return (yield from self._imagine(context, actions, noise, sampling, chunk_steps))
            self.max_rows = batch // 2
            logger.warning(
                "%d imagined rows do not fit into memory; imagining at most %d at once",
                batch,
                self.max_rows,
            )
            self._free_memory()
        if num_rows > 1:  # whole contexts, so that candidates go on sharing theirs
            half = num_rows // 2
            contexts = rows_of(context, slice(half)), rows_of(context, slice(half, None))
            cut = half * (batch // num_rows)
        else:
            contexts, cut = (context, context), batch // 2
        parts = []
        for seen, part in zip(contexts, (slice(cut), slice(cut, None)), strict=True):
            part_noise = noise[0][part], noise[1][part]
            parts.append(
                (yield from self._imagine(seen, actions[part], part_noise, sampling, chunk_steps))
            )
        return DecodedSteps.cat(parts)

    def _free_memory(self) -> None:
        """Give up everything that is only held to be used again."""
        self._spare_caches.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _imagine_at_once(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        chunk_steps: int | None,
    ) -> Pausing[DecodedSteps]:
        num_copies, num_steps = len(actions) // len(context.frame), actions.shape[1]
        sizes = (*context.frame.shape[:2], num_copies, num_steps)
        chunk_steps = chunk_steps or max(sizes)
        max_positions = chunk_steps * self.world_model.layout.positions_per_step
        spare = self._spare_caches.pop(sizes, None)
        if num_copies > 1:
            past = None if spare is None else spare.past
            state = yield from prefill_pausing(
                self.world_model, context, num_steps=0, cache=past, max_positions=max_positions
            )
            state = state.fork(num_copies, num_steps, spare)
        else:
            # Every size of a cache is another shape to be compiled: one for all.
            most = None if passes_are_compiled(self.world_model) else num_steps
            state = yield from prefill_pausing(
                self.world_model, context, num_steps=most, cache=spare, max_positions=max_positions
            )
        state = replace(state, seeds=noise[0], noise_streams=noise[1])
        parts = []
        for chunk in torch.split(actions, chunk_steps, dim=1):
            yield
            state, decoded = self._decode(state, chunk, sampling)
            parts.append(decoded)
        if self.world_model.records_passes:
            self._spare_caches[sizes] = state.cache  # the newest is the last
            while len(self._spare_caches) > MOST_SPARE_CACHES:
                del self._spare_caches[next(iter(self._spare_caches))]
        return DecodedSteps.join(parts)

    def _decode(
        self, state: DecodeState, actions: Tensor, sampling: SamplingConfig | None
    ) -> tuple[DecodeState, DecodedSteps]:
        model, sampling = self.world_model, sampling or SamplingConfig()
        if self.approximation is not None:
            return decode_steps_approximately(model, state, actions, sampling, self.approximation)
        decode = decode_steps_speculatively if self.speculative else decode_steps
        return decode(model, state, actions, sampling)

    @torch.inference_mode()
    def compile(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Compile the transformer's pass with ``torch.compile``, and warm it up.

        For a model that lives long; whether it gains anything depends on the machine, so measure
        (docs/performance.md). Another batch size than those given is compiled when it is first met;
        a context is read uncompiled. Compiled code is kept on disk by torch
        (``TORCHINDUCTOR_CACHE_DIR``), so another process starts faster. A CPU needs a C++ compiler.

        Args:
            batch_sizes: Rows that will be imagined at once.
        """
        compile_passes(self.world_model)
        for batch_size in batch_sizes:
            start = time.perf_counter()
            context, actions = zero_tokens(self.vocabulary, batch_size, 2, self.device)
            self._decode(prefill(self.world_model, context), actions, None)
            logger.info("compiled for %d row(s) in %.0f s", batch_size, time.perf_counter() - start)

    @torch.inference_mode()
    def score(self, context: Context) -> Tensor:
        """How surprised the model is by what was observed, teacher-forced.

        Returns:
            ``(B, C - 1)`` float32, nats per token of each frame after the first, given all before
            it (and its state, if there is one).

        Raises:
            TokenwmError: There is no second frame.
        """
        check_context(self.world_model, context.tokens)
        scores = []
        for row in range(len(context.tokens.frame)):  # memory grows with the square of the steps
            tokens = rows_of(context.tokens, slice(row, row + 1))
            logits = self.world_model(tokens).frame_logits  # (1, C - 1, K, V)
            target = tokens.frame[:, 1:, :, None]
            scores.append(-logits.log_softmax(-1).gather(-1, target).mean((2, 3)))
        return torch.cat(scores)

    def encode_actions(self, actions: NDArray[Any] | Tensor) -> Tensor:
        """``(B, H, A)`` in the units of the data → the same shape, int64 tokens on the device.

        Values outside the range of the training data count as its nearest bin; the first time that
        happens it is logged as a warning.
        """
        tokens = self._encode("action", self.vocabulary.action, _to_numpy(actions))
        return torch.from_numpy(tokens).to(self.device)

    def decode_actions(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., A)`` tokens → the units of the data."""
        return self.vocabulary.action.decode(tokens.cpu().numpy())

    def decode_states(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., P)`` tokens → the units of the data.

        Raises:
            TokenwmError: The model has no state.
        """
        if self.vocabulary.state is None:
            raise TokenwmError("the model has no state to decode")
        return self.vocabulary.state.decode(tokens.cpu().numpy())

    @torch.inference_mode()
    def decode_frames(
        self, rollout: Rollout, *, steps: Sequence[int] | None = None, use_anchor: bool = True
    ) -> Tensor:
        """Pixels of a rollout, only when somebody looks.

        Args:
            rollout: From :meth:`imagine`.
            steps: Which of its steps, in [0, H) or from the end; None for all.
            use_anchor: Keep what the tokenizer lost from the last observed frame wherever the
                decoded picture has not changed since (see :mod:`tokenwm.imagination.pixels`).

        Returns:
            ``(B, H, cameras, height, width, 3)`` uint8 in [0, 255].
        """
        context = rollout.context
        anchor = context.anchor if use_anchor else None
        tokens = rollout.frame_tokens if steps is None else rollout.frame_tokens[:, list(steps)]
        return self.decode_tokens(tokens, context.tokens.frame[:, -1], anchor)

    @torch.inference_mode()
    def decode_tokens(
        self, tokens: Tensor, anchor_tokens: Tensor | None = None, anchor: Tensor | None = None
    ) -> Tensor:
        """Pixels of ``(B, H, K)`` tokens; see :func:`tokenwm.imagination.pixels.decode_pixels`."""
        return decode_pixels(self.tokenizer, tokens, anchor_tokens, anchor)

    def _encode(
        self, name: str, tokenizer: ScalarTokenizer, values: NDArray[Any]
    ) -> NDArray[np.int64]:
        tokens = tokenizer.encode(values).astype(np.int64)
        if isinstance(tokenizer, ContinuousTokenizer) and name not in self._warned:
            outside = tokenizer.outside(values)
            if outside.any():
                self._warned.add(name)
                where = tuple(int(i) for i in np.argwhere(outside)[0])
                dimension = where[-1]
                label = tokenizer.names[dimension] if tokenizer.names else f"{dimension}"
                low, high = tokenizer.edges[dimension, [0, -1]]
                logger.warning(
                    "%.1f %% of the %s values lie outside the range of the training data and count "
                    "as its nearest bin: dimension %s is %g, its range [%g, %g]",
                    100 * outside.mean(),
                    name,
                    label,
                    values[where],
                    low,
                    high,
                )
        return tokens


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    *,
    dtype: torch.dtype = torch.float32,
) -> TokenWorldModel:
    """Load a trained world model, ready to imagine.

    Args:
        path: Folder of a training run, or the checkpoint folder in it.
        device: Where weights go and imagination runs.
        dtype: In which the transformer computes. ``torch.bfloat16`` is 2 to 4 times as fast on a
            CPU that has it, with slightly different probabilities (docs/performance.md).

    Raises:
        CheckpointError: A file is missing or damaged, or model and tokenizer do not belong
            together.
    """
    return TokenWorldModel(load_world_model(Path(path), device), dtype)


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def _to_numpy(values: NDArray[Any] | Tensor) -> NDArray[Any]:
    return values.cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
