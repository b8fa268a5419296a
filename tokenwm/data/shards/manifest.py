"""The manifest: what a dataset folder holds.

A folder is a dataset if and only if it has a ``manifest.json``, and that is written last. Reading
is strict: an unknown key, a wrong type or another schema version is an error, never a guess. Its
last line is the SHA-256 of all the bytes before it, so a damaged manifest is never read either. See
:mod:`tokenwm.data.shards.reader` for the tar files themselves.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenwm.data.shards.episodes import EpisodeInfo as EpisodeInfo
from tokenwm.data.shards.episodes import Episodes
from tokenwm.data.storage.folder import join, open_folder, sha256_of, write_bytes
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.strict import build

SCHEMA_VERSION = 3
"""Version of the manifest and of the shards; see CHANGELOG.md for what changed with each.

Older ones are still read: version 1 had no checksum of the manifest and none per episode, version 2
none of the files beside the shards, and did not mark synthetic episodes.
"""

GAPS = "source_gaps"
"""Key in ``extra`` of what the source declares and does not hold: its gaps as plain values."""
ACTIONS_PER_STEP = "actions_per_step"
"""Key in ``extra`` of how many actions of the robot one step holds, where it is more than one."""
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val", "test")
ALLOWED_DTYPES = ("bool", "uint8", "uint16", "int32", "int64", "float32")
FIELD_PATTERN = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)?")
"""Names of fields: ``action``, or ``frames.<camera>`` with one dot."""
SHARD_PATTERN = re.compile(r"(train|val|test)-\d{6}\.tar")
FILE_PATTERN = re.compile(r"([A-Za-z0-9_-]+/)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
"""Paths of files beside the shards: ``quality.json``, or ``tokenizer/config.yaml`` in a folder."""
DIGEST_PATTERN = re.compile(r"[0-9a-f]{64}")
DIGEST_KEY = b',\n"sha256": "'
"""Text before the digest at the end of the manifest."""
EPISODES_BEGIN, EPISODES_END = b'\n"episodes": [\n  ', b"\n]"
"""Text before and after the lines of the episodes."""
PART_BYTES = 2**22
"""Bytes of episodes that are parsed at a time."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """Description of one field that every episode has: type, shape, units.

    Attributes:
        kind: ``frames`` (uint8 pixels), ``continuous``, ``discrete`` (ids), ``flag`` or ``tokens``.
        shape: Shape of one step, without the leading ``T``; ``()`` for a scalar.
        dtype: One of ``ALLOWED_DTYPES``.
        units: Units in words, for example ``rad`` or ``px``; empty if unknown. Where dimensions
            differ, one for each, with commas between.
        names: One name per entry of the last axis, or empty.
        num_values: Ids are in ``[0, num_values)``; None for what holds no ids.
    """

    kind: Literal["frames", "continuous", "discrete", "flag", "tokens"]
    shape: tuple[int, ...]
    dtype: str
    units: str = ""
    names: tuple[str, ...] = ()
    num_values: int | None = None

    @property
    def unit_of_each(self) -> tuple[str, ...]:
        """Unit of each entry of the last axis."""
        size = self.shape[-1] if self.shape else 1
        units = tuple(unit.strip() for unit in self.units.split(","))
        return units if len(units) == size else (self.units,) * size


@dataclass(frozen=True, kw_only=True)
class ShardInfo:
    """One tar file.

    Attributes:
        path: File name inside the dataset folder, ``{split}-{i:06d}.tar``.
        split: ``train``, ``val`` or ``test``.
        sha256: Hex digest of the whole file.
        num_bytes: Size of the file.
        num_episodes: Episodes in it.
        num_steps: Steps of all its episodes.
    """

    path: str
    split: str
    sha256: str
    num_bytes: int
    num_episodes: int
    num_steps: int


@dataclass(frozen=True, kw_only=True)
class Excluded:
    """An episode of the source that is not in the dataset, and why."""

    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything about a dataset but the arrays.

    Attributes:
        kind: ``frames`` (pixels) or ``tokens`` (made from pixels with a trained tokenizer).
        name: Name of the dataset, from the recipe.
        control_rate: Steps per second, Hz.
        features: Field → what it holds; the order of ``frames.*`` is the order of the cameras.
        statistics: Field → figures over the train split. Pictures do not fit into JSON: an entry
            ``{"file": name, "sha256": digest}`` stands for a file beside the manifest, for example
            ``statistics["frames.top"]["mean_frame"]``; ``ShardReader.verify`` checks it.
        shards: The tar files.
        files: Path → SHA-256 of the other files that belong to the dataset, for example
            ``quality.json`` or ``tokenizer/config.yaml``; empty in datasets before schema version
            3, and pictures are in ``statistics``.
        episodes: Every episode, in the order of the shards; :class:`Episodes` if read from a file.
        excluded: Episodes that were left out, with reasons.
        provenance: Source, licence, source checksum, tool version, recipe.
        extra: Values of some datasets only; token shards: ``tokenizer_hash``, ``cameras``, ….
        schema_version: Version of this layout.
    """

    kind: Literal["frames", "tokens"]
    name: str
    control_rate: float
    features: dict[str, Feature]
    statistics: dict[str, dict[str, Any]] = field(default_factory=dict)
    shards: list[ShardInfo]
    files: dict[str, str] = field(default_factory=dict)
    episodes: list[EpisodeInfo] | Episodes
    excluded: list[Excluded] = field(default_factory=list)
    provenance: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def cameras(self) -> tuple[str, ...]:
        """Names of the cameras in order; token shards name them in ``extra["cameras"]``."""
        prefix = "frames."
        names = [name.removeprefix(prefix) for name in self.features if name.startswith(prefix)]
        return tuple(names) or tuple(self.extra.get("cameras", ()))

    @property
    def actions_per_step(self) -> int:
        """Actions of the robot that the ``action`` of one step holds side by side."""
        return int(self.extra.get(ACTIONS_PER_STEP, 1))

    @property
    def table(self) -> Episodes:
        """The episodes, checked against features and shards where they were not read from a file.

        Raises:
            TokenwmError: They do not fit.
        """
        if isinstance(self.episodes, Episodes):
            return self.episodes
        return Episodes.of(self.episodes, tuple(self.features), self._totals)

    @property
    def _totals(self) -> dict[str, tuple[int, int]]:
        return {shard.path: (shard.num_episodes, shard.num_steps) for shard in self.shards}

    def num_steps(self, split: str) -> int:
        """Steps of all episodes of one split."""
        return sum(shard.num_steps for shard in self.shards if shard.split == split)

    def num_episodes(self, split: str) -> int:
        """Episodes of one split."""
        return sum(shard.num_episodes for shard in self.shards if shard.split == split)

    def save(self, folder: Path | str) -> None:
        """Write ``manifest.json`` atomically; do so last, it is what makes the folder a dataset.

        Args:
            folder: Path or URL.

        Raises:
            ShardError: A value is inconsistent or not JSON, or the file cannot be written.
        """
        where = join(folder, MANIFEST_NAME)
        try:
            content = dump_manifest({**vars(self), "schema_version": SCHEMA_VERSION})
        except (TypeError, ValueError) as error:
            raise ShardError(f"{where}: not a value that JSON can hold: {error}") from error
        parse_manifest(content, where)
        write_bytes(open_folder(folder), MANIFEST_NAME, content)

    @classmethod
    def load(cls, folder: Path | str) -> "Manifest":
        """Read and check ``manifest.json``.

        Args:
            folder: Path or URL.

        Raises:
            ShardError: It is missing, damaged, inconsistent, or of another schema version.
        """
        where = join(folder, MANIFEST_NAME)
        try:
            content = open_folder(folder).read(MANIFEST_NAME)
        except FileNotFoundError:
            if "://" not in str(folder) and not Path(folder).exists():
                raise ShardError(
                    f"{folder} does not exist, so it is not a finished dataset; "
                    f"`tokenwm prepare RECIPE --out {folder}` makes one"
                ) from None
            raise ShardError(
                f"{folder} holds no {MANIFEST_NAME}, so it is not a finished dataset; "
                f"run `tokenwm prepare RECIPE --out {folder}` first"
            ) from None
        except OSError as error:
            raise ShardError(f"{where} cannot be read: {error}") from error
        return parse_manifest(content, where)


def manifest_sha256(root: Path | str) -> str:
    """SHA-256 of a dataset's manifest, which names all that the dataset holds.

    Raises:
        OSError: There is none.
    """
    return sha256_of(open_folder(root), MANIFEST_NAME)


def dump_manifest(values: dict[str, Any]) -> bytes:
    """Plain values of a manifest as the bytes of its file.

    JSON with one line per entry of the lists, so that a diff of two manifests is readable; the last
    line is the digest of what is before it.
    """

    def compact(value: Any) -> str:
        return json.dumps(value, allow_nan=False, default=_plain)

    lines = []
    for key, value in values.items():
        if isinstance(value, Sequence) and not isinstance(value, str) and value:
            text = "[\n  " + ",\n  ".join(compact(item) for item in value) + "\n]"
        elif isinstance(value, dict) and value:
            items = (f"{compact(name)}: {compact(item)}" for name, item in value.items())
            text = "{\n  " + ",\n  ".join(items) + "\n}"
        else:
            text = compact(value)
        lines.append(f"{compact(key)}: {text}")
    text = "{\n" + ",\n".join(lines)
    return f'{text}{DIGEST_KEY.decode()}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if is_dataclass(value):
        return vars(value)
    raise TypeError(f"{type(value).__name__} {value!r}")


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Check the bytes of a ``manifest.json``; ``where`` names it in messages.

    Raises:
        ShardError: It is damaged, inconsistent, or of another schema version.
    """
    try:
        values, parts = _divide(content)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} is not JSON: {error}; make the dataset again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version not in (1, 2, SCHEMA_VERSION) or isinstance(version, bool):
        raise ShardError(
            f"{where}: schema_version is {version!r}, this tokenwm reads 1 to {SCHEMA_VERSION} "
            "only; make the dataset again with `tokenwm prepare`, or use the tokenwm that wrote it"
        )
    if version > 1:
        end = max(content.rfind(DIGEST_KEY), 0)
        digest = hashlib.sha256(memoryview(content)[:end]).hexdigest()
        if content[end:] != DIGEST_KEY + digest.encode() + b'"\n}\n':
            raise ShardError(
                f"{where} is damaged or was changed after it was written: the SHA-256 at its end "
                "is not that of its content; copy it again or make the dataset again"
            )
        del values["sha256"]
    try:
        if version < 3:
            values["files"] = {}
        # A program wrote it, so a key with a default may not be missing either.
        manifest: Manifest = build(Manifest, values, allow_defaults=False)
        _check_consistency(manifest)
        episodes = Episodes.parse(parts, tuple(manifest.features), manifest._totals)
    except (TokenwmError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ShardError(
            f"{where}: {error}; the manifest is damaged, make the dataset again"
        ) from error
    return replace(manifest, episodes=episodes)


def _divide(content: bytes) -> tuple[Any, Iterable[bytes]]:
    """The values of a manifest without its episodes, and the text of these in parts.

    Parts need less memory than all of a million episodes. They can be made of what
    :func:`dump_manifest` wrote, whose lines are known; anything else is one part.
    """
    begin = content.find(EPISODES_BEGIN)
    end = content.find(EPISODES_END, begin)
    if 0 <= begin < end:
        first = begin + len(EPISODES_BEGIN)
        values = json.loads((content[:first] + content[end:]).decode())
        if isinstance(values, dict) and values.get("episodes") == []:
            return values, _parts(content, first, end)
    values = json.loads(content.decode())
    if not isinstance(values, dict) or not isinstance(values.get("episodes"), list):
        return values, []
    rows, values["episodes"] = values["episodes"], []
    return values, [",\n".join(map(json.dumps, rows)).encode()] if rows else []


def _parts(content: bytes, first: int, end: int) -> Iterator[bytes]:
    while first < end:
        stop = content.find(b",\n", min(first + PART_BYTES, end), end)
        stop = end if stop < 0 else stop
        yield content[first:stop]
        first = stop + 1


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShardError(message)


def _check_consistency(manifest: Manifest) -> None:
    """Check all but the episodes."""
    require = _require
    require(manifest.control_rate > 0, f"control_rate is {manifest.control_rate}, expected > 0 Hz")
    for name, feature in manifest.features.items():
        require(FIELD_PATTERN.fullmatch(name) is not None, f"feature name {name!r} is not allowed")
        require(
            feature.dtype in ALLOWED_DTYPES,
            f"feature {name} has dtype {feature.dtype!r}, allowed are {', '.join(ALLOWED_DTYPES)}",
        )
        require(all(n > 0 for n in feature.shape), f"feature {name} has shape {feature.shape}")
        num_values = feature.num_values
        require(num_values is None or num_values > 0, f"feature {name} has {num_values} values")
    action = manifest.features.get("action")
    size = math.prod(action.shape) if action else 1
    count = manifest.extra.get(ACTIONS_PER_STEP, 1)
    fits = type(count) is int and count > 0 and size % count == 0
    require(fits, f"{ACTIONS_PER_STEP} is {count!r} for an action of {size} dimensions")
    paths: set[str] = set()
    for shard in manifest.shards:
        # Only plain names: a path with folders in it could point outside the dataset.
        match = SHARD_PATTERN.fullmatch(shard.path)
        require(match is not None, f"shard path {shard.path!r} is not SPLIT-NNNNNN.tar")
        require(shard.path.startswith(f"{shard.split}-"), f"{shard.path} has split {shard.split!r}")
        require(shard.path not in paths, f"shard {shard.path} is listed twice")
        digest = DIGEST_PATTERN.fullmatch(shard.sha256)  # copies in a cache are named by it
        require(digest is not None, f"shard {shard.path} has the SHA-256 {shard.sha256[:80]!r}")
        paths.add(shard.path)
    for path in manifest.files:
        # Like shards: nothing outside the dataset.
        require(FILE_PATTERN.fullmatch(path) is not None, f"file path {path!r} is not allowed")
