"""Recorded walks on a line whose actions, distances and next codes are known, for heads."""

from collections.abc import Sequence

import torch
from torch import Tensor

from tests.small_models import binning
from tokenwm.heads.recorded import Recorded
from tokenwm.sequence.vocabulary import Vocabulary

GRID = (1, 1, 1, 1)
STEP = 0.15
"""How far an action of 1 leads."""


def walks(velocities: Sequence[float], num_steps: int = 8, seed: int = 0) -> Recorded:
    """Episodes of one velocity each, from the middle on: ``x' = x + STEP * action``."""
    generator = torch.Generator().manual_seed(seed)
    episodes = []
    for velocity in velocities:
        start = 0.8 * torch.rand(1, generator=generator) - 0.4
        place = start + STEP * velocity * torch.arange(num_steps)
        episodes.append(episode(place, torch.full((num_steps,), velocity)))
    return Recorded.cat(episodes)


def episode(place: Tensor, action: Tensor, tokens: Tensor | None = None) -> Recorded:
    """One episode: a code that is its place, no state, an action of one number."""
    count = len(place)
    return Recorded(
        features=place[:, None],
        goals=place[:, None],
        frame_tokens=(torch.zeros(count, dtype=torch.int64) if tokens is None else tokens)[:, None],
        pictures=torch.zeros(count, 3, dtype=torch.uint8),
        actions=action[:, None],
        first=torch.zeros(count, dtype=torch.int64),
        last=torch.full((count,), count - 1),
        recording=torch.zeros(count, dtype=torch.int64),
        is_synthetic=torch.zeros(count, dtype=torch.bool),
    )


def digits_vocabulary(num_values: int = 8) -> Vocabulary:
    """Frames of one token of one digit."""
    return Vocabulary(
        codebook_size=num_values,
        code_levels=(num_values,),
        num_cameras=1,
        grid=(1, 1),
        action=binning(1, 16),
        state=None,
        has_reward=False,
        tokenizer_hash="chain",
    )
