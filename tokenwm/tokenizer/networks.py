"""Encoder and decoder of the frame tokenizer: lean convolutional networks around a patchify stem.

The stem folds ``patch_size × patch_size`` pixels into channels, so that no convolution ever runs at
full resolution: on a CPU that is most of the cost of the usual VQ-GAN encoder. With
``patch_size=1`` and five stages of 64 channels the networks have the layout of IRIS's (Micheli et
al. 2023, table 6), which in turn is VQ-GAN's.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.norm import RMSNorm


class ChannelNorm(RMSNorm):
    """RMS norm over the channels of every pixel.

    On a CPU far cheaper than GroupNorm in channels-last.
    """

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → the same shape."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)  # views in channels-last memory


class ResidualBlock(nn.Module):
    """``x + conv(silu(conv(norm(x))))``; starts as the identity."""

    def __init__(self, num_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(num_channels)
        shape = (num_channels, num_channels, kernel_size)
        self.conv_in = nn.Conv2d(*shape, padding=kernel_size // 2)
        self.conv_out = nn.Conv2d(*shape, padding=kernel_size // 2)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → the same shape."""
        out: Tensor = x + self.conv_out(F.silu(self.conv_in(self.norm(x))))
        return out


class SpatialAttention(nn.Module):
    """Single-head self-attention over the pixels of a feature map, as in VQ-GAN.

    Starts as the identity.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(num_channels)
        self.qkv = nn.Conv2d(num_channels, 3 * num_channels, 1)
        self.out = nn.Conv2d(num_channels, num_channels, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` → the same shape."""
        batch, channels, height, width = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (B, HW, C)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)  # (B, C, HW)
        out: Tensor = x + self.out(mixed.reshape(batch, channels, height, width))
        return out


def _stage(
    num_channels: int, num_blocks: int, attention: bool, kernel_size: int = 3
) -> list[nn.Module]:
    layers: list[nn.Module] = []
    for _ in range(num_blocks):
        layers.append(ResidualBlock(num_channels, kernel_size))
        if attention:
            layers.append(SpatialAttention(num_channels))
    return layers


class Encoder(nn.Module):
    """``(B, 3, H, W)`` → ``(B, code_dim, H / f, W / f)``.

    ``f = patch_size * 2 ** (len(channels) - 1)``.

    Args:
        channels: Width of each stage; every stage after the first halves the resolution.
        num_blocks: Residual blocks per stage.
        patch_size: Pixels folded into channels by the stem.
        code_dim: Width of the latent handed to the quantizer.
        attention_stages: Indices of the stages with spatial attention.
        kernel_size: Side of the convolution kernels; 1 lets a token see its own pixels only.
    """

    def __init__(
        self,
        channels: Sequence[int],
        num_blocks: int,
        patch_size: int,
        code_dim: int,
        attention_stages: Sequence[int] = (),
        kernel_size: int = 3,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.PixelUnshuffle(patch_size),
            nn.Conv2d(3 * patch_size**2, channels[0], kernel_size, padding=kernel_size // 2),
        ]
        for index, width in enumerate(channels):
            if index > 0:
                layers += [nn.PixelUnshuffle(2), nn.Conv2d(4 * channels[index - 1], width, 1)]
            layers += _stage(width, num_blocks, index in attention_stages, kernel_size)
        layers += [ChannelNorm(channels[-1]), nn.Conv2d(channels[-1], code_dim, 1)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Encode pixels to latents."""
        out: Tensor = self.layers(x)
        return out


class Decoder(nn.Module):
    """The encoder mirrored: ``(B, code_dim, h, w)`` → ``(B, 3, H, W)``."""

    def __init__(
        self,
        channels: Sequence[int],
        num_blocks: int,
        patch_size: int,
        code_dim: int,
        attention_stages: Sequence[int] = (),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(code_dim, channels[-1], 3, padding=1)]
        for index in reversed(range(len(channels))):
            layers += _stage(channels[index], num_blocks, index in attention_stages)
            if index > 0:
                width = channels[index - 1]
                layers += [nn.Conv2d(channels[index], 4 * width, 1), nn.PixelShuffle(2)]
        layers += [
            ChannelNorm(channels[0]),
            nn.Conv2d(channels[0], 3 * patch_size**2, 3, padding=1),
            nn.PixelShuffle(patch_size),
        ]
        self.layers = nn.Sequential(*layers)

    def forward(self, codes: Tensor) -> Tensor:
        """Decode latents to pixels."""
        out: Tensor = self.layers(codes)
        return out
