"""Beginnings of play: recorded steps of a dataset, or a picture that somebody uploaded."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.fits import check_data_fits
from tokenwm.imagination.token_world_model import TokenWorldModel

FORMATS = ("PNG", "JPEG", "WEBP")
MOST_PIXELS = 2**24


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A place to begin at.

    Attributes:
        context: One row of observed steps.
        frames: ``(cameras, H, W, 3)`` uint8, the last observed step.
        state: ``(state_dim,)`` of that step in the units of the data, or None.
        key: Episode that it is of; None if it was uploaded.
        step: Number of the last observed step in that episode.
        actions: ``(N, A)``, what was really done from that step on; None if nobody knows.
    """

    context: Context
    frames: NDArray[np.uint8]
    state: NDArray[Any] | None
    key: str | None = None
    step: int = 0
    actions: NDArray[Any] | None = None


class Recordings:
    """Recorded episodes to begin from, and what really happened in them.

    Args:
        reader: Dataset of frames.
        model: Model that is to imagine.
        num_context: Observed steps to begin with; fewer at the beginning of an episode.

    Raises:
        TokenwmError: The dataset does not fit the model.
    """

    def __init__(self, reader: ShardReader, model: TokenWorldModel, num_context: int) -> None:
        check_data_fits(model, reader)
        self.reader, self.model, self.num_context = reader, model, num_context

    def begin(self, key: str, step: int) -> Beginning:
        """The beginning at a step of an episode.

        Raises:
            TokenwmError: There is no such step.
        """
        length = self.reader.episode(key).num_steps
        if not 0 <= step < length:
            raise TokenwmError(f"step={step} of episode {key}, which has 0 to {length - 1}")
        has_state = self.model.vocabulary.state is not None
        first = max(0, step - self.num_context + 1)
        names = ["action", "state"] if has_state else ["action"]
        past = self.reader.arrays(key, names, first, step + 1)
        frames = self.reader.frames(key, first, step + 1)
        states = past["state"] if has_state else None
        actions = None
        if step + 1 < length:  # the last step has no action
            actions = self.reader.arrays(key, ["action"], step, length - 1)["action"]
        return Beginning(
            context=self.model.context(
                frames[None], past["action"][None], None if states is None else states[None]
            ),
            frames=frames[-1],
            state=None if states is None else states[-1],
            key=key,
            step=step,
            actions=actions,
        )

    def frames(self, key: str, step: int) -> NDArray[np.uint8] | None:
        """``(cameras, H, W, 3)``, what was seen at a step; None behind the episode's end."""
        if not 0 <= step < self.reader.episode(key).num_steps:
            return None
        frames: NDArray[np.uint8] = self.reader.frames(key, step, step + 1)[0]
        return frames


def begin_at_picture(
    model: TokenWorldModel, picture: NDArray[np.uint8], others: NDArray[np.uint8], state: Any
) -> Beginning:
    """The beginning at a picture of the first camera; other cameras see what they saw.

    Args:
        model: The model.
        picture: ``(H, W, 3)``.
        others: ``(cameras, H, W, 3)``, of which the first is replaced.
        state: Numbers of the robot's state, or None if the model has none.

    Raises:
        TokenwmError: The state does not fit the model.
    """
    frames = others.copy()
    frames[0] = picture
    size = model.vocabulary.action.num_dimensions
    states = None if state is None else np.asarray(state, dtype=np.float32)
    context = model.context(
        frames[None, None],
        np.zeros((1, 0, size), dtype=np.float32),
        None if states is None else states[None, None],
    )
    return Beginning(context=context, frames=frames, state=states)


def read_picture(content: bytes, size: tuple[int, int]) -> NDArray[np.uint8]:
    """A picture that a stranger sent, cut to the shape of the model's and resized.

    Args:
        content: A PNG, JPEG or WebP file.
        size: Height and width.

    Returns:
        ``(H, W, 3)`` uint8, RGB.

    Raises:
        TokenwmError: It is none, damaged, or too large to be decoded.
    """
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MOST_PIXELS:
                raise TokenwmError(
                    f"the picture has {image.width} × {image.height} pixels, at most "
                    f"{MOST_PIXELS} are decoded; send a smaller one"
                )
            upright = ImageOps.exif_transpose(image).convert("RGB")
            fitted = ImageOps.fit(upright, (size[1], size[0]), Image.Resampling.LANCZOS)
            return np.array(fitted, dtype=np.uint8)
    except TokenwmError:
        raise
    except Exception as error:  # decoders of strangers' bytes raise whatever they like
        raise TokenwmError(
            f"the picture cannot be read; send a {', '.join(FORMATS)} file"
        ) from error


def png(frames: NDArray[np.uint8]) -> bytes:
    """``(cameras, H, W, 3)`` → a PNG with the cameras side by side, left to right."""
    wide = np.concatenate(list(frames), axis=1)
    file = io.BytesIO()
    Image.fromarray(wide).save(file, "PNG", compress_level=1)
    return file.getvalue()


def from_png(content: bytes, num_cameras: int) -> NDArray[np.uint8]:
    """The inverse of :func:`png`, of what it made."""
    wide = np.array(Image.open(io.BytesIO(content), formats=("PNG",)))
    return np.stack(np.split(wide, num_cameras, axis=1))


def evenly(keys: Sequence[str], count: int) -> list[str]:
    """At most ``count`` of some keys, evenly spread."""
    if len(keys) <= count:
        return list(keys)
    return [keys[round(at)] for at in np.linspace(0, len(keys) - 1, count)]
