"""Objectives: how good imagined futures are, at every step and as one number a row.

An objective is any function of a rollout that gives ``(B, H)`` scores, more is better. Those here,
in :mod:`tokenwm.control.goals` and in :mod:`tokenwm.control.penalties` can be weighed and added::

    objective = GoalImage(model, picture) + 0.1 * ActionSize(model.vocabulary)

How the steps of a future count is said by the objective's ``reduce``, and :func:`total` obeys it:

=========  ==========================================================================
``sum``    ``sum_h discount^h * survival[h] * score[h]``: rewards and penalties
``last``   ``sum_h stop[h] * score[h]``: where the future ends, by the probability that it does
``best``   ``sum_h stop[h] * max_{i <= h} score[i]``: the best step on the way, for tasks that are
           done once their goal was reached
=========  ==========================================================================

``survival`` and ``stop`` are those of :class:`~tokenwm.imagination.rollout.Rollout`. A sum of
objectives is the sum of their totals, so that each part goes on counting its own way. A score of
minus infinity at any step rules a row out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import as_tensor
from tokenwm.imagination.rollout import NO_REWARD, Rollout
from tokenwm.shapes import check_shape, is_number, shown

Reduction = Literal["sum", "last", "best"]


class Objective(Protocol):
    """A function of a rollout: ``(B, H)`` float32, more is better; NaN ranks last.

    It may also have ``reduce`` and ``discount``, as :class:`Weighable` has; without, steps are
    summed by their survival.
    """

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Score every step of every row."""
        ...


class Weighable:
    """Base of objectives that can be weighed and added: ``2.0 * a + b``, ``a - b``.

    Attributes:
        reduce: How steps count, see the module.
        discount: In [0, 1]; read by ``sum`` only.
    """

    reduce: Reduction = "sum"
    discount: float = 1.0

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """Score every step of every row, ``(B, H)`` float32."""
        raise NotImplementedError

    def __add__(self, other: Objective) -> "Sum":
        return Sum((*_parts(self), *_parts(other)))

    def __radd__(self, other: Objective) -> "Sum":
        return Sum((*_parts(other), *_parts(self)))

    def __sub__(self, other: Objective) -> "Sum":
        return self + -1.0 * Sum(_parts(other))

    def __mul__(self, weight: float) -> "Sum":
        if not is_number(weight):
            raise TokenwmError(f"an objective is multiplied by {shown(weight)}; use a number")
        return Sum(tuple((float(weight) * own, part) for own, part in _parts(self)))

    __rmul__ = __mul__

    def __neg__(self) -> "Sum":
        return -1.0 * self


@dataclass(frozen=True)
class Sum(Weighable):
    """A weighted sum of objectives.

    Attributes:
        parts: Weights and objectives.
    """

    parts: tuple[tuple[float, Objective], ...]

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """The weighted sum of the parts' scores; to look at, since :func:`total` asks the parts."""
        return torch.stack([weight * part(rollout) for weight, part in self.parts]).sum(0)


def _parts(objective: Objective) -> tuple[tuple[float, Objective], ...]:
    if not callable(objective):
        raise TokenwmError(f"{shown(objective)} is no objective; give a function of a rollout")
    return objective.parts if isinstance(objective, Sum) else ((1.0, objective),)


def total(objective: Objective, rollout: Rollout) -> Tensor:
    """One score a row. Waits for no device.

    The discount is the objective's own, since a value behind the last step (:class:`Reward`) has to
    be discounted by the same number.

    Args:
        objective: Any objective.
        rollout: ``B`` futures of ``H`` steps.

    Returns:
        ``(B,)`` float32, finite or minus infinity: so is a row that is not finite, whatever its
        objective, see :meth:`Rollout.without_broken`.

    Raises:
        TokenwmError: Scores are not ``(B, H)``, or ``reduce`` or ``discount`` is out of range.
    """
    return rollout.without_broken(_total(objective, rollout).float())


def _total(objective: Objective, rollout: Rollout) -> Tensor:
    if isinstance(objective, Sum):
        return torch.stack([w * _total(part, rollout) for w, part in objective.parts]).sum(0)
    name = getattr(objective, "__name__", type(objective).__name__)
    scores = as_tensor(f"score of {name}", objective(rollout))
    check_shape(f"score of {name}", scores, tuple(rollout.termination_probability.shape))
    reduce, discount = getattr(objective, "reduce", "sum"), getattr(objective, "discount", 1.0)
    if reduce not in get_args(Reduction):
        raise TokenwmError(f"{name}: reduce={shown(reduce)}; choose sum, last or best")
    if not is_number(discount) or not 0.0 <= discount <= 1.0:
        raise TokenwmError(f"{name}: discount={shown(discount)}; use a number in [0, 1]")
    if reduce == "sum":
        steps = torch.arange(scores.shape[1], device=scores.device)
        return (discount**steps * rollout.survival * scores).sum(1)
    if reduce == "best":
        scores = torch.where(scores == -torch.inf, scores, scores.cummax(1).values)
    return (rollout.stop_probability * scores).sum(1)


class Scores(Weighable):
    """An objective of a user: any function of a rollout, made to be weighed and added.

    Args:
        function: Gives ``(B, H)``, more is better.
        reduce: How steps count.
        discount: In [0, 1].
    """

    def __init__(
        self, function: Objective, *, reduce: Reduction = "sum", discount: float = 1.0
    ) -> None:
        self.function, self.reduce, self.discount = function, reduce, discount

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """The function's scores."""
        return self.function(rollout)


class Reward(Weighable):
    """The predicted reward, summed by survival and discounted.

    Its total is :meth:`Rollout.discounted_return`.

    Args:
        discount: In [0, 1].
        value: Of a rollout, the value of the state behind its last action, ``(B,)``: it counts by
            the probability that the last action did not end the episode, discounted by
            ``discount^H``. None: nothing comes behind the horizon.
    """

    def __init__(
        self, *, discount: float = 1.0, value: Callable[[Rollout], Tensor] | None = None
    ) -> None:
        self.discount, self.value = discount, value

    def __call__(self, rollout: Rollout, /) -> Tensor:
        """The reward, and at the last step the value behind it as well.

        Raises:
            TokenwmError: The model predicts no reward.
        """
        if rollout.reward is None:
            raise TokenwmError(NO_REWARD + "use an objective that needs none, such as GoalImage")
        if self.value is None:
            return rollout.reward
        value = as_tensor("value", self.value(rollout)).to(rollout.reward)
        check_shape("value", value, (len(rollout.reward),))
        goes_on = 1.0 - rollout.termination_probability[:, -1]
        last = rollout.reward[:, -1] + self.discount * goes_on * value
        return torch.cat([rollout.reward[:, :-1], last[:, None]], dim=1)
