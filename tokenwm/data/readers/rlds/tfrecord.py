"""TFRecord files and the ``tf.train.Example`` messages in them, without TensorFlow.

A record is its length (8 bytes, little endian), a masked CRC-32C of the length, the content, and a
masked CRC-32C of the content. An ``Example`` is a map from names to lists of bytes, 32-bit floats
or 64-bit integers; only the wanted lists are decoded.

Source: tensorflow/core/lib/io/record_writer.h and tensorflow/core/example/{example,feature}.proto.
"""

import os
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError

HEADER, FOOTER = 12, 4
"""Bytes before and behind the content of a record."""
MAX_RECORD = 2**31
"""Bytes; more is no episode."""
POLYNOMIAL = 0x82F63B78
LANE = 1024
"""Bytes whose checksum is computed one after the other; all lanes of a record at once."""
BYTES_LIST, FLOAT_LIST, INT_LIST = 1, 2, 3
EMPTY = memoryview(b"")
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5

Values = list[bytes] | NDArray[Any]


def record_places(path: Path) -> Iterator[tuple[int, int]]:
    """Where records begin, and how many bytes of content each has.

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
    """The content of one record.

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
    """The CRC-32C of some bytes, rotated and shifted as TensorFlow does."""
    crc = crc32c(content)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(content: bytes) -> int:
    """CRC-32C (Castagnoli).

    Many lanes of the content are summed up at once, which is what makes this fast without a
    library, and put together: the sum of ``AB`` is that of ``A`` followed by zeros, plus that of
    ``B``. A start of ones instead of zeros is the same as inverting the first four bytes.
    """
    if len(content) < 4:
        state = 0xFFFFFFFF
        for byte in content:
            state = int(_TABLE[(state ^ byte) & 255]) ^ state >> 8
        return state ^ 0xFFFFFFFF
    num_lanes = 1 << (-(-len(content) // LANE) - 1).bit_length()
    lanes = np.zeros(num_lanes * LANE, dtype=np.uint8)  # zeros in front change nothing
    lanes[-len(content) :] = np.frombuffer(content, dtype=np.uint8)
    begin = len(lanes) - len(content)
    lanes[begin : begin + 4] ^= 0xFF
    columns = np.ascontiguousarray(lanes.reshape(num_lanes, LANE).T)
    states = np.zeros(num_lanes, dtype=np.uint32)
    for column in columns:
        states = _TABLE[(states ^ column) & 255] ^ states >> 8
    followed_by_zeros = _LANE_OF_ZEROS
    while len(states) > 1:
        states = _apply(followed_by_zeros, states[::2]) ^ states[1::2]
        followed_by_zeros = _apply(followed_by_zeros, followed_by_zeros)
    return int(states[0]) ^ 0xFFFFFFFF


def parse_example(content: bytes, wanted: Collection[str]) -> dict[str, Values]:
    """Decode some lists of a ``tf.train.Example``.

    Args:
        content: The serialised message.
        wanted: Names.

    Returns:
        Name → a list of bytes, or ``(n,)`` float32 or int64; without the names that are not there.

    Raises:
        EpisodeError: It is no such message.
    """
    found: dict[str, Values] = {}
    try:
        for _, features in _fields(memoryview(content), only=1):
            for _, entry in _fields(features, only=1):
                parts = dict(_fields(entry))
                name = _bytes(parts.get(1, EMPTY)).decode()
                if name in wanted:
                    found[name] = _values(parts.get(2, EMPTY))
    except (IndexError, ValueError, TypeError, struct.error) as error:
        raise EpisodeError(f"a record is no tf.train.Example: {error}") from error
    return found


def _values(feature: memoryview) -> Values:
    for kind, values in _fields(feature):
        items = [item for _, item in _fields(values, only=1)]
        if kind == BYTES_LIST:
            return [_bytes(item) for item in items]
        if kind == FLOAT_LIST:
            return np.frombuffer(b"".join(items), dtype="<f4")
        if kind == INT_LIST:
            if all(isinstance(item, int) for item in items):  # each in a field of its own
                return np.array(items, dtype=np.uint64).astype(np.int64)
            return np.concatenate([_varints(item) for item in items])
    return np.zeros(0, dtype=np.float32)


def _bytes(content: Any) -> bytes:
    """The content of a field; of an integer, ``bytes`` would make that many zeros."""
    if not isinstance(content, memoryview):
        raise ValueError("an integer where bytes are expected")
    return content.tobytes()


def _fields(message: memoryview, only: int | None = None) -> Iterator[tuple[int, Any]]:
    """Number and content of the fields of a message: bytes, or an integer."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        kind = key & 7
        if kind == VARINT:
            value, end = _varint(message, place)
            content: Any = value
        else:
            size = {FIXED64: 8, FIXED32: 4}.get(kind)
            if kind == LENGTH:
                size, place = _varint(message, place)
            if size is None or place + size > len(message):
                raise ValueError(f"field of kind {kind} and size {size} at byte {place}")
            content, end = message[place : place + size], place + size
        if only in (None, key >> 3):
            yield key >> 3, content
        place = end


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """One integer of 7 bits per byte, and where the next thing begins."""
    value = shift = 0
    while shift < 70:
        byte = message[place]
        value |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, place
    raise ValueError(f"an integer of more than 10 bytes at byte {place}")


def _varints(packed: memoryview) -> NDArray[np.int64]:
    """Integers one behind the other."""
    data = np.frombuffer(packed, dtype=np.uint8)
    ends = np.flatnonzero(data < 128)
    if len(data) and (not len(ends) or ends[-1] != len(data) - 1):
        raise ValueError("integers end within one")
    starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64)[: len(ends)]
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > 10:
        raise ValueError("an integer of more than 10 bytes")
    values = np.zeros(len(ends), dtype=np.uint64)
    for position in range(int(lengths.max(initial=0))):
        longer = lengths > position
        bits = (data[starts[longer] + position] & 127).astype(np.uint64)
        values[longer] |= bits << np.uint64(7 * position)
    return values.astype(np.int64)


def _table() -> NDArray[np.uint32]:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, table >> 1 ^ np.uint32(POLYNOMIAL), table >> 1)
    return table


def _apply(operator: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """A linear map of 32 bits, given as the images of the single bits, of many states."""
    result = np.zeros_like(states)
    for bit in range(32):
        result ^= np.where(states >> bit & 1, operator[bit], np.uint32(0))
    return result


def _zeros(num_bytes: int) -> NDArray[np.uint32]:
    """What a power of two of zero bytes makes of the single bits of a state."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    operator: NDArray[np.uint32] = _TABLE[bits & 255] ^ bits >> 8
    for _ in range(num_bytes.bit_length() - 1):
        operator = _apply(operator, operator)
    return operator


_TABLE = _table()
_LANE_OF_ZEROS = _zeros(LANE)
