"""What imagination is compared with: the straightforward ways to decode the same model.

Used by ``tools/bench_imagination.py``.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenwm.sequence.tokens import Tokens
from tokenwm.transformer.model import Layer, rotary_table, rotate
from tokenwm.transformer.world_model import WorldModel


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What an engine did: ``(B, H, K)`` frame tokens, passes and positions fed per row."""

    frame: Tensor
    passes: float
    positions: float


Engine = Callable[[WorldModel, Tokens, Tensor], Decoded]


def growing_cache(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    """One token per pass over keys and values that grow by concatenation."""
    layout, window = model.layout, model.config.transformer.window
    keep = window * layout.positions_per_step
    cache: list[tuple[Tensor, Tensor]] = []
    embedded = model.embed(context)[0][:, :-1]  # the last action is still to come
    hidden = _grow(model, cache, embedded, 0, keep)
    frame, frames = context.frame[:, -1], []
    step = context.frame.shape[1] - 1
    for action in actions.unbind(1):
        at_action = model.embed_action(action)
        hints = model.frame_hints(frame[:, None], at_action[:, None], None)[:, 0]
        inputs = at_action + model.slot_embedding[layout.action_slot] + hints[:, 0]
        position = step * layout.positions_per_step + layout.action_slot
        hidden = _grow(model, cache, inputs[:, None], position, keep)
        step, new = step + 1, []
        for slot in range(layout.num_frame_tokens):
            logits = model.frame_logits(hidden, frame[:, slot])
            model.reward(hidden)
            model.termination_logit(hidden)
            token = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            new.append(token)
            is_last = slot == layout.num_frame_tokens - 1
            hint = model.no_hint if is_last else hints[:, slot + 1]
            inputs = model.frame_embedding(token) + model.slot_embedding[slot] + hint
            position = step * layout.positions_per_step + slot
            hidden = _grow(model, cache, inputs[:, None], position, keep)
        frame = torch.stack(new, dim=1)
        frames.append(frame)
    passes = len(frames) * layout.positions_per_step
    return Decoded(frame=torch.stack(frames, dim=1), passes=passes, positions=passes)


def _grow(
    model: WorldModel, cache: list[tuple[Tensor, Tensor]], x: Tensor, first: int, keep: int
) -> Tensor:
    """Positions from ``first`` on through all layers; ``(B, Q, D)`` → ``(B, D)`` of the last."""
    config = model.config.transformer
    steps = torch.arange(first, first + x.shape[1], device=x.device)
    table = rotary_table(
        steps // model.layout.positions_per_step, config.head_dim, config.rope_base
    )
    for index, layer in enumerate(model.transformer.layers):
        assert isinstance(layer, Layer)
        attention = layer.attention
        kv_dim = config.kv_heads * config.head_dim
        parts = attention.qkv(layer.attention_norm(x)).split([config.dim, kv_dim, kv_dim], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, config.head_dim)) for part in parts)
        q = rotate(attention.query_norm(q), table).transpose(1, 2)
        k, v = rotate(attention.key_norm(k), table).transpose(1, 2), v.transpose(1, 2)
        if index < len(cache):
            k = torch.cat([cache[index][0], k], dim=2)[:, :, -keep:]
            v = torch.cat([cache[index][1], v], dim=2)[:, :, -keep:]
            cache[index] = (k, v)
        else:
            cache.append((k, v))
        mixed = F.scaled_dot_product_attention(
            q, k, v, is_causal=q.shape[2] > 1, enable_gqa=config.kv_heads != config.num_heads
        )
        x = x + attention.out(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.mlp_norm(x))
    hidden: Tensor = model.transformer.norm(x)[:, -1]
    return hidden


def no_cache(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    """Every token from a full pass over the window. Two steps are enough: all cost the same."""
    window, num_frame_tokens = model.config.transformer.window, model.layout.num_frame_tokens
    frames, known = context.frame, context.action[:, :-1]
    for action in actions[:, :2].unbind(1):
        known = torch.cat([known, action[:, None]], dim=1)
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
        seen = torch.cat([known, action[:, None]], dim=1)[:, -window:]
        for slot in range(num_frame_tokens):
            logits = model(Tokens(frames[:, -window:], None, seen)).frame_logits[:, -1, slot]
            frames[:, -1, slot] = torch.multinomial(logits.softmax(-1), 1)[:, 0]
    passes = 2 * num_frame_tokens
    positions = passes * window * model.layout.positions_per_step
    return Decoded(frame=frames[:, -2:], passes=passes, positions=positions)


def generate_seconds(model: WorldModel, batch: int, num_steps: int) -> float | None:
    """Seconds per step of ``generate`` of transformers at the same sizes; None without it."""
    try:
        from transformers import LlamaConfig, LlamaForCausalLM
    except ImportError:
        return None
    config, length = model.config.transformer, model.layout.positions_per_step
    device = model.slot_embedding.device
    llama_config = LlamaConfig(
        vocab_size=model.vocabulary.codebook_size,
        hidden_size=config.dim,
        intermediate_size=config.mlp_dim,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=4 * config.window * length,
        eos_token_id=None,
        bos_token_id=None,
        pad_token_id=0,
    )
    llama = LlamaForCausalLM(llama_config).to(device).eval()
    ids = torch.randint(config.dim, (batch, config.window * length), device=device)
    options: dict[str, Any] = {"do_sample": True, "cache_implementation": "static"}
    options["disable_compile"] = device.type == "cpu"

    def seconds(count: int) -> float:
        start = now(device)
        mask = torch.ones_like(ids)
        llama.generate(
            ids, attention_mask=mask, min_new_tokens=count, max_new_tokens=count, **options
        )
        return now(device) - start

    seconds(2)
    return (seconds(1 + num_steps * length) - seconds(1)) / num_steps
