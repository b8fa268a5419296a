"""A source that costs nothing, for tests that prepare many times or in many processes."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from tokenwm.data.episode import Episode
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, SourceDescription
from tokenwm.data.recipes.recipe import Recipe, SplitConfig
from tokenwm.errors import EpisodeError

SIZE = 8


@dataclass(frozen=True, kw_only=True)
class CheapConfig:
    """Options: how many episodes of how many steps, which are bad or of another shape."""

    records: ClassVar[bool] = False

    num_episodes: int = 40
    num_steps: int = 6
    bad: tuple[int, ...] = (3,)
    wider: tuple[int, ...] = (5,)
    declare_rows: bool = True
    size: int = SIZE
    seconds: float = 0.0
    type: Literal["cheap"] = "cheap"

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "CheapSource":
        return CheapSource(self, episode_format)


@dataclass(frozen=True)
class CheapSource:
    config: CheapConfig
    format: EpisodeFormat
    num_phases: int = field(default=1)

    def episodes(self) -> Sequence[EpisodeRef]:
        rows = self.config.num_steps if self.config.declare_rows else None
        return [
            EpisodeRef(key=f"e{index:04d}", index=index, num_rows=rows)
            for index in range(self.config.num_episodes)
        ]

    def gaps(self) -> Sequence[Gap]:
        return ()

    def load(self, ref: EpisodeRef) -> Episode:
        config = self.config
        if ref.index in config.bad:
            raise EpisodeError(f"episode {ref.key}: broken")
        time.sleep(config.seconds)
        generator = np.random.default_rng(ref.index)
        steps = config.num_steps
        shape = (steps, config.size, config.size, 3)
        width = 3 if ref.index in config.wider else 2
        return Episode(
            key=ref.key,
            frames={"a": generator.integers(0, 256, shape, np.uint8)},
            state=generator.normal(size=(steps, width)).astype(np.float32),
            action=generator.normal(size=(steps, 2)).astype(np.float32),
            terminated=np.zeros(steps, np.bool_),
            truncated=np.zeros(steps, np.bool_),
            control_rate=self.format.control_rate,
            metadata={"index": ref.index, "share": ref.index / 10},
        )

    def describe(self) -> SourceDescription:
        return SourceDescription()

    def provenance(self) -> dict[str, Any]:
        checksum = hashlib.sha256(repr(self.config).encode()).hexdigest()
        return {"source": "cheap", "source_checksum": checksum}


def cheap_recipe(**options: Any) -> Recipe:
    """A recipe with the given options of the source; held out: a fifth of the episodes."""
    size = options.get("size", SIZE)
    return Recipe(
        name="cheap",
        source=CheapConfig(**options),
        control_rate=10.0,
        image_size=(size, size),
        splits=SplitConfig(val=0.1, test=0.1),
        quality=QualityConfig(allow_frozen=True),
    )
