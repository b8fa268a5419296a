"""Distributions of frame codes: with a logit for every code, or as products over digits.

Both hold what a head says of a slot's code and the bonus for the code that the slot had one step
before. *Probabilities* are calibrated; the *point forecast* weighs changes as training does, see
:meth:`~tokenwm.transformer.world_model.WorldModel.frame_codes`.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

LEAST_DOUBT = 1e-7
"""Nats by which a head is taken to be less than certain of a code; keeps logarithms finite."""


class DenseCodes(NamedTuple):
    """A logit for every code.

    Attributes:
        logits: ``(..., V)`` float32, of the probabilities.
        previous: ``(...)`` int64, the codes one step before.
        tilt: By how much the logit of the previous code is lower in the point forecast.
    """

    logits: Tensor
    previous: Tensor
    tilt: float

    @property
    def point_logits(self) -> Tensor:
        """``(..., V)`` float32, what the point forecast maximises."""
        place = self.previous.unsqueeze(-1)
        return self.logits.scatter_add(-1, place, self.logits.new_full(place.shape, -self.tilt))

    def point(self) -> Tensor:
        """The point forecast, ``(...)`` int64."""
        return self.point_logits.argmax(-1)

    def nll(self, codes: Tensor) -> Tensor:
        """Negative log-likelihood of codes ``(...)`` int64, the same shape float32, nats."""
        return cross_entropy(self.logits, codes)

    def point_nll(self, codes: Tensor) -> Tensor:
        """:meth:`nll` by what the point forecast maximises: the loss of training."""
        return cross_entropy(self.point_logits, codes)

    def entropy(self) -> Tensor:
        """Entropy, ``(...)`` float32, nats."""
        log_probability = self.logits.log_softmax(-1)
        return -(log_probability.exp() * log_probability).sum(-1)

    def expected(self, values: Tensor) -> Tensor:
        """Expectation of values ``(V, E)`` of the codes, ``(..., E)``."""
        return self.logits.softmax(-1) @ values


class DigitCodes(NamedTuple):
    """Log-likelihoods of the digits of a code, independent of one another but for the bonus.

    With ``l`` the sum over a code's digits and ``b`` the bonus of the previous code, likelihoods
    ``e^l``, and ``e^(l + b)`` there, add up to ``1 + (e^b - 1) e^l(previous)``: nothing as large as
    the codebook is needed.

    Attributes:
        log_digits: ``(..., digits, values)`` float32, ``-inf`` for values that a digit lacks.
        digits_of: ``(V, digits)`` int64, the digits of every code.
        places: ``(digits,)`` int64, by which digits are multiplied to give a code.
        previous: ``(...)`` int64, the codes one step before.
        bonus: ``(...)`` float32, logit of the bonus in the probabilities.
        tilt: By how much it is lower in the point forecast.
    """

    log_digits: Tensor
    digits_of: Tensor
    places: Tensor
    previous: Tensor
    bonus: Tensor
    tilt: float

    @property
    def logits(self) -> Tensor:
        """``(..., V)`` float32, of the probabilities; as large as the codebook."""
        digits = zip(self.log_digits.unbind(-2), self.digits_of.unbind(-1), strict=True)
        every = sum(
            (known[..., values] for known, values in digits), torch.zeros(()).to(self.bonus)
        )
        return every.scatter_add(-1, self.previous.unsqueeze(-1), self.bonus.unsqueeze(-1))

    def point(self) -> Tensor:
        """The point forecast, ``(...)`` int64."""
        scores, digits = self.log_digits.topk(2, dim=-1)  # (..., digits, 2)
        best, likeliest = scores[..., 0].sum(-1), (digits[..., 0] * self.places).sum(-1)
        # The second best code is another in the digit that costs least.
        cost, digit = (scores[..., 0] - scores[..., 1]).min(-1)
        change = ((digits[..., 1] - digits[..., 0]) * self.places).gather(-1, digit.unsqueeze(-1))
        is_previous = likeliest == self.previous
        rival = torch.where(is_previous, best - cost, best)
        stays = self._score(self.previous) + self.bonus - self.tilt >= rival
        other = torch.where(is_previous, likeliest + change.squeeze(-1), likeliest)
        chosen: Tensor = torch.where(stays, self.previous, other)
        return chosen

    def nll(self, codes: Tensor) -> Tensor:
        """Negative log-likelihood of codes ``(...)`` int64, the same shape float32, nats."""
        return self._nll(codes, self.bonus)

    def point_nll(self, codes: Tensor) -> Tensor:
        """:meth:`nll` by what the point forecast maximises: the loss of training."""
        return self._nll(codes, self.bonus - self.tilt)

    def entropy(self) -> Tensor:
        """Entropy, ``(...)`` float32, nats."""
        of_previous = self._score(self.previous)
        log_sum = torch.logaddexp(_log_rest(of_previous), of_previous + self.bonus)
        of_digits = torch.special.entr(self.log_digits.exp()).sum((-2, -1))
        changes = (of_digits + of_previous.exp() * of_previous) * (-log_sum).exp()
        stays = of_previous + self.bonus
        entropy: Tensor = log_sum + changes - (stays - log_sum).exp() * stays
        return entropy

    def expected(self, values: Tensor) -> Tensor:
        """Expectation of values ``(V, digits)`` of the codes, each of its digit, ``(..., digits)``.

        Codes of FSQ are such values.
        """
        of_previous = self._score(self.previous)
        log_sum = torch.logaddexp(_log_rest(of_previous), of_previous + self.bonus)
        count = torch.arange(self.log_digits.shape[-1], device=values.device)
        alone = (self.places.unsqueeze(-1) * count).clamp(max=len(values) - 1)  # (digits, values)
        each = values[alone, torch.arange(len(alone), device=values.device).unsqueeze(-1)]
        of_digits = (self.log_digits.exp() * each).sum(-1)
        stays = ((of_previous + self.bonus).exp() - of_previous.exp()).unsqueeze(-1)
        total = of_digits + stays * values[self.previous]
        expected: Tensor = total * (-log_sum).exp().unsqueeze(-1)
        return expected

    def draw(self, noise: Tensor, temperature: float) -> Tensor:
        """Draw codes: whether they stay and, if not, digit by digit (Gumbel-max).

        Args:
            noise: ``(..., num_noise)`` float32, standard Gumbel.
            temperature: Positive.

        Returns:
            ``(...)`` int64.
        """
        log_digits = (self.log_digits / temperature).log_softmax(-1)
        own = self.digits_of[self.previous]
        of_own = log_digits.gather(-1, own.unsqueeze(-1)).squeeze(-1)  # (..., digits)
        stays = of_own.sum(-1) + self.bonus / temperature + noise[..., 0]
        stays = stays >= _log_rest(of_own.sum(-1)) + noise[..., 1]
        noise = torch.unflatten(noise[..., 2:], -1, log_digits.shape[-2:])
        # A code that is the previous one up to here must differ behind, in the last digit at last.
        differs = _log_rest(of_own.flip(-1).cumsum(-1).flip(-1) - of_own)
        differs[..., -1] = -torch.inf
        is_same, code = torch.ones_like(stays), torch.zeros_like(self.previous)
        for digit in range(len(self.places)):
            left = torch.where(is_same, differs[..., digit], 0.0).unsqueeze(-1)
            known = log_digits[..., digit, :].scatter_add(-1, own[..., digit : digit + 1], left)
            drawn = (known + noise[..., digit, :]).argmax(-1)
            is_same = is_same & (drawn == own[..., digit])
            code = code + drawn * self.places[digit]
        return torch.where(stays, self.previous, code)

    @property
    def num_noise(self) -> int:
        """Numbers that :meth:`draw` needs for a code."""
        return 2 + self.log_digits.shape[-2] * self.log_digits.shape[-1]

    def _score(self, codes: Tensor) -> Tensor:
        digits = self.digits_of[codes].unsqueeze(-1)  # (..., digits, 1)
        return self.log_digits.gather(-1, digits).squeeze(-1).sum(-1)

    def _nll(self, codes: Tensor, bonus: Tensor) -> Tensor:
        of_previous = self._score(self.previous)
        log_sum = torch.logaddexp(_log_rest(of_previous), of_previous + bonus)
        return log_sum - self._score(codes) - (codes == self.previous) * bonus


FrameCodes = DenseCodes | DigitCodes


def _log_rest(log_probability: Tensor) -> Tensor:
    """Logarithm of what a probability leaves for the rest."""
    return (-torch.expm1(log_probability.clamp(max=-LEAST_DOUBT))).log()


def cross_entropy(logits: Tensor, codes: Tensor) -> Tensor:
    """``(..., V)`` logits and ``(...)`` codes → ``(...)`` nats."""
    loss = F.cross_entropy(logits.flatten(0, -2), codes.flatten(), reduction="none")
    return loss.view_as(codes)
