"""HDF5 files as robomimic, robosuite, LIBERO and MimicGen write them: one group per demonstration.

``data/demo_i/{actions,rewards,dones,obs/*}`` have one row per step: ``actions[t]`` was chosen
after ``obs[t]`` and led to ``next_obs[t]``; ``rewards[t]`` and ``dones[t]`` are what it caused. So
rows map onto our steps one to one, and where ``next_obs`` is recorded its last row is one
observation more, with which the last action, reward and end are kept too.
"""

import contextlib
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Recognised
from tokenwm.data.readers.columns.arrays import MAX_ROWS, RatedConfig, plausible_rate
from tokenwm.data.readers.columns.columns import AUTO, names_of
from tokenwm.data.readers.gaps import compare
from tokenwm.data.readers.hdf5 import hdf5
from tokenwm.data.readers.keys import episode_keys
from tokenwm.data.readers.one_episode import costs_one_episode
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.errors import EpisodeError, RecipeError, SourceError
from tokenwm.pages.words import few

logger = logging.getLogger(__name__)

LAYOUT = "expected: an HDF5 file with data/demo_0/actions, data/demo_0/obs/NAME, …"
OBS, NEXT_OBS = "obs/", "next_obs/"
SIMULATOR = "states"
"""MuJoCo's whole state: a column only if a recipe names it, no robot observes it."""


@dataclass(frozen=True, kw_only=True)
class RobomimicConfig(RatedConfig):
    """Options of the robomimic reader; columns are arrays of ``data/demo_i``, e.g. ``obs/object``.

    Attributes:
        terminated: Column that says that the task ended. ``auto`` takes ``dones`` if it is there;
            null if ``dones`` only marks where recording stopped.
        mask: Use the demonstrations that ``mask/NAME`` of the file lists, for example ``train``;
            null for all.
    """

    terminated: str | None = AUTO
    mask: str | None = None
    type: Literal["robomimic"] = "robomimic"

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """An HDF5 file with a group ``data`` whose groups hold ``actions``.

        Raises:
            SourceError: It is damaged, or h5py is not installed.
        """
        if not hdf5.is_hdf5(path):
            return None
        with hdf5.open_hdf5(path) as file:
            if not _demonstrations(file):
                return None
            about = _environment(file)
        facts = {"format": "robomimic HDF5", "environment": str(about.get("env_name", ""))}
        return Recognised(config=cls(path=str(path)), rate=_rate(about), facts=facts)

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "RobomimicSource":
        """Open the file; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        return RobomimicSource(self, episode_format, self.find(folder, LAYOUT))


class RobomimicSource(RecordedSource):
    """The demonstrations in one file."""

    def __init__(self, config: RobomimicConfig, episode_format: EpisodeFormat, path: Path) -> None:
        self.path = path
        with hdf5.open_hdf5(path) as file:
            self.num_rows = _demonstrations(file)
            if not self.num_rows:
                raise SourceError(f"{path} has no demonstrations; {LAYOUT}")
            self.groups = list(self.num_rows)
            wanted = _listed(file, config.mask) if config.mask is not None else set(self.groups)
            columns = hdf5.columns_of_episodes(file, [f"data/{name}" for name in self.groups])
            self.about = hdf5.text_of(hdf5.member(file, "data").attrs, "env_args")
            self.task = _task(hdf5.member(file, "data").attrs)
            self._gaps = _differences(file, self.num_rows, config.mask)
        self._keys = episode_keys(self.groups, str(path))
        self._wanted = [index for index, name in enumerate(self.groups) if name in wanted]
        following = {name for name in columns if name.startswith(NEXT_OBS)}
        hidden = following | ({SIMULATOR} - {*names_of(config.state), *names_of(config.task_state)})
        columns = {name: column for name, column in columns.items() if name not in hidden}
        rate = config.rows_per_second(_rate(hdf5.parse_object(self.about)), str(path))
        super().__init__(config, columns, str(path), episode_format, rate)
        self.terminated = config.terminated
        if self.terminated == AUTO:
            self.terminated = "dones" if "dones" in columns else None
        elif self.terminated is not None and self.terminated not in columns:
            raise RecipeError(
                f"source.terminated is {self.terminated!r}, which {path} does not have; it has: "
                f"{', '.join(columns)}"
            )
        self.observed = (*names_of(self.config.state), *names_of(self.config.task_state))
        observed = [*self.observed, *self.cameras.values()]
        alone = [name for name in observed if _next(name) not in following]
        self.has_last = not alone
        if alone and {*alone} <= {*names_of(self.config.task_state)}:
            logger.warning(
                "%s: nothing follows %s of source.task_state after the last action, so each "
                "demonstration ends with the observation before it; without it none would lose "
                "its last step",
                path,
                ", ".join(alone),
            )

    def episodes(self) -> Sequence[EpisodeRef]:
        """The demonstrations, in the order of their numbers."""
        refs = []
        for index in self._wanted:
            known = self.num_rows[self.groups[index]]
            num_rows = known + self.has_last if isinstance(known, int) else None
            refs.append(EpisodeRef(key=self._keys[index], index=index, num_rows=num_rows))
        return refs

    def read(self, ref: EpisodeRef) -> Recording:
        """Read the numbers of one demonstration.

        Raises:
            EpisodeError: An array is missing, damaged, or as long as no other.
        """
        name = self.groups[ref.index]
        num_actions = hdf5.checked_count(self.num_rows[name], ref.key)
        with hdf5.open_hdf5(self.path, EpisodeError) as file:
            group = hdf5.member(file, f"data/{name}")

            def numbers(name: str) -> NDArray[Any]:
                return hdf5.read_numbers(group, name, num_actions, ref.key)

            arrays = {name: numbers(name) for name in self.numbers}
            if self.has_last:
                for name in self.observed:
                    arrays[name] = np.concatenate([arrays[name], numbers(_next(name))[-1:]])
            done = None if self.terminated is None else numbers(self.terminated)
            frames = {
                camera: hdf5.stored_frames(
                    group, name, ref.key, last=_next(name) if self.has_last else None
                )
                for camera, name in self.cameras.items()
            }
            task = _task(group.attrs)
            # As our own export marks it.
            about = hdf5.parse_object(hdf5.text_of(group.attrs, "tokenwm"))
        return Recording(
            num_rows=num_actions + self.has_last,
            **self.signals(arrays),
            terminated=None if done is None else done[:, 0],
            frames=frames,
            task=task or self.task,
            metadata={"synthetic": True} if about.get("synthetic") is True else {},
        )

    def provenance(self) -> dict[str, Any]:
        """The path, its size, and what the file says about its environment, as text."""
        origin = self.origin(self.path.parent, [self.path], "name and size of the file")
        return origin | {"source_environment": self.about}


def _demonstrations(file: Any) -> dict[str, hdf5.RowCount]:
    """Rows of actions of what lies in ``data``, in the order of the numbers; empty if none has any.

    Raises:
        EpisodeError: Nothing there can be read.
    """
    import h5py

    data = hdf5.member(file, "data")
    if not isinstance(data, h5py.Group):
        return {}
    names = sorted(hdf5.names_in(data), key=lambda name: (_number(name), name))
    counts = {
        name: hdf5.count_rows(file, f"data/{name}/actions")
        for name in names
        if not _is_array(data, name)
    }
    return counts if hdf5.check_usable(counts.values()) else {}


def _is_array(data: Any, name: str) -> bool:
    """True if something beside the demonstrations is an array: a note, and no episode."""
    import h5py

    with contextlib.suppress(EpisodeError), costs_one_episode(name):
        return isinstance(hdf5.member(data, name), h5py.Dataset)
    return False


def _differences(file: Any, counts: Mapping[str, hdf5.RowCount], mask: str | None) -> list[Gap]:
    """Attributes, and entries of the mask that is used, that differ from what is there."""
    known = {name: count for name, count in counts.items() if isinstance(count, int)}
    data = hdf5.member(file, "data")
    gaps = []
    if len(known) == len(counts):
        gaps += compare(f"{file.filename}: data", "samples", hdf5.whole_in(data.attrs, "total"),
                        sum(known.values()))  # fmt: skip
    for name, count in known.items():
        where = f"{file.filename}: data/{name}"
        declared = hdf5.whole_in(hdf5.member(data, name).attrs, "num_samples")
        gaps += compare(where, "samples", declared, count)
    absent = sorted(_listed(file, mask) - counts.keys()) if mask is not None else []
    if absent:
        text = f"mask {mask!r} of {file.filename} lists {few(absent)}, which are not there"
        gaps.append(Gap(text=text, num_missing=len(absent)))
    return gaps


def _number(name: str) -> int:
    number = re.search(r"\d{1,15}$", name)
    return int(number.group()) if number else 0


def _next(name: str) -> str:
    return NEXT_OBS + name.removeprefix(OBS) if name.startswith(OBS) else ""


def _listed(file: Any, mask: str) -> set[str]:
    """The demonstrations that a mask lists."""
    known = hdf5.member(file, "mask")
    array = None if known is None else hdf5.member(known, mask)
    if array is None or array.ndim != 1 or array.dtype.kind not in "SO" or len(array) > MAX_ROWS:
        names = ", ".join(known) if known is not None else "none"
        raise RecipeError(f"source.mask is {mask!r}; {file.filename} has the masks: {names}")
    return {str(name, "utf-8", "replace") for name in array[()]}


def _environment(file: Any) -> Mapping[str, Any]:
    return hdf5.parse_object(hdf5.text_of(hdf5.member(file, "data").attrs, "env_args"))


def _rate(about: Mapping[str, Any]) -> float | None:
    """The ``control_freq`` of robosuite, Hz."""
    arguments = about.get("env_kwargs")
    rate = arguments.get("control_freq") if isinstance(arguments, Mapping) else None
    return plausible_rate(rate) if isinstance(rate, int | float) else None


def _task(attributes: Any) -> str:
    """Return the task in words, from where RoboCasa, LIBERO or robomimic write it."""
    for text, key in (
        ("ep_meta", "lang"),
        ("problem_info", "language_instruction"),
        ("env_args", "env_lang"),
    ):
        task = hdf5.parse_object(hdf5.text_of(attributes, text)).get(key)
        if isinstance(task, list):
            task = "".join(map(str, task))
        if isinstance(task, str) and task:
            return task
    return ""
