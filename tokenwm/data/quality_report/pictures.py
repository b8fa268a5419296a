"""Small pictures of the page: thumbnails as JPEG, plots as SVG; all inside the HTML, no scripts."""

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_THUMBNAIL = 96
"""Height of a thumbnail, pixels; larger frames are made smaller."""
SPLIT_COLOURS = {"train": "#9cc3de", "val": "#f0c16d", "test": "#8fcab4"}
CAMERA_COLOUR, STATE_COLOUR = "#b3261e", "#6b2fa0"
ROW = 17
"""Height of a line of the timeline, pixels."""
LABEL, BAR, WIDTH = 190, 640, 1130
"""Where bars of the timeline begin, how long the longest is, and the whole width, pixels."""
COLUMNS = (890, 970, 1060)
"""Where the figures behind a bar end, pixels."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One episode in the timeline.

    Attributes:
        key: Its name.
        split: ``train``, ``val`` or ``test``.
        seconds: Length.
        stretches: ``(start, stop, what, is_camera)``, seconds, for what stood still.
        figures: As many texts as there are ``COLUMNS``.
    """

    key: str
    split: str
    seconds: float
    stretches: Sequence[tuple[float, float, str, bool]]
    figures: tuple[str, str, str]


def thumbnail(frame: NDArray[np.uint8]) -> str:
    """A frame ``(H, W, 3)`` as a data URI."""
    image = Image.fromarray(frame)
    if image.height > MAX_THUMBNAIL:
        width = max(1, round(image.width * MAX_THUMBNAIL / image.height))
        image = image.resize((width, MAX_THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def histogram(counts: Sequence[int], label: str, width: int = 150, height: int = 46) -> str:
    """Bars from left to right, the highest as high as the picture."""
    top, step = max(max(counts), 1), width / len(counts)
    path = "".join(
        f"M{index * step:.1f} {height}v{-height * number / top:.1f}h{step:.1f}V{height}z"
        for index, number in enumerate(counts)
        if number
    )
    return (
        f'<svg class="histogram" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(label)}"><path d="{path}"/></svg>'
    )


def timeline(lines: Sequence[Line]) -> str:
    """One bar per episode, as long as it lasts, with what stood still marked on it."""
    longest = max(line.seconds for line in lines)
    height = ROW * (len(lines) + 1)
    parts = [
        f'<svg class="timeline" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="timeline">',
        f'<text x="{LABEL}" y="11" class="faint">0 s</text>',
        f'<text x="{LABEL + BAR}" y="11" class="faint end">{longest:.3g} s</text>',
    ]
    heads = ("length", "lag", "repeated")
    parts += [
        f'<text x="{x}" y="11" class="faint end">{head}</text>'
        for x, head in zip(COLUMNS, heads, strict=True)
    ]
    for index, line in enumerate(lines, start=1):
        parts += _line(line, ROW * index, BAR / longest)
    return "".join(parts) + "</svg>"


def _line(line: Line, y: float, scale: float) -> Iterator[str]:
    yield f'<text x="{LABEL - 10}" y="{y + 12}" class="end">{escape(_shortened(line.key))}</text>'
    yield (
        f'<rect x="{LABEL}" y="{y + 2}" width="{line.seconds * scale:.1f}" height="{ROW - 4}" '
        f'fill="{SPLIT_COLOURS[line.split]}"/>'
    )
    for start, stop, what, is_camera in line.stretches:
        top, colour = (y + 2, CAMERA_COLOUR) if is_camera else (y + ROW / 2, STATE_COLOUR)
        yield (
            f'<rect x="{LABEL + start * scale:.1f}" y="{top}" '
            f'width="{max(1.0, (stop - start) * scale):.1f}" height="{ROW / 2 - 2}" '
            f'fill="{colour}"><title>{escape(what)}: {start:.2f} to {stop:.2f} s</title></rect>'
        )
    for x, text in zip(COLUMNS, line.figures, strict=True):
        yield f'<text x="{x}" y="{y + 12}" class="end">{escape(text)}</text>'


def bars(values: Mapping[str, float | None], unit: str) -> str:
    """One horizontal bar per name, to the right of zero or to the left; None is a dash."""
    known = [value for value in values.values() if value is not None]
    low, high = min(0.0, *known), max(0.0, *known)
    scale = 330 / (high - low) if high > low else 0.0
    zero = 230 - low * scale
    parts = [f'<svg class="bars" viewBox="0 0 640 {ROW * len(values)}" role="img">']
    for index, (name, value) in enumerate(values.items()):
        y = ROW * index
        parts.append(f'<text x="220" y="{y + 12}" class="end">{escape(_shortened(name))}</text>')
        if value is None:
            parts.append(f'<text x="{zero + 4:.1f}" y="{y + 12}" class="faint">–</text>')
            continue
        left, right = zero + min(0.0, value) * scale, zero + max(0.0, value) * scale
        parts.append(
            f'<rect x="{left:.1f}" y="{y + 3}" width="{right - left:.1f}" height="{ROW - 6}"/>'
            f'<text x="{right + 6:.1f}" y="{y + 12}">{value:.2f} {unit}</text>'
        )
    return "".join(parts) + "</svg>"


def _shortened(text: str, length: int = 28) -> str:
    return text if len(text) <= length else f"{text[:8]}…{text[-(length - 9) :]}"
