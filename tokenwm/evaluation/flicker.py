"""Tokens that change from one recorded frame to the next, as recorded and under pixel noise.

What a camera's noise changes no model can predict: for a model it is noise of the labels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import FloatArray
from tokenwm.imagination.starts import spread
from tokenwm.imagination.token_world_model import TokenWorldModel

NOISE_LEVELS = (0, 1, 2)
"""Largest 8-bit levels of the noise that is added; 0 is the frames as recorded."""
MAX_EPISODES = 32
MAX_FRAMES = 32
"""Frames of an episode, from its middle, and episodes, evenly spread: enough for a share."""


@torch.inference_mode()
def measure_flicker(
    model: TokenWorldModel, reader: ShardReader, keys: Sequence[str], seed: int
) -> FloatArray:
    """Share of tokens that change in a step, under each of ``NOISE_LEVELS``.

    Args:
        model: Its tokenizer is measured.
        reader: Where the episodes were recorded.
        keys: Episodes, each of two frames or more.
        seed: Seed of the noise, which is drawn anew for every frame, pixel and channel.

    Returns:
        ``(episodes, noise levels)`` in [0, 1], of up to ``MAX_EPISODES`` episodes.
    """
    chosen = [keys[index] for index in spread(len(keys), MAX_EPISODES)]
    shares = np.zeros((len(chosen), len(NOISE_LEVELS)))
    for row, key in enumerate(chosen):
        length = reader.episode(key).num_steps
        first = max(0, length - MAX_FRAMES) // 2
        frames = torch.from_numpy(reader.frames(key, first, min(first + MAX_FRAMES, length)))
        for column, level in enumerate(NOISE_LEVELS):
            generator = torch.Generator().manual_seed(seed)
            noisy = with_noise(frames, level, generator)
            (tokens,) = model.tokenizer.encode_sequence(noisy[None])
            shares[row, column] = float((tokens[1:] != tokens[:-1]).double().mean())
    return shares


def with_noise(frames: Tensor, level: int, generator: torch.Generator) -> Tensor:
    """Add whole levels, uniform from ``-level`` to ``level``, to uint8 frames; clipped."""
    noise = torch.randint(-level, level + 1, frames.shape, generator=generator, dtype=torch.int16)
    return (frames + noise).clamp(0, 255).to(torch.uint8)
