"""Checks of names, headers and values of the members of a shard."""

import io
import json
import math
import tarfile
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import MAX_MEMBER_BYTES, MAX_MEMBER_NAME, NAME_PATTERN, Scalar
from tokenwm.data.shards.manifest import ALLOWED_DTYPES, FIELD_PATTERN, Feature
from tokenwm.errors import CorruptSampleError, ShardError

ALLOWED_SUFFIXES = ("npy", "json")
MAX_NPY_HEADER = 4096
PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""Types of members that are allowed; ``TarInfo.isreg`` takes sparse ones, too."""


def check_episode(
    key: str, arrays: Mapping[str, NDArray[Any]], metadata: Mapping[str, Scalar]
) -> None:
    """Refuse an episode that a shard cannot hold.

    Raises:
        ShardError: A name, dtype or length is not allowed, or the metadata are no JSON scalars.
    """
    if not NAME_PATTERN.fullmatch(key):
        raise ShardError(f"episode key {key!r} may hold letters, digits, '_', '-' only")
    shapes = {name: array.shape for name, array in arrays.items()}
    lengths = {shape[:1] for shape in shapes.values()}
    if len(lengths) != 1 or () in lengths or any(0 in shape for shape in shapes.values()):
        raise ShardError(f"episode {key}: fields must share one length T > 0, got {shapes}")
    for name, array in arrays.items():
        if not FIELD_PATTERN.fullmatch(name):
            raise ShardError(f"episode {key}: field name {name!r} is not NAME or NAME.NAME")
        if len(f"{key}.{name}.npy") > MAX_MEMBER_NAME:
            raise ShardError(
                f"member {key}.{name}.npy: name longer than {MAX_MEMBER_NAME}; shorten the key"
            )
        if array.dtype.name not in ALLOWED_DTYPES:
            raise ShardError(
                f"episode {key}: {name} is {array.dtype}; allowed: {', '.join(ALLOWED_DTYPES)}"
            )
        if array.nbytes > MAX_MEMBER_BYTES:
            raise ShardError(
                f"episode {key}: {name} takes {array.nbytes:,} bytes, at most "
                f"{MAX_MEMBER_BYTES:,} can be stored; divide the episode"
            )
    try:
        json.dumps(dict(metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ShardError(f"episode {key}: metadata must be JSON scalars: {error}") from error


def check_member(shard: str, member: tarfile.TarInfo) -> None:
    """Refuse a tar member that is not a plain ``key.field.npy`` or ``key.json``.

    Raises:
        ShardError: Names the shard, the member and the rule.
    """
    where = f"shard {shard}, member {member.name!r}"
    if member.type not in PLAIN:
        raise ShardError(f"{where}: not a regular file; links and folders are not allowed")
    if "/" in member.name or "\\" in member.name or member.name.startswith("."):
        raise ShardError(f"{where}: names with folders are not allowed")
    suffix = member.name.rpartition(".")[2]
    if suffix not in ALLOWED_SUFFIXES:
        raise ShardError(f"{where}: only {', '.join(ALLOWED_SUFFIXES)} are allowed, not {suffix!r}")


def member_size(header: bytes, name: str, room: int, where: str) -> int:
    """Size of a member from its tar header.

    Args:
        header: One block of the tar.
        name: The name that the member must have.
        room: Bytes from its data to the end of the file.
        where: Shard, member and offset, for messages.

    Raises:
        CorruptSampleError: It is no header, or one of another member.
    """
    try:
        member = tarfile.TarInfo.frombuf(header, "ascii", "strict")
    except Exception as error:  # the parser has many of its own
        raise CorruptSampleError(f"{where}: no tar header there ({error}); make it again") from (
            error
        )
    if member.name != name or member.type not in PLAIN:
        raise CorruptSampleError(f"{where}: the tar has {member.name!r} there; make it again")
    if not 0 <= member.size <= room:
        raise CorruptSampleError(f"{where}: {member.size} bytes reach past the end of the file")
    return int(member.size)


def npy_header_size(head: bytes, num_steps: int, feature: Feature, size: int, where: str) -> int:
    """Bytes before the data of an array, after checking that it is the promised one.

    Args:
        head: The first bytes of the member, up to ``MAX_NPY_HEADER``.
        num_steps: ``T`` of the episode.
        feature: The manifest's description of the field.
        size: Bytes of the whole member.
        where: Shard, episode and field, for messages.

    Raises:
        CorruptSampleError: The header is damaged or says something else than the manifest, or the
            array holds pickled objects.
    """
    stream = io.BytesIO(head[:size])
    try:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("not npy version 1.0")
        shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # a header is Python's syntax: of its tokenizer, parser, evaluator
        raise CorruptSampleError(f"{where}: the npy header is damaged: {error}") from error
    if dtype.hasobject:
        raise CorruptSampleError(f"{where}: the array holds pickled objects; they are never loaded")
    expected = (num_steps, *feature.shape)
    if dtype != np.dtype(feature.dtype).newbyteorder("<") or shape != expected or fortran:
        raise CorruptSampleError(
            f"{where}: {dtype}{shape} in the shard, {feature.dtype}{expected} in the manifest"
        )
    if stream.tell() + num_steps * bytes_per_step(feature) != size:
        raise CorruptSampleError(f"{where}: {size} bytes do not hold {dtype}{shape}")
    return stream.tell()


def padded_size(size: int) -> int:
    """``size`` rounded up to whole tar blocks."""
    return -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def bytes_per_step(feature: Feature) -> int:
    """Size of one step of a field."""
    return math.prod(feature.shape) * np.dtype(feature.dtype).itemsize


def decode_metadata(content: bytes, where: str) -> dict[str, Scalar]:
    """Read the JSON member of an episode.

    Args:
        content: Its bytes.
        where: Shard, episode and member, for messages.

    Raises:
        CorruptSampleError: It is damaged.
    """
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise CorruptSampleError(f"{where} is damaged: {error}") from error
    if not isinstance(values, dict):
        raise CorruptSampleError(f"{where} is not an object")
    return values


def impossible_values(array: NDArray[Any], feature: Feature) -> str | None:
    """Damage that headers do not show, in words: ids out of range, NaN, infinity."""
    limit = feature.num_values
    if limit is not None and not 0 <= array.min() <= array.max() < limit:
        return f"ids from {array.min()} to {array.max()} are outside [0, {limit})"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "NaN or infinity, which no dataset is made with"
    return None
