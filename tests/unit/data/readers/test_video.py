from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tokenwm.data.readers.pictures.video import FrameResizer, read_frames
from tokenwm.errors import EpisodeError

MakeVideo = Callable[..., None]


def test_the_wanted_frames_are_kept_and_all_are_counted(
    tmp_path: Path, make_video: MakeVideo
) -> None:
    make_video(tmp_path / "a.mp4", 20, 30)
    frames, times, _ = read_frames(
        tmp_path / "a.mp4", step=3, resizer=FrameResizer(16, 16, "crop"), episode="e"
    )
    assert frames.shape == (7, 16, 16, 3)
    assert frames.dtype == np.uint8
    assert len(times) == 20
    np.testing.assert_allclose(np.diff(times), 1 / 30, atol=1e-3)
    brightness = frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, 10 + 4 * np.arange(0, 20, 3), atol=2)


def test_colours_survive(tmp_path: Path, make_video: MakeVideo) -> None:
    images = np.zeros((3, 48, 64, 3), np.uint8)
    images[:] = (200, 60, 30)
    make_video(tmp_path / "a.mp4", 3, 10, images=images)
    frames, _, _ = read_frames(
        tmp_path / "a.mp4", step=1, resizer=FrameResizer(8, 8, "crop"), episode="e"
    )
    np.testing.assert_allclose(frames[1].mean(axis=(0, 1)), (200, 60, 30), atol=4)


def test_crop_keeps_the_centre_and_stretch_keeps_everything() -> None:
    image = np.zeros((32, 64, 3), np.uint8)
    image[:, 16:48] = 255
    assert FrameResizer(16, 16, "crop").resize_image(image).min() == 255
    stretched = FrameResizer(16, 16, "stretch").resize_image(image)
    assert stretched[:, :3].max() == 0
    assert stretched[:, 5:11].min() == 255


def test_small_pictures_are_averages_not_samples() -> None:
    image = np.zeros((64, 64, 3), np.uint8)
    image[::2] = 200  # stripes of one pixel: picking single pixels would give 0 or 200
    small = FrameResizer(16, 16, "crop").resize_image(image)
    np.testing.assert_allclose(small, 100, atol=2)


def test_right_size_is_left_alone_and_sizes_may_change() -> None:
    resizer = FrameResizer(16, 24, "crop")
    image = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    assert resizer.resize_image(image) is image
    for shape in ((33, 47, 3), (8, 8, 3), (96, 50, 3)):
        assert resizer.resize_image(np.full(shape, 77, np.uint8)).shape == (16, 24, 3)


def read(path: Path) -> None:
    read_frames(path, step=1, resizer=FrameResizer(16, 16, "crop"), episode="e7")


def test_missing_video(tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match=r"episode e7: video .*a\.mp4 is missing"):
        read(tmp_path / "a.mp4")


def test_truncated_video(tmp_path: Path, make_video: MakeVideo) -> None:
    path = tmp_path / "a.mp4"
    make_video(path, 30, 30)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(EpisodeError, match=r"episode e7: .*truncated or damaged"):
        read(path)


def test_not_a_video(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"not a video at all" * 100)
    with pytest.raises(EpisodeError, match="cannot be read, it is no video file"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(EpisodeError, match="cannot be read, it is no video file"):
        read(path)


def test_a_playlist_is_not_followed(tmp_path: Path, make_video: MakeVideo) -> None:
    make_video(tmp_path / "other.mp4", 5, 30)
    path = tmp_path / "a.mp4"
    path.write_text("ffconcat version 1.0\nfile other.mp4\n")
    with pytest.raises(EpisodeError, match=r"a\.mp4 cannot be read, it is no video file"):
        read(path)
