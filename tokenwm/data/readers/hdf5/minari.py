"""Minari datasets in HDF5, read with h5py: one group per episode.

``episode_i/observations`` has one row more than ``actions``, ``rewards``, ``terminations`` and
``truncations``: it begins with what ``reset`` returned, and row ``t`` of the others belongs to the
step from observation ``t`` to ``t + 1``. This is our alignment as it is.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tokenwm.data.episode import Scalar
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Recognised
from tokenwm.data.readers.columns.arrays import RatedConfig
from tokenwm.data.readers.gaps import compare
from tokenwm.data.readers.hdf5 import hdf5
from tokenwm.data.readers.paths import inside, read_small
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.errors import EpisodeError, SourceError
from tokenwm.pages.words import few

LAYOUT = (
    "expected: a Minari dataset in HDF5, data/main_data.hdf5 with episode_0/observations, "
    "episode_0/actions, …"
)
DATA_FILE, METADATA_FILE = "main_data.hdf5", "metadata.json"
OTHER_STORAGES = ("arrow", "parquet")
EPISODE = re.compile(r"episode_(0|[1-9]\d{0,14})", re.ASCII)
PER_ACTION = ("actions", "rewards", "terminations", "truncations")
"""Arrays with a row for each step; the others have one for each observation."""
MISSION, SUCCESS = "observations/mission", "infos/success"


@dataclass(frozen=True, kw_only=True)
class MinariConfig(RatedConfig):
    """Options of the Minari reader; columns are arrays of ``episode_i``, ``observations/NAME``."""

    type: Literal["minari"] = "minari"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """A folder with ``main_data.hdf5``, or such a file.

        Raises:
            SourceError: It is damaged or in another storage format, or h5py is not installed.
        """
        file_path = _data_file(path)
        if file_path is None:
            return None
        with hdf5.open_hdf5(file_path) as file:
            if not _episodes(file):
                return None
            about = _about(file_path, file)
        facts = {
            "format": "Minari HDF5",
            "dataset": str(about.get("dataset_id", "")),
            "environment": str(hdf5.parse_object(str(about.get("env_spec"))).get("id", "")),
        }
        return Recognised(config=cls(path=str(path)), rate=None, facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "MinariSource":
        """Open the dataset; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        path = self.find(folder, LAYOUT)
        file_path = _data_file(path)
        if file_path is None:
            raise SourceError(f"{path} is no Minari dataset; {LAYOUT}")
        return MinariSource(self, episode_format, file_path)


class MinariSource(RecordedSource):
    """The episodes of one dataset."""

    def __init__(self, config: MinariConfig, episode_format: EpisodeFormat, path: Path) -> None:
        self.path = path
        with hdf5.open_hdf5(path) as file:
            self.num_steps = _episodes(file)
            if not self.num_steps:
                raise SourceError(f"{path} has no episodes; {LAYOUT}")
            columns = hdf5.columns_of_episodes(file, [f"episode_{i}" for i in self.num_steps])
            self.environment = str(_about(path, file).get("env_spec") or "")
            self._gaps = _differences(path, file, self.num_steps)
        self.has_mission = MISSION in columns and columns[MISSION].kind == "other"
        rate = config.rows_per_second(None, str(path))
        super().__init__(config, columns, str(path), episode_format, rate)

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, in the order of their ids."""
        return [
            EpisodeRef(
                key=f"episode_{index:06d}",
                index=index,
                num_rows=num_steps + 1 if isinstance(num_steps, int) else None,
            )
            for index, num_steps in self.num_steps.items()
        ]

    def read(self, ref: EpisodeRef) -> Recording:
        """Read the numbers of one episode.

        Raises:
            EpisodeError: An array is missing or damaged, or arrays differ in length.
        """
        num_steps = hdf5.checked_count(self.num_steps[ref.index], ref.key)
        with hdf5.open_hdf5(self.path, EpisodeError) as file:
            group = hdf5.member(file, f"episode_{ref.index}")

            def numbers(name: str) -> Any:
                per_action = name.split("/")[0] in PER_ACTION
                return hdf5.read_numbers(group, name, num_steps + (not per_action), ref.key)

            arrays = {name: numbers(name) for name in self.numbers}
            metadata: dict[str, Scalar] = {}
            if SUCCESS in self.columns and self.columns[SUCCESS].kind == "numbers":
                metadata["success"] = bool(hdf5.read_numbers(group, SUCCESS, None, ref.key).any())
            return Recording(
                num_rows=num_steps + 1,
                **self.signals(arrays),
                terminated=numbers("terminations")[:, 0],
                frames={
                    camera: hdf5.stored_frames(group, name, ref.key)
                    for camera, name in self.cameras.items()
                },
                task=_mission(group) if self.has_mission else "",
                metadata=metadata,
            )

    def provenance(self) -> dict[str, Any]:
        """The path, the size of the file, and the environment as the dataset says it, as text."""
        origin = self.origin(self.path.parent, [self.path], "name and size of the file")
        return origin | {"source_environment": self.environment}


def _data_file(path: Path) -> Path | None:
    """The HDF5 file of a dataset.

    Raises:
        SourceError: The dataset is stored otherwise, or leads out of its folder.
    """
    for folder in (path, path / "data"):
        if (folder / DATA_FILE).is_file():
            return inside(path, folder / DATA_FILE)
        if (folder / METADATA_FILE).is_file():
            kind = hdf5.parse_object(read_small(path, folder / METADATA_FILE)).get("data_format")
            if kind in OTHER_STORAGES:
                raise SourceError(
                    f"{folder} is a Minari dataset stored as {kind!r}; only hdf5 is read, convert "
                    "it with minari's own tools"
                )
    return path if hdf5.is_hdf5(path) else None


def _episodes(file: Any) -> dict[int, hdf5.RowCount]:
    """Id of each episode → its number of actions, in the order of the ids; empty if none has any.

    Raises:
        EpisodeError: Nothing there can be read.
    """
    counts = {
        int(number.group(1)): hdf5.count_rows(file, f"{name}/actions")
        for name in hdf5.names_in(file)
        if (number := EPISODE.fullmatch(name))
    }
    return dict(sorted(counts.items())) if hdf5.check_usable(counts.values()) else {}


def _differences(path: Path, file: Any, counts: Mapping[int, hdf5.RowCount]) -> list[Gap]:
    """Totals that differ from what is there."""
    beside = path.parent / METADATA_FILE
    if beside.is_file():
        where, about = str(beside), _about(path, file)
    else:
        names = ("total_episodes", "total_steps")
        where, about = str(path), {name: hdf5.whole_in(file.attrs, name) for name in names}
    gaps = compare(where, "episodes", about.get("total_episodes"), len(counts))
    odd = [name for name in hdf5.names_in(file) if not EPISODE.fullmatch(name)]
    if odd:
        text = f"{path} holds what is called like no episode and not read: {few(odd)}"
        gaps.append(Gap(text=text))
    known = [count for count in counts.values() if isinstance(count, int)]
    if not gaps and len(known) == len(counts):
        gaps = compare(where, "steps", about.get("total_steps"), sum(known))
    return gaps


def _about(path: Path, file: Any) -> Mapping[str, Any]:
    """Return the dataset's metadata: of a file beside it, or before 0.5 of its attributes."""
    beside = path.parent / METADATA_FILE
    if beside.is_file():
        return hdf5.parse_object(read_small(path.parent, beside))
    return {name: hdf5.text_of(file.attrs, name) for name in ("dataset_id", "env_spec")}


def _mission(group: Any) -> str:
    """The first of the texts that were observed: environments with a task in words have it."""
    texts = hdf5.member(group, MISSION)
    if texts is None or texts.ndim != 1 or not len(texts) or texts.dtype.kind not in "SO":
        return ""
    text = texts[0]
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else ""
