"""Imagination of tokens: rows in parts that fit into memory, with pauses where they are wanted."""

import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill_pausing
from tokenwm.imagination.memory import RowLimits, is_out_of_memory
from tokenwm.imagination.passes import passes_are_compiled
from tokenwm.imagination.pausing import Pausing, finish
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import WorldModel

MOST_SPARE_CACHES = 4
"""Caches that are kept for imaginations of the same sizes, where passes are recorded on them."""


class Work(NamedTuple):
    """What is to be imagined.

    Attributes:
        context: Of ``N`` rows.
        state_values: ``(N, P)``, of the last state, see :class:`DecodeState`; None for what its
            tokens stand for.
        actions: ``(N * n, H, A)`` int64, ``n`` candidates for every row of the context.
        seeds: ``(N * n,)`` int64, of each row's noise.
        noise_streams: ``(N * n,)`` int64, its stream.
        sampling: How ids are drawn.
        forks: Whether rows share contexts, or did before they were parted. A lone candidate forks
            too: in bfloat16 attention to a context of its own rounds otherwise.
    """

    context: Tokens
    state_values: Tensor | None
    actions: Tensor
    seeds: Tensor
    noise_streams: Tensor
    sampling: SamplingConfig
    forks: bool

    @property
    def num_copies(self) -> int:
        """``n``."""
        return len(self.actions) // len(self.context.frame)

    def part(self, contexts: slice, rows: slice) -> "Work":
        """Some rows of the context, and some of the actions that belong to them."""
        return self._replace(
            context=self.context.rows(contexts),
            state_values=None if self.state_values is None else self.state_values[contexts],
            actions=self.actions[rows],
            seeds=self.seeds[rows],
            noise_streams=self.noise_streams[rows],
        )


class Engine:
    """What every imagination runs on. Not thread-safe.

    Args:
        world_model: A frozen one.

    Attributes:
        world_model: Transformer with its embeddings and heads.
        speculative: Whether many tokens are drawn in a pass, or one. The tokens are the same (how
            exactly: docs/architecture.md, "Exactness").
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

    def _imagine_pausing(self, work: Work, chunk_steps: int) -> Pausing[DecodedSteps]:
        """Imagine at most ``max_rows`` rows at a time, pausing every ``chunk_steps`` steps."""
        num_rows, copies, parts = len(work.context.frame), work.num_copies, []
        whole = max(1, self.max_rows // copies)  # contexts, with all their candidates
        for number in range(0, num_rows, whole):
            last = min(number + whole, num_rows)
            for first in range(number * copies, last * copies, self.max_rows):
                rows = slice(first, min(first + self.max_rows, last * copies))
                part = work.part(slice(number, last), rows)
                parts.append((yield from self._imagine_or_part(part, chunk_steps)))
        return DecodedSteps.cat(parts)

    def _imagine(self, work: Work) -> DecodedSteps:
        """Imagine all rows at once, or in parts if they do not fit into memory.

        Noise belongs to seeds and streams, not to places in a batch, so the result is the same.
        Contexts stay whole as long as one fits, so that candidates go on sharing theirs.
        """
        num_rows, num_context = work.context.frame.shape[:2]
        copies, num_steps = work.num_copies, work.actions.shape[1]
        per_part = 1 if num_rows == 1 else copies

        def some_rows(part: slice) -> DecodedSteps:
            contexts = slice(None) if num_rows == 1 else part
            some = work.part(contexts, slice(part.start * per_part, part.stop * per_part))
            is_one_of_many = num_rows > 1 and len(some.context.frame) == 1 and copies > 1
            if is_one_of_many:
                return self._imagine(some)
            return finish(self._imagine_at_once(some, max(num_context, num_steps)))

        parts = self.limits.in_parts(
            ("imagine", num_context, num_steps, None if num_rows == 1 else copies),
            f"imaginations of {num_steps} steps from {num_context}"
            + (f", {per_part} candidates each," if per_part > 1 else ""),
            len(work.actions) // per_part,
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

    def _imagine_or_part(self, work: Work, chunk_steps: int) -> Pausing[DecodedSteps]:
        """Imagine all rows at once, pausing; or, if they do not fit, in parts without a pause."""
        try:
            return (yield from self._imagine_at_once(work, chunk_steps))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        # Outside the except clause: its traceback, and so the memory, is gone here.
        self._free_memory()
        return self._imagine(work)

    def _imagine_at_once(self, work: Work, chunk_steps: int) -> Pausing[DecodedSteps]:
        """Imagine all rows; at most ``chunk_steps`` steps between two pauses."""
        num_steps = work.actions.shape[1]
        sizes = (*work.context.frame.shape[:2], work.num_copies, num_steps, work.forks)
        spare = self._spare_caches.pop(sizes, None)
        past = spare.past if work.forks and spare is not None else spare
        # Every size of a cache is another shape to be compiled: one for all.
        most = None if passes_are_compiled(self.world_model) else num_steps
        state = yield from prefill_pausing(
            self.world_model,
            work.context,
            state_values=work.state_values,
            num_steps=0 if work.forks else most,
            cache=past,
            max_positions=chunk_steps * self.world_model.layout.positions_per_step,
        )
        if work.forks:
            state = state.fork(work.num_copies, num_steps, spare)
        state = replace(state, seeds=work.seeds, noise_streams=work.noise_streams)
        parts = []
        for number, chunk in enumerate(torch.split(work.actions, chunk_steps, dim=1)):
            if number > 0:
                yield
            state, decoded = self._decode(state, chunk, work.sampling)
            parts.append(decoded)
        if self.world_model.records_passes:
            self._spare_caches[sizes] = state.cache  # the newest is the last
            while len(self._spare_caches) > MOST_SPARE_CACHES:
                del self._spare_caches[next(iter(self._spare_caches))]
        return DecodedSteps.join(parts)

    def _decode(
        self, state: DecodeState, actions: Tensor, sampling: SamplingConfig | None
    ) -> tuple[DecodeState, DecodedSteps]:
        model = self.world_model
        sampling = SamplingConfig() if sampling is None else sampling
        if self.approximation is not None:
            return decode_steps_approximately(model, state, actions, sampling, self.approximation)
        decode = decode_steps_speculatively if self.speculative else decode_steps
        return decode(model, state, actions, sampling)
