"""Pictures: resizing frames and decoding the wanted frames of a video.

Both go through one FFmpeg filter graph (crop, antialiased area scaling, RGB), so a frame from a
video and a frame from a simulator are made smaller in exactly the same way.
"""

import itertools
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, NamedTuple

import av
import av.filter
import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.pictures.turn import NO_TURN, Turn, turn_of
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError

Resize = Literal["crop", "stretch"]

SMALL_PICTURE = 128 * 128
"""Below this many pixels more decoding threads cost more than they give."""
LARGEST_PICTURE = 8192 * 8192
"""Pixels; more than any camera gives, and a small file can claim any number."""
MAX_PIXELS = {"max_pixels": str(LARGEST_PICTURE)}
"""For FFmpeg's decoders: what a header says and what the stream then holds may differ."""
FORMATS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,ogg,flv,gif"
"""Names of FFmpeg's formats that hold pictures; playlists, which name other files, are none."""
OPENING = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
"""For FFmpeg: nothing but files, and only those of these formats, is ever opened."""
SEEK_MARGINS = (0.0, 1.0, 10.0, float("inf"))
"""Times before the wanted one at which a key frame is searched, seconds, one after the other."""
SAME_TIME = 1e-4
"""Seconds; two times that differ by less are of the same frame."""
SCALE_FLAGS = "area+accurate_rnd+bitexact"  # bitexact: the same bytes on every CPU


class FramesRead(NamedTuple):
    """The pictures read of one camera, and facts about them.

    Attributes:
        kept: The wanted pictures, ``(K, height, width, 3)`` uint8.
        times: Time of *every* picture, ``(N,)`` seconds, NaN where none is recorded.
        repeated: Part of the pictures that equal the one before; None if not all were looked at.
    """

    kept: NDArray[np.uint8]
    times: NDArray[np.float64]
    repeated: float | None = None


class FrameIndex(NamedTuple):
    """Every frame of a video file in the order in which they are shown, found without decoding.

    Attributes:
        times: ``(F,)`` presentation times, seconds, ascending.
        is_key: ``(F,)`` whether decoding can begin at a frame.
        is_delayed: Whether the first frame is late only because the encoder puts frames in another
            order and the file does not make up for it: decoding begins at 0 s.
    """

    times: NDArray[np.float64]
    is_key: NDArray[np.bool_]
    is_delayed: bool


class FrameResizer:
    """Turns pictures of any size and pixel format into ``(height, width, 3)`` uint8 RGB.

    Args:
        height: Height of the result, pixels.
        width: Width of the result, pixels.
        resize: ``crop`` cuts the centre out to the aspect ratio first, ``stretch`` does not.
    """

    def __init__(self, height: int, width: int, resize: Resize) -> None:
        self.height = height
        self.width = width
        self.resize = resize
        self._graph: av.filter.Graph | None = None
        self._layout: tuple[Any, ...] = ()

    def __call__(self, frame: av.VideoFrame, turn: Turn = NO_TURN) -> NDArray[np.uint8]:
        """Turn and resize one decoded frame; returns ``(height, width, 3)`` uint8 in [0, 255]."""
        layout = (frame.width, frame.height, frame.format.name, turn.swaps)
        if self._graph is None or layout != self._layout:
            self._graph, self._layout = self._make_graph(frame, turn.swaps), layout
        self._graph.vpush(frame)
        # Turned when it is small: that is quicker, and averages do not care.
        return turn(self._graph.vpull().to_ndarray().astype(np.uint8, copy=False))

    def resize_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize an RGB image ``(h, w, 3)`` uint8; one of the right size is returned as it is."""
        if image.shape == (self.height, self.width, 3):
            return image
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        return self(frame)

    def _make_graph(self, frame: av.VideoFrame, swaps: bool) -> av.filter.Graph:
        wanted_width, wanted_height = self.width, self.height
        if swaps:
            wanted_width, wanted_height = wanted_height, wanted_width
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=frame.time_base or Fraction(1, 1000),
        )
        nodes = [source]
        if self.resize == "crop":
            scale = min(frame.width / wanted_width, frame.height / wanted_height)
            width = min(frame.width, max(1, round(wanted_width * scale)))
            height = min(frame.height, max(1, round(wanted_height * scale)))
            left, top = (frame.width - width) // 2, (frame.height - height) // 2
            nodes.append(graph.add("crop", f"{width}:{height}:{left}:{top}:exact=1"))
        nodes.append(graph.add("scale", f"{wanted_width}:{wanted_height}:flags={SCALE_FLAGS}"))
        nodes.append(graph.add("format", "rgb24"))
        nodes.append(graph.add("buffersink"))
        graph.link_nodes(*nodes).configure()
        return graph


def read_frames(
    path: Path,
    *,
    first: int = 0,
    step: int,
    num_rows: int | None = None,
    resizer: FrameResizer,
    episode: str,
    times: NDArray[np.float64] | None = None,
) -> FramesRead:
    """Decode a video, or a part of it, and keep the frames ``first, first + step, …``.

    Every frame of the part is decoded, since one frame needs those before it, and since only then
    is it known that the video is whole; only the kept ones are converted. Of what lies before the
    part no more is decoded than FFmpeg needs to get there.

    Args:
        path: Video file.
        first: First frame to keep, counted from the beginning of the part.
        step: Keep one frame of ``step``, ``>= 1``.
        num_rows: Frames that there should be; what is beyond is counted and not kept.
        resizer: How to make a frame smaller.
        episode: Key of the episode, for messages.
        times: Presentation time of every frame of the part, seconds; None for all of the file.

    Returns:
        The kept frames and the presentation time of *every* frame of the part, of which there are
        less than ``times`` if the file ends before.

    Raises:
        EpisodeError: The video is missing, unreadable or damaged, or its frames are shown at other
            times.
    """
    if not path.is_file():
        raise EpisodeError(f"episode {episode}: video {path} is missing")
    part = None if times is None else times.tolist()
    kept: list[NDArray[np.uint8]] = []
    shown: list[float] = []
    num_repeated, before = 0, None
    try:
        with _opened(path, f"episode {episode}") as container:
            stream = container.streams.video[0]
            check_size(stream.height, stream.width, f"episode {episode}: {path}")
            stream.codec_context.thread_count = _num_threads(stream.width * stream.height)
            stream.thread_type = "AUTO"
            stream.codec_context.options = MAX_PIXELS
            frames = container.decode(stream) if not part else _from(container, stream, part[0])
            for index, frame in enumerate(itertools.islice(frames, len(part) if part else None)):
                if frame.is_corrupt:
                    raise EpisodeError(f"episode {episode}: {path} is damaged at frame {index}")
                if not shown:
                    check_no_depth(frame, f"episode {episode}: {path}")
                shown.append(np.nan if frame.pts is None else frame.time)
                num_repeated += before is not None and _looks_like(frame, before)
                before = frame
                wanted = num_rows is None or index < num_rows
                if wanted and index >= first and (index - first) % step == 0:
                    kept.append(resizer(frame, turn_of(frame, f"episode {episode}: {path}")))
    except (av.FFmpegError, OSError) as error:
        raise EpisodeError(
            f"episode {episode}: {path} cannot be decoded after {len(shown)} frame(s), it is "
            f"truncated or damaged, copy or export it again: {error}"
        ) from error
    if not kept:
        begin = f" from {part[0]:g} s on" if part else ""
        raise EpisodeError(f"episode {episode}: {path} holds no frames{begin}")
    if part and not np.allclose(shown, part[: len(shown)], rtol=0, atol=SAME_TIME):
        raise EpisodeError(
            f"episode {episode}: {path} shows other frames than its index lists, from "
            f"{part[0]:g} s on; it is damaged, copy or export it again"
        )
    repeated = num_repeated / max(1, len(shown) - 1)
    return FramesRead(np.stack(kept), np.array(shown, dtype=np.float64), repeated)


def _looks_like(frame: av.VideoFrame, other: av.VideoFrame) -> bool:
    """Return True if two decoded frames are equal in every fourth line of their first plane.

    An encoder that is given the same picture twice skips the second one, so they are equal to the
    last bit, save at key frames.
    """

    def lines(plane: Any) -> NDArray[np.uint8]:
        return np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)[::4, : frame.width]

    return np.array_equal(lines(frame.planes[0]), lines(other.planes[0]))


def holds_depth(pixels: av.VideoFormat) -> bool:
    """True if a pixel format is that of depth maps: one channel of more than 8 bits.

    Made into pictures of 8 bits they would lose what they are for, without a word.
    """
    channels = [component for component in pixels.components if not component.is_alpha]
    return len(channels) == 1 and channels[0].bits > 8


class FirstPicture(NamedTuple):
    """First picture of a video, as far as it tells about all of them.

    Attributes:
        size: ``(height, width)`` as it is shown, pixels.
        pixels: Name of its pixel format, ``yuv420p`` for example.
        depth: Whether that is one of depth maps.
    """

    size: tuple[int, int]
    pixels: str
    depth: bool


def first_picture(path: Path, where: str) -> FirstPicture:
    """Decode the first picture of a video.

    Raises:
        EpisodeError: It is missing, unreadable, holds none, or cannot be turned as it asks.
    """
    try:
        with _opened(path, where) as container:
            stream = container.streams.video[0]
            check_size(stream.height, stream.width, f"{where}: {path}")
            stream.codec_context.options = MAX_PIXELS
            frame = next(container.decode(stream), None)
    except (av.FFmpegError, OSError) as error:
        raise EpisodeError(f"{where}: {path} cannot be read: {error}") from error
    if frame is None:
        raise EpisodeError(f"{where}: {path} holds no frames")
    size = (frame.height, frame.width)
    swaps = turn_of(frame, f"{where}: {path}").swaps
    return FirstPicture(size[::-1] if swaps else size, frame.format.name, holds_depth(frame.format))


def check_no_depth(frame: av.VideoFrame, where: str) -> None:
    """Refuse a decoded depth map.

    Raises:
        EpisodeError: It is one.
    """
    if holds_depth(frame.format):
        raise EpisodeError(
            f"{where} has pixels of format {frame.format.name}, one channel of more than 8 bits: a "
            "depth map, and depth is not read"
        )


def probe(path: Path, where: str) -> tuple[int, float]:
    """Return the size, rate and length of a video, without decoding it.

    Args:
        path: Video file.
        where: Episode or file, for messages.

    Returns:
        Number of frames, and frames per second (rounded to 1/1000 Hz).

    Raises:
        EpisodeError: It is missing, unreadable or no video.
    """
    try:
        with _opened(path, where) as container:
            stream = container.streams.video[0]
            rate = round(float(stream.average_rate or 0), 3)
            # Some containers do not say how many frames they hold.
            num_frames = stream.frames or sum(1 for p in container.demux(stream) if p.size)
            return num_frames, rate
    except (av.FFmpegError, OSError) as error:
        raise EpisodeError(f"{where}: {path} cannot be read: {error}") from error


def index_frames(path: Path, where: str) -> FrameIndex:
    """Times at which the frames of a video file are shown, without decoding it.

    Args:
        path: Video file.
        where: Episode, for messages.

    Raises:
        EpisodeError: It is missing, unreadable, no video, or does not say when frames are shown.
    """
    if not path.is_file():
        raise EpisodeError(f"{where}: video {path} is missing")
    try:
        with _opened(path, where) as container:
            stream = container.streams.video[0]
            packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
            unit = stream.time_base
            if not packets or unit is None or any(p.pts is None for p in packets):
                raise EpisodeError(f"{where}: {path} does not say when its frames are shown")
            shown = np.array([p.pts for p in packets], dtype=np.int64)
            order = np.argsort(shown, kind="stable")
            return FrameIndex(
                times=shown[order].astype(np.float64) * float(unit),
                is_key=np.array([p.is_keyframe for p in packets])[order],
                is_delayed=bool(packets[0].dts == 0 < shown.min() and (np.diff(shown) < 0).any()),
            )
    except (av.FFmpegError, OSError) as error:
        raise EpisodeError(f"{where}: {path} cannot be read: {error}") from error


@contextmanager
def _opened(path: Path, where: str) -> Iterator[Any]:
    """An open video file.

    Raises:
        EpisodeError: It is none, or holds no video stream; a playlist under a video's name, which
            would lead to other files, is none.
    """
    refuse_pointer(path, EpisodeError, f"{where}: ")
    try:
        # A path such as `concat:a|b` is a name here, not a protocol.
        container = av.open(f"file:{path}", container_options=OPENING, metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        raise EpisodeError(
            f"{where}: {path} cannot be read, it is no video file, or is truncated or damaged: "
            f"{error}"
        ) from error
    with container:
        if not container.streams.video:
            raise EpisodeError(
                f"{where}: {path} is no video file, it holds no pictures ({container.format.name})"
            )
        yield container


def check_size(height: int, width: int, where: str) -> None:
    """Refuse a picture without pixels, or with more than a robot's has: it would fill the memory.

    Raises:
        EpisodeError: It is such a picture.
    """
    if not 0 < height * width <= LARGEST_PICTURE:
        raise EpisodeError(
            f"{where} has pictures of {height} × {width} pixels; at most {LARGEST_PICTURE:,} "
            "pixels are read"
        )


def _from(container: Any, stream: Any, start: float) -> Iterator[av.VideoFrame]:
    """The frames from the one shown at ``start`` on; none if there is no such frame.

    Containers are searched by decoding time, so a key frame that is found may be *shown* after the
    wanted frame; then an earlier one is tried, at last the beginning.
    """
    for margin in SEEK_MARGINS:
        place = max(0.0, start - margin)
        container.seek(round(place / stream.time_base), stream=stream)
        frames = container.decode(stream)
        num_before = 0
        for frame in frames:
            if frame.time is None or frame.time < start - SAME_TIME:
                num_before += 1
                continue
            if frame.time < start + SAME_TIME:
                yield frame
                yield from frames
                return
            break
        if num_before or place == 0:
            return


def _num_threads(num_pixels: int) -> int:
    """One thread for small pictures and in worker processes, which share the cores already."""
    if num_pixels < SMALL_PICTURE or multiprocessing.parent_process() is not None:
        return 1
    return min(4, os.cpu_count() or 1)
