"""Heads that compare where one is with a goal: what they have in common."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.heads.head import Head, HeadConfig
from tokenwm.shapes import is_whole, shown

ROWS_AT_ONCE = 4096
"""Rows that go through a head at once; more would only take more memory."""


def pair_config(
    grid: tuple[int, int, int, int], num_features: int, num_extras: int = 0, **config: Any
) -> HeadConfig:
    """Shape of a head that sees features, the codes of a goal and further numbers.

    Args:
        grid: Cameras, rows, columns and numbers of a code of a frame.
        num_features: ``E``.
        num_extras: Further numbers.
        config: The rest of :class:`HeadConfig`.
    """
    num_inputs = num_features + math.prod(grid) + num_extras
    return HeadConfig(inputs="features", input_shape=(num_inputs,), grid=(2, *grid), **config)


def pair_inputs(here: Tensor, there: Tensor, *extras: Tensor) -> Tensor:
    """Inputs of such a head: ``(B, E)``, ``(B, F)`` and what else there is, ``(B, ·)``."""
    num_codes = there.shape[1]
    return torch.cat([here[:, :num_codes], there, here[:, num_codes:], *extras], dim=1)


def check_pair(head: Head, here: Tensor, there: Tensor, num_extras: int = 0) -> tuple[int, Tensor]:
    """Check features and goals that a head is to compare.

    Args:
        head: The head.
        here: Should be ``(B, E)``.
        there: Should be ``(B, E)`` or ``(1, E)``; or codes only, ``F`` wide.
        num_extras: Further numbers that the head takes.

    Returns:
        ``F``, and the goal's codes, ``(B, F)``.

    Raises:
        ShapeError: They have another shape.
    """
    num_codes = math.prod(head.config.grid) // 2
    num_features = head.config.input_shape[0] - num_codes - num_extras
    if here.ndim != 2 or here.shape[1] != num_features:
        raise ShapeError(f"features are {tuple(here.shape)}; expected (B, {num_features})")
    fits = there.ndim == 2 and there.shape[1] in (num_features, num_codes)
    if not fits or there.shape[0] not in (1, len(here)):
        raise ShapeError(
            f"goal features are {tuple(there.shape)}; expected ({len(here)}, {num_features}), as "
            f"model.goal_features(picture) gives them, one row for all, or {num_codes} codes only"
        )
    return num_codes, there[:, :num_codes].expand(len(here), -1)


def meaning_of(head: Head, kind: str, *names: str) -> list[Any]:
    """Values that the meaning of a head must hold.

    Raises:
        TokenwmError: The head is of another kind.
    """
    values = head.meaning.values
    if values.get("kind") != kind or not set(names) <= values.keys():
        found = values.get("kind", "a readout" if "units" in values else "unknown")
        raise TokenwmError(f"this head is no {kind}: it is of kind {found!r}")
    return [values[name] for name in names]


def whole_numbers(head: Head, kind: str, *names: str) -> list[int]:
    """:func:`meaning_of` of values that are whole numbers, at least 1.

    Raises:
        TokenwmError: One is not, or the head is of another kind.
    """
    values = meaning_of(head, kind, *names)
    for name, value in zip(names, values, strict=True):
        if not is_whole(value):
            raise TokenwmError(f"this head is no {kind}: {name} is {shown(value)}")
    return values


def in_parts(rows: int) -> Iterable[slice]:
    """Consecutive slices of rows that are computed at once."""
    return (slice(at, at + ROWS_AT_ONCE) for at in range(0, max(rows, 1), ROWS_AT_ONCE))
