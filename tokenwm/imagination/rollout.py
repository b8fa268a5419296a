"""Imagined futures, side by side: what came of every row's actions, and which row came out best."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context, as_tensor, cat_contexts
from tokenwm.imagination.records import behind_one_another
from tokenwm.shapes import check_shape, is_number, shown

logger = logging.getLogger(__name__)

NO_REWARD = (
    "the model predicts no reward, because its data has none: name the column in the recipe "
    "(source.reward), prepare and train anew; or "
)
"""Beginning of every error about a reward that does not exist."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Rollout:
    """Imagined futures: ``H`` steps of ``B`` rows; entry ``h`` is what ``actions[:, h]`` led to.

    Attributes:
        actions: ``(B, H, A)`` in the units of the data, float32, or int64 if they are ids.
        frame_tokens: ``(B, H, K)`` int64.
        state_tokens: ``(B, H, P)`` int64, or None.
        state: ``(B, H, P)`` float32 in the units of the data, or None: the expected value in greedy
            decoding, the centre of the token's bin where tokens are drawn, and the id of a discrete
            state.
        reward: ``(B, H)`` float32, expected reward of each action; None if none was recorded.
        termination_probability: ``(B, H)`` float32 in [0, 1], that the action ends the episode,
            given that it is taken.
        frame_nll: ``(B, H)`` float32, nats per token, the model's surprise at what it drew: the
            mean negative log-likelihood of the frame tokens at temperature 1.
        frame_entropy: ``(B, H)`` float32, nats per token, how uncertain it was before it drew; the
            expectation of ``frame_nll``, with no luck in it.
        context: Observed steps it started from, each row once, however many futures it has.
        context_rows: ``(B,)`` int64, the row of the context that each future started from. An
            index and not a number of copies, since rows can be selected and start anew.
        doubt: ``(B, H)`` float32, how little the model knows what it does there; None if nothing
            estimates it.
        row_passes: ``(B,)`` int64, passes through the transformer until each row had all its steps;
            ``K`` a step without speculation, and one for the state if there is one. None if it
            took none.
        num_passes: Passes in all, see :class:`~tokenwm.imagination.state.DecodedSteps`.
    """

    actions: Tensor
    frame_tokens: Tensor
    state_tokens: Tensor | None
    state: Tensor | None
    reward: Tensor | None
    termination_probability: Tensor
    frame_nll: Tensor
    frame_entropy: Tensor
    context: Context
    context_rows: Tensor
    doubt: Tensor | None = None
    row_passes: Tensor | None = None
    num_passes: int = 0

    def __repr__(self) -> str:
        num_rows, num_steps = self.frame_tokens.shape[:2]
        return f"Rollout({num_rows} row(s) of {num_steps} step(s) from {self.context!r})"

    @property
    def tokens_per_pass(self) -> float:
        """Mean number of tokens that a pass decides, see :attr:`DecodedSteps.tokens_per_pass`."""
        if self.row_passes is None:
            raise TokenwmError("this rollout was decoded in no passes; it has no tokens per pass")
        return self.frame_tokens.numel() / int(self.row_passes.sum())

    def rows(self, rows: slice | Tensor | Sequence[int]) -> "Rollout":
        """Some rows: by a slice, which is a view, or by their numbers, which may repeat."""
        return self._changed(lambda tensor: tensor[rows])

    def steps(self, steps: slice) -> "Rollout":
        """Consecutive steps of every row; passes stay those of all steps."""
        return self._changed(lambda tensor: tensor[:, steps] if tensor.ndim > 1 else tensor)

    def to(self, device: torch.device | str) -> "Rollout":
        """This rollout on a device, with its context."""
        moved = self._changed(lambda tensor: tensor.to(device))
        return replace(moved, context=self.context.to(torch.device(device)))

    @classmethod
    def cat(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """Concatenate parts of equally many steps along the rows."""
        first = parts[0]
        joined = first._changed(torch.cat, parts)
        num_passes = max(part.num_passes for part in parts)
        if all(part.context is first.context for part in parts):
            return replace(joined, num_passes=num_passes)
        before = accumulate((len(part.context.tokens.frame) for part in parts), initial=0)
        rows = [part.context_rows + start for part, start in zip(parts, before, strict=False)]
        context = cat_contexts([part.context for part in parts])
        return replace(joined, context=context, context_rows=torch.cat(rows), num_passes=num_passes)

    @classmethod
    def join(cls, parts: Sequence["Rollout"]) -> "Rollout":
        """Concatenate parts along the steps; all are of the same rows from the same context."""
        joined = parts[0]._changed(behind_one_another, parts)
        num_passes = sum(part.num_passes for part in parts)
        return replace(joined, context_rows=parts[0].context_rows, num_passes=num_passes)

    def _changed(
        self, change: Callable[..., Tensor], parts: Sequence["Rollout"] | None = None
    ) -> "Rollout":
        """Change every tensor, or combine the tensors of several parts; the context stays."""
        changed: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                theirs = None if parts is None else [getattr(part, name) for part in parts]
                changed[name] = change(value if theirs is None else theirs)
        return replace(self, **changed)

    @property
    def survival(self) -> Tensor:
        """``(B, H)`` float32, the probability that each action is still taken.

        That is, that no action before it ended the episode: 1 at the first, and from then on the
        product of ``1 - termination_probability`` over the actions before.
        """
        goes_on = 1.0 - self.termination_probability
        first = torch.ones_like(goes_on[:, :1])
        return torch.cat([first, goes_on[:, :-1].cumprod(1)], dim=1)

    @property
    def stop_probability(self) -> Tensor:
        """``(B, H)`` float32, the probability that each step is the last that is reached.

        Because its action ends the episode or, at the last, because the future was imagined no
        further. The sum over the steps is 1.
        """
        ends = self.termination_probability.clone()
        ends[:, -1] = 1.0
        return self.survival * ends

    @property
    def is_finite(self) -> Tensor:
        """``(B,)`` bool, whether all numbers of a row are finite. Tokens alone cannot tell."""
        known = [part for part in vars(self).values() if isinstance(part, Tensor)]
        numbers = [part for part in known if part.is_floating_point()]
        return torch.stack([part.isfinite().flatten(1).all(1) for part in numbers]).all(0)

    def discounted_return(self, discount: float, bootstrap: Tensor | None = None) -> Tensor:
        """The expected sum of discounted rewards up to the end of the episode.

        Rewards count by the probability that their action is still taken
        (:attr:`survival`): ``sum_h discount^h * survival[:, h] * reward[:, h]``.

        Args:
            discount: In [0, 1].
            bootstrap: ``(B,)``, the value of the state behind the last action; it counts by the
                probability that the last action did not end the episode either, discounted by
                ``discount^H``.

        Returns:
            ``(B,)`` float32; see :meth:`comparable` for rows that are not finite.

        Raises:
            TokenwmError: There is no reward, the discount is out of range, or ``bootstrap`` has
                another shape.
        """
        if self.reward is None:
            raise TokenwmError(NO_REWARD + "rank by a score of your own: rollout.best(scores)")
        if not is_number(discount) or not 0.0 <= discount <= 1.0:
            raise TokenwmError(f"discount={shown(discount)}; use a number in [0, 1]")
        num_rows, num_steps = self.reward.shape
        weights = discount ** torch.arange(num_steps, device=self.reward.device)
        survival = self.survival
        total = (weights * survival * self.reward).sum(1)
        if bootstrap is not None:
            bootstrap = as_tensor("bootstrap", bootstrap)
            check_shape("bootstrap", bootstrap, (num_rows,))
            goes_on = survival[:, -1] * (1.0 - self.termination_probability[:, -1])
            total = total + discount**num_steps * goes_on * bootstrap.to(total)
        return self.comparable(total)

    def without_broken(self, scores: Tensor) -> Tensor:
        """Scores ``(B,)``, minus infinity where a row cannot be trusted; waits for no device.

        A row whose score or any of whose numbers is NaN or infinite ranks last, so that neither
        ``argmax`` nor a sort takes it for the best. Minus infinity as a score, which rules a row
        out, stays.

        Args:
            scores: ``(B,)``, more is better.

        Returns:
            ``(B,)`` float32, or float64 as they were.

        Raises:
            TokenwmError: ``scores`` are no real numbers or have another shape.
        """
        return self._compared(scores)[0]

    def comparable(self, scores: Tensor) -> Tensor:
        """:meth:`without_broken`, and how many rows are broken is logged as a warning.

        To know it waits for the device.
        """
        compared, is_broken = self._compared(scores)
        count = int(is_broken.sum())
        if count:
            logger.warning(
                "%d of %d imagined rows are not finite and rank last", count, len(compared)
            )
        return compared

    def _compared(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Scores as they are compared, and whether each row is broken."""
        scores = as_tensor("scores", scores)
        check_shape("scores", scores, (len(self.frame_tokens),))
        is_broken = scores.isnan() | (scores == torch.inf) | ~self.is_finite.to(scores.device)
        scores = scores if scores.dtype == torch.float64 else scores.float()
        return scores.masked_fill(is_broken, -torch.inf), is_broken

    def best(self, scores: Tensor) -> int:
        """The number of the row with the highest score, ``(B,)``.

        Raises:
            TokenwmError: No row is finite, or ``scores`` has another shape.
        """
        compared = self.comparable(scores)
        row = int(compared.argmax())
        if compared[row] == -torch.inf:
            raise TokenwmError(
                f"none of {len(compared)} rows has a finite score: no future can be chosen"
            )
        return row
