"""Where the episodes of a dataset lie: columns of numbers, of which a million open in seconds."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.errors import ShardError
from tokenwm.strict import build

TYPES: Mapping[str, set[type]] = {
    "key": {str},
    "split": {str},
    "shard": {str},
    "num_steps": {int},
    "offsets": {dict},
    "metadata_offset": {int},
    "crc32": {int, type(None)},
    "synthetic": {bool, type(None)},
}
"""Of the values of an :class:`EpisodeInfo`, as JSON gives them."""
ROWS_AT_ONCE = 4096
"""Episodes that are made objects of at a time."""


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """Where one episode lies.

    Attributes:
        key: Name of the episode, unique in the dataset.
        split: ``train``, ``val`` or ``test``.
        shard: File name of the tar that holds it.
        num_steps: ``T``, steps in the episode.
        offsets: Field → byte offset in the tar at which the data of its npy member starts.
        metadata_offset: The same for the JSON member.
        crc32: CRC-32 of the episode's bytes in the tar, from the header of its JSON member to the
            end of its last member's padding; None in datasets of schema version 1.
        synthetic: Whether a model imagined it, as its metadata say; None where these must be
            asked: before schema version 3, or if the mark there is neither true nor false.
    """

    key: str
    split: str
    shard: str
    num_steps: int
    offsets: dict[str, int]
    metadata_offset: int
    crc32: int | None = None
    synthetic: bool | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Episodes(Sequence[EpisodeInfo]):
    """The episodes of a manifest, a sequence of :class:`EpisodeInfo` that are made when asked for.

    Attributes:
        keys: Names of the ``N`` episodes.
        places: Key → its place in the sequence.
        shards: Paths of the shards.
        fields: Names of the ``F`` fields.
        shard: ``(N,)`` int32, places in ``shards``.
        num_steps: ``(N,)`` int64, at least 1.
        offsets: ``(N, F)`` int64, bytes.
        metadata_offset: ``(N,)`` int64, bytes.
        crc32: ``(N,)`` int64; -1 where there is none.
        synthetic: ``(N,)`` int8; -1 where it is not known.
    """

    keys: list[str]
    places: dict[str, int]
    shards: tuple[str, ...]
    fields: tuple[str, ...]
    shard: NDArray[np.int32]
    num_steps: NDArray[np.int64]
    offsets: NDArray[np.int64]
    metadata_offset: NDArray[np.int64]
    crc32: NDArray[np.int64]
    synthetic: NDArray[np.int8]

    @classmethod
    def parse(
        cls, chunks: Iterable[list[Any]], fields: Sequence[str], shards: Sequence[str]
    ) -> "Episodes":
        """Check the rows of a manifest, a part at a time, so that few are in memory as objects.

        Args:
            chunks: Lists of the plain values of :class:`EpisodeInfo`.
            fields: Names of the features.
            shards: Paths of the listed shards.

        Raises:
            TokenwmError: A row is not what an :class:`EpisodeInfo` is, or its shard, its split or
                its fields are not those of the dataset.
        """
        codes = {path: code for code, path in enumerate(shards)}
        keys: list[str] = []
        parts: list[tuple[NDArray[Any], ...]] = []
        for rows in chunks:
            columns = _columns(rows, len(keys), fields)
            for split, shard in set(zip(columns["split"], columns["shard"], strict=True)):
                if shard not in codes or not shard.startswith(f"{split}-"):
                    key = next(r["key"] for r in rows if (r["split"], r["shard"]) == (split, shard))
                    reason = f"split {split!r} in shard {shard}"
                    reason = reason if shard in codes else f"unlisted shard {shard!r}"
                    raise ShardError(f"episode {key}: {reason}")
            keys += columns["key"]
            parts.append(
                (
                    np.array([codes[shard] for shard in columns["shard"]], np.int32),
                    _whole(columns["num_steps"]),
                    _whole([[row[name] for name in fields] for row in columns["offsets"]]),
                    _whole(columns["metadata_offset"]),
                    # A negative one is never right; it must not pass for none.
                    _whole([-1 if value is None else abs(value) for value in columns["crc32"]]),
                    np.array([-1 if v is None else v for v in columns["synthetic"]], np.int8),
                )
            )
        places = {key: place for place, key in enumerate(keys)}
        arrays = [np.concatenate(column) for column in zip(*parts, strict=True)]
        arrays = arrays or [np.zeros((0, len(fields)) if n == 2 else 0, np.int64) for n in range(6)]
        shard, num_steps, offsets, metadata_offset, crc32, synthetic = arrays
        found = cls(
            keys=keys,
            places=places,
            shards=tuple(shards),
            fields=tuple(fields),
            shard=shard,
            num_steps=num_steps,
            offsets=offsets,
            metadata_offset=metadata_offset,
            crc32=crc32,
            synthetic=synthetic,
        )
        found._check()
        return found

    def _check(self) -> None:
        def refuse(numbers: NDArray[np.int64], least: int, reason: str) -> None:
            place = int(numbers.argmin()) if len(numbers) else 0
            if len(numbers) and numbers[place] < least:
                raise ShardError(f"episode {self.keys[place]} {reason.format(numbers[place])}")

        for place, key in enumerate(self.keys):
            if NAME_PATTERN.fullmatch(key) is None:
                raise ShardError(f"episode key {key!r} is not allowed")
            if len(self.places) < len(self.keys) and self.places[key] != place:
                raise ShardError(f"episode {key} is listed twice")
        refuse(self.num_steps, 1, "has {} steps")
        first = np.minimum(self.metadata_offset, self.offsets.min(axis=1, initial=2**62))
        refuse(first, 0, "has a member that starts at offset {}")

    def totals(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Numbers of episodes and of steps of each shard."""
        steps = np.zeros(len(self.shards), np.int64)
        np.add.at(steps, self.shard, self.num_steps)
        return np.bincount(self.shard, minlength=len(self.shards)), steps

    def of_split(self, split: str) -> list[str]:
        """Keys of the episodes of a split, in order."""
        chosen = np.array([path.startswith(f"{split}-") for path in self.shards], bool)[self.shard]
        return [self.keys[place] for place in np.flatnonzero(chosen).tolist()]

    @classmethod
    def of(
        cls, rows: Sequence[EpisodeInfo], fields: Sequence[str], shards: Sequence[str]
    ) -> "Episodes":
        """Those of a manifest that was not read from a file."""
        return cls.parse([[vars(row) for row in rows]], fields, shards)

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> EpisodeInfo: ...
    @overload
    def __getitem__(self, place: slice) -> list[EpisodeInfo]: ...
    def __getitem__(self, place: int | slice) -> EpisodeInfo | list[EpisodeInfo]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        return self._rows(number, number + 1)[0]

    def __iter__(self) -> Iterator[EpisodeInfo]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            yield from self._rows(start, start + ROWS_AT_ONCE)

    def _rows(self, start: int, stop: int) -> list[EpisodeInfo]:
        columns = (
            self.shard,
            self.num_steps,
            self.offsets,
            self.metadata_offset,
            self.crc32,
            self.synthetic,
        )
        lists = (column[start:stop].tolist() for column in columns)
        return [
            EpisodeInfo(
                key=key,
                split=self.shards[shard].partition("-")[0],
                shard=self.shards[shard],
                num_steps=num_steps,
                offsets=dict(zip(self.fields, offsets, strict=True)),
                metadata_offset=metadata_offset,
                crc32=None if crc32 < 0 else crc32,
                synthetic=None if synthetic < 0 else bool(synthetic),
            )
            for key, shard, num_steps, offsets, metadata_offset, crc32, synthetic in zip(
                self.keys[start:stop], *lists, strict=True
            )
        ]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(ours == theirs for ours, theirs in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _columns(rows: list[Any], first: int, fields: Sequence[str]) -> dict[str, list[Any]]:
    """Values of rows by name, after checking their types; the first row has number ``first``."""
    try:
        columns = {name: [row[name] for row in rows] for name in TYPES}
        plain = all(set(map(type, columns[name])) <= types for name, types in TYPES.items())
        offsets = columns["offsets"]
        if (
            plain
            and {len(row) for row in rows} <= {len(TYPES)}
            and all(row.keys() == set(fields) for row in offsets)
            and {type(value) for row in offsets for value in row.values()} <= {int}
        ):
            return columns
    except (KeyError, TypeError):
        pass
    for number, row in enumerate(rows, first):  # one by one, for the reason
        info = build(EpisodeInfo, row, f"episodes[{number}]", allow_defaults=False)
        if set(info.offsets) != set(fields):
            raise ShardError(f"episode {info.key}: fields differ")
    raise AssertionError("unreachable: rows that can be built have these types")


def _whole(values: list[Any]) -> NDArray[np.int64]:
    try:
        return np.array(values, np.int64)
    except OverflowError as error:
        raise ShardError(f"a number of an episode is no place in a file: {error}") from error
