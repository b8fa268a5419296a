import pytest
import torch

from tokenwm.errors import TokenwmError
from tokenwm.transformer.model import Transformer, TransformerConfig


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 0}, "at least 1"),
        ({"window": 0}, "at least 1"),
        ({"num_kv_heads": 0}, "at least 1"),
        ({"dim": 36, "num_heads": 4}, r"dim=36 must be a multiple of 2 \* num_heads = 8"),
        ({"dropout": 1.0}, "dropout=1.0"),
        ({"num_heads": 4, "num_kv_heads": 3}, "num_heads=4 .*num_kv_heads=3"),
    ],
    ids=str,
)
def test_impossible_sizes_are_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(TokenwmError, match=message):
        TransformerConfig(**change)  # type: ignore[arg-type]


def test_derived_sizes() -> None:
    config = TransformerConfig(dim=96, num_heads=4)
    assert (config.kv_heads, config.head_dim, config.mlp_dim) == (4, 24, 256)
    assert TransformerConfig(dim=96, num_heads=4, num_kv_heads=2).kv_heads == 2
    assert TransformerConfig(dim=96, num_heads=4).mlp_dim % 32 == 0


def test_grouped_queries_save_weights_and_cache() -> None:
    full = Transformer(TransformerConfig(dim=32, num_layers=1, num_heads=4))
    grouped = Transformer(TransformerConfig(dim=32, num_layers=1, num_heads=4, num_kv_heads=1))
    saved = sum(p.numel() for p in full.parameters()) - sum(p.numel() for p in grouped.parameters())
    assert saved == 2 * 32 * 24


def test_initial_scale_of_every_linear_map() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=128, num_layers=8, num_heads=4))
    for name, weight in model.named_parameters():
        if weight.ndim == 1:
            assert torch.equal(weight, torch.ones_like(weight)), name
            continue
        into_residual = name.endswith(("attention.out.weight", "mlp.down.weight"))
        expected = weight.shape[1] ** -0.5 / (4.0 if into_residual else 1.0)  # sqrt(2 * 8) = 4
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05), name


def test_dropout_is_off_outside_training() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(dim=32, num_layers=2, num_heads=2, dropout=0.5))
    x, steps = torch.randn(2, 6, 32), torch.arange(6)
    assert not torch.equal(model(x, steps, None), model(x, steps, None))
    model.eval()
    assert torch.equal(model(x, steps, None), model(x, steps, None))
