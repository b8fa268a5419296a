"""RLDS datasets (Open X-Embodiment) as TFDS stores them in TFRecord files, without TensorFlow.

A record is an episode, and ``features.json`` says what ``steps`` hold. Row ``t`` holds observation
``t``, the action chosen after it, and the reward for that action; ``is_terminal`` of row ``t`` says
that observation ``t`` is a final one, so the action before it ended the task. What the last row
holds beside its observation leads nowhere that was recorded.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Recognised
from tokenwm.data.readers.columns.arrays import RatedConfig, check_claims
from tokenwm.data.readers.columns.columns import Column
from tokenwm.data.readers.gaps import compare
from tokenwm.data.readers.licence import MOST_TEXT
from tokenwm.data.readers.one_episode import writable
from tokenwm.data.readers.paths import inside
from tokenwm.data.readers.pictures.frames import ArrayFrames, EncodedFrames, Frames
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.data.readers.rlds.features import LAYOUT, read_info, read_step_features
from tokenwm.data.readers.rlds.tfrecord import Values, parse_example, read_record, record_places
from tokenwm.errors import EpisodeError, RecipeError, SourceError

logger = logging.getLogger(__name__)

SHARD = re.compile(
    r"(?P<name>.+)-(?P<split>[A-Za-z0-9_]+)\.tfrecord-(?P<number>\d{5,})-of-(?P<all>\d{5,})"
)
TERMINAL = "is_terminal"
STEPS = "steps/"
MAX_NAMED = 10_000
"""Shards of which it is told which ones are missing."""


@dataclass(frozen=True, kw_only=True)
class RldsConfig(RatedConfig):
    """Options of the RLDS reader; columns are features of a step, e.g. ``observation/image``.

    Attributes:
        split: A split of the dataset, for example ``train``; null for all.
    """

    split: str | None = None
    type: Literal["rlds"] = "rlds"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """A folder with ``features.json`` and TFRecord files, or the folder of its only version.

        Raises:
            SourceError: ``features.json`` is damaged or has no steps.
        """
        folder = _version_folder(path)
        if folder is None:
            return None
        info = read_info(folder)
        read_step_features(folder)
        facts = {
            "format": "RLDS (TFRecord)",
            "dataset": f"{info.get('name', '')} {info.get('version', '')}".strip(),
            "splits": ", ".join(sorted({_split(path) for path in _shards(folder)})),
        }
        return Recognised(config=cls(path=str(path)), rate=None, facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "RldsSource":
        """Open the dataset; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        path = self.find(folder, LAYOUT)
        version = _version_folder(path)
        if version is None:
            raise SourceError(f"{path} is no RLDS dataset; {LAYOUT}")
        return RldsSource(self, episode_format, version)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The place of an episode in a file; with a problem, the file cannot be read from there on."""

    path: Path
    place: int = 0
    length: int = 0
    problem: str = ""


class RldsSource(RecordedSource):
    """The episodes of one version of a dataset."""

    def __init__(self, config: RldsConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.folder = folder
        self.info = read_info(folder)
        self.shards = _shards(folder)
        splits = sorted({_split(path) for path in self.shards})
        if config.split is not None and config.split not in splits:
            raise RecipeError(
                f"source.split is {config.split!r}; {folder} has: {', '.join(splits)}"
            )
        self.records = [
            record
            for path in self.shards
            if config.split in (None, _split(path))
            for record in _records(path)
        ]
        if not self.records:
            raise SourceError(f"{folder} holds no episodes; {LAYOUT}")
        self._gaps = _differences(folder, self.info, self.shards, self.records, config.split)
        columns, self.texts = read_step_features(folder)
        rate = config.rows_per_second(None, str(folder))
        super().__init__(config, columns, str(folder), episode_format, rate)

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, in the order of the files and the records in them."""
        return [EpisodeRef(key=f"episode_{i:06d}", index=i) for i in range(len(self.records))]

    def licence(self) -> str:
        """The licence in ``dataset_info.json``, else as other folders state it."""
        about = self.info.get("redistributionInfo")
        stated = str(about.get("license") or "") if isinstance(about, Mapping) else ""
        return stated[:MOST_TEXT] or super().licence()

    def read(self, ref: EpisodeRef) -> Recording:
        """Read one record; pictures stay encoded.

        Raises:
            EpisodeError: It is damaged, or a feature is missing or of another length.
        """
        record = self.records[ref.index]
        if record.problem:
            raise EpisodeError(f"episode {ref.key}: {record.problem}")
        ends = (TERMINAL,) if TERMINAL in self.columns else ()
        named = [*self.numbers, *self.cameras.values(), *ends, *self.texts]
        lists = parse_example(
            read_record(record.path, record.place, record.length), {STEPS + n for n in named}
        )
        where = f"episode {ref.key}: {record.path.name}"
        numbers = dict.fromkeys((*self.numbers, *ends))
        arrays = {n: _to_array(lists, n, self.columns[n], where) for n in numbers}
        num_rows = len(next(iter(arrays.values())))
        for name, array in arrays.items():
            if len(array) != num_rows:
                raise EpisodeError(f"{where}: {name} has {len(array)} rows; others {num_rows}")
        signals = self.signals(arrays)
        reward = signals["reward"]
        metadata: dict[str, Scalar] = {"file": writable(record.path.name)}
        if reward is not None and np.isfinite(reward[-1]):
            # Many datasets reward the last row, for success; it belongs to no action kept here.
            metadata["last_reward"] = float(reward[-1])
        return Recording(
            num_rows=num_rows,
            **signals,
            terminated=arrays[TERMINAL][1:, 0] if ends else None,
            frames={
                camera: self._frames(lists, name, where) for camera, name in self.cameras.items()
            },
            task=_task(lists, self.texts),
            metadata=metadata,
        )

    def _frames(self, lists: Mapping[str, Values], name: str, where: str) -> Frames:
        """Encoded pictures, or those of a tensor of numbers."""
        if isinstance(lists.get(STEPS + name), np.ndarray):
            column = self.columns[name]
            numbers = _to_array(lists, name, column, where)
            return ArrayFrames(images=numbers, name=name, row_shape=column.shape)
        return EncodedFrames(images=_to_images(lists, name, where), name=name)

    def provenance(self) -> dict[str, Any]:
        """The path, and a SHA-256 over names and sizes of all files of the version."""
        return self.origin(self.folder, [*self.shards, *self.folder.glob("*.json")])


def _version_folder(path: Path) -> Path | None:
    if not path.is_dir():
        return None
    folders = [path, *sorted(item for item in path.iterdir() if item.is_dir())]
    found = [item for item in folders if (item / "features.json").is_file() and _shards(item)]
    if len(found) > 1 and found[0] != path:
        names = ", ".join(item.name for item in found)
        raise SourceError(f"{path} holds several versions or datasets: {names}; name one of them")
    return found[0] if found else None


def _shards(folder: Path) -> list[Path]:
    """The TFRecord files.

    Raises:
        SourceError: One is a link that leads out of the folder.
    """
    paths = [path for path in sorted(folder.glob("*.tfrecord-*")) if SHARD.fullmatch(path.name)]
    return [inside(folder, path) for path in paths]


def _differences(
    folder: Path,
    info: Mapping[str, Any],
    shards: Sequence[Path],
    records: Sequence[Record],
    wanted: str | None,
) -> list[Gap]:
    """Gaps: shards missing by their names, episodes missing by ``dataset_info.json``."""
    gaps = []
    names = [match for path in shards if (match := SHARD.fullmatch(path.name))]
    for split in sorted({match["split"] for match in names if wanted in (None, match["split"])}):
        of_split = [match for match in names if match["split"] == split]
        total = max(int(match["all"]) for match in of_split)
        there = {int(match["number"]) for match in of_split}
        absent = [str(i) for i in range(min(total, MAX_NAMED)) if i not in there]
        where = f"{folder}: names of the shards of split {split!r}"
        gaps += compare(where, "shards", total, len(there), missing=absent)
    splits = info.get("splits")
    for about in splits if isinstance(splits, list) else ():
        if not isinstance(about, Mapping):
            continue
        name, lengths = about.get("name"), about.get("shardLengths")
        if not isinstance(lengths, list) or not all(str(n).isdecimal() for n in lengths):
            continue
        if wanted in (None, name):
            found = [record for record in records if _split(record.path) == name]
            # A damaged file holds an unknown number; it is listed as one unusable episode.
            if not any(record.problem for record in found):
                where = f"{folder / 'dataset_info.json'}, split {name!r},"
                gaps += compare(where, "episodes", sum(map(int, lengths)), len(found))
    return gaps


def _split(path: Path) -> str:
    match = SHARD.fullmatch(path.name)
    assert match is not None, "listed by its name"
    return match["split"]


def _records(path: Path) -> list[Record]:
    records = []
    try:
        for place, length in record_places(path):
            records.append(Record(path=path, place=place, length=length))
    except (EpisodeError, OSError) as error:
        records.append(Record(path=path, problem=str(error)))
    return records


def _to_array(lists: Mapping[str, Values], name: str, column: Column, where: str) -> NDArray[Any]:
    """A list of numbers as ``(N, width)`` in the type that ``features.json`` says."""
    values = lists.get(STEPS + name)
    if not isinstance(values, np.ndarray):
        raise EpisodeError(f"{where} has no numbers {name!r}")
    width = int(np.prod(column.shape))
    if not len(values) or len(values) % width:
        raise EpisodeError(f"{where}: {name!r} holds {len(values)} numbers, in rows of {width}")
    check_claims((len(values) // width, width), f"{where}: {name}")
    return values.reshape(-1, width).astype(column.dtype)


def _to_images(lists: Mapping[str, Values], name: str, where: str) -> list[bytes]:
    images = lists.get(STEPS + name)
    if not isinstance(images, list):
        raise EpisodeError(f"{where} has no pictures {name!r}")
    return images


def _task(lists: Mapping[str, Values], texts: Sequence[str]) -> str:
    for name in texts:
        values = lists.get(STEPS + name)
        if isinstance(values, list) and values and values[0]:
            return values[0].decode("utf-8", errors="replace")
    return ""
