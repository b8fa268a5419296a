"""Windows of episodes and batches of them; :mod:`tokenwm.data.loading.order` has their order."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from tokenwm.data.episode import CorruptSample, Segment
from tokenwm.data.shards.manifest import EpisodeInfo, Manifest
from tokenwm.data.shards.reader import ShardReader, stack_cameras
from tokenwm.errors import ShardError

BATCH_FIELDS = (
    "frames",
    "state",
    "action",
    "reward",
    "terminated",
    "truncated",
    "frame_tokens",
    "state_tokens",
    "action_tokens",
)
"""Fields that a window may hold; ``frames`` stands for all cameras of the dataset."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """``B`` windows of ``T`` steps; time alignment as in :mod:`tokenwm.data.episode`.

    Where a window hangs over an end of its episode, the last step in it is repeated and marked as
    padding. A field that was not asked for, or that the dataset does not have, is None.

    Attributes:
        keys: ``B`` names of episodes.
        start: ``(B,)`` int64, step of the episode that is the first in the window.
        step_valid: ``(B, T)`` bool, False on padding, which comes last.
        action_valid: ``(B, T)`` bool, False on padding and on the last step of an episode, which
            has no action. Also where ``reward`` and ``terminated`` mean something. (The step that
            an action led to is in the window where ``step_valid`` of the next place is True.)
        frames: ``(B, T, cameras, H, W, 3)`` uint8 in [0, 255], RGB.
        state: ``(B, T, state_dim)`` float32, the robot's own units.
        action: ``(B, T, action_dim)`` float32, or int64 if discrete.
        reward: ``(B, T)`` float32.
        terminated: ``(B, T)`` bool.
        truncated: ``(B, T)`` bool.
        frame_tokens: ``(B, T, K)`` int64.
        state_tokens: ``(B, T, P)`` int64.
        action_tokens: ``(B, T, A)`` int64.
        sources: ``B`` names of what a window was drawn from, in a mixture of datasets.
        skipped: Corrupt samples that windows of this batch stand in for.
    """

    keys: tuple[str, ...]
    start: Tensor
    step_valid: Tensor
    action_valid: Tensor
    frames: Tensor | None = None
    state: Tensor | None = None
    action: Tensor | None = None
    reward: Tensor | None = None
    terminated: Tensor | None = None
    truncated: Tensor | None = None
    frame_tokens: Tensor | None = None
    state_tokens: Tensor | None = None
    action_tokens: Tensor | None = None
    sources: tuple[str, ...] = ()
    skipped: tuple[CorruptSample, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Copy the batch to ``device``; dtypes stay as they are."""
        moved = {
            name: tensor.to(device, non_blocking=non_blocking)
            for name, tensor in self._tensors().items()
        }
        return replace(self, **moved)

    def pin_memory(self) -> "Batch":
        """Copy the batch to page-locked memory; ``DataLoader(pin_memory=True)`` calls this."""
        pinned = {name: tensor.pin_memory() for name, tensor in self._tensors().items()}
        return replace(self, **pinned)

    def _tensors(self) -> dict[str, Any]:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, Tensor)}


class WindowDataset(Dataset[Segment]):
    """Every window of ``num_steps`` consecutive steps of every episode of a split.

    Windows hang over both ends of an episode, so that what happens there is in as many windows as
    all else: of all windows of an episode, each action is in ``T``, with the step that it led to in
    ``T - 1``. Their first places are ``1 - T`` to ``n - 2`` for an episode of ``n`` steps, which
    are ``n + T - 2`` windows; with ``T = 1`` each step is one. What hangs over the beginning would
    be masked before the first step; attention looks back and measures distances only, so the same
    window may begin at that step, and all padding comes last.

    Windows are numbered by episode in the order of the manifest, then by place.

    Args:
        source: Dataset folder, or a reader of one.
        split: ``train``, ``val`` or ``test``.
        num_steps: ``T``, steps per window, at least 1.
        fields: Names out of ``BATCH_FIELDS``; None for all that the dataset has.
        keys: Episodes of the split to take; None for all.

    Attributes:
        keys: The episodes, in the order in which windows are numbered.

    Raises:
        ShardError: The dataset is missing or damaged, the split is empty, a field is not there, or
            the cameras differ in size.
    """

    def __init__(
        self,
        source: Path | str | ShardReader,
        split: str,
        num_steps: int,
        fields: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
    ) -> None:
        if num_steps < 1:
            raise ShardError(f"num_steps is {num_steps}; a window has at least 1 step")
        self.reader = source if isinstance(source, ShardReader) else ShardReader(source)
        self.split = split
        self.num_steps = num_steps
        self.keys = self.reader.keys(split) if keys is None else list(keys)
        if not self.keys:
            counts = {name: self.manifest.num_episodes(name) for name in ("train", "val", "test")}
            raise ShardError(
                f"{self.reader.root} has no episodes in split {split!r} (episodes: {counts}); "
                "prepare it with another `splits` in the recipe"
            )
        self.fields = _resolve_fields(self.reader, fields)
        self._cameras = [f"frames.{camera}" for camera in self.manifest.cameras]
        self.stored_fields = [name for name in self.fields if name != "frames"]
        if "frames" in self.fields:
            self.stored_fields += self._cameras
        lengths = self.reader.episodes.lengths(self.keys)
        self.windows_per_episode = num_windows(lengths, num_steps)
        self._num_transitions = int((lengths - 1).sum())
        self._ends = np.cumsum(self.windows_per_episode)  # one past the last window of each

    @property
    def manifest(self) -> Manifest:
        """The manifest of the dataset."""
        return self.reader.manifest

    @property
    def episodes(self) -> list[EpisodeInfo]:
        """Places of the episodes, an object each; ``keys`` is quicker."""
        return [self.reader.episode(key) for key in self.keys]

    @property
    def filled(self) -> float:
        """Share of the steps to be predicted, ``T - 1`` a window, that are no padding."""
        return self._num_transitions / len(self) if self.num_steps > 1 else 1.0

    def __len__(self) -> int:
        return int(self._ends[-1])

    def locate(self, index: int) -> tuple[str, int, int]:
        """Key of the episode of a window, its first step there and the one behind its last.

        Raises:
            IndexError: ``index`` is not in ``[0, len(self))``.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"window {index} is outside [0, {len(self)})")
        episode = int(np.searchsorted(self._ends, index, side="right"))
        first = int(self._ends[episode - 1]) if episode else 0
        key = self.keys[episode]
        place = index - first + 1 - self.num_steps
        stop = min(place + self.num_steps, self.reader.episode(key).num_steps)
        return key, max(place, 0), stop

    def __getitem__(self, index: int) -> Segment:
        key, start, stop = self.locate(index)
        return self.segment(
            key, start, stop, self.reader.arrays(key, self.stored_fields, start, stop)
        )

    def segment(
        self, key: str, start: int, stop: int, stored: Mapping[str, NDArray[Any]], source: str = ""
    ) -> Segment:
        """The window of an episode that begins at step ``start``.

        Args:
            key: The episode.
            start: Its first step in the window.
            stop: The step behind its last one in the window.
            stored: Steps ``[start, stop)`` of every one of ``stored_fields``.
            source: See :class:`Segment`.
        """
        arrays: dict[str, NDArray[Any]] = {}
        for name in self.fields:
            if name == "frames":
                arrays[name] = self._pad(stack_cameras([stored[c] for c in self._cameras]))
            else:
                arrays[name] = self._pad(stored[name])
        steps = np.arange(start, start + self.num_steps)
        arrays["step_valid"] = steps < stop
        arrays["action_valid"] = steps < min(stop, self.reader.episode(key).num_steps - 1)
        return Segment(key=key, start=start, arrays=arrays, source=source)

    def _pad(self, array: NDArray[Any]) -> NDArray[Any]:
        missing = self.num_steps - len(array)
        if missing == 0:
            return array
        return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)])


def num_windows(length: NDArray[np.int64], num_steps: int) -> NDArray[np.int64]:
    """Windows of ``num_steps`` steps of episodes of ``length`` steps."""
    return length + num_steps - 1 - (num_steps > 1)


def _resolve_fields(reader: ShardReader, names: Sequence[str] | None) -> tuple[str, ...]:
    """The fields of the batch that are asked for, or all that the dataset has."""
    features = reader.manifest.features
    cameras = [name for name in features if name.startswith("frames.")]
    available = tuple(
        name for name in BATCH_FIELDS if name in features or (name == "frames" and cameras)
    )
    for name in names or ():
        if name not in available:
            raise ShardError(f"{reader.root} has no field {name!r}; it has {', '.join(available)}")
    if len({features[name].shape for name in cameras}) > 1:
        shapes = {name: features[name].shape for name in cameras}
        raise ShardError(f"{reader.root}: cameras differ in size, {shapes}; use one image_size")
    return available if names is None else tuple(names)


def collate(segments: Sequence[Segment]) -> Batch:
    """Stack windows of equal length; token ids become int64, which is what embeddings want."""
    tensors: dict[str, Any] = {}
    for name in segments[0].arrays:
        stacked = np.stack([segment.arrays[name] for segment in segments])
        if name.endswith("_tokens"):
            stacked = stacked.astype(np.int64)
        tensors[name] = torch.from_numpy(stacked)
    return Batch(
        keys=tuple(segment.key for segment in segments),
        start=torch.tensor([segment.start for segment in segments], dtype=torch.int64),
        sources=tuple(segment.source for segment in segments),
        skipped=tuple(sample for segment in segments for sample in segment.skipped),
        **tensors,
    )
