"""Models of a few thousand weights, with weights that make every path matter."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.actions import BinTokenizer, DiscreteTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

VOCABULARIES = ("frame", "frame+state", "discrete")
"""Kinds for :func:`small_vocabulary`: what a step holds besides its continuous actions."""


def binning(num_dimensions: int = 3, num_values: int = 16, margin_bins: int = 0) -> BinTokenizer:
    """Even bins over [-1, 1]."""
    edges = np.linspace(-1.0, 1.0, num_values + 1)[None].repeat(num_dimensions, axis=0)
    return BinTokenizer(edges=edges, margin_bins=margin_bins)


def small_vocabulary(
    kind: str = "frame+state", *, has_reward: bool = True, tokenizer_hash: str = "none"
) -> Vocabulary:
    """Two cameras of 2 × 2 tokens out of 32; ``discrete`` has one camera and discrete ids only."""
    discrete = kind == "discrete"
    states = {
        "frame": None,
        "frame+state": binning(2, 8),
        "discrete": DiscreteTokenizer(num_values=5, num_dimensions=2),
    }
    return Vocabulary(
        codebook_size=32,
        code_levels=(8, 4) if kind == "frame+state" else (),
        num_cameras=1 if discrete else 2,
        grid=(2, 3) if discrete else (2, 2),
        action=DiscreteTokenizer(num_values=6) if discrete else binning(),
        state=states[kind],
        has_reward=has_reward,
        tokenizer_hash=tokenizer_hash,
    )


def small_world_model(
    kind: str = "frame+state",
    *,
    seed: int = 0,
    has_reward: bool = True,
    draft_layers: int = 0,
    code_rows: bool | None = None,
    **transformer: int | bool,
) -> WorldModel:
    """A world model in eval mode: 3 layers, grouped queries, a window of 3 steps.

    That of ``frame+state`` knows codes by their digits only, unless ``code_rows`` says otherwise.
    """
    sizes = {"dim": 32, "num_layers": 3, "num_heads": 4, "num_kv_heads": 2, "window": 3}
    torch.manual_seed(seed)
    config = WorldModelConfig(
        transformer=TransformerConfig(**{**sizes, **transformer}),
        draft_layers=draft_layers,
        code_rows=kind != "frame+state" if code_rows is None else code_rows,
        state_increments=True,
    )
    vocabulary = small_vocabulary(kind, has_reward=has_reward)
    if has_reward:  # over the unknown range of old models expectations of random weights are noise
        vocabulary = replace(vocabulary, reward_range=(-2.0, 3.0))
    model = WorldModel(config, vocabulary)
    shake(model)
    # At 8 the copy prior would drown everything else in greedy futures.
    nn.init.constant_(model.copy_head.bias, 1.0)
    return model.eval()


def teacher_forced(model: WorldModel, tokens: Tokens) -> Tensor:
    """Logits of all frame tokens but the first step's from the true steps before them."""
    return model.frame_logits(model(tokens).frame_hidden, tokens.frame[:, :-1])


def shake(module: nn.Module, scale: float = 0.1) -> None:
    """Add noise to all weights: heads and others start at zero, where much has no effect."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=scale)


def random_tokens(model: WorldModel, batch_size: int, num_steps: int, seed: int = 0) -> Tokens:
    """Tokens of every kind that the model has, uniformly drawn."""
    generator = torch.Generator().manual_seed(seed)

    def draw(num_values: int, count: int) -> Tensor:
        return torch.randint(num_values, (batch_size, num_steps, count), generator=generator)

    vocabulary = model.vocabulary
    state = vocabulary.state
    return Tokens(
        draw(vocabulary.codebook_size, vocabulary.tokens_per_frame),
        None if state is None else draw(state.num_values, state.num_dimensions),
        draw(vocabulary.action.num_values, vocabulary.action.num_dimensions),
    )


def small_tokenizer(
    quantizer: str = "fsq", *, num_cameras: int = 1, seed: int = 0, **config: float
) -> FrameTokenizer:
    """A frame tokenizer for 16 × 16 pixels: 2 × 2 tokens out of 64 per camera."""
    torch.manual_seed(seed)
    sizes: dict[str, object] = {"channels": (8, 8), "patch_size": 4, "codebook_size": 64}
    sizes |= {"quantizer": quantizer, "code_dim": 4, **config}
    tokenizer = FrameTokenizer(FrameTokenizerConfig(**sizes), (16, 16), num_cameras)  # type: ignore[arg-type]
    shake(tokenizer)
    return tokenizer
