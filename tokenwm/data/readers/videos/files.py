"""The files in a folder of videos and tables."""

import itertools
import os
import re
from pathlib import Path
from typing import Any

from tokenwm.data.readers.columns.arrays import LOOKED_AT, spread
from tokenwm.data.readers.columns.tables import SUFFIXES
from tokenwm.data.readers.one_episode import readable
from tokenwm.data.readers.paths import inside
from tokenwm.data.readers.pictures.video import FirstPicture, first_picture, probe
from tokenwm.errors import EpisodeError, SourceError

LAYOUT = "expected: a folder of videos, EPISODE.mp4 or CAMERA/EPISODE.mp4, and tables EPISODE.csv"
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".m4v")
ONLY_CAMERA = "video"
"""Name of a camera whose videos lie in no folder of their own."""


class VideoFolder:
    """The videos and tables of a folder.

    Attributes:
        videos: Episode → camera → video.
        of_episode: Episode → its table.
        others: Tables that are named as no episode.
        doubled: Episode → cameras of which it has more than one video.

    Raises:
        SourceError: A file is a link that leads out of the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.videos: dict[str, dict[str, Path]] = {}
        self.doubled: dict[str, set[str]] = {}
        tables = []
        for place, folders, names in os.walk(folder):
            folders.sort()
            for name in sorted(names):
                path = Path(place) / name
                if path.suffix.lower() in VIDEO_SUFFIXES:
                    self._add(inside(folder, path))
                elif path.suffix in SUFFIXES:
                    tables.append(inside(folder, path))
        self.videos = dict(sorted(self.videos.items(), key=lambda item: _natural(item[0])))
        self.of_episode = {path.stem: path for path in tables if path.stem in self.videos}
        self.others = [path for path in tables if path.stem not in self.videos]

    def _add(self, path: Path) -> None:
        place = path.parent.relative_to(self.folder)
        camera = place.as_posix() if place.parts else ONLY_CAMERA
        cameras = self.videos.setdefault(path.stem, {})
        if camera in cameras:
            self.doubled.setdefault(path.stem, set()).add(camera)
        cameras[camera] = path

    @property
    def cameras(self) -> list[str]:
        """Cameras of any episode, sorted."""
        return sorted({camera for cameras in self.videos.values() for camera in cameras})

    def rate(self) -> float:
        """Frames per second that most of some videos have, of those that can be read.

        Raises:
            SourceError: None can be read.
        """
        paths = [path for cameras in self.videos.values() for path in cameras.values()]
        problems: list[EpisodeError] = []
        # Where the first ones are damaged, more of them are looked at.
        rates = readable(
            dict.fromkeys([*spread(paths), *paths]), lambda p: probe(p, p.stem)[1], problems
        )
        found = list(itertools.islice(rates, min(LOOKED_AT, len(paths))))
        if not found:
            problem = next(iter(problems), None)
            raise SourceError(f"{self.folder} holds no video that can be read: {problem}; {LAYOUT}")
        return max(found, key=found.count)

    def first_picture(self, camera: str) -> FirstPicture | None:
        """The first picture of a camera's first video that can be read; None if none can."""
        paths = (cameras[camera] for cameras in self.videos.values() if camera in cameras)
        return next(readable(paths, lambda path: first_picture(path, camera)), None)

    def all(self) -> list[Path]:
        """All videos and tables."""
        videos = [path for cameras in self.videos.values() for path in cameras.values()]
        return [*videos, *self.of_episode.values(), *self.others]


def _natural(name: str) -> list[Any]:
    """Sorts ``run_2`` before ``run_10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]
