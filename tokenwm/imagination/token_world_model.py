"""Imagination: from a few real steps and a sequence of actions to what would happen.

Actions and states are binned on the host first, actions that are on a GPU there; from ``start`` on
everything stays on the device.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.checkpoint import LoadedWorldModel, load_world_model
from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.imagination.context import (
    Context,
    as_array,
    as_tensor,
    check_context,
    check_ids,
    noise_of,
)
from tokenwm.imagination.decode import prefill, score_frames
from tokenwm.imagination.engine import Engine, Work
from tokenwm.imagination.memory import within_pixel_memory
from tokenwm.imagination.passes import compile_passes
from tokenwm.imagination.pausing import Pausing
from tokenwm.imagination.pixels import chosen, decode_pixels, frozen_decoder
from tokenwm.imagination.rollout import Rollout as Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.state import DecodedSteps, DecodeState, StepOutcome
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape, check_type, is_whole, shown
from tokenwm.tokenizer.actions import ContinuousTokenizer, ScalarTokenizer
from tokenwm.tokenizer.device_actions import DeviceEncoder
from tokenwm.tokenizer.frames import FrameTokenizer

logger = logging.getLogger(__name__)

SCORED_AT_ONCE = 64
"""Rows that are scored in one pass; more would only take more memory."""


class TokenWorldModel(Engine):
    """A world model with its tokenizers, ready to imagine.

    Get one with :func:`tokenwm.load`. Not thread-safe; one instance per thread.

    Args:
        loaded: What a checkpoint folder holds.
        dtype: In which the transformer and the decoder of frames compute, see :func:`load`.

    Attributes:
        tokenizer: Frame tokenizer.
        vocabulary: Sizes and meanings of all tokens.
        control_rate: Steps per second, Hz.
        cameras: Names of the cameras, in order.
        provenance: Where model and data came from.
        tokenizer_provenance: Where the tokenizer came from, its last figures among it.
    """

    def __init__(self, loaded: LoadedWorldModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(loaded.world_model.frozen(dtype))
        self.tokenizer: FrameTokenizer = loaded.tokenizer
        self._decoder = frozen_decoder(loaded.tokenizer, dtype)
        self.vocabulary: Vocabulary = loaded.world_model.vocabulary
        self.control_rate = loaded.control_rate
        self.cameras = loaded.cameras
        self.provenance: Mapping[str, Any] = loaded.provenance
        self.tokenizer_provenance: Mapping[str, Any] = loaded.tokenizer_provenance
        self._warned: set[str] = set()

    def __repr__(self) -> str:
        vocabulary, (height, width) = self.vocabulary, self.tokenizer.image_size
        num_parameters = sum(p.numel() for p in self.world_model.parameters())
        state = "no state"
        if vocabulary.state is not None:
            state = f"{vocabulary.state.num_dimensions} state dimension(s)"
        return (
            f"TokenWorldModel({num_parameters / 1e6:.1f}M parameters on {self.device}; "
            f"{', '.join(self.cameras)} at {height} x {width} in {vocabulary.tokens_per_frame} "
            f"tokens; {vocabulary.action.num_dimensions} action dimension(s), {state}, "
            f"{'rewards' if vocabulary.has_reward else 'no reward'}; {self.control_rate:g} Hz)"
        )

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
            TokenwmError: There is no row or no step, a shape or type does not fit, the state is
                missing, or a value is not finite.
        """
        frames = as_tensor("frames", frames)
        tokenizer, vocabulary = self.tokenizer, self.vocabulary
        sizes = check_shape(
            "frames", frames, ("B", "C", tokenizer.num_cameras, *tokenizer.image_size, 3)
        )
        num_steps = sizes["C"]
        if sizes["B"] < 1 or num_steps < 1:
            raise TokenwmError(
                f"frames has shape {tuple(frames.shape)}; at least one row of one step is needed"
            )
        if (states is None) != (vocabulary.state is None):
            wanted = "needs" if vocabulary.state is not None else "does not take"
            raise TokenwmError(
                f"the model {wanted} a state; give "
                f"states={'(B, C, state_dim)' if states is None else None}"
            )
        past = as_array("actions", actions)
        if past.ndim == 3 and past.shape[1] == num_steps:
            past = past[:, :-1]
        action_tokens = torch.zeros(
            (sizes["B"], num_steps, vocabulary.action.num_dimensions), dtype=torch.int64
        )
        check_shape("actions", past, (sizes["B"], num_steps - 1, vocabulary.action.num_dimensions))
        action_tokens[:, : num_steps - 1] = torch.from_numpy(
            self._encode("action", vocabulary.action, past)
        )
        state_tokens = last_state = None
        if states is not None and vocabulary.state is not None:
            known = as_array("states", states)
            check_shape("states", known, (sizes["B"], num_steps, vocabulary.state.num_dimensions))
            state_tokens = torch.from_numpy(self._encode("state", vocabulary.state, known))
            state_tokens = state_tokens.to(self.device)
            if isinstance(vocabulary.state, ContinuousTokenizer):
                last_state = torch.tensor(known[:, -1], dtype=torch.float32, device=self.device)
        encoded = within_pixel_memory(
            tokenizer, self._free_memory, lambda: tokenizer.encode_frames(frames)
        )
        tokens = Tokens(encoded, state_tokens, action_tokens.to(self.device))
        # Copies: a part of it would keep all frames, and change with what the caller does to them.
        anchor = frames[:, -1].to(self.device, copy=True)
        return Context(tokens=tokens, anchor=anchor, state=last_state)

    def checked(self, context: Context) -> Context:
        """A context, perhaps made by hand, on the model's device.

        Raises:
            TokenwmError: It does not fit the model, see :func:`check_context`.
        """
        check_context(self.vocabulary, context, self.tokenizer.frame_shape)
        return context.to(self.device)

    @torch.inference_mode()
    def start(
        self,
        context: Context,
        *,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> DecodeState:
        """Read a context; the result waits for the first action. See :func:`decode.prefill`.

        Args:
            context: Where to start.
            seed: As in :meth:`imagine`.
            noise_streams: The same.

        Raises:
            TokenwmError: The context does not fit the model, or seed or streams are no whole
                numbers or not as many as rows.
        """
        context = self.checked(context)
        seeds, streams = noise_of(seed, noise_streams, len(context.tokens.frame), self.device)
        values = self.state_values(context)
        state = prefill(self.world_model, context.tokens, state_values=values)
        return replace(state, seeds=seeds, noise_streams=streams)

    @torch.inference_mode()
    def step(
        self, state: DecodeState, action_tokens: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[DecodeState, StepOutcome]:
        """Take one action.

        Args:
            state: The state before; it is used up.
            action_tokens: ``(B, A)`` int64, see :meth:`encode_actions`.
            sampling: How ids are drawn.

        Returns:
            The state after, and what the action caused.

        Raises:
            TokenwmError: The state was used already, or the tokens are not ``(B, A)`` int64 or, on
                a CPU, out of range; on a GPU nobody waits to look.
        """
        check_type("state", state, DecodeState)
        _check_sampling(sampling)
        action = self.vocabulary.action
        check_ids("action_tokens", action_tokens, action.num_values)
        check_shape("action_tokens", action_tokens, (len(state.pending), action.num_dimensions))
        actions = action_tokens.to(self.device)[:, None]
        state, decoded = self._decode(state, actions, sampling)
        return state, StepOutcome(
            None if decoded.reward is None else decoded.reward[:, 0],
            decoded.termination_probability[:, 0],
            decoded.frame_nll[:, 0],
            decoded.frame_entropy[:, 0],
            decoded.row_passes,
        )

    @torch.inference_mode()
    def imagine(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        *,
        sampling: SamplingConfig | None = None,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> Rollout:
        """Imagine what a sequence of actions leads to, open loop.

        Args:
            context: Where to start.
            actions: ``(B, H, A)`` in the units of the data, or ``(B * n, H, A)``: ``n`` candidates
                for every row of the context, next to one another. The context is then read once.
            sampling: How ids are drawn; temperature 1 by default, ``SamplingConfig(temperature=0)``
                is greedy.
            seed: Seed of all noise, or ``(B,)`` int64, one for each row of actions.
            noise_streams: ``(B,)`` int64, number of each row's stream of noise, or one number for
                all rows, which then have the same luck; 0, 1, 2, … by default. Rows with the same
                number, context and actions have the same future.

        Raises:
            TokenwmError: Context, actions, seed or streams do not fit the model or one another, or
                an action is not finite.
        """
        context = self.checked(context)
        work = self._work(context, actions, sampling, seed, noise_streams)
        return self._rollout(context, work, self._imagine(work))

    @torch.inference_mode()
    def imagine_pausing(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        *,
        chunk_steps: int,
        sampling: SamplingConfig | None = None,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> Pausing[Rollout]:
        """:meth:`imagine` as a generator that pauses, with the same tokens; close it to stop.

        Between pauses at most ``chunk_steps`` steps are read or decoded, of at most ``max_rows``
        rows. Few make more passes: rows wait for one another at every pause. Where memory runs out
        the rest of those rows is imagined without a pause.
        """
        if not is_whole(chunk_steps):
            raise TokenwmError(f"chunk_steps={shown(chunk_steps)}; use a whole number, at least 1")
        context = self.checked(context)
        work = self._work(context, actions, sampling, seed, noise_streams)
        decoded = yield from self._imagine_pausing(work, chunk_steps)
        return self._rollout(context, work, decoded)

    def _work(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        sampling: SamplingConfig | None,
        seed: int | Tensor,
        noise_streams: int | Tensor | None,
    ) -> Work:
        """Arguments of :meth:`imagine`, checked and on the device; the context is already."""
        _check_sampling(sampling)
        tokens = self.encode_actions(actions)
        num_rows, num_actions = context.tokens.frame.shape[0], self.vocabulary.action.num_dimensions
        sizes = check_shape("actions", tokens, ("B", "H", num_actions))
        if sizes["B"] < 1 or sizes["H"] < 1:
            missing = "row" if sizes["B"] < 1 else "step"
            raise TokenwmError(
                f"actions has no {missing}; at least one action is needed to imagine"
            )
        if sizes["B"] < num_rows or sizes["B"] % num_rows:
            raise ShapeError(
                f"actions has {sizes['B']} rows for a context of {num_rows}; give as many, or a "
                "multiple: that many candidates for each row"
            )
        seeds, streams = noise_of(seed, noise_streams, sizes["B"], self.device)
        return Work(
            context=context.tokens,
            state_values=self.state_values(context),
            actions=tokens,
            seeds=seeds,
            noise_streams=streams,
            sampling=SamplingConfig() if sampling is None else sampling,
            forks=sizes["B"] > num_rows,
        )

    def _rollout(self, context: Context, work: Work, decoded: DecodedSteps) -> Rollout:
        named = decoded._asdict()
        rows = torch.arange(len(context.tokens.frame), device=self.device)
        return Rollout(
            state=self.state_in_units(decoded.state_tokens, named.pop("state_values")),
            **named,
            action_tokens=work.actions,
            context=context,
            context_rows=rows.repeat_interleave(work.num_copies),
        )

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
        self._spare_caches.clear()  # what was recorded on them was not compiled
        for batch_size in batch_sizes:
            start = time.perf_counter()
            tokens = Tokens.zeros(self.vocabulary, batch_size, 2, self.device)
            state = prefill(self.world_model, tokens.steps(slice(1)))
            self._decode(state, tokens.action, None)
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
        context = self.checked(context)
        num_rows, num_steps = context.tokens.frame.shape[:2]
        scores = self.limits.in_parts(
            ("score", num_steps),
            f"contexts of {num_steps} steps to score",
            num_rows,
            lambda part: score_frames(self.world_model, context.tokens.rows(part)),
            self._free_memory,
            at_most=min(self.max_rows, SCORED_AT_ONCE),
        )
        return torch.cat(scores)

    def encode_actions(self, actions: NDArray[Any] | Tensor) -> Tensor:
        """``(B, H, A)`` in the units of the data → the same shape, int64 tokens on the device.

        Values outside the range of the training data count as its nearest bin; the first time that
        happens it is logged as a warning. A tensor on a GPU is binned there, to the same tokens but
        without warning, and unchecked, see :class:`DeviceEncoder`: nothing waits for the device.

        Raises:
            TokenwmError: A value is not finite, or a discrete id is out of range.
        """
        # MPS has no float64, in which bins are exact.
        if isinstance(actions, Tensor) and actions.device.type not in ("cpu", "mps", "meta"):
            return self._action_encoder(actions.to(self.device))
        tokens = self._encode("action", self.vocabulary.action, as_array("actions", actions))
        return torch.from_numpy(tokens).to(self.device)

    @cached_property
    def _action_encoder(self) -> DeviceEncoder:
        return DeviceEncoder(self.vocabulary.action, self.device)

    def decode_actions(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., A)`` tokens → the units of the data.

        Raises:
            TokenwmError: A token is out of range, or of another type.
        """
        return _decode(self.vocabulary.action, tokens)

    def decode_states(self, tokens: Tensor) -> NDArray[Any]:
        """``(..., P)`` tokens → the units of the data.

        Raises:
            TokenwmError: The model has no state, or a token is out of range or of another type.
        """
        if self.vocabulary.state is None:
            raise TokenwmError("the model has no state to decode")
        return _decode(self.vocabulary.state, tokens)

    def state_in_units(self, tokens: Tensor | None, values: Tensor | None) -> Tensor | None:
        """``(..., P)`` tokens and values of a :class:`DecodeState` → float32, units of the data.

        None without a state; the ids of a discrete one.
        """
        head = self.world_model.state_head
        if tokens is None or values is None or head is None or self._state_bins is None:
            return None if values is None else values.float()
        low, high, centers = self._state_bins
        beside: Tensor = (values - head.values_of(tokens)) * (high - low) / 2.0
        return (centers[torch.arange(len(low), device=low.device), tokens] + beside).float()

    def state_values(self, context: Context) -> Tensor | None:
        """``(B, P)`` :attr:`DecodeState.state_values` of the last observed state, if it is known.

        One outside the range of the training data counts as the end of it.
        """
        if context.state is None or self._state_bins is None:
            return None
        low, high, _ = self._state_bins
        values: Tensor = 2.0 * (context.state - low) / (high - low) - 1.0
        return values.clamp(-1.0, 1.0)

    @cached_property
    def _state_bins(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Bins of the state, if any: lower and upper edges ``(P,)``, centres ``(P, bins)``."""
        bins = self.vocabulary.state
        if not isinstance(bins, ContinuousTokenizer):
            return None
        low, high, centers = (
            torch.from_numpy(np.ascontiguousarray(part)).to(self.device)
            for part in (bins.edges[:, 0], bins.edges[:, -1], bins.centers)
        )
        return low, high, centers

    @torch.inference_mode()
    def decode_frames(
        self,
        rollout: Rollout,
        *,
        rows: Sequence[int] | None = None,
        steps: Sequence[int] | None = None,
        use_anchor: bool = True,
    ) -> Tensor:
        """Pixels of a rollout, only when somebody looks.

        As many frames are decoded at a time as fit into ``tokenizer.pixel_memory``, bytes.

        Args:
            rollout: From :meth:`imagine`.
            rows: Which of its rows, in [0, B) or from the end; None for all.
            steps: Which of their steps, in [0, H) or from the end; None for all.
            use_anchor: Keep what the tokenizer lost from the last observed frame wherever the
                decoded picture has not changed since (see :mod:`tokenwm.imagination.pixels`).

        Returns:
            ``(B, H, cameras, height, width, 3)`` uint8 in [0, 255], ``B`` and ``H`` as many as were
            chosen, in that order.

        Raises:
            TokenwmError: There is no such row or step.
        """
        check_type("rollout", rollout, Rollout)
        num_rows, num_steps = rollout.frame_tokens.shape[:2]
        row = chosen("rows", rows, num_rows)
        tokens = rollout.frame_tokens[row][:, chosen("steps", steps, num_steps)]
        context = rollout.context
        anchor = context.anchor if use_anchor else None
        starts = rollout.context_rows[row]
        return self.decode_tokens(tokens, context.tokens.frame[:, -1], anchor, starts)

    @torch.inference_mode()
    def decode_tokens(
        self,
        tokens: Tensor,
        anchor_tokens: Tensor | None = None,
        anchor: Tensor | None = None,
        anchor_rows: Tensor | None = None,
    ) -> Tensor:
        """Pixels of ``(B, H, K)`` tokens; see :func:`tokenwm.imagination.pixels.decode_pixels`."""
        check_ids("tokens", tokens, self.vocabulary.codebook_size)
        check_shape("tokens", tokens, ("B", "H", self.vocabulary.tokens_per_frame))
        return within_pixel_memory(
            self.tokenizer,
            self._free_memory,
            lambda: decode_pixels(
                self.tokenizer, tokens, anchor_tokens, anchor, self._decoder, anchor_rows
            ),
        )

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
        dtype: In which the transformer and the decoder of frames compute. ``torch.bfloat16`` is 2
            to 4 times as fast on a CPU that has it, with slightly different probabilities and
            pixels (docs/performance.md). Frames are always encoded in float32.

    Raises:
        CheckpointError: A file is missing or damaged, a weight is not finite, or model and
            tokenizer do not belong together.
    """
    return TokenWorldModel(load_world_model(Path(path), device), dtype)


def _check_sampling(sampling: SamplingConfig | None) -> None:
    if sampling is not None:
        check_type("sampling", sampling, SamplingConfig)


def _decode(tokenizer: ScalarTokenizer, tokens: Tensor) -> NDArray[Any]:
    check_ids("tokens", tokens, tokenizer.num_values, may_wait=True)
    return tokenizer.decode(as_array("tokens", tokens))
