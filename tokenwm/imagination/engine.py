"""Imagination of tokens: rows in parts that fit into memory, with pauses where they are wanted."""

import sys
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from tokenwm.imagination.approximate import Approximation, decode_steps_approximately
from tokenwm.imagination.decode import decode_steps, prefill_pausing
from tokenwm.imagination.memory import RowLimits
from tokenwm.imagination.passes import passes_are_compiled
from tokenwm.imagination.pausing import Pausing
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.speculative import decode_steps_speculatively
from tokenwm.imagination.state import DecodedSteps, DecodeState
from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import WorldModel

MOST_SPARE_CACHES = 4
"""Caches that are kept for imaginations of the same sizes, with the CUDA graphs on them."""


class Work(NamedTuple):
    """A batch of imagination requests.

    Attributes:
        context: Context of ``N`` rows.
        state_values: ``(N, P)``, of the last state, see :class:`DecodeState`; None for what its
            tokens stand for.
        actions: ``(N * n, H, A)`` int64, ``n`` candidates for every row of the context.
        seeds: ``(N * n,)`` int64, of each row's noise.
        noise_streams: ``(N * n,)`` int64, its stream.
        sampling: Settings for drawing ids.
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
        """``n``, candidates that share a context."""
        return len(self.actions) // len(self.context.frame)

    def part(self, rows: slice) -> "Work":
        """Select rows: those of whole contexts, or candidates of a single one."""
        copies = self.num_copies
        contexts = slice(rows.start // copies, -(-rows.stop // copies))
        return self._replace(
            context=self.context.rows(contexts),
            state_values=None if self.state_values is None else self.state_values[contexts],
            actions=self.actions[rows],
            seeds=self.seeds[rows],
            noise_streams=self.noise_streams[rows],
        )


class Engine:
    """The engine that all imagination runs on. Not thread-safe.

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
        # Caches of finished imaginations, with the CUDA graphs that work on them.
        self._spare_caches: dict[tuple[int, ...], KVCache] = {}

    @property
    def device(self) -> torch.device:
        """The device that the weights are on."""
        return self.world_model.slot_embedding.device

    def _imagine(self, work: Work, chunk_steps: int) -> Pausing[DecodedSteps]:
        """Imagine all rows at once, or in parts if there are too many or too little memory.

        Noise belongs to seeds and streams, not to places in a batch, so the result is the same.
        Contexts stay whole as long as one fits, so that candidates go on sharing theirs.
        """
        num_rows, num_context = work.context.frame.shape[:2]
        copies, num_steps = work.num_copies, work.actions.shape[1]
        parts = yield from self.limits.in_parts(
            ("imagine", num_context, num_steps, None if num_rows == 1 else copies),
            f"imaginations of {num_steps} steps from {num_context}",
            len(work.actions),
            lambda rows: self._imagine_at_once(work.part(rows), chunk_steps),
            self.free_memory,
            self.max_rows,
            copies,
        )
        return DecodedSteps.cat(parts)

    def free_memory(self) -> bool:
        """Free memory that is kept only for reuse; return True if there was any."""
        held = bool(self._spare_caches)
        self._spare_caches.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return held

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
        if self.world_model.graph_passes:
            self._keep_spare(sizes, state.cache)
        return DecodedSteps.join(parts)

    def _keep_spare(self, sizes: tuple[int, ...], cache: KVCache) -> None:
        """Keep a cache that nobody needs any more, for work of the same sizes."""
        self._spare_caches[sizes] = cache  # the newest is the last
        while len(self._spare_caches) > MOST_SPARE_CACHES:
            del self._spare_caches[next(iter(self._spare_caches))]

    def _decode(
        self, state: DecodeState, actions: Tensor, sampling: SamplingConfig | None
    ) -> tuple[DecodeState, DecodedSteps]:
        model = self.world_model
        sampling = SamplingConfig() if sampling is None else sampling
        if self.approximation is not None:
            return decode_steps_approximately(model, state, actions, sampling, self.approximation)
        decode = decode_steps_speculatively if self.speculative else decode_steps
        return decode(model, state, actions, sampling)
