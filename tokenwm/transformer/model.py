"""The whole transformer, top to bottom: one network for training and for cached decoding.

Pre-norm residual layers of grouped-query attention and SwiGLU, RMSNorm everywhere, rotary embedding
over the *step* number (so a prediction depends on relative time only), and attention that reaches
back ``window`` steps.

Initialisation: every linear map starts with standard deviation ``1 / sqrt(fan_in)`` and the two
maps that write into the residual stream are divided by ``sqrt(2 * num_layers)``, so activations
have unit scale at any width and depth. Heads start at zero, so the first loss is that of a uniform
guess (plus the copy prior of the world model).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenwm.errors import TokenwmError
from tokenwm.transformer.cache import KVCache, LayerCache


@dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes of the transformer.

    Attributes:
        dim: Width ``D``, a multiple of ``2 * num_heads``.
        num_layers: Layers.
        num_heads: Query heads ``N``.
        num_kv_heads: Key and value heads; fewer than ``num_heads`` is grouped-query attention.
            None: as many.
        window: Steps that attention reaches back, the current one included.
        qk_norm: Normalise queries and keys (Henry et al. 2020); steadies training at large rates.
        dropout: Share of what a layer adds to the residual stream that is dropped in training. For
            few episodes; 0 for many.
        rope_base: Longest wavelength of the rotary embedding is about ``2 * pi * rope_base`` steps.
    """

    dim: int = 256
    num_layers: int = 10
    num_heads: int = 4
    num_kv_heads: int | None = None
    window: int = 20
    qk_norm: bool = True
    dropout: float = 0.0
    rope_base: float = 100.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range or two do not fit together.
        """
        if min(self.dim, self.num_layers, self.num_heads, self.kv_heads, self.window) < 1:
            raise TokenwmError(f"sizes must be at least 1: {self}")
        if self.dim % (2 * self.num_heads):
            raise TokenwmError(
                f"dim={self.dim} must be a multiple of 2 * num_heads = {2 * self.num_heads}"
            )
        if not 0.0 <= self.dropout < 1.0:
            raise TokenwmError(f"dropout={self.dropout} must be in [0, 1)")
        if self.num_heads % self.kv_heads:
            raise TokenwmError(
                f"num_heads={self.num_heads} must be a multiple of num_kv_heads={self.kv_heads}"
            )

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self.num_heads if self.num_kv_heads is None else self.num_kv_heads

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.dim // self.num_heads

    @property
    def mlp_dim(self) -> int:
        """Hidden width of SwiGLU: 8/3 of ``dim``, rounded up to a multiple of 32."""
        return math.ceil(8 * self.dim / 3 / 32) * 32


class RMSNorm(nn.Module):
    """Root-mean-square norm (Zhang & Sennrich 2019), always computed in float32."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., D)`` → the same shape."""
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, 1e-6).to(x.dtype)


def rotary_table(steps: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (Su et al. 2021) for each step number.

    Angles are formed in float64: in float32 the angle itself would be wrong by 1e-3 after 10,000
    steps.

    Args:
        steps: ``(Q,)`` or ``(B, Q)`` int64.
        head_dim: Width of a head, even.
        base: See :class:`TransformerConfig`.

    Returns:
        Two tensors ``(..., Q, 1, head_dim / 2)`` float32; the 1 stands for the heads.
    """
    exponent = torch.arange(head_dim // 2, device=steps.device, dtype=torch.float64)
    frequency = base ** (-exponent / (head_dim // 2))
    angle = steps.double()[..., None, None] * frequency
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Apply a rotary table to ``(B, Q, N, head_dim)``."""
    cos, sin = table
    left, right = x.float().chunk(2, dim=-1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary embedding, with or without a cache."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        kv_dim = config.kv_heads * config.head_dim
        self.qkv = nn.Linear(config.dim, config.dim + 2 * kv_dim, bias=False)
        self.out = nn.Linear(config.dim, config.dim, bias=False)
        self.query_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.key_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``; see :meth:`Transformer.forward`."""
        config = self.config
        kv_dim = config.kv_heads * config.head_dim
        q, k, v = self.qkv(x).split([config.dim, kv_dim, kv_dim], dim=-1)
        q = q.unflatten(-1, (config.num_heads, config.head_dim))  # (B, Q, N, head)
        k = k.unflatten(-1, (config.kv_heads, config.head_dim))
        v = v.unflatten(-1, (config.kv_heads, config.head_dim))
        q = rotate(self.query_norm(q), table)
        k = rotate(self.key_norm(k), table)
        if cache is not None:
            k, v = cache.write(k, v)  # (B, capacity, kv_heads, head)
        mixed = F.scaled_dot_product_attention(
            q.transpose(1, 2),  # (B, N, Q, head)
            k.transpose(1, 2).to(q.dtype),
            v.transpose(1, 2).to(q.dtype),
            attn_mask=mask,
            is_causal=mask is None,
            enable_gqa=config.kv_heads != config.num_heads,
        )
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Layer(nn.Module):
    """One pre-norm residual layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        mask: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), table, mask, cache))
        out: Tensor = x + self.dropout(self.mlp(self.mlp_norm(x)))
        return out


class Transformer(nn.Module):
    """Layers and the final norm; embeddings and heads belong to the world model."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.dim)
        self.apply(init_linear)
        for layer in self.layers:
            assert isinstance(layer, Layer)
            for projection in (layer.attention.out, layer.mlp.down):
                projection.weight.data /= math.sqrt(2 * config.num_layers)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the linear maps, in which everything but norms and rotation is computed."""
        layer = self.layers[0]
        assert isinstance(layer, Layer)
        return layer.attention.out.weight.dtype

    def forward(
        self, x: Tensor, steps: Tensor, mask: Tensor | None, cache: KVCache | None = None
    ) -> Tensor:
        """Run all layers.

        Args:
            x: ``(B, Q, D)`` embedded positions.
            steps: ``(Q,)`` or ``(B, Q)`` int64, the step number of each position.
            mask: ``(Q, S)`` or ``(B or 1, 1, Q, S)`` bool, True where attention is allowed; None
                means plain causal (no cache only).
            cache: Keys and values of earlier positions; the new ones are written into it and ``S``
                is its size.

        Returns:
            ``(B, Q, D)`` after the final norm.
        """
        table = rotary_table(steps, self.config.head_dim, self.config.rope_base)
        for index, layer in enumerate(self.layers):
            x = layer(x, table, mask, None if cache is None else cache.layer(index))
        out: Tensor = self.norm(x)
        return out


def init_linear(module: nn.Module) -> None:
    """Standard deviation ``1 / sqrt(fan_in)``, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
