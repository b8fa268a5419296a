"""Penalties: objectives of at most 0, to be weighed and added to what is wanted."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.control.objectives import Weighable
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_array
from tokenwm.imagination.rollout import Rollout
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape
from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer


class Doubt(Weighable):
    """Minus how little the model knows what it does.

    Args:
        estimate: Of a rollout, the doubt at every step, ``(B, H)``; None: ``rollout.doubt``.
    """

    def __init__(self, estimate: Callable[[Rollout], Tensor] | None = None) -> None:
        self.estimate = estimate

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus the doubt.

        Raises:
            TokenwmError: Nothing estimates it.
        """
        doubt = rollout.doubt if self.estimate is None else self.estimate(rollout)
        if doubt is None:
            raise TokenwmError(
                "nothing estimates the doubt of this rollout; give Doubt(estimate), such as "
                "Doubt(lambda rollout: rollout.frame_entropy)"
            )
        return -doubt


class ActionSize(Weighable):
    """Minus the mean square of actions, in halves of their training range.

    Args:
        vocabulary: Of the world.
        rest: ``(A,)`` or one number, the action that counts as none, in the units of the data.

    Raises:
        TokenwmError: Actions are discrete.
    """

    def __init__(
        self, vocabulary: Vocabulary, rest: float | Sequence[float] | NDArray[Any] = 0.0
    ) -> None:
        if not isinstance(vocabulary.action, BinTokenizer):
            raise TokenwmError("ActionSize needs continuous actions, and those here are ids")
        low, high = vocabulary.action.scale_range
        middle = np.broadcast_to(as_array("rest", rest), low.shape)
        self._numbers = torch.from_numpy(np.stack([middle, (high - low) / 2.0])).float()

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus the mean square."""
        rest, half = self._numbers.to(rollout.actions.device)
        scaled: Tensor = (rollout.actions - rest) / half
        return -scaled.square().mean(-1)


class OutsideData(Weighable):
    """Minus how far actions and imagined states lie beyond the range of the training data.

    Of each, the mean over dimensions of what is beyond, in halves of the dimension's range.

    Args:
        vocabulary: Of the world.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._action, self._state = (_ends(s) for s in (vocabulary.action, vocabulary.state))

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Minus what is beyond; 0 where everything was seen."""
        beyond = torch.zeros_like(rollout.termination_probability)
        for values, ends in ((rollout.actions, self._action), (rollout.state, self._state)):
            if values is None or ends is None:
                continue
            low, high = ends.to(values.device)
            check_shape("values", values, ("B", "H", len(low)))
            outside = (low - values).clamp(min=0.0) + (values - high).clamp(min=0.0)
            beyond = beyond - (outside / ((high - low) / 2.0)).mean(-1)
        return beyond


def _ends(tokenizer: ScalarTokenizer | None) -> Tensor | None:
    """Least and largest training value, ``(2, A)`` float32; None of ids."""
    if not isinstance(tokenizer, BinTokenizer):
        return None
    return torch.from_numpy(np.stack(tokenizer.training_range)).float()
