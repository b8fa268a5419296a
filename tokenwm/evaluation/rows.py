"""Parts of recorded episodes that evaluation needs beside its starts."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader
from tokenwm.imagination.starts import Start
from tokenwm.imagination.token_world_model import TokenWorldModel


def load_future_actions(
    reader: ShardReader, rows: Sequence[Start], num_context_frames: int, horizon: int
) -> NDArray[np.generic]:
    """``(B, H, A)``: the actions from the last context step on."""
    first = num_context_frames - 1
    return np.stack(
        [
            reader.arrays(
                row.key,
                ["action"],
                row.first_step + first,
                row.first_step + first + horizon,
            )["action"]
            for row in rows
        ]
    )


@torch.inference_mode()
def count_codes(
    model: TokenWorldModel, reader: ShardReader, keys: Sequence[str], chunk_size: int
) -> Tensor:
    """Number of times each code occurs in all frames of some episodes: ``(V,)`` int64."""
    counts = torch.zeros(model.vocabulary.codebook_size, dtype=torch.int64, device=model.device)
    for key in keys:
        length = reader.episode(key).num_steps
        for first in range(0, length, chunk_size):
            frames = torch.from_numpy(reader.frames(key, first, min(first + chunk_size, length)))
            tokens = model.tokenizer.encode_sequence(frames[None])
            counts += torch.bincount(tokens.flatten(), minlength=len(counts))
    return counts
