"""Film strips, GIFs and videos: what was imagined, beside what happened.

Pillow, matplotlib and av are imported when needed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.storage.atomic import open_atomically
from tokenwm.errors import TokenwmError

if TYPE_CHECKING:
    from PIL.Image import Image

Pictures = NDArray[np.uint8]

ERROR_RANGE = 0.25
"""Mean absolute error of a pixel, of its full range, that is drawn at full brightness."""
PAPER = (255, 255, 255)
INK = (38, 38, 38)
FAINT = (120, 120, 120)
OBSERVED = (150, 150, 150)
IMAGINED = (0, 114, 178)  # blue of Okabe & Ito, as in the plots
FONT_SIZE = 15
GAP = 4  # pixels
BORDER = 3
FILM_WIDTH = 1400
"""Films are not enlarged beyond this width, in pixels."""
PALETTE_STRIDE = 3
"""Every third pixel both ways is enough to choose a palette from."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One film beside others.

    Attributes:
        title: Written above it.
        frames: ``(T, height, width, 3)`` uint8, all panels of one size and length.
    """

    title: str
    frames: Pictures


def side_by_side(frames: Pictures) -> Pictures:
    """Put cameras side by side: ``(T, cameras, H, W, 3)`` → ``(T, H, cameras * W, 3)``."""
    return np.concatenate(list(np.moveaxis(frames, 1, 0)), axis=2)


def enlarge(frames: Pictures, scale: int) -> Pictures:
    """Repeat every pixel ``scale`` times both ways: ``(T, H, W, 3)`` → ``(T, sH, sW, 3)``."""
    return frames.repeat(scale, axis=1).repeat(scale, axis=2)


def scale_for(frames: Pictures, height: int, num_columns: int, max_width: int) -> int:
    """Whole factor that brings ``(T, H, W, 3)`` to about ``height`` pixels, at least 1.

    Smaller if ``num_columns`` pictures side by side would be wider than ``max_width`` pixels.
    """
    by_height = round(height / int(frames.shape[1]))
    by_width = max_width // (num_columns * int(frames.shape[2]))
    return max(1, min(by_height, by_width))


def absolute_error(frames: Pictures, truth: Pictures) -> Pictures:
    """Mean absolute error over the channels, from black (none) to yellow (``ERROR_RANGE`` or more).

    Args:
        frames: ``(..., 3)`` uint8.
        truth: The same shape.
    """
    from matplotlib import colormaps

    difference = np.abs(frames.astype(np.float32) - truth.astype(np.float32)).mean(-1) / 255.0
    colours = colormaps["inferno"](np.clip(difference / ERROR_RANGE, 0.0, 1.0))
    picture: Pictures = (colours[..., :3] * 255.0).round().astype(np.uint8)
    return picture


def film_strip(
    rows: Mapping[str, Pictures], columns: Sequence[str], *, first_imagined: int = 0
) -> "Image":
    """Rows of pictures with a title each, columns with a heading each.

    Args:
        rows: Title → ``(columns, height, width, 3)`` uint8.
        columns: Headings.
        first_imagined: Columns before it are observed: a rule divides them from the imagined ones.

    Raises:
        TokenwmError: A row does not have one picture per column.
    """
    from PIL import Image, ImageDraw

    for title, pictures in rows.items():
        if len(pictures) != len(columns):
            raise TokenwmError(
                f"row {title!r} has {len(pictures)} pictures for {len(columns)} columns"
            )
    height, width = next(iter(rows.values())).shape[1:3]
    font = _font()
    margin = round(max(font.getlength(title) for title in rows)) + 3 * GAP
    top = FONT_SIZE + 3 * GAP
    rule = 3 * GAP if first_imagined else 0
    sheet = Image.new(
        "RGB",
        (margin + rule + len(columns) * (width + GAP), top + len(rows) * (height + GAP)),
        PAPER,
    )
    draw = ImageDraw.Draw(sheet)
    lefts = [
        margin + i * (width + GAP) + (rule if i >= first_imagined else 0)
        for i in range(len(columns))
    ]
    for left, heading in zip(lefts, columns, strict=True):
        draw.text((left + width / 2, top / 2), heading, fill=INK, font=font, anchor="mm")
    for index, (title, pictures) in enumerate(rows.items()):
        upper = top + index * (height + GAP)
        draw.text((margin - 2 * GAP, upper + height / 2), title, fill=INK, font=font, anchor="rm")
        for left, picture in zip(lefts, pictures, strict=True):
            sheet.paste(Image.fromarray(picture), (left, upper))
    if rule:
        x = lefts[first_imagined] - (rule + GAP) // 2
        draw.line((x, 0, x, sheet.height), fill=FAINT, width=1)
    return sheet


def film(panels: Sequence[Panel], *, num_observed: int, height: int = 256) -> Pictures:
    """Panels side by side with titles, grey-framed while observed and blue-framed while imagined.

    Args:
        panels: Films of equal size and length.
        num_observed: Frames at the beginning that were observed.
        height: About how high a panel is drawn, in pixels; enlarged by a whole factor.

    Returns:
        ``(T, height, width, 3)`` uint8 with even sides, as video codecs want.
    """
    from PIL import Image, ImageDraw

    scale = scale_for(panels[0].frames, height, len(panels), FILM_WIDTH)
    enlarged = [enlarge(panel.frames, scale) for panel in panels]
    font = _font()
    num_frames, panel_height, panel_width = enlarged[0].shape[:3]
    titles = [panel.title for panel in panels]
    cell = max(panel_width, *(round(font.getlength(title)) for title in titles)) + 2 * BORDER + GAP
    top = FONT_SIZE + 3 * GAP
    size = (GAP + len(panels) * cell, top + panel_height + 2 * BORDER + FONT_SIZE + 3 * GAP)
    sheets = []
    for number in range(num_frames):
        observed = number < num_observed
        sheet = Image.new("RGB", (size[0] + size[0] % 2, size[1] + size[1] % 2), PAPER)
        draw = ImageDraw.Draw(sheet)
        for index, (title, frames) in enumerate(zip(titles, enlarged, strict=True)):
            left = GAP + index * cell + (cell - GAP - panel_width) // 2
            box = (
                left - BORDER,
                top,
                left + panel_width + BORDER - 1,
                top + panel_height + 2 * BORDER - 1,
            )
            draw.rectangle(box, fill=OBSERVED if observed else IMAGINED)
            sheet.paste(Image.fromarray(frames[number]), (left, top + BORDER))
            draw.text((left + panel_width / 2, top / 2), title, fill=INK, font=font, anchor="mm")
        step = number - num_observed + 1
        caption = (
            "observed" if observed else f"imagined, step {step} of {num_frames - num_observed}"
        )
        foot = (GAP, size[1] - GAP - FONT_SIZE / 2)
        draw.text(foot, caption, fill=FAINT if observed else IMAGINED, font=font, anchor="lm")
        sheets.append(np.asarray(sheet))
    return np.stack(sheets)


def write_png(path: Path, picture: "Image") -> None:
    """Write a picture, whole or not at all."""
    with open_atomically(path) as file:
        picture.save(file, format="PNG", optimize=True)


def write_gif(path: Path, frames: Pictures, control_rate: float) -> None:
    """Write an endless GIF in real time, with a pause at the end.

    Args:
        path: Where to.
        frames: ``(T, height, width, 3)`` uint8.
        control_rate: Frames per second. GIFs count in hundredths of a second and players take no
            less than two.
    """
    from PIL import Image

    duration = max(20, round(100.0 / control_rate) * 10)
    durations = [duration] * (len(frames) - 1) + [max(duration, 1000)]
    # One palette for all frames, made from a part of the pixels of each: with a palette each,
    # colours flicker and the file is larger.
    sample = np.concatenate(list(frames[:, ::PALETTE_STRIDE, ::PALETTE_STRIDE]))
    palette = Image.fromarray(sample).quantize(256, dither=Image.Dither.NONE)
    colours = np.array(palette.getpalette()).reshape(-1, 3)
    # Pillow looks up nearest colours in steps of 4 or 8, and paper must be white, not nearly so.
    colours[(colours >= 248).all(axis=1)] = PAPER
    palette.putpalette(colours.flatten().tolist())
    images = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE)
        for frame in frames
    ]
    with open_atomically(path) as file:
        images[0].save(
            file,
            format="GIF",
            save_all=True,
            append_images=images[1:],
            duration=durations,
            loop=0,
            optimize=False,
        )


def write_mp4(path: Path, frames: Pictures, control_rate: float) -> None:
    """Write an H.264 video that every browser plays.

    Args:
        path: Where to.
        frames: ``(T, height, width, 3)`` uint8, sides even.
        control_rate: Frames per second.
    """
    from fractions import Fraction

    import av

    rate = Fraction(control_rate).limit_denominator(1000)
    with open_atomically(path) as file, av.open(file, mode="w", format="mp4") as container:
        stream: Any = container.add_stream("libx264", rate=rate, options={"crf": "16"})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def _font() -> Any:
    from PIL import ImageFont

    return ImageFont.load_default(FONT_SIZE)
