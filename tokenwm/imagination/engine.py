"""Imagination of tokens: rows in parts that fit into memory, with pauses where they are wanted."""

import sys
from dataclasses import replace

import torch
from torch import Tensor

from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.context import rows_of
from tokenwm.imagination.decode import decode_steps, prefill_pausing
from tokenwm.imagination.memory import RowLimits, is_out_of_memory
from tokenwm.imagination.passes import passes_are_compiled
from tokenwm.imagination.pausing import Pausing, finish
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import Tokens, WorldModel

MOST_SPARE_CACHES = 4
"""Caches that are kept for imaginations of the same sizes, where passes are recorded on them."""


class Engine:
    """What every imagination runs on. Not thread-safe.

    Args:
        world_model: A frozen one.

    Attributes:
        world_model: Transformer with its embeddings and heads.
        speculative: Whether many tokens are drawn in a pass, or one. The tokens are the same.
        approximation: Set it to give up exactness for a fixed number of passes per frame; None, the
            default, is exact.
        max_rows: Most rows that are imagined at once, to be set by hand; unlimited by default.
        limits: What was found to fit when memory ran out, by horizon and context length.
    """

    def __init__(self, world_model: WorldModel) -> None:
        self.world_model = world_model
        self.speculative = True
        self.approximation: Approximation | None = None
        self.max_rows = sys.maxsize
        self.limits = RowLimits()
        # Of finished imaginations, with the CUDA graphs that were recorded on them.
        self._spare_caches: dict[tuple[int, ...], KVCache] = {}

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.world_model.slot_embedding.device

    def _imagine_pausing(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        chunk_steps: int,
    ) -> Pausing[DecodedSteps]:
        """Imagine at most ``max_rows`` rows at a time, pausing every ``chunk_steps`` steps."""
        num_rows = len(context.frame)
        copies, parts = len(actions) // num_rows, []
        whole = max(1, self.max_rows // copies)  # contexts, with all their candidates
        for number in range(0, num_rows, whole):
            seen = rows_of(context, slice(number, number + whole))
            last = (number + len(seen.frame)) * copies
            for first in range(number * copies, last, self.max_rows):
                rows = slice(first, min(first + self.max_rows, last))
                some = seen, actions[rows], (noise[0][rows], noise[1][rows]), sampling
                decoded = yield from self._pausing(*some, chunk_steps, forks=copies > 1)
                parts.append(decoded)
        return DecodedSteps.cat(parts)

    def _imagine(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        *,
        forks: bool,
    ) -> DecodedSteps:
        """Imagine all rows at once, or in parts if they do not fit into memory.

        Noise belongs to seeds and streams, not to places in a batch, so the result is the same.
        Contexts stay whole as long as one fits, so that candidates go on sharing theirs.
        """
        num_rows, num_context = context.frame.shape[:2]
        copies, num_steps = len(actions) // num_rows, actions.shape[1]
        per_part = 1 if num_rows == 1 else copies

        def some_rows(part: slice) -> DecodedSteps:
            rows = slice(part.start * per_part, part.stop * per_part)
            seen = context if num_rows == 1 else rows_of(context, part)
            is_one_of_many = num_rows > 1 and len(seen.frame) == 1 and copies > 1
            some = seen, actions[rows], (noise[0][rows], noise[1][rows]), sampling
            if is_one_of_many:
                return self._imagine(*some, forks=forks)
            every_step = max(num_context, num_steps)
            return finish(self._imagine_at_once(*some, every_step, forks=forks))

        parts = self.limits.in_parts(
            ("imagine", num_context, num_steps, None if num_rows == 1 else copies),
            f"imaginations of {num_steps} steps from {num_context}"
            + (f", {per_part} candidates each," if per_part > 1 else ""),
            len(actions) // per_part,
            some_rows,
            self._free_memory,
            at_most=max(1, self.max_rows // per_part),
        )
        return DecodedSteps.cat(parts)

    def _free_memory(self) -> bool:
        """Give up everything that is only held to be used again; whether there was something."""
        held = bool(self._spare_caches)
        self._spare_caches.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return held

    def _pausing(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        chunk_steps: int,
        *,
        forks: bool,
    ) -> Pausing[DecodedSteps]:
        """Imagine all rows at once, pausing; or, if they do not fit, in parts without a pause."""
        some = context, actions, noise, sampling
        try:
            return (yield from self._imagine_at_once(*some, chunk_steps, forks=forks))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: its traceback, and so the memory, is gone here.
        self._free_memory()
        return self._imagine(*some, forks=forks)

    def _imagine_at_once(
        self,
        context: Tokens,
        actions: Tensor,
        noise: tuple[Tensor, Tensor],
        sampling: SamplingConfig | None,
        chunk_steps: int,
        *,
        forks: bool,
    ) -> Pausing[DecodedSteps]:
        """Imagine; ``forks`` says whether rows share contexts, or did before they were parted.

        A lone candidate forks too: in bfloat16 attention to a context of its own rounds otherwise.
        """
        num_copies, num_steps = len(actions) // len(context.frame), actions.shape[1]
        sizes = (*context.frame.shape[:2], num_copies, num_steps, forks)
        spare = self._spare_caches.pop(sizes, None)
        past = spare.past if forks and spare is not None else spare
        # Every size of a cache is another shape to be compiled: one for all.
        most = None if passes_are_compiled(self.world_model) else num_steps
        state = yield from prefill_pausing(
            self.world_model,
            context,
            num_steps=0 if forks else most,
            cache=past,
            max_positions=chunk_steps * self.world_model.layout.positions_per_step,
        )
        if forks:
            state = state.fork(num_copies, num_steps, spare)
        state = replace(state, seeds=noise[0], noise_streams=noise[1])
        parts = []
        for number, chunk in enumerate(torch.split(actions, chunk_steps, dim=1)):
            if number > 0:
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
