"""The pictures of a recording: in arrays, as encoded images, or in a video.

A recording (:mod:`tokenwm.data.readers.recorded.recording`) names one of these per camera. Pictures
are read when an episode is made, the wanted ones only, and made smaller one by one, so memory holds
one large picture at a time.
"""

import io
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
import PIL.ExifTags
import PIL.Image
from numpy.typing import NDArray

from tokenwm.data.readers.pictures.pixels import (
    PictureShape,
    extremes_of,
    picture_shape,
    scale_to_bytes,
    why_no_pictures,
)
from tokenwm.data.readers.pictures.turn import EXIF_TURNS, NO_TURN, Turn
from tokenwm.data.readers.pictures.video import (
    MAX_PIXELS,
    FrameResizer,
    FramesRead,
    check_no_depth,
    check_size,
    read_frames,
)
from tokenwm.errors import EpisodeError

BLOCK = 16
"""Kept pictures that are read from an array at once: HDF5 is slow one by one."""
BLOCK_BYTES = 64 * 2**20
"""Most memory for that, as long as one picture is smaller."""
TIFF = (b"II*\0", b"MM\0*")
EXIF_WITHIN = 4096
"""Bytes at the beginning of an encoded image within which its EXIF data begins."""
IMAGE_CODECS = {b"\x89PNG": "png", b"\xff\xd8\xff": "mjpeg"}
"""First bytes of an encoded image → FFmpeg's name of its format."""


class Frames(Protocol):
    """The pictures of one camera over one recording."""

    def check(self, episode: str, num_rows: int) -> None:
        """See without decoding whether the pictures are there.

        Args:
            episode: Key of the episode, for messages.
            num_rows: Pictures that there should be.

        Raises:
            EpisodeError: They plainly are not.
        """

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """Read the pictures ``first, first + step, …``.

        Args:
            first: First picture to keep, ``>= 0``.
            step: Keep one picture of ``step``, ``>= 1``.
            num_rows: Pictures that there should be; what is beyond is counted and not kept.
            resizer: How to make a picture smaller.
            episode: Key of the episode, for messages.

        Returns:
            The kept pictures, and how many there are.

        Raises:
            EpisodeError: Pictures are missing, damaged, or none.
        """


@dataclass(frozen=True, kw_only=True)
class ArrayFrames:
    """Pictures in an array, or in anything sliced like one: a memory map, an HDF5 dataset.

    Attributes:
        images: ``(N, H, W, C)``, ``(N, C, H, W)`` or ``(N, H, W)``, see
            :mod:`tokenwm.data.readers.pictures.pixels`; or ``(N, size)`` with ``row_shape``. An
            open file behind it must stay open until the episode is made.
        name: What it is called in the source, for messages.
        row_shape: Shape of one picture where the array holds them flat.
    """

    images: Any
    name: str
    row_shape: tuple[int, ...] | None = None

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        shape = self._shape(num_rows, episode)
        where = f"episode {episode}: {self.name}"
        scale = self._scale(where)
        kept: list[NDArray[np.uint8]] = []
        wanted = len(range(first, num_rows, step))
        for block in self._blocks(first, step):
            numbers = block[::step][: wanted - len(kept)]
            if scale is not None:
                numbers = np.rint(numbers * scale).astype(np.uint8)
            kept += [resizer.resize_image(image) for image in shape.to_rgb(numbers, where)]
        return FramesRead(_stacked(kept, self.name, episode), np.full(len(self.images), np.nan))

    def check(self, episode: str, num_rows: int) -> None:
        """See :meth:`Frames.check`."""
        self._shape(num_rows, episode)

    def _shape(self, num_rows: int, episode: str) -> PictureShape:
        return check_pictures(
            tuple(self.images.shape),
            np.dtype(self.images.dtype),
            num_rows,
            name=self.name,
            episode=episode,
            row_shape=self.row_shape,
        )

    def _scale(self, where: str) -> float | None:
        """Factor that makes the numbers of this episode bytes; None if they are bytes."""
        dtype = np.dtype(self.images.dtype)
        if dtype == np.uint8 or not len(self.images):
            return None
        lows, highs, ends = zip(*map(extremes_of, self._blocks(0, 1)), strict=True)
        # Of NumPy, not of Python: a NaN in any block must come through.
        extremes = (float(np.min(lows)), float(np.max(highs)), all(ends))
        return scale_to_bytes(dtype, extremes, where)

    def _blocks(self, first: int, step: int) -> Iterator[NDArray[Any]]:
        """Rows from ``first`` on, a few at a time, each time beginning with a kept one."""
        size = int(np.prod(self.images.shape[1:])) * np.dtype(self.images.dtype).itemsize
        block = step * max(1, min(BLOCK, BLOCK_BYTES // max(1, size * step)))
        for start in range(first, len(self.images), block):
            rows = np.asarray(self.images[start : start + block])
            yield rows if self.row_shape is None else rows.reshape(len(rows), *self.row_shape)


@dataclass(frozen=True, kw_only=True)
class StoredFrames:
    """Pictures in an array of a file, which is opened when they are read and closed again.

    Attributes:
        open: Opens it; gives what :class:`ArrayFrames` takes, or raises an EpisodeError.
        name: What it is called in the source, for messages.
        shape: Shape of the array, as the file says.
        dtype: Its type.
    """

    open: Callable[[], AbstractContextManager[Any]]
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def check(self, episode: str, num_rows: int) -> None:
        """Check the pictures, see :meth:`Frames.check`."""
        check_pictures(self.shape, self.dtype, num_rows, name=self.name, episode=episode)

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        with self.open() as images:
            frames = ArrayFrames(images=images, name=self.name)
            try:
                return frames.read(
                    first=first, step=step, num_rows=num_rows, resizer=resizer, episode=episode
                )
            except (OSError, RuntimeError) as error:
                raise EpisodeError(
                    f"episode {episode}: {self.name} cannot be read: {error}"
                ) from error


@dataclass(frozen=True, kw_only=True)
class EncodedFrames:
    """Pictures that are each a PNG or JPEG file in memory.

    Attributes:
        images: ``N`` encoded images.
        name: What it is called in the source, for messages.
    """

    images: Sequence[bytes]
    name: str

    def check(self, episode: str, num_rows: int) -> None:
        """Check that there are some; whether they can be decoded shows only then."""
        if not self.images:
            raise EpisodeError(f"episode {episode}: {self.name} holds no pictures")

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        kept = []
        for index in range(first, min(num_rows, len(self.images)), step):
            where = f"episode {episode}: image {index} of {self.name}"
            content = self.images[index]
            frame = decode_image(content, where)
            check_no_depth(frame, where)
            kept.append(resizer(frame, exif_turn(content)))
        same = [a == b for a, b in itertools.pairwise(self.images)]
        repeated = sum(same) / max(1, len(same))
        times = np.full(len(self.images), np.nan)
        return FramesRead(_stacked(kept, self.name, episode), times, repeated)


@dataclass(frozen=True, kw_only=True)
class VideoFrames:
    """Pictures in a video file, or in a part of one.

    Attributes:
        path: The file.
        times: Presentation time of each picture of the part, seconds; None for all of the file.
    """

    path: Path
    times: NDArray[np.float64] | None = None

    def check(self, episode: str, num_rows: int) -> None:
        """See :meth:`Frames.check`."""
        if not self.path.is_file():
            raise EpisodeError(f"episode {episode}: video {self.path} is missing")

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        return read_frames(
            self.path,
            first=first,
            step=step,
            num_rows=num_rows,
            resizer=resizer,
            episode=episode,
            times=self.times,
        )


def check_pictures(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    num_rows: int,
    *,
    name: str,
    episode: str,
    row_shape: tuple[int, ...] | None = None,
) -> PictureShape:
    """Check what an array of pictures says about itself, before memory is taken for it.

    Args:
        shape: Of the array, ``(N, ...)``.
        dtype: Its type.
        num_rows: Pictures that there should be, at most.
        name: What it is called in the source, for messages.
        episode: Key of the episode, for messages.
        row_shape: Shape of one picture where the array holds them flat.

    Raises:
        EpisodeError: It is no such array, or claims more pictures than there are rows.
    """
    where = f"episode {episode}: {name}"
    picture = picture_shape(shape[1:] if row_shape is None else row_shape)
    reason = "" if picture is None else why_no_pictures(dtype, picture, name)
    if picture is None or reason:
        raise EpisodeError(
            f"{where} is {dtype}{shape}, {reason or 'no pictures'}; expected (N, H, W, 3), "
            "(N, 3, H, W), or uint8 (N, H, W)"
        )
    size = picture.height * picture.width * picture.channels
    if math.prod(shape[1:]) != size:
        raise EpisodeError(
            f"{where} has {math.prod(shape[1:])} numbers a row; the shape {row_shape} that the "
            f"source declares means {size}"
        )
    check_size(picture.height, picture.width, where)
    if shape[0] > num_rows:
        raise EpisodeError(f"{where} holds {shape[0]:,} pictures for {num_rows:,} rows")
    return picture


def decode_image(content: bytes, where: str) -> av.VideoFrame:
    """Decode a PNG or JPEG.

    Args:
        content: The bytes of the file.
        where: What it is, for messages.

    Raises:
        EpisodeError: It is neither, or is damaged.
    """
    codec = next((name for magic, name in IMAGE_CODECS.items() if content.startswith(magic)), "")
    if not codec:
        kind = "a TIFF, as depth maps are" if content[:4] in TIFF else "neither PNG nor JPEG"
        raise EpisodeError(f"{where} is {kind}; it begins with {content[:4]!r}")
    try:
        context = av.CodecContext.create(codec, "r")
        context.options = MAX_PIXELS
        frames = [*context.decode(av.Packet(content)), *context.decode(None)]  # type: ignore[attr-defined]
    except av.FFmpegError as error:
        raise EpisodeError(f"{where} cannot be decoded: {error}") from error
    if not frames or frames[0].is_corrupt:
        raise EpisodeError(f"{where} is damaged")
    frame: av.VideoFrame = frames[0]
    return frame


def exif_turn(content: bytes) -> Turn:
    """Turn that the EXIF data of an encoded image asks for; see :func:`decode_image`."""
    if b"Exif\0" not in content[:EXIF_WITHIN] and b"eXIf" not in content[:EXIF_WITHIN]:
        return NO_TURN
    try:
        with PIL.Image.open(io.BytesIO(content)) as image:
            orientation = image.getexif().get(PIL.ExifTags.Base.Orientation)
    except Exception:  # Pillow raises anything where EXIF is damaged; the picture is decoded
        return NO_TURN
    return EXIF_TURNS.get(orientation, NO_TURN) if isinstance(orientation, int) else NO_TURN


def _stacked(kept: list[NDArray[np.uint8]], name: str, episode: str) -> NDArray[np.uint8]:
    if not kept:
        raise EpisodeError(f"episode {episode}: {name} holds no frames")
    return np.stack(kept)
