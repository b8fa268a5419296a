"""Where the pictures of a recording are: in arrays, as encoded images, or in a video.

A recording (:mod:`tokenwm.data.sources.recording`) names one of these per camera. Pictures are
read when an episode is made, the wanted ones only, and made smaller one by one, so memory holds one
large picture at a time.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import av
import numpy as np
from numpy.typing import NDArray

from tokenwm.data.video import MAX_PIXELS, FrameResizer, FramesRead, check_size, read_frames
from tokenwm.errors import EpisodeError

BLOCK = 16
"""Kept pictures that are read from an array at once: HDF5 is slow one by one."""
BLOCK_BYTES = 64 * 2**20
"""Most memory for that, as long as one picture is smaller."""
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
        images: ``(N, H, W, 3)``, ``(N, H, W, 1)`` or ``(N, H, W)`` uint8, RGB or grey. An open file
            behind it must stay open until the episode is made.
        name: What it is called in the source, for messages.
    """

    images: Any
    name: str

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        self.check(episode, num_rows)
        images = itertools.islice(self._images(first, step), len(range(first, num_rows, step)))
        kept = [resizer.resize_image(image) for image in images]
        return FramesRead(_stacked(kept, self.name, episode), np.full(len(self.images), np.nan))

    def check(self, episode: str, num_rows: int) -> None:
        """See :meth:`Frames.check`."""
        where = f"episode {episode}: {self.name}"
        check_pictures(tuple(self.images.shape), np.dtype(self.images.dtype), num_rows, where)

    def _images(self, first: int, step: int) -> Iterator[NDArray[np.uint8]]:
        size = int(np.prod(self.images.shape[1:]))
        block = step * max(1, min(BLOCK, BLOCK_BYTES // max(1, size * step)))
        for start in range(first, len(self.images), block):
            for image in np.asarray(self.images[start : start + block])[::step]:
                grey = image.ndim == 2 or image.shape[2] == 1
                yield np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2) if grey else image


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
        """See :meth:`Frames.check`."""
        check_pictures(self.shape, self.dtype, num_rows, f"episode {episode}: {self.name}")

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
        """See :meth:`Frames.check`; that they are pictures shows only when they are decoded."""
        if not self.images:
            raise EpisodeError(f"episode {episode}: {self.name} holds no pictures")

    def read(
        self, *, first: int, step: int, num_rows: int, resizer: FrameResizer, episode: str
    ) -> FramesRead:
        """See :meth:`Frames.read`."""
        kept = []
        for index in range(first, min(num_rows, len(self.images)), step):
            where = f"episode {episode}: image {index} of {self.name}"
            kept.append(resizer(decode_image(self.images[index], where)))
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


def check_pictures(shape: tuple[int, ...], dtype: np.dtype[Any], num_rows: int, where: str) -> None:
    """Check what an array of pictures says about itself, before memory is taken for it.

    Raises:
        EpisodeError: It is no such array, or claims more pictures than there are rows.
    """
    if dtype != np.uint8 or len(shape) not in (3, 4) or shape[3:] not in ((), (1,), (3,)):
        raise EpisodeError(
            f"{where} is {dtype}{shape}; expected uint8 (N, H, W, 3), (N, H, W, 1) or (N, H, W)"
        )
    check_size(shape[1], shape[2], where)
    if shape[0] > num_rows:
        raise EpisodeError(f"{where} holds {shape[0]:,} pictures for {num_rows:,} rows")


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
        raise EpisodeError(f"{where} is neither PNG nor JPEG; it begins with {content[:4]!r}")
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


def _stacked(kept: list[NDArray[np.uint8]], name: str, episode: str) -> NDArray[np.uint8]:
    if not kept:
        raise EpisodeError(f"episode {episode}: {name} holds no frames")
    return np.stack(kept)
