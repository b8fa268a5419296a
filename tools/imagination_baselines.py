"""Baselines of imagination: the straightforward ways to decode a model of the same sizes.

Used by ``tools/bench_imagination.py``.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from iris_checkout import load_checkout
from torch import Tensor
from torch.distributions import Categorical

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
    """An engine's result.

    Attributes:
        frame: ``(B, H, K)`` frame tokens.
        passes: Passes through the transformer.
        positions: Positions fed per row.
        reading: Seconds that reading the context took; None if the caller measures it.
    """

    frame: Tensor
    passes: float
    positions: float
    reading: float | None = None


Engine = Callable[[WorldModel, Tokens, Tensor], Decoded]


class PlainCache:
    """Keys and values of one layer, laid side by side in memory made for all of them at once.

    Args:
        keep: Newest positions that are attended to.
    """

    def __init__(self, shape: tuple[int, int, int, int], keep: int, like: Tensor) -> None:
        self.keys, self.values = like.new_empty(shape), like.new_empty(shape)
        self.keep, self.size = keep, 0

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Append ``(B, heads, Q, head_dim)``; return all that is attended to, without a copy."""
        first, self.size = self.size, self.size + keys.shape[2]
        self.keys[:, :, first : self.size] = keys
        self.values[:, :, first : self.size] = values
        held = slice(max(0, self.size - self.keep), self.size)
        return self.keys[:, :, held], self.values[:, :, held]


def plain_loop(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    """One token per pass over keys and values in preallocated memory, as IRIS decodes."""
    layout, config = model.layout, model.config.transformer
    length, num_steps = layout.positions_per_step, context.frame.shape[1] + actions.shape[1]
    shape = (len(actions), config.kv_heads, num_steps * length, config.head_dim)
    start = now(actions.device)
    embedded = model.embed(context).positions[:, :-1]  # the last action is still to come
    caches = [PlainCache(shape, config.window * length, embedded) for _ in range(config.num_layers)]
    _plain_pass(model, caches, embedded)
    reading = now(actions.device) - start
    before, frames = context.steps([-1]), []
    for action in actions.unbind(1):
        before = before._replace(action=action[:, None])
        steps = model.embed(Tokens.cat([before, before], dim=1))
        hidden = _plain_pass(model, caches, steps.positions[:, length - 1 : length])
        model.reward(hidden)
        model.termination_logit(hidden)
        new = []
        for slot in range(layout.num_frame_tokens):
            logits = model.frame_logits(hidden, before.frame[:, 0, slot])
            token = torch.multinomial(logits.softmax(-1), 1)[:, 0]
            new.append(token)
            inputs = model.frame_embedding(token) + steps.around[:, length + slot]
            hidden = _plain_pass(model, caches, inputs[:, None])
        before = before._replace(frame=torch.stack(new, dim=1)[:, None])
        frames.append(before.frame)
    passes = len(frames) * length
    return Decoded(frame=torch.cat(frames, dim=1), passes=passes, positions=passes, reading=reading)


def _plain_pass(model: WorldModel, caches: list[PlainCache], x: Tensor) -> Tensor:
    """The next positions through all layers; ``(B, Q, D)`` → ``(B, D)`` of the last."""
    config, first = model.config.transformer, caches[0].size
    steps = torch.arange(first, first + x.shape[1], device=x.device)
    table = rotary_table(
        steps // model.layout.positions_per_step, config.head_dim, config.rope_base
    )
    for cache, layer in zip(caches, model.transformer.layers, strict=True):
        assert isinstance(layer, Layer)
        attention = layer.attention
        kv_dim = config.kv_heads * config.head_dim
        parts = attention.qkv(layer.attention_norm(x)).split([config.dim, kv_dim, kv_dim], dim=-1)
        q, k, v = (part.unflatten(-1, (-1, config.head_dim)) for part in parts)
        q = rotate(attention.query_norm(q), table).transpose(1, 2)
        k, v = rotate(attention.key_norm(k), table).transpose(1, 2), v.transpose(1, 2)
        k, v = cache.write(k, v)
        if x.shape[1] > 1:
            mixed = F.scaled_dot_product_attention(
                q, k, v, is_causal=True, enable_gqa=config.kv_heads != config.num_heads
            )
        else:  # two products are faster than torch's fused kernel for one query on a CPU
            grouped = q.reshape(len(q), config.kv_heads, -1, config.head_dim)
            weights = (grouped @ k.mT * config.head_dim**-0.5).softmax(-1)
            mixed = (weights @ v).reshape(q.shape)
        x = x + attention.out(mixed.transpose(1, 2).flatten(2))
        x = x + layer.mlp(layer.mlp_norm(x))
    hidden: Tensor = model.transformer.norm(x)[:, -1]
    return hidden


def iris_engine(checkout: Path, model: WorldModel) -> Engine:
    """The loop of IRIS (Micheli et al. 2023) on the network of a checkout of its repository.

    Of the sizes of ``model``, with random weights. Its environment begins anew when its window is
    full; here every step is decoded with the window nearly full, as ours are.

    Args:
        checkout: Folder of https://github.com/eloialonso/iris.
        model: Whose sizes to take; as many key as query heads.
    """
    modules = load_checkout(checkout)
    config, layout = model.config.transformer, model.layout
    length, vocabulary = layout.positions_per_step, model.vocabulary
    sizes = modules.transformer.TransformerConfig(
        tokens_per_block=length,
        max_blocks=config.window,
        attention="causal",
        num_layers=config.num_layers,
        num_heads=config.num_heads,
        embed_dim=config.dim,
        embed_pdrop=0.1,
        resid_pdrop=0.1,
        attn_pdrop=0.1,
    )
    iris = modules.world_model.WorldModel(
        obs_vocab_size=vocabulary.codebook_size,
        act_vocab_size=vocabulary.action.num_values,
        config=sizes,
    )
    iris = iris.to(model.slot_embedding.device).eval()

    def decode(_: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
        start = now(actions.device)
        seen = context.steps(slice(-config.window + 1, None))
        tokens = torch.cat([seen.frame, seen.action[..., :1]], dim=2).flatten(1)[:, :-1]
        kept = iris.transformer.generate_empty_keys_values(
            n=len(tokens), max_tokens=sizes.max_tokens
        )
        iris(tokens, past_keys_values=kept)
        reading, frames, num_read = now(actions.device) - start, [], kept.size
        for action in actions.unbind(1):
            for layer in kept:
                layer._k_cache._size = layer._v_cache._size = num_read
            token, new = action[:, :1], []
            for index in range(length):
                predicted = iris(token, past_keys_values=kept)
                if index == 0:
                    for logits in (predicted.logits_rewards, predicted.logits_ends):
                        Categorical(logits=logits).sample().cpu().numpy()  # type: ignore[no-untyped-call]
                if index < layout.num_frame_tokens:
                    logits = predicted.logits_observations
                    token = Categorical(logits=logits).sample()  # type: ignore[no-untyped-call]
                    new.append(token)
            frames.append(torch.cat(new, dim=1))
        passes = len(frames) * length
        return Decoded(
            frame=torch.stack(frames, dim=1), passes=passes, positions=passes, reading=reading
        )

    return decode


def no_cache(model: WorldModel, context: Tokens, actions: Tensor) -> Decoded:
    """Every token from a full pass over the window. Two steps are enough: all cost the same."""
    window, num_frame_tokens = model.config.transformer.window, model.layout.num_frame_tokens
    frames, known = context.frame, context.action[:, :-1]
    for action in actions[:, :2].unbind(1):
        known = torch.cat([known, action[:, None]], dim=1)
        frames = torch.cat([frames, frames[:, -1:]], dim=1)
        seen = torch.cat([known, action[:, None]], dim=1)[:, -window:]
        for slot in range(num_frame_tokens):
            found = model(Tokens(frames[:, -window:], None, seen)).frame_hidden[:, -1, slot]
            logits = model.frame_logits(found, frames[:, -2, slot])
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
