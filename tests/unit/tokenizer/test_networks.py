import pytest
import torch
from torch import Tensor, nn

from tests.small_models import shake
from tokenwm.tokenizer.networks import (
    ChannelNorm,
    Decoder,
    Encoder,
    ResidualBlock,
    SpatialAttention,
)


@pytest.mark.parametrize(
    ("channels", "patch_size", "size"),
    [((8,), 4, (8, 16)), ((4, 8), 2, (16, 8)), ((4, 4, 8), 1, (8, 8))],
)
def test_encoder_and_decoder_mirror_each_other(
    channels: tuple[int, ...], patch_size: int, size: tuple[int, int]
) -> None:
    factor = patch_size * 2 ** (len(channels) - 1)
    encoder = Encoder(channels, 1, patch_size, code_dim=5, attention_stages=(0,))
    decoder = Decoder(channels, 1, patch_size, code_dim=5, attention_stages=(0,))
    pixels = torch.randn(2, 3, *size)
    latents = encoder(pixels)
    assert latents.shape == (2, 5, size[0] // factor, size[1] // factor)
    assert decoder(latents).shape == pixels.shape


def reach(encoder: Encoder, row: int, column: int) -> Tensor:
    """Which pixels of a 16 × 16 image a latent depends on, ``(16, 16)`` bool."""
    pixels = torch.randn(1, 3, 16, 16, requires_grad=True)
    encoder(pixels)[0, :, row, column].sum().backward()
    assert pixels.grad is not None
    return pixels.grad[0].abs().amax(0) > 0


def test_kernel_1_lets_a_token_see_its_own_pixels_only() -> None:
    own = torch.zeros(16, 16, dtype=torch.bool)
    own[8:, :8] = True
    small = Encoder((4, 4), 1, 4, code_dim=3, kernel_size=1)
    shake(small)
    assert torch.equal(reach(small, 1, 0), own)
    wide = Encoder((4, 4), 1, 4, code_dim=3, kernel_size=3)
    shake(wide)
    assert reach(wide, 1, 0)[own].all()
    assert reach(wide, 1, 0).sum() > own.sum()


@pytest.mark.parametrize("block", [ResidualBlock(4, 3), SpatialAttention(4)], ids=["conv", "attn"])
def test_blocks_start_as_the_identity(block: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(block(x), x)
    shake(block)
    assert not torch.allclose(block(x), x, atol=1e-3)


@torch.no_grad()
def test_channel_norm_is_the_root_mean_square_over_channels() -> None:
    norm = ChannelNorm(4)
    shake(norm, 0.5)
    x = 5.0 * torch.randn(2, 4, 3, 3)
    scale = (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), x / scale * norm.weight.view(1, 4, 1, 1))


@torch.no_grad()
def test_spatial_attention_equals_the_naive_formula() -> None:
    torch.manual_seed(0)
    block = SpatialAttention(4)
    shake(block, 0.5)
    x = torch.randn(2, 4, 2, 3)
    q, k, v = block.qkv(block.norm(x)).flatten(2).split(4, dim=1)  # (B, C, HW) each
    weights = torch.einsum("bci,bcj->bij", q, k).div(2.0).softmax(-1)  # sqrt(4) = 2
    mixed = torch.einsum("bij,bcj->bci", weights, v).reshape(x.shape)
    torch.testing.assert_close(block(x), x + block.out(mixed))
