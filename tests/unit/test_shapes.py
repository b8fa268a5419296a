"""check_shape: what fits, what does not, and what the message says."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.shapes import check_shape


def test_fixed_sizes_name_no_axis() -> None:
    assert check_shape("frames", np.zeros((2, 3)), (2, 3)) == {}


def test_letters_return_their_sizes() -> None:
    sizes = check_shape("frames", np.zeros((2, 5, 8, 8, 3)), ("B", "T", "H", "W", 3))
    assert sizes == {"B": 2, "T": 5, "H": 8, "W": 8}


def test_zero_dimensional_array_fits_the_empty_shape() -> None:
    assert check_shape("loss", np.float32(1.0), ()) == {}


def test_a_repeated_letter_must_repeat_its_size() -> None:
    assert check_shape("scores", np.zeros((4, 4)), ("S", "S")) == {"S": 4}
    with pytest.raises(ShapeError, match=r"scores has shape \(4, 5\); expected \(S, S\)"):
        check_shape("scores", np.zeros((4, 5)), ("S", "S"))


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 4), (2, 3)),  # a size
        ((2, 3, 1), (2, 3)),  # one axis too many
        ((2,), (2, 3)),  # one axis too few
        ((), ("B",)),
        ((2, 3), ()),
    ],
)
def test_what_does_not_fit_is_named(
    shape: tuple[int, ...], expected: tuple[int | str, ...]
) -> None:
    wanted = "(" + ", ".join(map(str, expected)) + ")"
    with pytest.raises(ShapeError) as caught:
        check_shape("actions", np.zeros(shape), expected)
    assert str(caught.value) == f"actions has shape {shape}; expected {wanted}"


def test_shape_errors_are_tokenwm_errors_and_value_errors() -> None:
    assert issubclass(ShapeError, TokenwmError)
    assert issubclass(ShapeError, ValueError)


@given(st.lists(st.integers(0, 4), max_size=5))
def test_every_shape_fits_its_own_letters(shape: list[int]) -> None:
    letters = [f"X{axis}" for axis in range(len(shape))]
    expected = dict(zip(letters, shape, strict=True))
    assert check_shape("array", np.zeros(shape), letters) == expected
