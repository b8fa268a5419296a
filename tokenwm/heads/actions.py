"""Actions as heads take and give them: real numbers in [-1, 1] on the training data, or ids."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, one_hot

from tokenwm.tokenizer.actions import BinTokenizer, ScalarTokenizer

FAR = 1e4
"""Stands for infinity at the outer edges of the outer bins, in scaled units: finite gradients."""
LEAST_LOG_SCALE, MOST_LOG_SCALE = -6.0, 3.0


class ActionCode:
    """One number of an action as heads know it, by the tokenizer of actions.

    A *parameter* is a number by which a head describes the distribution of one number of an action
    over its bins or ids: two for real values, the mean and the logarithm of the scale of a logistic
    distribution that is divided into the bins, the outer ones taking all beyond; for ids a logit of
    each.

    Source: Salimans et al. (2017), PixelCNN++, section 2.1.

    Args:
        action: The tokenizer.
        device: Where.

    Attributes:
        uniform_nats: Surprise at a number of an action, if all bins or ids of the training data
            were equally likely.
    """

    def __init__(self, action: ScalarTokenizer, device: torch.device | str = "cpu") -> None:
        self.num_dimensions, self.num_values = action.num_dimensions, action.num_values
        self.is_continuous = isinstance(action, BinTokenizer)
        if isinstance(action, BinTokenizer):
            self.uniform_nats = math.log(action.num_values - 2 * action.margin_bins)
            low, high = (torch.from_numpy(np.array(end)).to(device) for end in action.scale_range)
            self._low, self._width = low.float(), (high - low).float()
            edges = torch.from_numpy(action.scale(action.edges.T).T.astype(np.float32)).to(device)
            edges[:, 0], edges[:, -1] = -FAR, FAR
            self._edges = edges.contiguous()  # (A, bins + 1)
            self._inner = edges[:, 1:-1].contiguous()
            least, most = action.training_range
            self._least, self._most = (
                torch.from_numpy(end.astype(np.float32)).to(device) for end in (least, most)
            )
        else:
            sizes = torch.tensor(action.used_sizes, device=device)
            self.uniform_nats = float(sizes.float().log().mean())
            ids = torch.arange(action.num_values, device=device)
            self._unused = ids >= sizes[:, None]  # (A, ids)

    @property
    def num_inputs(self) -> int:
        """Numbers of :meth:`inputs`."""
        return self.num_dimensions * (1 if self.is_continuous else self.num_values)

    @property
    def num_parameters(self) -> int:
        """Parameters of one number of an action."""
        return 2 if self.is_continuous else self.num_values

    def inputs(self, actions: Tensor) -> Tensor:
        """``(..., A)`` actions → ``(..., num_inputs)`` float32; far outside counts as outside."""
        if self.is_continuous:
            return self._scaled(actions).clamp(-2.0, 2.0)
        return one_hot(actions.long(), self.num_values).flatten(-2).float()

    def log_probability(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Log-probability of the bins or ids that actions fall into.

        Args:
            parameters: ``(..., A, num_parameters)``.
            actions: ``(..., A)`` in units, or ids; its other axes may be broadcast.

        Returns:
            ``(..., A)`` float32, nats.
        """
        if not self.is_continuous:
            logits = parameters.masked_fill(self._unused, -torch.inf).log_softmax(-1)
            ids = actions.long().expand(logits.shape[:-1])
            return logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        bins = self._bins(actions)
        which = torch.arange(self.num_dimensions, device=bins.device)
        low, high = self._edges[which, bins], self._edges[which, bins + 1]
        mean, scale = self._mean_and_scale(parameters)
        low, high = (low - mean) / scale, (high - mean) / scale
        # log(sigmoid(high) - sigmoid(low)), which neither tail makes inexact
        return logsigmoid(high) + logsigmoid(-low) + torch.log(-torch.expm1(low - high))

    def draw(self, parameters: Tensor, uniform: Tensor) -> Tensor:
        """Draw actions, none of them outside the range of the training data.

        Args:
            parameters: ``(..., A, num_parameters)``.
            uniform: Luck, in (0, 1): for real values ``(..., A)``, for ids as the parameters.

        Returns:
            ``(..., A)`` in units, float32, or ids.
        """
        if not self.is_continuous:
            noise = -torch.log(-torch.log(uniform))
            return (parameters.masked_fill(self._unused, -torch.inf) + noise).argmax(-1)
        mean, scale = self._mean_and_scale(parameters)
        return self._unscaled(mean + scale * torch.logit(uniform))

    def mode(self, parameters: Tensor) -> Tensor:
        """The most likely actions, ``(..., A)``."""
        if not self.is_continuous:
            return parameters.masked_fill(self._unused, -torch.inf).argmax(-1)
        return self._unscaled(self._mean_and_scale(parameters)[0])

    def marginal_nats(self, known: Tensor, actions: Tensor) -> Tensor:
        """Mean surprise at actions ``(n, A)`` of the frequencies of bins or ids in ``(N, A)``."""
        before, now = self._bins(known), self._bins(actions)
        counts = torch.stack(
            [torch.bincount(column, minlength=self.num_values) + 1.0 for column in before.T]
        )
        known_log = (counts / counts.sum(1, keepdim=True)).log()
        return -known_log.gather(1, now.T.contiguous()).mean()

    def _bins(self, actions: Tensor) -> Tensor:
        """``(..., A)`` → the same shape, int64."""
        if not self.is_continuous:
            return actions.long()
        flat = self._scaled(actions).reshape(-1, self.num_dimensions)
        bins = torch.searchsorted(self._inner, flat.T.contiguous(), right=True).T
        return bins.reshape(actions.shape)

    @staticmethod
    def _mean_and_scale(parameters: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_scale = parameters.unbind(-1)
        return mean, log_scale.clamp(LEAST_LOG_SCALE, MOST_LOG_SCALE).exp()

    def _scaled(self, actions: Tensor) -> Tensor:
        return 2.0 * (actions.float() - self._low) / self._width - 1.0

    def _unscaled(self, values: Tensor) -> Tensor:
        actions = self._low + (values + 1.0) * (self._width / 2.0)
        return actions.maximum(self._least).minimum(self._most)
