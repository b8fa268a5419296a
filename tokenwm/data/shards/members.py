"""What the members of a shard may be: checks of names, headers and values."""

import io
import math
import tarfile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import Feature
from tokenwm.errors import CorruptSampleError, ShardError

ALLOWED_SUFFIXES = ("npy", "json")
MAX_NPY_HEADER = 4096


def check_member(shard: str, member: tarfile.TarInfo) -> None:
    """Refuse a tar member that is not a plain ``key.field.npy`` or ``key.json``.

    Raises:
        ShardError: Names the shard, the member and the rule.
    """
    where = f"shard {shard}, member {member.name!r}"
    if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):  # isreg() takes sparse ones, too
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
        name: What the member must be called.
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
    if member.name != name or not member.isreg():
        raise CorruptSampleError(f"{where}: the tar has {member.name!r} there; make it again")
    if not 0 <= member.size <= room:
        raise CorruptSampleError(f"{where}: {member.size} bytes reach past the end of the file")
    return int(member.size)


def npy_header_size(head: bytes, num_steps: int, feature: Feature, size: int, where: str) -> int:
    """Bytes before the data of an array, after checking that it is the promised one.

    Args:
        head: The first bytes of the member, up to ``MAX_NPY_HEADER``.
        num_steps: ``T`` of the episode.
        feature: What the manifest says of the field.
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


def impossible_values(array: NDArray[Any], feature: Feature) -> str | None:
    """Damage that headers do not show, in words: ids out of range, NaN, infinity."""
    limit = feature.num_values
    if limit is not None and not 0 <= array.min() <= array.max() < limit:
        return f"ids from {array.min()} to {array.max()} are outside [0, {limit})"
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        return "NaN or infinity, which no dataset is made with"
    return None
