"""Recorded steps as features, on which heads are trained; the model's tokenizer encodes them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from tokenwm.data.loading.mixture import shares_of
from tokenwm.data.readers.base import recording_of
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import TokenWorldModel

MOST_BYTES = 2**30
"""Features that are held in memory; of more, some episodes are left out, evenly."""
FRAMES_PER_PASS, CELL_SIDE = 256, 4


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """``N`` steps of whole episodes, one episode behind the other.

    Attributes:
        features: ``(N, E)`` float32, as :meth:`World.features` has them.
        goals: ``(N, F)`` float32, the same frames as pictures of a goal: codes of each on its own.
        frame_tokens: ``(N, K)`` int64.
        pictures: ``(N, K * 48)`` uint8, the frames as small pictures: 4 × 4 pixels of each cell.
        actions: ``(N, A)`` in the units of the data, float32 or ids; that of an episode's last step
            means nothing.
        first: ``(N,)`` int64, number of the first step of each one's episode.
        last: ``(N,)`` int64, of the last one.
        recording: ``(N,)`` int64, number of what was recorded at once: phases of one recording are
            several episodes, and no further evidence.
        is_synthetic: ``(N,)`` bool, of an episode that a model imagined.
        real_fraction: Share of drawn steps that are recorded ones; None draws all steps alike.
    """

    features: Tensor
    goals: Tensor
    frame_tokens: Tensor
    pictures: Tensor
    actions: Tensor
    first: Tensor
    last: Tensor
    recording: Tensor
    is_synthetic: Tensor
    real_fraction: float | None = None

    def __len__(self) -> int:
        return len(self.last)

    @classmethod
    def cat(
        cls, episodes: Sequence["Recorded"], recordings: Sequence[str] | None = None
    ) -> "Recorded":
        """Several behind one another.

        Args:
            episodes: One each.
            recordings: Name of each one's recording; None: all are of different ones.
        """
        names = list(map(str, range(len(episodes)))) if recordings is None else recordings
        numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
        sizes = torch.tensor([0, *(len(episode) for episode in episodes)]).cumsum(0).tolist()
        joined: dict[str, Any] = {
            name: torch.cat([getattr(episode, name) for episode in episodes])
            for name in (
                "features",
                "goals",
                "frame_tokens",
                "pictures",
                "actions",
                "is_synthetic",
            )
        }
        starts = list(zip(episodes, sizes, strict=False))
        first = torch.cat([episode.first + start for episode, start in starts])
        last = torch.cat([episode.last + start for episode, start in starts])
        recording = torch.cat(
            [
                torch.full((len(episode),), numbers[name])
                for episode, name in zip(episodes, names, strict=True)
            ]
        )
        return cls(**joined, first=first, last=last, recording=recording)

    def mixed_with(self, others: Sequence["Recorded"], real_fraction: float | None) -> "Recorded":
        """These steps and those of other datasets, none of whose recordings is the same.

        Args:
            others: Of the same model.
            real_fraction: Share of drawn steps that are recorded, in [0, 1]; None draws all alike.

        Raises:
            ShardError: The fraction cannot be met by what is there.
        """
        parts = [self, *others]
        recording: list[Tensor] = []
        for part in parts:
            known = int(recording[-1].max()) + 1 if recording else 0
            recording.append(part.recording + known)
        whole = replace(Recorded.cat(parts), recording=torch.cat(recording))
        num_synthetic = int(whole.is_synthetic.sum())
        shares_of([(len(whole) - num_synthetic, False), (num_synthetic, True)], real_fraction)
        return replace(whole, real_fraction=real_fraction)

    @cached_property
    def _rows_of_kinds(self) -> tuple[Tensor, Tensor]:
        """Numbers of the steps that were recorded, and of those that were imagined."""
        return (~self.is_synthetic).nonzero().flatten(), self.is_synthetic.nonzero().flatten()

    def draw_rows(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw steps, ``(n,)`` int64: all alike, or with the real fraction, alike within each kind.

        Args:
            count: ``n``.
            generator: On the CPU.
        """
        if self.real_fraction is None:
            return torch.randint(len(self), (count,), generator=generator)
        is_real = torch.rand(count, generator=generator) < self.real_fraction
        rows = torch.empty(count, dtype=torch.int64)
        real, imagined = self._rows_of_kinds
        for chosen, there in ((is_real, real), (~is_real, imagined)):
            number = int(chosen.sum())
            if number:
                rows[chosen] = there[torch.randint(len(there), (number,), generator=generator)]
        return rows

    def draw_pairs(
        self, count: int, least: int, most: int, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        """Draw steps, and how far ahead to look from each within its episode.

        Args:
            count: ``n``.
            least: Fewest steps ahead, 0 or 1.
            most: Most; as many as a shorter episode has.
            generator: On the CPU.

        Returns:
            Numbers of the steps and of steps ahead, ``(n,)`` int64 each. All distances are equally
            likely, and so are all places of an episode that have one so far ahead; episodes are
            drawn by their steps (:meth:`draw_rows`).
        """
        rows = self.draw_rows(count, generator)
        first, length = self.first[rows], self.last[rows] - self.first[rows]
        ahead = torch.randint(least, most + 1, (count,), generator=generator).minimum(length)
        places = length - ahead + 1
        offset = (torch.rand(count, generator=generator) * places).long().minimum(places - 1)
        return first + offset, ahead

    def chunks(self, rows: Tensor, size: int) -> tuple[Tensor, Tensor]:
        """Actions taken from some steps on.

        Args:
            rows: ``(n,)`` int64, numbers of the steps.
            size: ``H``.

        Returns:
            ``(n, H, A)`` actions, and ``(n, H)`` bool, which of them the episode still has.
        """
        steps, last = rows[:, None] + torch.arange(size), self.last[rows][:, None]
        return self.actions[steps.minimum(last)], steps < last


def read_recorded(
    model: TokenWorldModel,
    reader: ShardReader,
    split: str,
    progress: Callable[[int, int], None] | None = None,
) -> Recorded:
    """Encode the episodes of a split, each in order from its first frame.

    Args:
        model: Whose features.
        reader: Frames that fit it.
        split: Of which episodes.
        progress: Called after each episode with how many are done, and how many there are.

    Raises:
        TokenwmError: The data does not fit the model, or has no episode of two steps in this split.
    """
    check_data_fits(model, reader)
    keys = [key for key in reader.keys(split) if reader.episode(key).num_steps > 1]
    if not keys:
        raise TokenwmError(
            f"{reader.root} has no episode of at least 2 steps in split {split!r}; heads need some"
        )
    num_steps = sum(reader.episode(key).num_steps for key in keys)
    num_numbers = model.num_features + model.num_codes + 2 * model.vocabulary.tokens_per_frame
    of_step = 4 * num_numbers + 3 * CELL_SIDE**2 * model.vocabulary.tokens_per_frame
    keys = keys[:: max(1, -(-num_steps * of_step // MOST_BYTES))]
    episodes = []
    for number, key in enumerate(keys):
        episodes.append(_episode(model, reader, key))
        if progress is not None:
            progress(number + 1, len(keys))
    return Recorded.cat(episodes, [recording_of(key) for key in keys])


def small_pictures(frames: Tensor, grid: tuple[int, int]) -> Tensor:
    """Frames ``(T, cameras, H, W, 3)`` uint8, shrunk, cell by cell: ``(T, K * 48)`` uint8."""
    rows, columns = grid
    pictures = frames.flatten(0, 1).movedim(-1, 1).float()
    small = adaptive_avg_pool2d(pictures, (rows * CELL_SIDE, columns * CELL_SIDE))
    cells = small.reshape(-1, 3, rows, CELL_SIDE, columns, CELL_SIDE).permute(0, 2, 4, 1, 3, 5)
    return cells.round().to(torch.uint8).reshape(len(frames), -1)


def _episode(model: TokenWorldModel, reader: ShardReader, key: str) -> Recorded:
    names = ["action"] if model.vocabulary.state is None else ["action", "state"]
    arrays = reader.arrays(key, names)
    seen: list[Tensor] = []
    alone: list[Tensor] = []
    pictures: list[Tensor] = []
    for part in torch.split(torch.from_numpy(reader.frames(key)), FRAMES_PER_PASS):
        pictures.append(small_pictures(part, model.vocabulary.grid))
        previous = seen[-1][-1:] if seen else None
        both = model.tokenizer.encode_both(part[None], previous)
        seen.append(both[0][0])
        alone.append(both[1][0])
    tokens = torch.cat(seen)
    state = model.units.encode_states(arrays["state"]) if "state" in arrays else None
    count = len(tokens)
    return Recorded(
        features=model.features_of_tokens(tokens, state).cpu(),
        goals=model.features_of_tokens(torch.cat(alone), None).cpu(),
        frame_tokens=tokens.cpu(),
        pictures=torch.cat(pictures),
        actions=model.units.as_actions(arrays["action"]).cpu(),
        first=torch.zeros(count, dtype=torch.int64),
        last=torch.full((count,), count - 1),
        recording=torch.zeros(count, dtype=torch.int64),
        is_synthetic=torch.full((count,), reader.is_synthetic(key)),
    )
