"""A place in some dimensions of a state, and how far values are from it."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_array
from tokenwm.shapes import is_number, shown

Wanted = Mapping[str | int, float] | Sequence[float] | NDArray[Any] | Tensor
"""Dimension, by name or number, → value; or the values of all dimensions."""


class Place:
    """A place: wanted values of some dimensions.

    Args:
        goal: The wanted values.
        scale: Difference that counts as 1, for some of these dimensions.
        names: Names of all dimensions; may be empty.
        scales: Scale of every dimension where none is given.
        turns: Full turn of every dimension that is an angle, 0 of others; None: there is no angle.

    Raises:
        TokenwmError: There is no such dimension, a value is not finite or a scale not positive.
    """

    def __init__(
        self,
        goal: Wanted,
        scale: Wanted | None = None,
        *,
        names: Sequence[str],
        scales: Sequence[float],
        turns: Sequence[float] | None = None,
    ) -> None:
        wanted = by_dimension("goal", goal, names, len(scales))
        chosen = {} if scale is None else by_dimension("scale", scale, names, len(scales))
        if wrong := [f"{value:g}" for value in chosen.values() if value <= 0.0]:
            raise TokenwmError(f"scale is {wrong[0]}; use positive numbers")
        dimensions = list(wanted)
        self._dimensions = torch.tensor(dimensions)
        self._numbers = torch.tensor(
            [
                list(wanted.values()),
                [chosen.get(index, float(scales[index])) for index in dimensions],
                [0.0 if turns is None else turns[index] for index in dimensions],
            ],
            dtype=torch.float32,
        )

    def distance(self, values: Tensor) -> Tensor:
        """``(..., D)`` values of all dimensions → ``(...)`` Euclidean distance in scales."""
        if self._numbers.device != values.device:
            self._numbers = self._numbers.to(values.device)
            self._dimensions = self._dimensions.to(values.device)
        goal, scale, turn = self._numbers
        difference = values.index_select(-1, self._dimensions) - goal
        around = (difference + turn / 2.0).remainder(turn.clamp(min=1e-9)) - turn / 2.0
        distance: Tensor = (torch.where(turn > 0.0, around, difference) / scale).norm(dim=-1)
        return distance


def by_dimension(what: str, wanted: Wanted, names: Sequence[str], size: int) -> dict[int, float]:
    """Values by the number of their dimension.

    Raises:
        TokenwmError: There is no such dimension, none is given, or a value is not finite.
    """
    if not isinstance(wanted, Mapping):
        array = as_array(what, wanted)
        if array.shape != (size,):
            raise TokenwmError(
                f"{what} has shape {array.shape}; give the values of all {size} dimensions, or "
                "some of them by name or number: {0: 1.5}"
            )
        wanted = dict(enumerate(array.tolist()))
    found: dict[int, float] = {}
    for key, value in wanted.items():
        index = names.index(key) if isinstance(key, str) and key in names else key
        if isinstance(index, str) or not 0 <= index < size:
            known = ", ".join(names) if names else "none has a name"
            raise TokenwmError(
                f"{what} names the dimension {shown(key)}; there are 0 to {size - 1} ({known})"
            )
        if not is_number(value) or not abs(value) < float("inf"):
            raise TokenwmError(f"{what} of dimension {shown(key)} is {shown(value)}; use a number")
        found[index] = float(value)
    if not found:
        raise TokenwmError(f"{what} has no dimension; give at least one")
    return found
