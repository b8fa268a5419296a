"""The table of a dataset's episodes, of which a million rows open in seconds."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.json
from numpy.typing import NDArray

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.errors import ShardError
from tokenwm.strict import build

ROWS_AT_ONCE = 4096
"""Episodes that are made objects of at a time."""


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """The place of one episode: its shard, and byte offsets there.

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


class Episodes(Sequence[EpisodeInfo]):
    """The episodes of a manifest, a sequence of :class:`EpisodeInfo` that are made when asked for.

    Args:
        table: A column per attribute of :class:`EpisodeInfo`, without nulls but in the last two.
        shards: Path of a shard → its episodes and their steps.

    Attributes:
        keys: Names of the ``N`` episodes.
        places: Key → its place in the sequence.
        num_steps: ``(N,)`` int64, at least 1.
        synthetic: See :class:`EpisodeInfo`.
        has_checksums: Whether each has a CRC-32.

    Raises:
        ShardError: The episodes are not those of the shards, or have impossible values.
    """

    def __init__(self, table: pyarrow.Table, shards: Mapping[str, tuple[int, int]]) -> None:
        self._table = table
        self.keys: list[str] = table["key"].to_pylist()
        self.places = {key: place for place, key in enumerate(self.keys)}
        self.num_steps: NDArray[np.int64] = table["num_steps"].to_numpy()
        self.synthetic: list[bool | None] = table["synthetic"].to_pylist()
        self.has_checksums = table["crc32"].null_count == 0
        for place, key in enumerate(self.keys):
            if NAME_PATTERN.fullmatch(key) is None:
                raise ShardError(f"episode key {key!r} is not allowed")
            if self.places[key] != place:
                raise ShardError(f"episode {key} is listed twice")
        self._refuse_below(1, self.num_steps, "has {} steps")
        for numbers in (table["metadata_offset"], *table["offsets"].combine_chunks().flatten()):
            self._refuse_below(0, numbers.to_numpy(), "has a member that starts at offset {}")
        self._check_shards(shards)

    def _refuse_below(self, least: int, numbers: NDArray[np.int64], reason: str) -> None:
        if len(numbers) and numbers.min() < least:
            place = int(numbers.argmin())
            raise ShardError(f"episode {self.keys[place]} {reason.format(numbers[place])}")

    def _check_shards(self, shards: Mapping[str, tuple[int, int]]) -> None:
        grouped = self._table.group_by(["split", "shard"], use_threads=False)
        found = dict.fromkeys(shards, (0, 0))
        for row in grouped.aggregate([([], "count_all"), ("num_steps", "sum")]).to_pylist():
            split, shard = row["split"], row["shard"]
            if shard not in shards:
                raise ShardError(f"{self._of(split, shard)}: unlisted shard {shard!r}")
            if not shard.startswith(f"{split}-"):
                raise ShardError(f"{self._of(split, shard)}: split {split!r} in shard {shard}")
            found[shard] = row["count_all"], row["num_steps_sum"]
        for shard, listed in shards.items():
            if found[shard] != listed:
                raise ShardError(
                    f"{shard}: [episodes, steps] are {listed} but add up to {found[shard]}"
                )

    def _of(self, split: str, shard: str) -> str:
        """The first episode of a split and a shard, for messages."""
        pairs = zip(self._table["split"].to_pylist(), self._table["shard"].to_pylist(), strict=True)
        return f"episode {self.keys[list(pairs).index((split, shard))]}"

    @classmethod
    def parse(
        cls, parts: Iterable[bytes], fields: Sequence[str], shards: Mapping[str, tuple[int, int]]
    ) -> "Episodes":
        """Read the rows of a manifest, a part at a time.

        Args:
            parts: JSON objects, with a comma and a line feed between two.
            fields: Names of the features.
            shards: Path of a shard → its episodes and their steps.

        Raises:
            TokenwmError: A row is not what an :class:`EpisodeInfo` is, or not of these fields and
                shards. ``crc32`` and ``synthetic`` may be missing.
        """
        schema = _schema(fields)
        tables = [schema.empty_table()]
        first = 0
        for part in parts:
            tables.append(_read_rows(part, schema, first))
            first += len(tables[-1])
        return cls(pyarrow.concat_tables(tables), shards)

    @classmethod
    def of(
        cls,
        rows: Sequence[EpisodeInfo],
        fields: Sequence[str],
        shards: Mapping[str, tuple[int, int]],
    ) -> "Episodes":
        """The table of rows that were not read from a file."""
        lines = (json.dumps(vars(row)).encode() for row in rows)
        return cls.parse([b",\n".join(lines)] if rows else [], fields, shards)

    def of_split(self, split: str) -> list[str]:
        """Keys of the episodes of a split, in order."""
        chosen = pyarrow.compute.equal(self._table["split"], split).to_numpy()
        return [self.keys[place] for place in np.flatnonzero(chosen).tolist()]

    def of_shard(self, shard: str) -> list[EpisodeInfo]:
        """Episodes of a shard, in order."""
        chosen = self._table.filter(pyarrow.compute.equal(self._table["shard"], shard))
        return [EpisodeInfo(**row) for row in chosen.to_pylist()]

    def shards(self, keys: Sequence[str]) -> list[str]:
        """Shards of episodes."""
        every = self._table["shard"].to_pylist()
        return [every[self.places[key]] for key in keys]

    def lengths(self, keys: Sequence[str]) -> NDArray[np.int64]:
        """Steps of episodes."""
        lengths: NDArray[np.int64] = self.num_steps[[self.places[key] for key in keys]]
        return lengths

    def __len__(self) -> int:
        return len(self.keys)

    @overload
    def __getitem__(self, place: int) -> EpisodeInfo: ...
    @overload
    def __getitem__(self, place: slice) -> list[EpisodeInfo]: ...
    def __getitem__(self, place: int | slice) -> EpisodeInfo | list[EpisodeInfo]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        (row,) = self._table.slice(range(len(self))[place], 1).to_pylist()
        return EpisodeInfo(**row)

    def __iter__(self) -> Iterator[EpisodeInfo]:
        for start in range(0, len(self), ROWS_AT_ONCE):
            for row in self._table.slice(start, ROWS_AT_ONCE).to_pylist():
                yield EpisodeInfo(**row)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Sequence)
            and len(self) == len(other)
            and all(ours == theirs for ours, theirs in zip(self, other, strict=True))
        )

    __hash__ = None  # type: ignore[assignment]


def _schema(fields: Sequence[str]) -> pyarrow.Schema:
    text, number = pyarrow.string(), pyarrow.int64()
    return pyarrow.schema(
        {
            "key": text,
            "split": text,
            "shard": text,
            "num_steps": number,
            "offsets": pyarrow.struct(dict.fromkeys(fields, number)),
            "metadata_offset": number,
            "crc32": number,
            "synthetic": pyarrow.bool_(),
        }
    )


def _read_rows(part: bytes, schema: pyarrow.Schema, first: int) -> pyarrow.Table:
    """A part of the rows as a table; the first of them has number ``first``."""
    options = pyarrow.json.ReadOptions(use_threads=False, block_size=len(part) + 1)
    strict = pyarrow.json.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="error", newlines_in_values=True
    )
    fields = {field.name for field in schema.field("offsets").type}
    try:
        # A comma at the end of a line is none of a text, in which lines do not end.
        lines = io.BytesIO(part.replace(b",\n", b"\n"))
        table = pyarrow.json.read_json(lines, options, strict)
        columns = [table[name] for name in schema.names if name not in ("crc32", "synthetic")]
        columns += table["offsets"].combine_chunks().flatten()
        if not any(column.null_count for column in columns):
            return table
        reason = "a value is missing or null"
    except ValueError as error:
        reason = str(error)
    for number, row in enumerate(json.loads(b"[" + part + b"]"), first):  # for a better reason
        info = build(EpisodeInfo, row, f"episodes[{number}]", allow_defaults=True)
        if set(info.offsets) != fields:
            raise ShardError(f"episode {info.key}: fields differ")
    raise ShardError(f"episodes from number {first} on: {reason}")
