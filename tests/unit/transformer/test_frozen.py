"""Packed linear maps give what ordinary ones give, and a row does not depend on its neighbours."""

import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.small_models import (
    random_tokens,
    shake,
    small_vocabulary,
    small_world_model,
    teacher_forced,
)
from tokenwm.transformer.frozen import PackedLinear, freeze, pack_linear_maps, unpack_linear_maps
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

TYPES = (torch.float32, torch.bfloat16)


def packed(
    in_features: int, out_features: int, dtype: torch.dtype, *, bias: bool = True
) -> tuple[nn.Linear, PackedLinear]:
    """A map and the same one packed, or a skip where this machine packs nothing."""
    torch.manual_seed(in_features + out_features)
    ordinary = nn.Linear(in_features, out_features, bias=bias).to(dtype).requires_grad_(False)
    holder = nn.Sequential(ordinary)
    pack_linear_maps(holder)
    found = holder[0]
    if not isinstance(found, PackedLinear):
        pytest.skip(f"oneDNN packs no {dtype} weights on this machine")
    return ordinary, found


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5,), (1, 5), (3, 2, 5), (0, 5)])
def test_the_product_is_that_of_an_ordinary_map(
    dtype: torch.dtype, bias: bool, shape: tuple[int, ...]
) -> None:
    ordinary, found = packed(5, 7, dtype, bias=bias)
    x = torch.randn(shape).to(dtype)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found(x), ordinary(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", TYPES)
@given(rows=st.integers(1, 200), first=st.integers(0, 100), sizes=st.integers(1, 12))
def test_a_row_has_the_same_bits_whatever_is_beside_it(
    dtype: torch.dtype, rows: int, first: int, sizes: int
) -> None:
    _, found = packed(16 * sizes, 24 * sizes, dtype)
    x = torch.randn(301, 16 * sizes, generator=torch.Generator().manual_seed(sizes)).to(dtype)
    part = slice(first, first + rows)
    assert torch.equal(found(x[part]), found(x)[part])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("in_features", [704, 1024, 2048, 2752])
def test_a_lone_row_has_the_same_bits_at_all_sizes(dtype: torch.dtype, in_features: int) -> None:
    if dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
        pytest.skip("AMX sums otherwise for other numbers of rows, see docs/architecture.md")
    _, found = packed(in_features, 768, dtype)
    x = torch.randn(40, in_features, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = found(x)
    for rows in (1, 2, 17):
        assert torch.equal(found(x[None, :rows]), expected[None, :rows])
    assert torch.equal(found(x[3]), expected[3])


def test_rows_that_are_not_contiguous_are_read_right() -> None:
    ordinary, found = packed(6, 4, torch.float32)
    x = torch.randn(6, 9).T
    torch.testing.assert_close(found(x), ordinary(x))


def test_gradients_of_the_input_are_those_of_an_ordinary_map() -> None:
    ordinary, found = packed(6, 4, torch.float32)
    gradients = []
    for layer in (ordinary, found):
        x = torch.ones(2, 6, requires_grad=True)
        layer(x).square().sum().backward()
        gradients.append(x.grad)
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_loaded_weight_is_used() -> None:
    _, found = packed(4, 4, torch.float32)
    other = nn.Linear(4, 4)
    x = torch.randn(3, 4)
    found.load_state_dict(other.state_dict())
    assert torch.equal(found(x), other(x))


def test_autocast_and_other_types_use_the_ordinary_product() -> None:
    ordinary, found = packed(4, 4, torch.float32)
    x = torch.randn(3, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(found(x), ordinary(x))
    with pytest.raises(RuntimeError, match="dtype"):
        found(x.double())


def test_what_is_moved_copied_or_pickled_is_not_packed() -> None:
    ordinary, found = packed(4, 4, torch.float32)
    x = torch.randn(3, 4)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found)), found.double()):
        assert other.packed is None
    assert torch.equal(found.float()(x), ordinary(x))


def test_frozen_models_are_packed_and_can_be_unpacked() -> None:
    packed(4, 4, torch.float32)  # skips
    model = small_world_model()
    frozen = freeze(model)
    again = freeze(frozen, torch.bfloat16)

    def maps(module: nn.Module) -> list[PackedLinear]:
        return [child for child in module.modules() if isinstance(child, PackedLinear)]

    assert not maps(model)
    assert len(maps(frozen)) == len(maps(again)) > 8
    assert all(child.packed is not None for child in (*maps(frozen), *maps(again)))
    unpack_linear_maps(frozen)
    assert all(child.packed is None for child in maps(frozen))


def test_a_frozen_model_without_rows_of_codes_predicts_what_the_model_does() -> None:
    torch.manual_seed(0)
    config = WorldModelConfig(
        transformer=TransformerConfig(dim=32, num_layers=1, num_heads=2), code_rows=False
    )
    model = WorldModel(config, small_vocabulary("frame+state")).eval()
    shake(model)
    tokens = random_tokens(model, 2, 3)
    with torch.no_grad():
        expected, found = (teacher_forced(m, tokens) for m in (model, freeze(model)))
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
