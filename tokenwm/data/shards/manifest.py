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
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.storage.folder import join, open_folder, write_bytes
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
DIGEST_KEY = ',\n"sha256": "'
"""Text before the digest at the end of the manifest."""


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
        episodes: Every episode, in the order of the shards.
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
    episodes: list[EpisodeInfo]
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

    def num_steps(self, split: str) -> int:
        """Steps of all episodes of one split."""
        return sum(episode.num_steps for episode in self.episodes if episode.split == split)

    def num_episodes(self, split: str) -> int:
        """Episodes of one split."""
        return sum(episode.split == split for episode in self.episodes)

    def save(self, folder: Path | str) -> None:
        """Write ``manifest.json`` atomically; do so last, it is what makes the folder a dataset.

        Args:
            folder: Path or URL.

        Raises:
            ShardError: A value is inconsistent or not JSON, or the file cannot be written.
        """
        where = join(folder, MANIFEST_NAME)
        try:
            content = dump_manifest({**asdict(self), "schema_version": SCHEMA_VERSION})
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


def dump_manifest(values: dict[str, Any]) -> bytes:
    """Plain values of a manifest as the bytes of its file.

    JSON with one line per entry of the lists, so that a diff of two manifests is readable; the last
    line is the digest of what is before it.
    """

    def compact(value: Any) -> str:
        return json.dumps(value, allow_nan=False, default=_plain)

    lines = []
    for key, value in values.items():
        if isinstance(value, list) and value:
            text = "[\n  " + ",\n  ".join(compact(item) for item in value) + "\n]"
        elif isinstance(value, dict) and value:
            items = (f"{compact(name)}: {compact(item)}" for name, item in value.items())
            text = "{\n  " + ",\n  ".join(items) + "\n}"
        else:
            text = compact(value)
        lines.append(f"{compact(key)}: {text}")
    text = "{\n" + ",\n".join(lines)
    return f'{text}{DIGEST_KEY}{hashlib.sha256(text.encode()).hexdigest()}"\n}}\n'.encode()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} {value!r}")


def parse_manifest(content: bytes, where: str) -> Manifest:
    """Check the bytes of a ``manifest.json``; ``where`` names it in messages.

    Raises:
        ShardError: It is damaged, inconsistent, or of another schema version.
    """
    try:
        text = content.decode()
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{where} is not JSON: {error}; make the dataset again") from error
    version = values.get("schema_version") if isinstance(values, dict) else None
    if version not in (1, 2, SCHEMA_VERSION) or isinstance(version, bool):
        raise ShardError(
            f"{where}: schema_version is {version!r}, this tokenwm reads 1 to {SCHEMA_VERSION} "
            "only; make the dataset again with `tokenwm prepare`, or use the tokenwm that wrote it"
        )
    if version > 1:
        body, _, digest = text.rpartition(DIGEST_KEY)
        if digest != hashlib.sha256(body.encode()).hexdigest() + '"\n}\n':
            raise ShardError(
                f"{where} is damaged or was changed after it was written: the SHA-256 at its end "
                "is not that of its content; copy it again or make the dataset again"
            )
        del values["sha256"]
    try:
        if version == 1:
            values["episodes"] = [{**episode, "crc32": None} for episode in values["episodes"]]
        if version < 3:
            values["episodes"] = [{**episode, "synthetic": None} for episode in values["episodes"]]
            values["files"] = {}
        # A program wrote it, so a key with a default may not be missing either.
        manifest: Manifest = build(Manifest, values, allow_defaults=False)
    except (TokenwmError, KeyError, TypeError) as error:
        raise ShardError(f"{where}: {error}; make the dataset again") from error
    _check_consistency(manifest, where)
    return manifest


def _check_consistency(manifest: Manifest, where: str) -> None:
    def require(condition: bool, message: str) -> None:
        if not condition:
            raise ShardError(f"{where}: {message}; the manifest is damaged, make the dataset again")

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
    totals: dict[str, list[int]] = {}
    for shard in manifest.shards:
        # Only plain names: a path with folders in it could point outside the dataset.
        match = SHARD_PATTERN.fullmatch(shard.path)
        require(match is not None, f"shard path {shard.path!r} is not SPLIT-NNNNNN.tar")
        require(shard.path.startswith(f"{shard.split}-"), f"{shard.path} has split {shard.split!r}")
        require(shard.path not in totals, f"shard {shard.path} is listed twice")
        totals[shard.path] = [0, 0]
    for path in manifest.files:
        # Like shards: nothing outside the dataset.
        require(FILE_PATTERN.fullmatch(path) is not None, f"file path {path!r} is not allowed")
    keys: set[str] = set()
    for episode in manifest.episodes:
        key = episode.key
        require(NAME_PATTERN.fullmatch(key) is not None, f"episode key {key!r} is not allowed")
        require(key not in keys, f"episode {key} is listed twice")
        keys.add(key)
        require(episode.shard in totals, f"episode {key}: unlisted shard {episode.shard!r}")
        split_fits = episode.shard.startswith(f"{episode.split}-")
        require(split_fits, f"episode {key}: split {episode.split!r} in shard {episode.shard}")
        require(episode.num_steps > 0, f"episode {key} has {episode.num_steps} steps")
        require(set(episode.offsets) == set(manifest.features), f"episode {key}: fields differ")
        first = min(episode.metadata_offset, *episode.offsets.values())
        require(first >= 0, f"episode {key}: a member starts at offset {first}")
        totals[episode.shard][0] += 1
        totals[episode.shard][1] += episode.num_steps
    for shard in manifest.shards:
        listed = [shard.num_episodes, shard.num_steps]
        require(
            totals[shard.path] == listed,
            f"{shard.path}: [episodes, steps] are {listed} but add up to {totals[shard.path]}",
        )
