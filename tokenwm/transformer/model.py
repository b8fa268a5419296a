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
from tokenwm.norm import RMSNorm, gain_of, normed
from tokenwm.transformer.attention import AttentionInParts
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


def rotary_table(steps: Tensor, head_dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines of the rotary embedding (Su et al. 2021) for each step number.

    Angles are formed in float64: in float32 the angle itself would be wrong by 1e-3 after 10,000
    steps.

    Args:
        steps: ``(Q,)`` or ``(B, Q)`` int64.
        head_dim: Width of a head, even.
        base: See :class:`TransformerConfig`.

    Returns:
        Two tensors ``(..., Q, 1, head_dim)`` float32 for :func:`rotate`; the 1 stands for the
        heads.
    """
    exponent = torch.arange(head_dim // 2, device=steps.device, dtype=torch.float64)
    frequency = base ** (-exponent / (head_dim // 2))
    angle = steps.double()[..., None, None] * frequency
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Turn each pair ``(i, i + head_dim / 2)`` of ``(B, Q, N, head_dim)`` float32 by its angle."""
    cos, sin = table
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, dims=-1), sin)


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
        bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``; see :meth:`Transformer.forward`."""
        num_heads, kv_heads = self.config.num_heads, self.config.kv_heads
        every = self.qkv(x).unflatten(-1, (-1, self.config.head_dim))  # (B, Q, heads, head)
        qk, v = torch.split(every, [num_heads + kv_heads, kv_heads], dim=2)
        qk, gain = qk.float(), self.gain()
        if gain is not None:
            qk = normed(qk, gain)
        qk = rotate(qk, table).to(v.dtype)
        qk, v = qk.transpose(1, 2), v.transpose(1, 2)  # (B, heads, Q, head)
        q, k = torch.split(qk, [num_heads, kv_heads], dim=1)
        past = None
        if cache is not None:
            k, v = cache.write(k, v)  # (B, kv_heads, capacity, head)
            past = cache.past
        out: Tensor = self.out(attend(q, k, v, bias, past).transpose(1, 2).flatten(2))
        return out

    def gain(self) -> Tensor | None:
        """Gain of queries and keys, ``(heads, head)`` float32; None if they are not normalised."""
        if not isinstance(self.query_norm, RMSNorm) or not isinstance(self.key_norm, RMSNorm):
            return None
        weights = [
            self.query_norm.weight.expand(self.config.num_heads, -1),
            self.key_norm.weight.expand(self.config.kv_heads, -1),
        ]
        return gain_of(torch.cat(weights).float())


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor | None,
    past: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Scaled dot-product attention, ``(B, N, Q, head)``.

    On a CPU as two matrix products: in bfloat16 faster than torch's fused kernel, in training and
    for the few queries and many keys of decoding, and a query's result is the same bits whatever
    the number of queries and rows beside it (docs/results/imagination.md). In training these are
    :class:`AttentionInParts`.

    Args:
        q: ``(B, N, Q, head)``.
        k: ``(B, kv_heads, S, head)``, contiguous for speed.
        v: The same shape.
        bias: From :func:`mask_to_bias`, to be broadcast to ``(B, N, Q, past + S)``; None means
            causal.
        past: Keys and values that ``copies`` neighbouring rows share and that are read once for all
            of them, ``(B / copies, kv_heads, past, head)`` each.
    """
    num_heads, kv_heads = q.shape[1], k.shape[1]
    if bias is None or (past is None and q.device.type != "cpu"):
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=bias, is_causal=bias is None, enable_gqa=kv_heads != num_heads
        )
    bias = bias.to(q.dtype)
    is_training = q.requires_grad and past is None and bias.ndim == 2
    if is_training and not torch.compiler.is_compiling():
        out: Tensor = AttentionInParts.apply(q, k, v, bias)  # type: ignore[no-untyped-call]
        return out
    batch, _, queries, width = q.shape
    # Heads that share keys are more queries of one head.
    q = (q * width**-0.5).reshape(batch, kv_heads, -1, width)  # (B, kv_heads, N/kv_heads * Q, head)
    scores = q @ k.mT
    if past is not None:
        scores = torch.cat([_apart(_together(q, past[0]) @ past[0].mT, batch), scores], dim=-1)
    scores = scores.reshape(batch, num_heads, queries, -1).add_(bias)
    weights = scores.softmax(-1).view(batch, kv_heads, q.shape[2], -1)
    if past is None:
        mixed = weights @ v
    else:
        num_past = past[0].shape[2]
        mixed = _apart(_together(weights[..., :num_past], past[1]) @ past[1], batch)
        mixed = mixed + weights[..., num_past:] @ v
    return mixed.reshape(batch, num_heads, queries, width)


def _together(x: Tensor, shared: Tensor) -> Tensor:
    """Rows that share keys become more queries: ``(B, h, Q, *)`` → ``(B / n, h, n * Q, *)``."""
    return torch.unflatten(x, 0, (len(shared), -1)).transpose(1, 2).flatten(2, 3)


def _apart(x: Tensor, batch: int) -> Tensor:
    """Inverse of :func:`_together`: ``(B / n, h, n * Q, *)`` → ``(B, h, Q, *)``."""
    return torch.unflatten(x, 2, (batch // len(x), -1)).transpose(1, 2).flatten(0, 1)


def mask_to_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """The bias of scores: 0 where ``mask`` is True, ``-inf`` where not.

    Made once per pass: adding it is several times as fast as filling by the mask in every layer.
    """
    return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, float("-inf"))


class SwiGLU(nn.Module):
    """Gated feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_up = nn.Linear(config.dim, 2 * config.mlp_dim, bias=False)
        self.down = nn.Linear(config.mlp_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``."""
        if x.requires_grad and x.device.type == "cpu":
            # Two products with contiguous results cost less than one result cut in halves.
            gate, up = (F.linear(x, weight) for weight in self.gate_up.weight.chunk(2))
        else:
            gate, up = self.gate_up(x).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) that draws eight decisions from one random number.

    On a CPU drawing is most of its cost. The probability is rounded to a multiple of 1/256.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.num_dropped = min(255, round(256 * probability))

    def forward(self, x: Tensor) -> Tensor:
        """``(...)`` → the same shape."""
        if not self.training or self.num_dropped == 0:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device)
        words.random_(torch.iinfo(torch.int64).min, None)
        keep = words.view(torch.uint8)[: x.numel()].view(x.shape) >= self.num_dropped
        return x * (keep.to(x.dtype) * (256 / (256 - self.num_dropped)))


class Layer(nn.Module):
    """One pre-norm residual layer."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.dim)
        self.attention = Attention(config)
        self.mlp_norm = RMSNorm(config.dim)
        self.mlp = SwiGLU(config)
        self.dropout = Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        table: tuple[Tensor, Tensor],
        bias: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """``(B, Q, D)`` → ``(B, Q, D)``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), table, bias, cache))
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
        if mask is None and x.device.type == "cpu":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        bias = None if mask is None else mask_to_bias(mask, x.dtype)
        for index, layer in enumerate(self.layers):
            x = layer(x, table, bias, None if cache is None else cache.layer(index))
        out: Tensor = self.norm(x)
        return out


def init_linear(module: nn.Module) -> None:
    """Standard deviation ``1 / sqrt(fan_in)``, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features**-0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
