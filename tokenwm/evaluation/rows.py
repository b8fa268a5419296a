"""Recorded batches of context and future, read from shards as evaluation needs them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.starts import Start
from tokenwm.imagination.context import Context
from tokenwm.imagination.token_world_model import TokenWorldModel


@dataclass(frozen=True, kw_only=True)
class RowBatch:
    """A batch of recorded steps from some starts on: ``C`` of context and ``H`` of future.

    Attributes:
        numbers: ``(B,)`` which rows of the whole evaluation these are.
        frames: ``(B, C + H, cameras, height, width, 3)`` uint8.
        action: ``(B, C + H, A)`` in the units of the data.
        state: ``(B, C + H, state_dim)``, or None if the model has none.
        reward: ``(B, C + H)``, or None if the model or the data has none.
        terminated: ``(B, C + H)`` bool.
    """

    numbers: NDArray[np.int64]
    frames: Tensor
    action: NDArray[np.generic]
    state: NDArray[np.float32] | None
    reward: NDArray[np.float32] | None
    terminated: NDArray[np.bool_]

    def context(self, model: TokenWorldModel, num_frames: int) -> Context:
        """The first ``num_frames`` steps as a context to imagine from."""
        return model.context(
            self.frames[:, :num_frames],
            self.action[:, : num_frames - 1],
            None if self.state is None else self.state[:, :num_frames],
        )


def load_rows(
    model: TokenWorldModel,
    reader: ShardReader,
    rows: Sequence[Start],
    numbers: NDArray[np.int64],
    num_steps: int,
) -> RowBatch:
    """Read ``num_steps`` recorded steps from each start on."""
    scalars = ["action", "terminated"]
    if model.vocabulary.state is not None:
        scalars.append("state")
    if model.vocabulary.has_reward and "reward" in reader.manifest.features:
        scalars.append("reward")
    spans = [(row.key, row.first_step, row.first_step + num_steps) for row in rows]
    recorded = [reader.arrays(key, scalars, first, stop) for key, first, stop in spans]
    stacked = {name: np.stack([arrays[name] for arrays in recorded]) for name in scalars}
    frames = np.stack([reader.frames(*span) for span in spans])
    return RowBatch(
        numbers=numbers,
        frames=torch.from_numpy(frames).to(model.device),
        action=stacked["action"],
        state=stacked.get("state"),
        reward=stacked.get("reward"),
        terminated=stacked["terminated"],
    )


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
            tokens = model.tokenizer.encode_frames(frames.to(model.device))
            counts += torch.bincount(tokens.flatten(), minlength=len(counts))
    return counts
