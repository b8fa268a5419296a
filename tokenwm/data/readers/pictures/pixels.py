"""Pictures that are stored as numbers: which shapes are pictures, and how they become RGB bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import EpisodeError

SMALLEST_PICTURE = 8
"""Pixels of a side; a smaller array is no picture."""
DARK = 16
"""Brightness that some pixel of an episode exceeds if its real numbers are in [0, 255]."""


@dataclass(frozen=True, kw_only=True)
class PictureShape:
    """The shape of a picture in an array.

    Attributes:
        height: Pixels.
        width: Pixels.
        channels: 1 (grey), 3 (RGB) or 4 (RGBA).
        channels_first: ``(channels, H, W)``, else ``(H, W, channels)`` or ``(H, W)``.
    """

    height: int
    width: int
    channels: int
    channels_first: bool

    def to_rgb(self, block: NDArray[np.uint8], where: str) -> NDArray[np.uint8]:
        """Pictures ``(n, ...)`` of this shape → ``(n, H, W, 3)``.

        Grey is repeated. The order of three channels is taken to be red, green, blue, which no
        array tells.

        Raises:
            EpisodeError: The fourth channel is no alpha of opaque pictures.
        """
        if self.channels_first:
            block = np.moveaxis(block, 1, -1)
        block = block.reshape(len(block), self.height, self.width, self.channels)
        if self.channels == 4 and (block[..., 3] != 255).any():
            raise EpisodeError(
                f"{where} has four channels, and the fourth is not 255 everywhere: transparent "
                "pictures, or a stack of four grey ones; store RGB"
            )
        return np.repeat(block, 3, axis=-1) if self.channels == 1 else block[..., :3]


def picture_shape(row_shape: tuple[int, ...]) -> PictureShape | None:
    """The picture that an array of this shape can be: ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``.

    Returns:
        None if it can be none.
    """
    for place in ("last", "first"):
        shape = (*row_shape, 1) if len(row_shape) == 2 else row_shape
        if len(shape) != 3:
            return None
        height, width, channels = shape if place == "last" else (*shape[1:], shape[0])
        if channels in (1, 3, 4) and min(height, width) >= SMALLEST_PICTURE:
            return PictureShape(
                height=height, width=width, channels=channels, channels_first=place == "first"
            )
    return None


def why_no_pictures(dtype: np.dtype[Any], shape: PictureShape, name: str) -> str:
    """Reason why arrays shaped like a picture are not taken for pictures; empty if they are."""
    if is_called_depth(name):
        return "depth, by its name"
    if dtype.kind not in "uif":
        return f"a map of {dtype}, no pictures"
    if shape.channels == 1 and dtype != np.uint8:
        return f"a map of one {dtype} each, as depth is; grey pictures are uint8"
    if shape.channels == 4 and (shape.channels_first or dtype != np.uint8):
        return "four planes: a stack of frames, or RGBA? store RGB"
    return ""


def is_called_depth(name: str) -> bool:
    """True if the name of a camera or column says that it holds depth."""
    return "depth" in name.lower()


def scale_to_bytes(dtype: np.dtype[Any], extremes: tuple[float, float, bool], where: str) -> float:
    """The factor that makes numbers bytes in [0, 255].

    Whole numbers are in [0, 255] already. Real numbers are in [0, 1] or in [0, 255], which the
    range over all pictures of an episode decides.

    Args:
        dtype: Type of the numbers.
        extremes: Smallest and largest number of the episode, and whether all are 0 or 1.
        where: Episode and column, for messages.

    Raises:
        EpisodeError: The range is neither.
    """
    low, high, only_ends = extremes
    if dtype.kind == "f" and 0 <= low <= high <= 1 and (high == 0 or not only_ends):
        return 255.0
    if 0 <= low <= high <= 255 and (dtype.kind in "iu" or high >= DARK):
        return 1.0
    if dtype.kind == "f" and 0 <= low <= high < DARK:
        why = f"so they could be in [0, 1] or dark ones in [0, 255] (above {DARK} somewhere)"
    else:
        why = f"{dtype} is read in [0, 255]" + (" or [0, 1]" if dtype.kind == "f" else "")
    raise EpisodeError(
        f"{where}: pictures of {dtype} from {low:g} to {high:g}; {why}; store them as uint8"
    )


def extremes_of(block: NDArray[Any]) -> tuple[float, float, bool]:
    """Figures of some pictures that :func:`scale_to_bytes` takes."""
    low, high = float(block.min()), float(block.max())  # NaN where one is
    return low, high, low >= 0 and high <= 1 and bool(np.isin(block, (0, 1)).all())
