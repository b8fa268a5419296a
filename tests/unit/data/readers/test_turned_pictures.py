"""Pictures are turned as their containers ask: by a multiple of 90 degrees, mirrored or not."""

import io
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import PIL.ImageOps
import pytest
from numpy.typing import NDArray

from tests.unit.data.readers.opening import load_all, open_source
from tokenwm.data.readers.pictures.frames import EncodedFrames
from tokenwm.data.readers.pictures.video import FrameResizer, first_picture, read_frames
from tokenwm.data.readers.videos.reader import VideosSource
from tokenwm.errors import EpisodeError

CORNERS = np.array([[(220, 30, 30), (30, 200, 30)], [(30, 30, 220), (220, 220, 220)]], np.uint8)
"""Colours of the four corners, row by row; no turn or mirror leaves them as they are."""


def picture(height: int = 32, width: int = 48) -> NDArray[np.uint8]:
    return CORNERS.repeat(height // 2, axis=0).repeat(width // 2, axis=1)


def corners(image: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Which of the colours the corners have, ``(2, 2)``."""
    height, width = image.shape[:2]
    seen = image[[height // 4, -height // 4]][:, [width // 4, -width // 4]].astype(int)
    distance = np.abs(seen[:, :, None] - CORNERS.reshape(4, 3)).sum(axis=-1)
    return distance.argmin(axis=-1)


def write_turned(path: Path, degrees: float, mirror: dict[str, bool] | None = None) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"crf": "4"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.set_display_rotation(degrees, **(mirror or {}))
        for _ in range(4):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(), "rgb24")))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("counter_clockwise", "mirror", "expected"),
    [
        (0, {}, [[0, 1], [2, 3]]),
        (90, {}, [[1, 3], [0, 2]]),
        (180, {}, [[3, 2], [1, 0]]),
        (270, {}, [[2, 0], [3, 1]]),
        (0, {"hflip": True}, [[1, 0], [3, 2]]),
        (0, {"vflip": True}, [[2, 3], [0, 1]]),
        (90, {"hflip": True}, [[3, 1], [2, 0]]),
        (270, {"hflip": True}, [[0, 2], [1, 3]]),
    ],
)
def test_videos(
    tmp_path: Path, counter_clockwise: int, mirror: dict[str, bool], expected: Any
) -> None:
    path = tmp_path / "a.mp4"
    write_turned(path, counter_clockwise, mirror)
    lies = counter_clockwise % 180 != 0
    height, width = (48, 32) if lies else (32, 48)
    for size in ((height, width), (height // 2, width // 2)):
        frames = read_frames(path, step=1, resizer=FrameResizer(*size, "crop"), episode="e").kept
        assert frames.shape == (4, *size, 3)
        np.testing.assert_array_equal(corners(frames[2]), expected)
    assert first_picture(path, "e").size == (height, width)


def test_the_centre_is_cut_out_of_the_picture_as_it_is_shown(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.mp4", 90)
    frames = read_frames(
        tmp_path / "a.mp4", step=1, resizer=FrameResizer(16, 16, "crop"), episode="e"
    ).kept
    np.testing.assert_array_equal(corners(frames[0]), [[1, 3], [0, 2]])


def test_other_angles_are_refused_by_name(tmp_path: Path) -> None:
    write_turned(tmp_path / "a.mp4", 30)
    with pytest.raises(
        EpisodeError, match=r"episode e: .*a\.mp4: .* by -30° clockwise, or to scale"
    ):
        read_frames(tmp_path / "a.mp4", step=1, resizer=FrameResizer(8, 8, "crop"), episode="e")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_encoded_images(kind: str, orientation: int) -> None:
    image = PIL.Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = orientation
    content = io.BytesIO()
    image.save(content, kind, exif=exif)
    shown = np.asarray(PIL.ImageOps.exif_transpose(PIL.Image.open(content)))
    frames = EncodedFrames(images=[content.getvalue()], name="image").read(
        first=0, step=1, num_rows=1, resizer=FrameResizer(*shown.shape[:2], "crop"), episode="e"
    )
    np.testing.assert_array_equal(corners(frames.kept[0]), corners(shown))


def test_a_folder_of_videos_from_a_phone(tmp_path: Path) -> None:
    for name in ("ep_0", "ep_1"):
        write_turned(tmp_path / f"{name}.mp4", 270)
        (tmp_path / f"{name}.csv").write_text("action_0,action_1\n" + "0.5,1\n" * 4)
    source = open_source("videos", tmp_path, image_size=[48, 32])
    assert isinstance(source, VideosSource)
    assert source.columns["video"].shape == (48, 32, 3)
    for episode in load_all(source):
        np.testing.assert_array_equal(corners(episode.frames["video"][0]), [[2, 0], [3, 1]])


def test_motion_jpeg_with_exif(tmp_path: Path) -> None:
    image = PIL.Image.fromarray(picture())
    exif = image.getexif()
    exif[0x0112] = 6
    content = io.BytesIO()
    image.save(content, "JPEG", exif=exif, quality=95)
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuvj420p"
        for time in range(3):
            packet = av.Packet(content.getvalue())
            packet.stream, packet.pts, packet.dts = stream, time, time
            packet.time_base = Fraction(1, 10)
            container.mux(packet)
    frames = read_frames(path, step=1, resizer=FrameResizer(48, 32, "crop"), episode="e").kept
    np.testing.assert_array_equal(corners(frames[1]), [[2, 0], [3, 1]])
