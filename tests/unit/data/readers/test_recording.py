"""The common way from a recording to an episode, for every kind of pictures and alignment."""

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.data.conftest import write_video
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef
from tokenwm.data.readers.pictures import video
from tokenwm.data.readers.pictures.frames import ArrayFrames, EncodedFrames, VideoFrames
from tokenwm.data.readers.pictures.video import FrameResizer, index_frames, read_frames
from tokenwm.data.readers.recorded.recording import Recording, to_episode
from tokenwm.errors import EpisodeError

SIZE = 8


def episode_format(control_rate: float = 10) -> EpisodeFormat:
    return EpisodeFormat(
        control_rate=control_rate,
        action_aggregation="last",
        image_size=(SIZE, SIZE),
        resize="crop",
        quality=QualityConfig(),
    )


def recording(num_rows: int, **changes: Any) -> Recording:
    rows = np.arange(num_rows, dtype=np.float64)[:, None]
    values: dict[str, Any] = {"num_rows": num_rows, "action": rows, "state": -rows}
    return Recording(**(values | changes))


def convert(source: Recording, rate: float = 30, phase: int = 0) -> Any:
    ref = EpisodeRef(key="e", index=4, phase=phase)
    return to_episode(source, ref, episode_format(), rate)


def png(image: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="image2pipe") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = image.shape[1], image.shape[0], "rgb24"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode(None))
    return buffer.getvalue()


@given(num_rows=st.integers(5, 40), factor=st.integers(1, 4), phase=st.integers(0, 3))
@settings(max_examples=50)
def test_one_action_less_than_observations_is_the_same_as_one_that_leads_nowhere(
    num_rows: int, factor: int, phase: int
) -> None:
    phase %= factor
    values = np.arange(num_rows, dtype=np.float64)
    ended = values == num_rows - 2
    if num_rows - phase <= factor:
        return
    long, short = (
        convert(
            recording(
                num_rows,
                action=values[:count, None],
                reward=values[:count],
                terminated=ended[:count],
            ),
            rate=10 * factor,
            phase=phase,
        )
        for count in (num_rows, num_rows - 1)
    )
    for name in ("state", "action", "reward", "terminated", "truncated"):
        np.testing.assert_array_equal(getattr(long, name), getattr(short, name))
    # The rule, row by row: a kept step has the last action before the next kept observation.
    kept = np.arange(phase, num_rows, factor)
    np.testing.assert_array_equal(long.state[:, 0], -kept)
    np.testing.assert_array_equal(long.action[:-1, 0], kept[1:] - 1)
    assert long.terminated[:-1].any() == bool(ended[: kept[-1]].any())
    says_so = short.metadata.get("terminated_after_end", False)
    assert long.terminated.any() or says_so


def test_pictures_from_arrays_images_and_videos_are_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = np.repeat(rng.integers(0, 256, (40, 1, 1, 3)), 16, axis=1).repeat(16, axis=2)
    images = images.astype(np.uint8)
    write_video(tmp_path / "a.mp4", 40, 30, images=images)
    pictures = {
        "array": ArrayFrames(images=images, name="images"),
        "png": EncodedFrames(images=[png(image) for image in images], name="images"),
        "video": VideoFrames(path=tmp_path / "a.mp4"),
    }
    for phase in (0, 2):
        episode = convert(recording(40, frames=pictures), phase=phase)
        expected = images[phase::3, :SIZE, :SIZE]
        np.testing.assert_array_equal(episode.frames["array"], expected)
        np.testing.assert_array_equal(episode.frames["png"], expected)
        difference = episode.frames["video"].astype(int) - expected.astype(int)
        assert np.abs(difference).max() <= 8


def test_grey_pictures_become_rgb() -> None:
    images = np.arange(20, dtype=np.uint8)[:, None, None] * np.ones((1, 9, 9), np.uint8)
    for array in (images, images[..., None]):
        frames = {"a": ArrayFrames(images=array, name="a")}
        episode = convert(recording(20, frames=frames), rate=10)
        np.testing.assert_array_equal(episode.frames["a"][7], np.full((SIZE, SIZE, 3), 7))


@pytest.mark.parametrize(
    "images",
    [np.zeros((20, 8, 8), np.float32), np.zeros((20, 4, 8, 8), np.uint8), np.zeros(20, "u1")],
)
def test_arrays_that_are_no_pictures(images: Any) -> None:
    with pytest.raises(EpisodeError, match="episode e: observations/top is .*; expected .*uint8"):
        convert(
            recording(20, frames={"a": ArrayFrames(images=images, name="observations/top")}), 10
        )


def test_damaged_images() -> None:
    whole = png(np.zeros((8, 8, 3), np.uint8))
    for content, message in (
        (b"GIF89a", "image 1 of a is neither PNG nor JPEG"),
        (whole[:20], "image 1 of a"),
    ):
        frames = {"a": EncodedFrames(images=[whole, content, whole], name="a")}
        with pytest.raises(EpisodeError, match=message):
            convert(recording(3, frames=frames), rate=10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"action": np.zeros((18, 1))}, r"action is float64\(18, 1\) for 20.*of 20 or 19 rows"),
        ({"state": np.zeros((19, 1))}, r"state is float64\(19, 1\) for 20.*first of 20 rows"),
        ({"state": np.zeros(20)}, "expected 2 axes"),
        ({"reward": np.zeros((20, 1))}, "expected 1 axes"),
        ({"action": np.full((20, 1), -1)}, "ids of actions are >= 0"),
        ({"frames": {"a": ArrayFrames(images=np.zeros((19, 8, 8), "u1"), name="a")}}, "truncated"),
    ],
)
def test_arrays_of_the_wrong_length(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        convert(recording(20, **changes), rate=10)


@given(
    group=st.integers(1, 30),
    bframes=st.integers(0, 4),
    start=st.integers(0, 59),
    count=st.integers(1, 60),
    fps=st.sampled_from([10, 30, 50]),
)
@settings(max_examples=25)
def test_a_part_of_a_video_is_exact_wherever_its_key_frames_are(
    tmp_path_factory: Any, group: int, bframes: int, start: int, count: int, fps: int
) -> None:
    path = tmp_path_factory.mktemp("video") / "a.mp4"
    options = {"g": str(group), "bf": str(bframes), "crf": "8", "preset": "ultrafast"}
    write_video(path, 60, fps, codec_options=options)
    resizer = FrameResizer(SIZE, SIZE, "crop")
    whole, whole_times, _ = read_frames(path, step=1, resizer=resizer, episode="e")
    np.testing.assert_allclose(whole.mean(axis=(1, 2, 3)), 10 + 4 * np.arange(60), atol=3)
    index = index_frames(path, "e")
    np.testing.assert_allclose(index.times, whole_times)
    frames, times, _ = read_frames(
        path, step=1, resizer=resizer, episode="e", times=index.times[start : start + count]
    )
    shown = slice(start, start + count)
    np.testing.assert_array_equal(frames, whole[shown])
    np.testing.assert_array_equal(times, whole_times[shown])


def test_a_part_beyond_the_end_of_a_video(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", 20, 10)
    with pytest.raises(EpisodeError, match="holds no frames from 2 s on"):
        read_frames(
            tmp_path / "a.mp4",
            step=1,
            resizer=FrameResizer(SIZE, SIZE, "crop"),
            episode="e",
            times=np.array([2.0, 2.1, 2.2]),
        )


def test_what_a_stream_holds_may_be_larger_than_its_header_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg itself refuses pictures beyond the limit, before it takes memory for them."""
    few = {"max_pixels": "100"}
    monkeypatch.setattr("tokenwm.data.readers.pictures.video.MAX_PIXELS", few)
    monkeypatch.setattr("tokenwm.data.readers.pictures.frames.MAX_PIXELS", few)
    write_video(tmp_path / "a.mp4", 20, 10)
    image = png(np.zeros((16, 16, 3), np.uint8))
    for pictures in (
        VideoFrames(path=tmp_path / "a.mp4"),
        EncodedFrames(images=[image] * 20, name="a"),
    ):
        with pytest.raises(EpisodeError, match="cannot be decoded"):
            convert(recording(20, frames={"a": pictures}), rate=10)


def test_a_key_frame_that_is_shown_late_is_not_taken_for_the_wanted_one(tmp_path: Path) -> None:
    """Where a container is searched by decoding time, the first place found may be too late."""
    write_video(tmp_path / "a.mp4", 60, 10, codec_options={"g": "5", "bf": "0", "crf": "8"})

    class Late:
        """Finds the place one second after the one asked for, as long as there is one before."""

        def __init__(self, container: Any) -> None:
            self.container = container

        def seek(self, offset: int, *, stream: Any) -> None:
            late = offset + round(1 / stream.time_base) if offset else 0
            self.container.seek(late, stream=stream)

        def decode(self, stream: Any) -> Any:
            return self.container.decode(stream)

    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        frames = video._from(Late(container), stream, 3.0)
        times = [float(frame.time) for frame in frames]
    np.testing.assert_allclose(times, np.arange(30, 60) / 10)
