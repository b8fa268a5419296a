"""Every part of the transformer against its formula, written out with loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.small_models import shake
from tokenwm.sequence.layout import StepLayout, attention_mask
from tokenwm.transformer.frozen import FoldedNorm, _fold_norm
from tokenwm.transformer.model import (
    Attention,
    RMSNorm,
    SwiGLU,
    Transformer,
    TransformerConfig,
    mask_to_bias,
    rotary_table,
    rotate,
)

LAYOUT = StepLayout(num_frame_tokens=2, has_state=True)


def make_config(**changes: int | bool | float) -> TransformerConfig:
    sizes = {"dim": 24, "num_layers": 2, "num_heads": 6, "num_kv_heads": 2, "window": 3}
    return TransformerConfig(**{**sizes, **changes})


def naive_norm(x: Tensor, weight: Tensor) -> Tensor:
    return x / math.sqrt(sum(float(v) ** 2 for v in x) / len(x) + 1e-6) * weight


def naive_rotation(x: Tensor, step: int, base: float) -> Tensor:
    """Pairs ``(i, i + half)`` are turned by ``step * base ** (-i / half)``."""
    half = len(x) // 2
    out = torch.empty_like(x)
    for i in range(half):
        turn = complex(float(x[i]), float(x[i + half]))
        angle = step * base ** (-i / half)
        turn *= complex(math.cos(angle), math.sin(angle))
        out[i], out[i + half] = turn.real, turn.imag
    return out


def naive_attention(module: Attention, x: Tensor, steps: Tensor, mask: Tensor) -> Tensor:
    """One query, one head, one key at a time; ``x`` is ``(S, D)``."""
    config = module.config
    size, group = config.head_dim, config.num_heads // config.kv_heads
    projected = x @ module.qkv.weight.T
    places = torch.arange(projected.shape[1])
    kv_start, v_start = config.dim, config.dim + config.kv_heads * size
    out = torch.zeros(len(x), config.dim)
    for head in range(config.num_heads):
        kv_head = head // group
        q = projected[:, places[head * size : (head + 1) * size]]
        k = projected[:, places[kv_start + kv_head * size : kv_start + (kv_head + 1) * size]]
        v = projected[:, places[v_start + kv_head * size : v_start + (kv_head + 1) * size]]
        for i in range(len(x)):
            scores = {}
            for j in range(len(x)):
                if not mask[i, j]:
                    continue
                query, key = q[i], k[j]
                if config.qk_norm:
                    query = naive_norm(query, module.query_norm.weight)
                    key = naive_norm(key, module.key_norm.weight)
                query = naive_rotation(query, int(steps[i]), config.rope_base)
                key = naive_rotation(key, int(steps[j]), config.rope_base)
                scores[j] = math.exp(float(query @ key) / math.sqrt(size))
            total = sum(scores.values())
            mixed = sum(score / total * v[j] for j, score in scores.items())
            out[i, head * size : (head + 1) * size] = mixed
    return out @ module.out.weight.T


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [{}, {"qk_norm": False}, {"num_kv_heads": 6}, {"num_kv_heads": 1}, {"rope_base": 7.0}],
    ids=str,
)
def test_attention_equals_the_naive_loop(changes: dict[str, int | bool]) -> None:
    torch.manual_seed(0)
    module = Attention(make_config(**changes))
    shake(module, 0.3)
    num_steps, length = 5, 2
    layout = StepLayout(num_frame_tokens=1, has_state=False)
    mask = attention_mask(layout, num_steps, 3)
    steps = torch.arange(num_steps).repeat_interleave(length)
    x = torch.randn(2, num_steps * length, 24)
    table = rotary_table(steps, module.config.head_dim, module.config.rope_base)
    got = module(x, table, mask_to_bias(mask, x.dtype))
    for row in range(2):
        expected = naive_attention(module, x[row], steps, mask)
        torch.testing.assert_close(got[row], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_no_mask_means_causal() -> None:
    torch.manual_seed(0)
    model = Transformer(make_config()).eval()
    steps = torch.arange(4).repeat_interleave(3)
    x = torch.randn(2, 12, 24)
    causal = torch.ones(12, 12, dtype=torch.bool).tril()
    torch.testing.assert_close(model(x, steps, None), model(x, steps, causal), atol=1e-5, rtol=0)


@torch.no_grad()
def test_norm_and_feed_forward_equal_their_formulas() -> None:
    torch.manual_seed(0)
    norm = RMSNorm(24)
    shake(norm, 0.5)
    x = 3.0 * torch.randn(5, 24)
    expected = torch.stack([naive_norm(row, norm.weight) for row in x])
    torch.testing.assert_close(norm(x), expected, atol=1e-5, rtol=1e-5)

    linear = nn.Linear(24, 7, bias=False)
    expected, fresh = linear(norm(x)), RMSNorm(24)
    for _ in range(2):  # folding twice is folding once
        _fold_norm(norm, linear)
        assert isinstance(norm, FoldedNorm)
        torch.testing.assert_close(linear(norm(x)), expected, atol=1e-5, rtol=1e-5)
    fresh.load_state_dict(norm.state_dict())
    torch.testing.assert_close(linear(fresh(x)), expected, atol=1e-5, rtol=1e-5)

    feed = SwiGLU(make_config())
    hidden = feed.down.in_features
    gate, up = x @ feed.gate_up.weight[:hidden].T, x @ feed.gate_up.weight[hidden:].T
    expected = (gate / (1 + (-gate).exp()) * up) @ feed.down.weight.T
    torch.testing.assert_close(feed(x), expected, atol=1e-5, rtol=1e-5)


@given(
    num_frame_tokens=st.integers(1, 3),
    has_state=st.booleans(),
    num_steps=st.integers(1, 6),
    window=st.integers(1, 7),
)
def test_sliding_mask_is_what_it_says(
    num_frame_tokens: int, has_state: bool, num_steps: int, window: int
) -> None:
    layout = StepLayout(num_frame_tokens=num_frame_tokens, has_state=has_state)
    mask = attention_mask(layout, num_steps, window)
    for i in range(len(mask)):
        for j in range(len(mask)):
            step_i, step_j = i // layout.positions_per_step, j // layout.positions_per_step
            assert mask[i, j] == (j <= i and step_i - window < step_j)


@torch.no_grad()
@pytest.mark.parametrize("head_dim", [2, 8])
def test_rotary_products_depend_on_the_distance_only(head_dim: int) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 1, 1, head_dim)

    def product(step_q: int, step_k: int) -> float:
        tables = [rotary_table(torch.tensor([s]), head_dim, 100.0) for s in (step_q, step_k)]
        return float((rotate(q, tables[0]) * rotate(k, tables[1])).sum())

    assert product(3, 3) == pytest.approx(float((q * k).sum()), abs=1e-5)
    for distance in range(5):
        near = product(distance, 0)
        for shift in (1, 17, 10_000, 1_000_000):
            assert product(distance + shift, shift) == pytest.approx(near, abs=1e-5)
    assert abs(product(1, 0) - product(2, 0)) > 1e-3


@torch.no_grad()
def test_shifting_all_steps_changes_nothing() -> None:
    torch.manual_seed(0)
    model = Transformer(make_config()).eval()
    num_steps = 5
    steps = torch.arange(num_steps).repeat_interleave(LAYOUT.positions_per_step)
    x = torch.randn(2, len(steps), 24)
    mask = attention_mask(LAYOUT, num_steps, 3)
    reference = model(x, steps, mask)
    torch.testing.assert_close(model(x, steps + 10_000, mask), reference, atol=1e-5, rtol=0)
    assert not torch.allclose(model(x, steps * 2, mask), reference, atol=1e-3)


def test_no_position_sees_what_the_mask_forbids_by_gradient() -> None:
    """For every position of a deep enough stack: gradients reach exactly what is allowed."""
    torch.manual_seed(0)
    model = Transformer(make_config(num_layers=1))
    num_steps = 5
    steps = torch.arange(num_steps).repeat_interleave(LAYOUT.positions_per_step)
    mask = attention_mask(LAYOUT, num_steps, 3)
    x = torch.randn(1, len(steps), 24, requires_grad=True)
    out = model(x, steps, mask)
    for position in range(len(steps)):
        (gradient,) = torch.autograd.grad(out[0, position].sum(), x, retain_graph=True)
        assert torch.equal(gradient[0].abs().amax(-1) > 0, mask[position]), position


def test_activations_have_unit_scale_at_any_size() -> None:
    torch.manual_seed(0)
    for dim, num_layers in ((24, 1), (96, 8)):
        model = Transformer(make_config(dim=dim, num_layers=num_layers, window=8))
        x = torch.randn(4, 16, dim)
        with torch.no_grad():
            table = rotary_table(torch.arange(16), model.config.head_dim, 100.0)
            for layer in model.layers:
                x = layer(x, table, None)
        assert 0.8 < float(x.std()) < 2.0, (dim, num_layers)
