"""Turns of pictures before they are shown, as their containers ask."""

import math
from collections.abc import Iterable
from typing import Any, NamedTuple, cast

import av
import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import EpisodeError


class Turn(NamedTuple):
    """Turn of a decoded picture before it is shown, as its container asks.

    Attributes:
        swaps: Rows become columns; done first.
        flips_rows: Upside down.
        flips_columns: Left to right.
    """

    swaps: bool = False
    flips_rows: bool = False
    flips_columns: bool = False

    def __call__(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Turn an image ``(h, w, 3)``."""
        image = image.swapaxes(0, 1) if self.swaps else image
        image = image[:: -1 if self.flips_rows else 1, :: -1 if self.flips_columns else 1]
        return np.ascontiguousarray(image)


NO_TURN = Turn()
EXIF_TURNS = {
    2: Turn(flips_columns=True),
    3: Turn(flips_rows=True, flips_columns=True),
    4: Turn(flips_rows=True),
    5: Turn(swaps=True),
    6: Turn(swaps=True, flips_columns=True),
    7: Turn(swaps=True, flips_rows=True, flips_columns=True),
    8: Turn(swaps=True, flips_rows=True),
}
"""Orientation in the EXIF data of a JPEG or PNG → what it asks for."""
ROTATIONS = {90: EXIF_TURNS[8], 180: EXIF_TURNS[3], 270: EXIF_TURNS[6]}
"""Degrees counter-clockwise → the turn."""


def turn_of(frame: av.VideoFrame, where: str) -> Turn:
    """Turn that the display matrix of a frame asks for: the videos of phones have one.

    Raises:
        EpisodeError: It is no turn by a multiple of 90 degrees, mirrored or not.
    """
    try:
        found = list(cast("Iterable[Any]", frame.side_data))  # typed as a mapping, is a sequence
    except ValueError:  # PyAV 18 does not know the kind of one: EXIF, in motion JPEG
        return ROTATIONS.get(frame.rotation % 360, NO_TURN)
    for item in found:
        if item.type.name == "DISPLAYMATRIX":
            # The point (x, y), y downwards, is shown at (a x + c y, b x + d y); 16.16 fixed point.
            a, b, _, c, d = (value / 2**16 for value in np.frombuffer(bytes(item), np.int32)[:5])
            if (abs(a), b, c, abs(d)) == (1, 0, 0, 1):
                return Turn(flips_rows=d < 0, flips_columns=a < 0)
            if (a, abs(b), abs(c), d) == (0, 1, 1, 0):
                return Turn(swaps=True, flips_rows=b < 0, flips_columns=c < 0)
            raise EpisodeError(
                f"{where}: the container asks to turn its pictures by "
                f"{math.degrees(math.atan2(b, a)):.3g}° clockwise, or to scale them (matrix {a:g}, "
                f"{b:g}, {c:g}, {d:g}); only turns by 90, 180 and 270 degrees and mirrored ones "
                "are made, encode it again the right way up"
            )
    return NO_TURN
