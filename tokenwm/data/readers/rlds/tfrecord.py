"""TFRecord files and the ``tf.train.Example`` messages in them, without TensorFlow.

A record is its length (8 bytes, little endian), a masked CRC-32C of the length, the content, and a
masked CRC-32C of the content. An ``Example`` is a map from names to lists of bytes, 32-bit floats
or 64-bit integers. Checksums are google-crc32c's, messages protobuf's (extra ``rlds``).

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

import functools
import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError, SourceError

HEADER, FOOTER = 12, 4
"""Bytes before and behind the content of a record."""
MAX_RECORD = 2**31 - 1
"""Bytes; protobuf reads no larger message."""
MESSAGES = {
    # message: fields as (name, number, type, repeated), a type being one of protobuf or a message
    "BytesList": (("value", 1, "bytes", True),),
    "FloatList": (("value", 1, "float", True),),
    "Int64List": (("value", 1, "int64", True),),
    "Feature": (
        ("bytes_list", 1, "BytesList", False),
        ("float_list", 2, "FloatList", False),
        ("int64_list", 3, "Int64List", False),
    ),
    "FeatureEntry": (("key", 1, "string", False), ("value", 2, "Feature", False)),
    "Features": (("feature", 1, "FeatureEntry", True),),
    "Example": (("features", 1, "Features", False),),
}
"""``tf.train.Example``; a map is sent as a list of entries, the last of a name being the one."""

Values = list[bytes] | NDArray[Any]


def record_places(path: Path) -> Iterator[tuple[int, int]]:
    """Yield where each record begins and how many bytes of content it has.

    Raises:
        EpisodeError: The file ends within a record, or a length is damaged; what was before is
            yielded before.
    """
    refuse_pointer(path, EpisodeError)
    size = os.stat(path).st_size
    place = 0
    with path.open("rb") as file:
        while place < size:
            file.seek(place)
            header = file.read(HEADER)
            if len(header) < HEADER:
                raise EpisodeError(f"{path} ends within a record, at byte {place:,}")
            length, checksum = struct.unpack("<QI", header)
            if checksum != masked_crc(header[:8]):
                raise EpisodeError(f"{path}: the record at byte {place:,} is damaged (its length)")
            if length > MAX_RECORD or place + HEADER + length + FOOTER > size:
                raise EpisodeError(
                    f"{path}: the record at byte {place:,} claims {length:,} bytes; the file has "
                    f"{size - place:,} more, and at most {MAX_RECORD:,} are read"
                )
            yield place, length
            place += HEADER + length + FOOTER


def read_record(path: Path, place: int, length: int) -> bytes:
    """Return the content of one record.

    Raises:
        EpisodeError: It is damaged.
    """
    try:
        with path.open("rb") as file:
            file.seek(place + HEADER)
            content, checksum = file.read(length), file.read(FOOTER)
    except OSError as error:
        raise EpisodeError(f"{path} cannot be read: {error}") from error
    if len(content) != length or checksum != struct.pack("<I", masked_crc(content)):
        raise EpisodeError(f"{path}: the record at byte {place:,} is damaged, its checksum differs")
    return content


def masked_crc(content: bytes) -> int:
    """Return the CRC-32C of some bytes, rotated and shifted as TensorFlow does.

    Raises:
        SourceError: google-crc32c is not installed.
    """
    try:
        import google_crc32c
    except ImportError as error:
        raise _not_installed(error) from error
    crc: int = google_crc32c.value(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def parse_example(content: bytes, wanted: Collection[str]) -> dict[str, Values]:
    """Decode some lists of a ``tf.train.Example``.

    Args:
        content: The serialised message.
        wanted: Names.

    Returns:
        Name → a list of bytes, or ``(n,)`` float32 or int64; without the names that are not there.

    Raises:
        EpisodeError: It is no such message.
        SourceError: protobuf is not installed.
    """
    message, broken = _example_class()
    try:
        entries = message.FromString(content).features.feature
    except broken as error:
        raise EpisodeError(f"a record is no tf.train.Example: {error}") from error
    return {entry.key: _values(entry.value) for entry in entries if entry.key in wanted}


def _values(feature: Any) -> Values:
    if feature.HasField("bytes_list"):
        return list(feature.bytes_list.value)
    if feature.HasField("int64_list"):
        return np.array(feature.int64_list.value, dtype=np.int64)
    return np.array(feature.float_list.value, dtype=np.float32)


@functools.cache
def _example_class() -> tuple[Any, type[Exception]]:
    """Return the class of ``Example`` messages, and what it raises for bytes that are none."""
    try:
        from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory
    except ImportError as error:
        raise _not_installed(error) from error
    field_type = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="tokenwm/example.proto", package="tokenwm", syntax="proto3"
    )
    for name, fields in MESSAGES.items():
        declared = file.message_type.add(name=name)
        for field, number, kind, repeated in fields:
            label = field_type.LABEL_REPEATED if repeated else field_type.LABEL_OPTIONAL
            added = declared.field.add(name=field, number=number, label=label)
            if kind in MESSAGES:
                added.type, added.type_name = field_type.TYPE_MESSAGE, f".tokenwm.{kind}"
            else:
                added.type = field_type.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    example = pool.FindMessageTypeByName("tokenwm.Example")
    return message_factory.GetMessageClass(example), message.DecodeError


def _not_installed(error: ImportError) -> SourceError:
    return SourceError(f"RLDS cannot be read ({error}); pip install 'tokenwm[rlds]'")
