"""The definition of overlap and centre that the figures of Push-T's block rest on."""

import numpy as np
from numpy.typing import NDArray

from tools.measure_block import centre, coverage, interval, overlap

BLOCK, TABLE, PUSHER = (119, 136, 153), (255, 255, 255), (65, 105, 225)


def picture(
    left: int, top: int, width: int = 10, colour: tuple[int, ...] = BLOCK
) -> NDArray[np.uint8]:
    frame = np.full((64, 64, 3), TABLE, dtype=np.uint8)
    frame[50:54, 50:54] = PUSHER
    frame[top : top + 10, left : left + width] = colour
    return frame


def test_only_the_block_counts_and_by_its_shade() -> None:
    covered = coverage(picture(20, 30))
    assert covered.sum() == 100.0 and covered[30, 20] == 1.0 and covered[51, 51] == 0.0
    half = coverage(picture(20, 30, colour=(187, 196, 204)))  # halfway to the table
    np.testing.assert_allclose(half.sum(), 50.0)
    assert coverage(picture(20, 30, colour=(144, 238, 144))).sum() == 0.0  # the green target


def test_overlap_and_centre_by_hand() -> None:
    one, other = coverage(picture(20, 30)), coverage(picture(25, 30))
    np.testing.assert_allclose(overlap(one, other), 50 / 150)
    assert overlap(one, one) == 1.0
    assert overlap(one, coverage(picture(20, 30, width=0))) == 0.0
    np.testing.assert_allclose(centre(other) - centre(one), [5 * 8, 0], atol=1e-4)
    np.testing.assert_allclose(centre(one), [8 * 24.5, 8 * 34.5], atol=1e-4)


def test_intervals_are_over_episodes() -> None:
    values = np.repeat([[0.0, 1.0], [1.0, 1.0]], 20, axis=0)
    found = interval(values, ["a"] * 20 + ["b"] * 20, np.mean)
    assert found == {"value": [0.5, 1.0], "low": [0.0, 1.0], "high": [1.0, 1.0]}
