"""Recorded episodes as IRIS reads them: one id an action, segments padded beyond an episode's end.

Used by ``tools/compare_iris.py``.
"""

import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.data.shards.reader import ShardReader

ROUNDS = 25
"""Rounds of k-means; centres hardly move after."""


class ActionCodes:
    """Actions as one id each, as IRIS reads them: ids as they are, vectors as the nearest centre.

    Centres are found by k-means over training actions divided by their standard deviation, so there
    are more of them where actions are frequent.

    Args:
        reader: Frame shards; its train split is read.
        most: Centres of vectors, or fewer where there are fewer actions.
        seed: Of the actions that k-means begins with.
    """

    def __init__(self, reader: ShardReader, most: int, seed: int = 0) -> None:
        feature = reader.manifest.features["action"]
        self.units, self.centres, self.error = feature.units, None, 0.0
        if feature.num_values is not None:
            if int(np.prod(feature.shape)) != 1:
                sys.exit(f"{reader.root}: {feature.shape} ids an action; IRIS reads one id")
            self.num_actions = feature.num_values
            return
        actions = np.concatenate(
            [reader.arrays(key, ["action"])["action"][:-1] for key in reader.keys("train")]
        )
        points = torch.from_numpy(actions).float().flatten(1)
        self.scale = points.std(0).clamp(min=1e-6)
        self.centres = _k_means(points / self.scale, most, seed)
        self.num_actions = len(self.centres)
        off = self.centres[torch.from_numpy(self.encode(actions))] * self.scale - points
        self.error = float(off.square().sum(1).mean().sqrt())

    def encode(self, actions: NDArray[np.generic]) -> NDArray[np.int64]:
        """``(..., A)`` in the units of the data → ``(...)``."""
        if self.centres is None:
            return actions[..., 0].astype(np.int64)
        points = torch.from_numpy(np.asarray(actions, dtype=np.float32)) / self.scale
        ids = _nearest(points.flatten(0, -2), self.centres)
        return ids.reshape(actions.shape[:-1]).numpy()

    def describe(self) -> dict[str, Any]:
        """What was done, for the record."""
        if self.centres is None:
            return {"ids": self.num_actions, "made_by": "ids as recorded"}
        made_by = "nearest of k-means centres over training actions"
        return {
            "ids": self.num_actions,
            "made_by": made_by,
            "root_mean_squared_distance": self.error,
            "units": self.units,
        }


def _k_means(points: Tensor, most: int, seed: int) -> Tensor:
    different = torch.from_numpy(np.unique(points.numpy(), axis=0))
    order = torch.randperm(len(different), generator=torch.Generator().manual_seed(seed))
    centres = different[order[:most]]
    for _ in range(ROUNDS):
        ids = _nearest(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, ids, points)
        counts = torch.bincount(ids, minlength=len(centres)).unsqueeze(1)
        centres = torch.where(counts > 0, sums / counts.clamp(min=1), centres)
    return centres


def _nearest(points: Tensor, centres: Tensor) -> Tensor:
    parts = torch.split(points, 4096)
    return torch.cat([torch.cdist(part, centres).argmin(1) for part in parts])


class Recording:
    """Steps of training episodes as IRIS collects them; the last observation has no step.

    Attributes:
        frames: ``(N, 3, H, W)`` uint8.
        action: ``(N,)`` int64.
        reward: ``(N,)`` float32.
        end: ``(N,)`` int64, 1 where the action ended the task.
        first: ``(E,)`` first step of each episode.
        length: ``(E,)`` its steps.
    """

    def __init__(self, reader: ShardReader, codes: ActionCodes) -> None:
        keys = [key for key in reader.keys("train") if reader.episode(key).num_steps > 1]
        names = [n for n in ("action", "terminated", "reward") if n in reader.manifest.features]
        frames, actions, rewards, ends = [], [], [], []
        for key in keys:
            arrays = reader.arrays(key, names)
            frames.append(np.moveaxis(reader.frames(key)[:-1, 0], -1, 1))
            actions.append(codes.encode(arrays["action"][:-1]))
            zeros = np.zeros(len(arrays["action"]), dtype=np.float32)
            rewards.append(arrays.get("reward", zeros)[:-1])
            ends.append(arrays["terminated"][:-1].astype(np.int64))
        self.frames = torch.from_numpy(np.concatenate(frames))
        self.action = torch.from_numpy(np.concatenate(actions))
        self.reward = torch.from_numpy(np.concatenate(rewards))
        self.end = torch.from_numpy(np.concatenate(ends))
        self.length = torch.tensor([len(part) for part in actions])
        self.first = self.length.cumsum(0) - self.length

    def draw(
        self, size: int, length: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Segments as IRIS draws them: any episode, any first step, padded beyond the last.

        Returns:
            ``(size, length)`` numbers of steps, and its batch without observations.
        """
        episode = torch.randint(len(self.length), (size,), generator=generator)
        longest = self.length[episode]
        begin = (torch.rand(size, generator=generator) * longest).long()
        step = begin[:, None] + torch.arange(length)
        valid = step < longest[:, None]
        rows = self.first[episode][:, None] + step.minimum(longest[:, None] - 1)
        batch = {
            "actions": self.action[rows],
            "rewards": self.reward[rows] * valid,
            "ends": self.end[rows] * valid,
            "mask_padding": valid,
        }
        return rows, batch
