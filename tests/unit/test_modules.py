"""Every module alike: shape, finite gradients, save and load, half precision."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tests.small_models import (
    VOCABULARIES,
    binning,
    random_tokens,
    shake,
    small_tokenizer,
    small_world_model,
)
from tokenwm.tokenizer.actions import DiscreteTokenizer
from tokenwm.tokenizer.networks import (
    ChannelNorm,
    Decoder,
    Encoder,
    ResidualBlock,
    SpatialAttention,
)
from tokenwm.tokenizer.quantizer import CodebookQuantizer, FiniteScalarQuantizer
from tokenwm.transformer.dynamics import LinearDynamics
from tokenwm.transformer.embeddings import (
    CodeEmbedding,
    FrameHints,
    ScalarEmbedding,
)
from tokenwm.transformer.heads import (
    CodeHead,
    ContinuousHead,
    DiscreteHead,
    RewardHead,
)
from tokenwm.transformer.model import (
    Attention,
    Layer,
    RMSNorm,
    SwiGLU,
    Transformer,
    TransformerConfig,
    rotary_table,
)

SIZES = TransformerConfig(dim=16, num_layers=2, num_heads=4, num_kv_heads=2)
STEPS = torch.arange(6)
TABLE = rotary_table(STEPS, SIZES.head_dim, SIZES.rope_base)


@dataclass(frozen=True)
class Case:
    """A module, what goes in, and the shape of what (first) comes out."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Any, ...]]
    shape: tuple[int, ...]


def floats(*shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randn(*shape),)


def ids(limit: int, *shape: int) -> Callable[[], tuple[Tensor]]:
    return lambda: (torch.randint(limit, shape),)


CASES = {
    "ChannelNorm": Case(lambda: ChannelNorm(8), floats(2, 8, 4, 4), (2, 8, 4, 4)),
    "ResidualBlock": Case(lambda: ResidualBlock(8, 3), floats(2, 8, 4, 4), (2, 8, 4, 4)),
    "SpatialAttention": Case(lambda: SpatialAttention(8), floats(2, 8, 4, 4), (2, 8, 4, 4)),
    "Encoder": Case(lambda: Encoder((8, 8), 1, 4, 3, (1,)), floats(2, 3, 16, 16), (2, 3, 2, 2)),
    "Decoder": Case(lambda: Decoder((8, 8), 1, 4, 3, (1,)), floats(2, 3, 2, 2), (2, 3, 16, 16)),
    "FiniteScalarQuantizer": Case(lambda: FiniteScalarQuantizer(64), floats(2, 9, 2), (2, 9, 2)),
    "CodebookQuantizer": Case(lambda: CodebookQuantizer(8, 4, 0.25), floats(2, 9, 4), (2, 9, 4)),
    **{
        f"FrameTokenizer {kind}": Case(
            lambda kind=kind: small_tokenizer(kind, num_cameras=2),  # type: ignore[misc]
            lambda: (torch.randint(256, (8, 2, 16, 16, 3), dtype=torch.uint8),),
            (16, 3, 16, 16),
        )
        for kind in ("fsq", "vq")
    },
    "RMSNorm": Case(lambda: RMSNorm(16), floats(2, 6, 16), (2, 6, 16)),
    "Attention": Case(
        lambda: Attention(SIZES), lambda: (torch.randn(2, 6, 16), TABLE, None), (2, 6, 16)
    ),
    "SwiGLU": Case(lambda: SwiGLU(SIZES), floats(2, 6, 16), (2, 6, 16)),
    "Layer": Case(lambda: Layer(SIZES), lambda: (torch.randn(2, 6, 16), TABLE, None), (2, 6, 16)),
    "Transformer": Case(
        lambda: Transformer(SIZES), lambda: (torch.randn(2, 6, 16), STEPS, None), (2, 6, 16)
    ),
    "ScalarEmbedding": Case(lambda: ScalarEmbedding(binning(), 16), ids(16, 2, 5, 3), (2, 5, 16)),
    "ScalarEmbedding discrete": Case(
        lambda: ScalarEmbedding(DiscreteTokenizer(num_values=6), 16), ids(6, 2, 5, 1), (2, 5, 16)
    ),
    "CodeEmbedding": Case(lambda: CodeEmbedding(32, (8, 4), 16), ids(32, 2, 5), (2, 5, 16)),
    "CodeHead": Case(lambda: CodeHead(32, (8, 4), 16), floats(2, 5, 16), (2, 5, 32)),
    "ContinuousHead": Case(
        lambda: ContinuousHead(binning(), binning(2), 16),
        lambda: (torch.randn(2, 5, 16), *ids(16, 2, 5, 3)(), *ids(16, 2, 5, 2)()),
        (2, 5, 3, 16),
    ),
    "ContinuousHead increments": Case(
        lambda: ContinuousHead(binning(), binning(2), 16, increments=True),
        lambda: (torch.randn(2, 5, 16), *ids(16, 2, 5, 3)(), *ids(16, 2, 5, 2)()),
        (2, 5, 3, 16),
    ),
    "DiscreteHead": Case(
        lambda: DiscreteHead(2, 6, 16),
        lambda: (torch.randn(2, 5, 16), *ids(6, 2, 5, 2)(), *ids(6, 2, 5, 1)()),
        (2, 5, 2, 6),
    ),
    "LinearDynamics": Case(
        lambda: LinearDynamics(binning(), binning(2)),
        lambda: (*ids(16, 2, 5, 3)(), *ids(16, 2, 5, 2)()),
        (2, 5, 3),
    ),
    "FrameHints": Case(
        lambda: FrameHints(CodeEmbedding(32, (), 16), 2, (2, 2), 16),
        lambda: (torch.randint(32, (2, 5, 8)), torch.randn(8, 16), torch.randn(2, 5, 16)),
        (2, 5, 8, 16),
    ),
    "RewardHead": Case(lambda: RewardHead(16), floats(2, 5, 16), (2, 5)),
    **{
        f"WorldModel {kind}": Case(
            lambda kind=kind: small_world_model(kind).train(),  # type: ignore[misc]
            lambda kind=kind: (random_tokens(small_world_model(kind), 2, 5),),  # type: ignore[misc]
            (2, 4, 6 if kind == "discrete" else 8, 32),
        )
        for kind in VOCABULARIES
    },
}


def outputs(result: Any) -> list[Tensor]:
    """The real-valued tensors of a result, a tensor or a named tuple of some."""
    every = [result] if isinstance(result, Tensor) else [r for r in result if r is not None]
    return [tensor for tensor in every if tensor.is_floating_point()]


@pytest.mark.parametrize("name", CASES)
def test_module(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    torch.manual_seed(0)
    module, inputs = case.make(), case.inputs()
    shake(module)

    # Shape, with something in it.
    first = outputs(module(*inputs))[0]
    assert first.shape == case.shape
    assert first.dtype == torch.float32
    assert first.std() > 1e-3

    # Gradients are finite and reach every weight that these inputs use.
    result = outputs(module(*inputs))
    sum(out.square().sum() for out in result if out.requires_grad).backward()  # type: ignore[union-attr]
    gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    # What other methods read from hidden states; tests of the losses see their gradients.
    heads = ("frame_head", "copy_head", "reward_head", "termination_head")
    silent = [
        n
        for n, p in module.named_parameters()
        if p.numel() and not n.startswith(heads) and (p.grad is None or not p.grad.any())
    ]
    fixed = [name for name, p in module.named_parameters() if not p.requires_grad]
    assert silent == fixed and all("dynamics.drift" in name for name in fixed)

    # Save and load: the same numbers out of another instance.
    module.eval()
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    other = case.make().eval()
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    with torch.no_grad():
        exact = outputs(module(*inputs))
        for got, wanted in zip(outputs(other(*inputs)), exact, strict=True):
            assert torch.equal(got, wanted)

    # Mixed precision: close, and trainable.
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rough = outputs(module(*inputs))
    half = copy.deepcopy(module).train()
    half.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        result = outputs(half(*inputs))
        loss = sum(out.float().square().mean() for out in result if out.requires_grad)
    loss.backward()  # type: ignore[union-attr]
    gradients = {n: p.grad for n, p in half.named_parameters() if p.grad is not None}
    assert gradients or not list(half.parameters())
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    for got, wanted in zip(rough, exact, strict=True):
        error = (got.float() - wanted).square().mean()
        # A token near a border may fall on its other side; the rest is rounding.
        assert error < (0.05 if "Tokenizer" in name else 0.003) * wanted.square().mean() + 1e-4


def test_every_module_has_a_case() -> None:
    from tokenwm.tokenizer import frames, networks, quantizer
    from tokenwm.transformer import embeddings, model, world_model

    parts = (frames, networks, quantizer, embeddings, model, world_model)
    known = {name.split()[0] for name in CASES}
    found = {
        value.__name__
        for part in parts
        for value in vars(part).values()
        if isinstance(value, type)
        and issubclass(value, nn.Module)
        and value.__module__ == part.__name__
        and "forward" in vars(value)
    }
    assert found - known == {"Dropout"}  # which has no weights: test_dropout.py
