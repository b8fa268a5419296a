"""One pass of the transformer over a few positions of every row, eager or compiled."""

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.frozen import unpack_linear_maps
from tokenwm.transformer.world_model import WorldModel

Function = TypeVar("Function", bound=Callable[..., Any])


def max_span_steps(model: WorldModel) -> int:
    """Most steps that speculation drafts in one pass, for which the cache keeps room.

    One if there is a state: its draft is hardly ever right, so what follows would be for nothing.
    """
    return 1 if model.layout.has_state else 2


def decode_one_token(
    model: WorldModel, cache: KVCache, embedded: Tensor, position: Tensor
) -> Tensor:
    """Feed one embedded position ``(B, 1, D)`` and return its hidden state ``(B, D)``.

    ``position`` is ``(B or 1, 1)`` int64, its number in the sequence.
    """
    return forward_span(model, cache, embedded, position)[:, 0]


def forward_span(
    model: WorldModel,
    cache: KVCache,
    embedded: Tensor,
    positions: Tensor,
    *,
    compiled: bool = True,
) -> Tensor:
    """Feed consecutive positions of every row.

    Args:
        model: The world model.
        cache: Holds what came before; is written to.
        embedded: ``(B, Q, D)``.
        positions: ``(B or 1, Q)`` int64, their numbers in the sequence.
        compiled: Whether to use the compiled transformer, if it was compiled. Contexts have many
            lengths, and compiling for each would take longer than reading them.

    Returns:
        ``(B, Q, D)`` float32 hidden states.
    """
    mask = cache.seek(positions)
    steps = positions // model.layout.positions_per_step
    transformer = model.transformer if compiled else model.transformer.forward
    hidden: Tensor = transformer(embedded.to(model.transformer.dtype), steps, mask, cache)
    return hidden.float()


def spans(cache: KVCache, num_positions: int, at_most: int | None = None) -> Iterator[slice]:
    """Parts in which to feed many positions, the first of which are the cache's first.

    The empty ring takes as much as it has room for, a full one a span at a time; ``at_most`` so
    many if given.
    """
    begin = 0
    while begin < num_positions:
        room = cache.max_span if begin >= cache.capacity else cache.capacity - begin
        end = min(num_positions, begin + min(room, at_most or room))
        yield slice(begin, end)
        begin = end


def compiled_like_passes(model: WorldModel, function: Function) -> Function:
    """The compiled function if the model's passes are compiled, or the function itself."""
    return cast(Function, _compiled(function)) if passes_are_compiled(model) else function


def passes_are_compiled(model: WorldModel) -> bool:
    """True if :func:`compile_passes` was called, so that new shapes cost half a minute."""
    return model.transformer._compiled_call_impl is not None


def compile_passes(model: WorldModel) -> None:
    """Let passes, but not the reading of contexts, run through ``torch.compile``.

    So does what comes before and after the transformer, see :func:`compiled_like_passes`. Every
    number of rows and positions is compiled when it is first met.
    """
    unpack_linear_maps(model)
    # By default the ninth shape would silently run as it is.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
    # On a CPU the C++ wrapper makes a pass of a single row faster.
    on_cpu = model.slot_embedding.device.type == "cpu"
    model.transformer.compile(dynamic=False, options={"cpp_wrapper": True} if on_cpu else {})


@functools.cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Inductor would fold the products of the noise's counter into one index, of 32 bits.
    return torch.compile(function, dynamic=False, options={"constant_and_index_propagation": False})
