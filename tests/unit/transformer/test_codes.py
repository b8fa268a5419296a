"""Distributions over digits equal those over the whole codebook."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tokenwm.imagination.sampling import gumbel_noise
from tokenwm.transformer.codes import DenseCodes, DigitCodes
from tokenwm.transformer.heads import CodeHead

SIZE, LEVELS, DIM, ROWS = 240, (8, 6, 5), 16, 300
TILT = math.log(3.0)


def make_head(scale: float = 1.0) -> CodeHead:
    torch.manual_seed(0)
    head = CodeHead(SIZE, LEVELS, DIM, has_rows=False)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=scale)
    return head


def both(head: CodeHead, hidden: Tensor, bonus: Tensor) -> tuple[DigitCodes, DenseCodes]:
    """The same distribution digit by digit and with a logit for every code.

    A third of the previous codes are the head's likeliest.
    """
    torch.manual_seed(1)
    dense = head(hidden)
    previous = torch.randint(SIZE, (len(hidden),))
    previous = torch.where(torch.arange(len(hidden)) % 3 == 0, dense.argmax(-1), previous)
    digits = DigitCodes(head.log_digits(hidden), head.digits_of, head.places, previous, bonus, TILT)
    return digits, DenseCodes(
        dense.scatter_add(-1, previous[:, None], bonus[:, None]), previous, TILT
    )


@pytest.fixture
def pair() -> tuple[DigitCodes, DenseCodes]:
    """Bonuses of both signs."""
    torch.manual_seed(2)
    return both(make_head(), torch.randn(ROWS, DIM), 4.0 * torch.randn(ROWS))


@torch.no_grad()
def test_likelihoods_and_entropies_are_those_of_all_codes(
    pair: tuple[DigitCodes, DenseCodes],
) -> None:
    digits, dense = pair
    codes = torch.where(torch.arange(ROWS) % 2 == 0, digits.previous, torch.arange(ROWS) % SIZE)
    torch.testing.assert_close(digits.logits.softmax(-1), dense.logits.softmax(-1))
    for name in ("nll", "point_nll"):
        expected = getattr(dense, name)(codes)
        torch.testing.assert_close(getattr(digits, name)(codes), expected, atol=1e-4, rtol=1e-4)
    expected = F.cross_entropy(dense.logits, codes, reduction="none")
    torch.testing.assert_close(digits.nll(codes), expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(digits.entropy(), dense.entropy(), atol=1e-4, rtol=1e-4)
    assert dense.entropy().std() > 0.1


@torch.no_grad()
def test_expected_values_are_those_of_all_codes(pair: tuple[DigitCodes, DenseCodes]) -> None:
    digits, dense = pair
    values = digits.digits_of.float() * torch.tensor([1.0, -0.5, 2.0]) + 1.0
    expected = dense.logits.softmax(-1) @ values
    torch.testing.assert_close(dense.expected(values), expected)
    torch.testing.assert_close(digits.expected(values), expected, atol=1e-4, rtol=1e-4)
    assert expected.std(0).min() > 0.1


@torch.no_grad()
def test_the_point_forecast_is_the_best_of_all_codes(pair: tuple[DigitCodes, DenseCodes]) -> None:
    """Also where the bonus is negative and the code before the head's likeliest."""
    digits, dense = pair
    assert torch.equal(digits.point(), dense.point_logits.argmax(-1))
    second = (digits.bonus < 0) & (dense.logits.argmax(-1) != digits.previous)
    assert (second & (torch.arange(ROWS) % 3 == 0)).any()


def test_gradients_are_those_of_all_codes() -> None:
    head, hidden = make_head(), torch.randn(ROWS, DIM, generator=torch.Generator().manual_seed(3))
    bonus = torch.linspace(-3.0, 12.0, ROWS)
    gradients = []
    for codes in both(head, hidden, bonus):
        loss = codes.point_nll(torch.arange(ROWS) % SIZE).sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())[:2])[0])
    torch.testing.assert_close(*gradients, atol=1e-3, rtol=1e-3)


def test_a_certain_head_has_finite_losses() -> None:
    """Where the code before is as good as certain, the rest is no logarithm of 0."""
    head, hidden = make_head(1e4), torch.randn(ROWS, DIM)
    digits, _ = both(head, hidden, torch.zeros(ROWS, requires_grad=True))
    loss = digits.point_nll(torch.arange(ROWS) % SIZE).sum()
    gradient = torch.autograd.grad(loss, head.bias)[0]
    assert loss.isfinite() and gradient.isfinite().all()


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("bonus", [-3.0, 2.0])
def test_draws_have_the_frequencies_of_all_codes(temperature: float, bonus: float) -> None:
    digits, dense = both(make_head(0.3), torch.randn(1, DIM), torch.tensor([bonus]))
    count = 40_000
    streams = torch.arange(count)
    noise = gumbel_noise(torch.zeros_like(streams), streams, torch.tensor(5), 3, digits.num_noise)
    many = digits._replace(
        log_digits=digits.log_digits.expand(count, -1, -1),
        previous=digits.previous.expand(count),
        bonus=digits.bonus.expand(count),
    )
    counts = many.draw(noise, temperature).bincount(minlength=SIZE).double()
    expected = count * (dense.logits[0] / temperature).softmax(-1).double()
    common = expected >= 5.0
    chi_square = float(((counts - expected) ** 2 / expected)[common].sum())
    freedom = int(common.sum())
    assert freedom > 20
    assert chi_square < freedom + 4.0 * math.sqrt(2.0 * freedom)
    stayed = float(counts[digits.previous] / count)
    assert stayed == pytest.approx(float(expected[digits.previous] / count), abs=0.01)
