"""Imagination: from a few real steps and a sequence of actions to what would happen.

Actions and states are binned on the host first, actions that are on a GPU there; from ``start`` on
everything stays on the device.
"""

import logging
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.checkpoint import LoadedWorldModel, load_world_model
from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.imagination.context import Context, noise_of
from tokenwm.imagination.decode import prefill, score_frames
from tokenwm.imagination.engine import Work
from tokenwm.imagination.passes import compile_passes
from tokenwm.imagination.pausing import Pausing, finish, without_pause
from tokenwm.imagination.rollout import Rollout as Rollout
from tokenwm.imagination.sampling import SamplingConfig, check_sampling
from tokenwm.imagination.stepped_world import SteppedWorld
from tokenwm.sequence.tokens import Tokens
from tokenwm.shapes import check_shape, is_whole, shown

logger = logging.getLogger(__name__)

SCORED_AT_ONCE = 64
"""Rows that are scored in one pass; more would only take more memory."""


class TokenWorldModel(SteppedWorld):
    """A world model with its tokenizers, ready to imagine; a :class:`World`.

    Get one with :func:`tokenwm.load`. Not thread-safe; one instance per thread.

    Args:
        loaded: Contents of a checkpoint folder.
        dtype: In which the transformer and the decoder of frames compute, see :func:`load`.
    """

    def __init__(self, loaded: LoadedWorldModel, dtype: torch.dtype = torch.float32) -> None:
        super().__init__(loaded, dtype)

    def __repr__(self) -> str:
        vocabulary, (height, width) = self.vocabulary, self.tokenizer.image_size
        num_parameters = sum(p.numel() for p in self.world_model.parameters())
        state = "no state"
        if vocabulary.state is not None:
            state = f"{vocabulary.state.num_dimensions} state dimension(s)"
        actions = f"{vocabulary.action.num_dimensions} action dimension(s)"
        if self.actions_per_step > 1:
            actions += f" ({self.actions_per_step} actions in a step)"
        return (
            f"TokenWorldModel({num_parameters / 1e6:.1f}M parameters on {self.device}; "
            f"{', '.join(self.cameras)} at {height} x {width} in {vocabulary.tokens_per_frame} "
            f"tokens; {actions}, {state}, "
            f"{'rewards' if vocabulary.has_reward else 'no reward'}; {self.control_rate:g} Hz)"
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
            context: Observed steps to start from.
            actions: ``(B, H, A)`` in the units of the data, or ``(B * n, H, A)``: ``n`` candidates
                for every row of the context, next to one another. The context is then read once.
            sampling: Settings for drawing ids; temperature 1 by default,
                ``SamplingConfig(temperature=0)`` is greedy.
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
        most = max(context.tokens.frame.shape[1], work.actions.shape[1])  # never a pause
        decoded = finish(self._imagine(work, most))
        return self._rollout(context, *self._rows_and_actions(work, actions), decoded)

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
        rows. Few make more passes: rows wait for one another at every pause.
        """
        if not is_whole(chunk_steps):
            raise TokenwmError(f"chunk_steps={shown(chunk_steps)}; use a whole number, at least 1")
        context = self.checked(context)
        work = self._work(context, actions, sampling, seed, noise_streams)
        decoded = yield from self._imagine(work, chunk_steps)
        return self._rollout(context, *self._rows_and_actions(work, actions), decoded)

    def _work(
        self,
        context: Context,
        actions: NDArray[Any] | Tensor,
        sampling: SamplingConfig | None,
        seed: int | Tensor,
        noise_streams: int | Tensor | None,
    ) -> Work:
        """Arguments of :meth:`imagine`, checked and on the device; the context is already."""
        check_sampling(sampling)
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
            state_values=self.units.state_values(context.state),
            actions=tokens,
            seeds=seeds,
            noise_streams=streams,
            sampling=SamplingConfig() if sampling is None else sampling,
            forks=sizes["B"] > num_rows,
        )

    def _rows_and_actions(
        self, work: Work, actions: NDArray[Any] | Tensor
    ) -> tuple[Tensor, Tensor]:
        rows = torch.arange(len(work.context.frame), device=self.device)
        return rows.repeat_interleave(work.num_copies), self.units.as_actions(actions)

    @torch.inference_mode()
    def compile(self, batch_sizes: Sequence[int] = (1,)) -> None:
        """Compile the transformer's pass with ``torch.compile``, and warm it up.

        For a model that lives long; whether it gains anything depends on the machine, so measure
        (docs/imagination.md). Another batch size than those given is compiled when it is first met;
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
        """The model's surprise at each observed frame, teacher-forced.

        Returns:
            ``(B, C - 1)`` float32, nats per token of each frame after the first, given all before
            it (and its state, if there is one).

        Raises:
            TokenwmError: There is no second frame.
        """
        context = self.checked(context)
        num_rows, num_steps = context.tokens.frame.shape[:2]
        parts = self.limits.in_parts(
            ("score", num_steps),
            f"contexts of {num_steps} steps to score",
            num_rows,
            lambda rows: without_pause(
                partial(score_frames, self.world_model, context.tokens.rows(rows))
            ),
            self.free_memory,
            at_most=min(self.max_rows, SCORED_AT_ONCE),
        )
        return torch.cat(finish(parts))


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
            pixels (docs/imagination.md). Frames are always encoded in float32.

    Raises:
        CheckpointError: A file is missing or damaged, a weight is not finite, or model and
            tokenizer do not belong together.
    """
    return TokenWorldModel(load_world_model(Path(path), device), dtype)
