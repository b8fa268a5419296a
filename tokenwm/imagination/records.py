"""Records of tensors, nested dataclasses and tuples, changed and put together field by field."""

from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


def map_leaves(function: Callable[[Any], Any], values: T) -> T:
    """Apply a function to everything in (nested) dataclasses and tuples."""
    return combine_leaves(lambda leaves: function(leaves[0]), [values])


def map_tensors(function: Callable[[Tensor], Tensor], values: T) -> T:
    """Apply a function to every tensor; other values stay."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, values)


def combine(function: Callable[[list[Tensor]], Tensor], records: Sequence[T]) -> T:
    """Combine the tensors of records, such as by ``torch.cat``; other values are the first's."""
    return combine_leaves(
        lambda leaves: function(leaves) if isinstance(leaves[0], Tensor) else leaves[0], records
    )


def combine_leaves(function: Callable[[list[Any]], Any], records: Sequence[T]) -> T:
    """Combine records leaf by leaf: the function gets the list of all records' leaves."""
    first: Any = records[0]
    result: Any
    if is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in fields(first)]
        parts = {
            name: combine_leaves(function, [getattr(record, name) for record in records])
            for name in names
        }
        result = replace(first, **parts)
    elif isinstance(first, tuple):
        parts_of = zip(*cast(Sequence[tuple[Any, ...]], records), strict=True)
        mapped = [combine_leaves(function, list(parts)) for parts in parts_of]
        result = type(first)(*mapped) if hasattr(first, "_fields") else tuple(mapped)
    else:
        result = function(list(records))
    return cast(T, result)


def behind_one_another(parts: list[Tensor]) -> Tensor:
    """Concatenate ``(B, h, …)`` along the steps; figures of rows, ``(B,)``, are added up."""
    return torch.cat(parts, dim=1) if parts[0].ndim > 1 else torch.stack(parts).sum(0)
