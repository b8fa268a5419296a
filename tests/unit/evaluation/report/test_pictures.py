from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tokenwm.errors import TokenwmError
from tokenwm.evaluation.report.pictures import (
    ERROR_RANGE,
    IMAGINED,
    OBSERVED,
    PAPER,
    Panel,
    absolute_error,
    enlarge,
    film,
    film_strip,
    scale_for,
    side_by_side,
    write_gif,
    write_mp4,
    write_png,
)
from tokenwm.pages.plot_style import spread_apart

RED, BLUE = (200, 30, 30), (30, 30, 200)


def coloured(*colours: tuple[int, int, int], size: int = 16) -> np.ndarray:
    """One picture of each colour: ``(colours, size, size, 3)``."""
    frames = np.zeros((len(colours), size, size, 3), dtype=np.uint8)
    frames[:] = np.array(colours, dtype=np.uint8)[:, None, None]
    return frames


def test_cameras_lie_side_by_side_in_their_order() -> None:
    frames = np.stack([coloured(RED, RED, size=2), coloured(BLUE, BLUE, size=2)], axis=1)
    joined = side_by_side(frames)  # (T, cameras, H, W, 3)
    assert joined.shape == (2, 2, 4, 3)
    assert tuple(joined[1, 0, 1]) == RED and tuple(joined[1, 0, 2]) == BLUE


def test_enlarging_repeats_pixels() -> None:
    frames = np.arange(12, dtype=np.uint8).reshape(1, 2, 2, 3)
    large = enlarge(frames, 3)
    assert large.shape == (1, 6, 6, 3)
    np.testing.assert_array_equal(large[:, ::3, ::3], frames)
    np.testing.assert_array_equal(large[:, 2::3, 1::3], frames)


def test_error_goes_from_black_to_yellow() -> None:
    truth = coloured((0, 0, 0), (0, 0, 0), (0, 0, 0))
    half = round(255 * ERROR_RANGE / 2)
    none, some, full = absolute_error(coloured((0, 0, 0), (half,) * 3, (255,) * 3), truth)[:, 0, 0]
    assert none.max() < 5
    assert full[0] > 240 and full[1] > 240
    assert none.sum() < some.sum() < full.sum()
    # As much in one channel as in three thirds; the sign does not matter.
    one = absolute_error(coloured((60, 0, 0)), coloured((0, 0, 0)))
    thirds = absolute_error(coloured((0, 0, 0)), coloured((20, 20, 20)))
    np.testing.assert_array_equal(one, thirds)


def test_film_strip_puts_rows_and_columns_where_they_belong() -> None:
    rows = {"truth": coloured(RED, RED, BLUE), "prediction": coloured(RED, BLUE, BLUE)}
    strip = np.asarray(film_strip(rows, ["observed", "+1", "+2"], first_imagined=1))
    is_red, is_blue = (strip == RED).all(-1), (strip == BLUE).all(-1)
    assert is_red.sum() == is_blue.sum() == 3 * 16 * 16
    top, bottom = np.split(strip, [strip.shape[0] - 16 - 4])
    assert (top == BLUE).all(-1).sum() == 16 * 16 and (bottom == BLUE).all(-1).sum() == 2 * 16 * 16
    left = strip[:, : strip.shape[1] - 2 * 20]  # without the two last columns
    assert not (left == BLUE).all(-1).any() and (left == RED).all(-1).sum() == 2 * 16 * 16
    assert tuple(strip[-1, -1]) == PAPER


def test_film_strip_needs_a_picture_for_each_column() -> None:
    with pytest.raises(TokenwmError, match="row 'truth' has 2 pictures for 1 columns"):
        film_strip({"truth": coloured(RED, BLUE)}, ["+1"])


@pytest.mark.parametrize("num_panels", [1, 3])
def test_film_shows_when_it_was_observed(num_panels: int) -> None:
    panel = Panel(title="a title wider than its picture", frames=coloured(RED, RED, BLUE, size=15))
    frames = film([panel] * num_panels, num_observed=2, height=15)
    assert frames.shape[0] == 3 and frames.dtype == np.uint8
    assert frames.shape[1] % 2 == frames.shape[2] % 2 == 0  # as video codecs want
    area = num_panels * 15 * 15
    for frame, colour, border in zip(
        frames, (RED, RED, BLUE), (OBSERVED, OBSERVED, IMAGINED), strict=True
    ):
        assert (frame == colour).all(-1).sum() == area
        assert (frame == border).all(-1).sum() >= num_panels * 3 * 4 * 15
    assert (frames[2] == OBSERVED).all(-1).sum() < 15  # in the letters only


def test_film_is_enlarged_by_a_whole_factor() -> None:
    frames = film([Panel(title="", frames=coloured(RED, size=16))], num_observed=0, height=60)
    assert (frames == RED).all(-1).sum() == 64 * 64


def test_many_pictures_side_by_side_are_enlarged_less() -> None:
    frames = coloured(RED, size=64)
    assert scale_for(frames, 256, 1, 1400) == 4
    assert scale_for(frames, 256, 8, 1400) == 2
    assert scale_for(frames, 256, 100, 1400) == 1
    assert scale_for(coloured(RED, size=300), 256, 1, 1400) == 1


def test_gif_is_in_real_time_and_rests_at_the_end(tmp_path: Path) -> None:
    frames = film([Panel(title="x", frames=coloured(RED, BLUE, RED))], num_observed=1)
    write_gif(tmp_path / "film.gif", frames, control_rate=10.0)
    centre = frames.shape[1] // 2, frames.shape[2] // 2
    with Image.open(tmp_path / "film.gif") as gif:
        assert (gif.n_frames, gif.size) == (3, frames.shape[2:0:-1])  # type: ignore[attr-defined]
        assert gif.info["loop"] == 0
        for number, duration in enumerate((100, 100, 1000)):
            gif.seek(number)
            assert gif.info["duration"] == duration
            shown = np.asarray(gif.convert("RGB")).astype(int)
            assert np.abs(shown - frames[number]).max() <= 25  # in the letters
            assert tuple(shown[0, 0]) == PAPER
            assert np.abs(shown[centre] - frames[number][centre]).max() <= 5


@pytest.mark.parametrize("control_rate", [10.0, 7.5])
def test_mp4_is_h264_that_browsers_play(tmp_path: Path, control_rate: float) -> None:
    frames = film([Panel(title="x", frames=coloured(RED, BLUE, RED))], num_observed=1)
    write_mp4(tmp_path / "film.mp4", frames, control_rate)
    with av.open(tmp_path / "film.mp4") as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(control_rate)
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]
    assert len(shown) == 3
    centre = frames.shape[1] // 2, frames.shape[2] // 2
    for got, wanted in zip(shown, frames, strict=True):
        assert np.abs(got[centre].astype(int) - wanted[centre]).max() <= 12


def test_png_is_exact(tmp_path: Path) -> None:
    strip = film_strip({"truth": coloured(RED)}, ["+1"])
    write_png(tmp_path / "strip.png", strip)
    with Image.open(tmp_path / "strip.png") as image:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(strip))


@given(st.lists(st.floats(-1000, 1000), max_size=8), st.floats(0.5, 50))
def test_names_are_spread_apart_and_keep_their_order(heights: list[float], gap: float) -> None:
    places = spread_apart(heights, gap)
    assert len(places) == len(heights)
    order = sorted(range(len(heights)), key=lambda index: heights[index])
    ordered = [places[index] for index in order]
    assert all(b - a >= gap * (1 - 1e-6) for a, b in zip(ordered, ordered[1:], strict=False))
    assert sum(places) == pytest.approx(sum(heights), abs=1e-6)  # none is favoured
    apart = sorted(heights)
    if all(b - a >= gap for a, b in zip(apart, apart[1:], strict=False)):
        assert places == heights


def test_two_names_that_touch_move_evenly() -> None:
    assert spread_apart([10.0, 50.0, 12.0], 10.0) == [6.0, 50.0, 16.0]
