"""Controls of a page: how people choose an action, and the action of the model that it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer


@dataclass(frozen=True, kw_only=True)
class Dimension:
    """A number of an action or a state, as a page shows it.

    Attributes:
        name: Its name.
        low: Least value of the training data, in their units; 0 of an id.
        high: Largest value; the largest id.
    """

    name: str
    low: float
    high: float


def dimensions_of(what: str, tokenizer: ScalarTokenizer, count: int) -> tuple[Dimension, ...]:
    """The first ``count`` dimensions, with made-up names where they have none."""
    if isinstance(tokenizer, BinTokenizer):
        low, high = (end.tolist() for end in tokenizer.training_range)
        names = list(tokenizer.names)
    else:
        low = [0.0] * tokenizer.num_dimensions
        high = [size - 1.0 for size in tokenizer.used_sizes]
        names = []
    names = names or [f"{what} {number}" for number in range(count)]
    return tuple(
        Dimension(name=name, low=least, high=most)
        for name, least, most in zip(names[:count], low[:count], high[:count], strict=True)
    )


class Controls:
    """The actions of a robot that people can choose.

    An action of the model may hold several of the robot's: what is chosen is then held for all of
    them.

    Args:
        vocabulary: That of the model.

    Attributes:
        dimensions: Of one action of the robot.
        is_discrete: Whether they are ids.
        is_place: Whether an action says where the robot should be, in the units of its state: it
            then stands still where the action is its state.
        is_table: Whether the place is one on a picture, to be pointed at.
        points_down: Whether the second number of such a place grows downwards, as pixels do.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        action, state = vocabulary.action, vocabulary.state
        self.repeats = vocabulary.actions_per_step
        size = action.num_dimensions // self.repeats
        self.dimensions = dimensions_of("action", action, size)
        self.is_discrete = not isinstance(action, BinTokenizer)
        self.units = action.units if isinstance(action, BinTokenizer) else ""
        self.is_place = (
            isinstance(action, BinTokenizer)
            and isinstance(state, BinTokenizer)
            and action.units == state.units != ""
            and size == state.num_dimensions
        )
        self.is_table = self.is_place and size == 2
        self.points_down = self.units.split(" ")[0].lower() in ("px", "pixel", "pixels")

    def rest(self, state: NDArray[Any] | None) -> list[float]:
        """An action that moves the robot little: its own place, else 0 or the middle."""
        if self.is_place and state is not None:
            values = [float(value) for value in state]
        elif self.is_discrete:
            values = [0.0] * len(self.dimensions)
        else:
            values = [
                0.0 if d.low <= 0.0 <= d.high else (d.low + d.high) / 2 for d in self.dimensions
            ]
        return [
            float(np.clip(value, d.low, d.high))
            for value, d in zip(values, self.dimensions, strict=True)
        ]

    def check(self, values: Sequence[float]) -> None:
        """Check an action that was chosen.

        Raises:
            TokenwmError: It has another number of dimensions, a number is not finite, or an id is
                none that the model has seen.
        """
        if len(values) != len(self.dimensions):
            raise TokenwmError(
                f"an action of {len(values)} number(s); the robot's has {len(self.dimensions)}"
            )
        for value, dimension in zip(values, self.dimensions, strict=True):
            fits = abs(value) < 1e9
            if self.is_discrete:
                fits = value in range(int(dimension.high) + 1)
            if not fits:
                allowed = f"a whole number from 0 to {dimension.high:g}"
                wanted = allowed if self.is_discrete else "a finite number"
                raise TokenwmError(f"{dimension.name}={value:g}; use {wanted}")

    def action(self, values: Sequence[float]) -> NDArray[Any]:
        """``(A,)``, what was chosen, for all the robot's actions of a step."""
        dtype = np.int64 if self.is_discrete else np.float32
        return np.tile(np.asarray(values, dtype=dtype), self.repeats)

    def first(self, action: NDArray[Any]) -> list[float]:
        """The first of the robot's actions in one of the model, ``(A,)``."""
        return [float(value) for value in action[: len(self.dimensions)]]
