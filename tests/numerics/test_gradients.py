"""Gradients that are written out by hand against those that torch derives."""

import pytest
import torch
from torch import Tensor

from tokenwm.norm import LEAST_RMS, normed, unit
from tokenwm.transformer.attention import ROWS_OF_A_PART, parts_of
from tokenwm.transformer.model import attend, mask_to_bias


def leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def assert_same_gradients(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected)
    along = torch.randn_like(got)
    gradients = (torch.autograd.grad((out * along).sum(), inputs) for out in (got, expected))
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 0.01
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("gain_shape", [(6,), (3, 6)], ids=str)
def test_the_norm_has_the_gradient_of_its_formula(gain_shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, gain = leaves((4, 5, 3, 6), gain_shape)
    with torch.no_grad():
        x[0, 0] *= 1e-5 * LEAST_RMS  # too short to be scaled to 1
        x[0, 1] = 0.0
    assert_same_gradients(normed(x, gain), unit(x) * gain, [x, gain])
    assert "Normed" in type(normed(x, gain).grad_fn).__name__


def band(queries: int, reach: int) -> Tensor:
    """Causal, and no farther back than so many positions."""
    place = torch.arange(queries)
    return (place[:, None] >= place) & (place[:, None] - place < reach)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("reach", [30, 1000])
def test_attention_in_parts_has_the_gradient_of_its_formula(kv_heads: int, reach: int) -> None:
    torch.manual_seed(0)
    queries = 2 * ROWS_OF_A_PART + 3
    shape = (2, kv_heads, queries, 6)
    q, k, v = leaves((2, 4, queries, 6), shape, shape)
    mask = band(queries, reach)
    got = attend(q, k, v, mask_to_bias(mask, torch.float32))
    assert "InParts" in type(got.grad_fn).__name__
    expected = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, enable_gqa=True
    )
    assert_same_gradients(got, expected, [q, k, v])


def test_parts_leave_out_what_the_mask_hides() -> None:
    queries, reach = 3 * ROWS_OF_A_PART, 10
    parts = parts_of(mask_to_bias(band(queries, reach), torch.float32))
    assert [part.rows.stop for part in parts] == [ROWS_OF_A_PART * n for n in (1, 2, 3)]
    assert [(part.keys.start, part.keys.stop) for part in parts] == [
        (max(0, part.rows.start - reach + 1), part.rows.stop) for part in parts
    ]
