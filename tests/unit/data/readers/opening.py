"""What the tests of readers share: recipes, random arrays, equality with what was written."""

from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.data.readers.base import Source
from tokenwm.data.recipes.recipe import Recipe, parse_recipe

SIZE = 16
"""Pixels of written pictures and of the recipe: then frames come out as they went in."""


def recipe(kind: str, path: Path, **changes: Any) -> Recipe:
    """A recipe at 10 Hz; ``source=…`` adds to the source, others replace top-level keys."""
    source = {"type": kind, "path": str(path), **changes.pop("source", {})}
    values = {
        "name": "written",
        "source": source,
        "control_rate": 10,
        "image_size": [SIZE, SIZE],
        "quality": {"allow_frozen": True},
    }
    return parse_recipe({**values, **changes})


def open_source(kind: str, path: Path, **changes: Any) -> Source:
    return recipe(kind, path, **changes).open_source()


def load_all(source: Source) -> list[Episode]:
    return [source.load(ref) for ref in source.episodes()]


def pictures(rng: np.random.Generator, num_rows: int, size: int = SIZE) -> NDArray[np.uint8]:
    return rng.integers(0, 256, (num_rows, size, size, 3), dtype=np.uint8)


def padded(values: NDArray[Any], dtype: type = np.float32) -> NDArray[Any]:
    """With a last row of zeros: the last observation has no action, reward or end."""
    return np.concatenate([values, np.zeros_like(values[:1])]).astype(dtype)


seeds = st.integers(0, 2**32 - 1)
lengths = st.integers(2, 12)
widths = st.integers(1, 4)
