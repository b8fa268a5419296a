"""The choice of a source's columns: action, state, reward and cameras.

A recipe names them, or leaves that to us (``auto``, the default): then what is unambiguous is taken
and said, and what is not is an error that lists the candidates. The same for every format.
"""

import dataclasses
import difflib
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.errors import RecipeError, SourceError

if TYPE_CHECKING:
    from tokenwm.data.readers.base import EpisodeFormat, Source

logger = logging.getLogger(__name__)

AUTO: Final = "auto"
OBSERVATION = ("observation", "observations", "obs")
ACTION = ("action", "actions")
STATE = ("state", "states", "proprio")
REWARD = ("reward", "rewards")
NOT_OBSERVED = ("next", *ACTION)
LONGEST_CAMERA = 40
"""Characters of our name of a camera, which becomes part of file names."""
MOST_ACTIONS = 2**20
"""Ids of discrete actions: each is a token and is counted."""
BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")


class AmbiguousColumnsError(RecipeError):
    """Several columns could be what the recipe does not name.

    Attributes:
        option: For example ``state``, ``action`` or ``reward``.
        candidates: The columns, the likeliest first.
    """

    def __init__(self, option: str, candidates: Sequence[str], where: str, remedy: str) -> None:
        super().__init__(
            f"source.{option} is not given and could be any of these columns of {where}: "
            f"{', '.join(candidates)}; {remedy}"
        )
        self.option = option
        self.candidates = tuple(candidates)


class NoPlainColumnError(RecipeError):
    """No column is by its name what the recipe needs and does not name.

    Attributes:
        option: ``state`` or ``action``.
        candidates: The columns of numbers that could be it; may be empty.
    """

    def __init__(self, option: str, candidates: Sequence[str], message: str) -> None:
        super().__init__(message)
        self.option = option
        self.candidates = tuple(candidates)


@dataclass(frozen=True, kw_only=True)
class Column:
    """Something a source holds for every row.

    Attributes:
        kind: ``numbers``, ``pictures``, or ``other`` for what we have no use for (text, depth).
        dtype: Type in the source, for messages.
        shape: Shape of one row; ``()`` for a scalar.
        names: One name per entry if there are ``n`` numbers per row, or empty.
        note: Why we have no use for it, in words; may be empty.
    """

    kind: Literal["numbers", "pictures", "other"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class RecordedConfig:
    """Options that every reader of recordings has.

    Attributes:
        path: The dataset's file or folder; relative to the current directory, else to the recipe.
            A list of several is one dataset.
        cameras: Our name of a camera → the source's name of it; ``auto`` takes all.
        state: Column with the robot's state; a list is put side by side; null for none.
        action: Column with the action; a list is put side by side.
        action_kind: Whether actions are ids (``discrete``) or quantities (``continuous``);
            ``auto`` decides by what they are in all episodes.
        reward: Column with the reward, or null.
        task_state: Column with hidden truth about the task, such as where the object lies, to
            measure with and no model's input; a list is put side by side; null for none.
        state_units: Units of the state in words, stored with the data.
        action_units: Units of the action in words, stored with the data.
        task_state_units: Units of the task state: one for all dimensions, or one for each with
            commas between (``m, m, rad``). Errors of what is in ``rad`` or ``deg`` wrap.
        num_actions: Number of discrete actions, whose ids are in ``[0, num_actions)``; null takes
            as many as the data shows.
        hint: Where to download the data; shown if it is not there.
    """

    records: ClassVar[bool] = False

    path: str | tuple[str, ...]
    cameras: dict[str, str] | Literal["auto"] = AUTO
    state: str | tuple[str, ...] | None = AUTO
    action: str | tuple[str, ...] = AUTO
    action_kind: Literal["auto", "continuous", "discrete"] = AUTO
    reward: str | None = AUTO
    task_state: str | tuple[str, ...] | None = None
    state_units: str = ""
    action_units: str = ""
    task_state_units: str = ""
    num_actions: int | None = None
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.paths or len(set(self.paths)) < len(self.paths):
            raise RecipeError(f"path is {list(self.paths)}; name one path, or several once each")
        if not self.cameras and not self.state:
            raise RecipeError("cameras is empty and state is null; at least one of them is needed")
        if not self.action:
            raise RecipeError("action is empty; name a column, or leave it out to have it found")
        if self.num_actions is not None and not 1 <= self.num_actions <= MOST_ACTIONS:
            raise RecipeError(
                f"num_actions is {self.num_actions:,}; expected 1 to {MOST_ACTIONS:,}, or null"
            )
        for camera in () if isinstance(self.cameras, str) else self.cameras:
            if not NAME_PATTERN.fullmatch(camera) or len(camera) > LONGEST_CAMERA:
                raise RecipeError(
                    f"cameras.{camera}: at most {LONGEST_CAMERA} letters, digits, '_' and '-' only"
                )

    @property
    def paths(self) -> tuple[str, ...]:
        """Paths that ``path`` names, one or several."""
        return names_of(self.path)

    def at(self: "Config", path: str) -> "Config":
        """These options for one of the paths."""
        return dataclasses.replace(self, path=path)

    @abstractmethod
    def open(self, episode_format: "EpisodeFormat", folder: Path | None) -> "Source":
        """Open the source at ``path``: :meth:`tokenwm.data.readers.base.SourceConfig.open`."""

    def find(self, folder: Path | None, layout: str) -> Path:
        """The file or folder that ``path`` means.

        Args:
            folder: Where the recipe lies.
            layout: What is expected there, for the message.

        Raises:
            SourceError: It does not exist.
        """
        (path,) = self.paths
        places = [Path(path).expanduser()]
        if folder is not None:
            places.append(folder / path)
        for place in places:
            if place.exists():
                return place.resolve()
        looked = " or ".join(dict.fromkeys(str(place.absolute()) for place in places))
        hint = f"{self.hint.strip()}; " if self.hint.strip() else ""
        raise SourceError(f"no dataset at {looked}; {hint}{layout}")


Config = TypeVar("Config", bound=RecordedConfig)


def names_of(option: str | Sequence[str] | None) -> tuple[str, ...]:
    """The columns that ``state``, ``action`` or ``reward`` names."""
    if option is None:
        return ()
    return (option,) if isinstance(option, str) else tuple(option)


def resolve(config: Config, columns: Mapping[str, Column], where: str) -> Config:
    """Fill in what the recipe leaves to us, and check what it names.

    Args:
        config: The options; may hold ``auto``.
        columns: The columns of the source.
        where: The source, for messages.

    Returns:
        The options, without ``auto``.

    Raises:
        RecipeError: A named column is not there or not of the right kind, none is plainly the
            action (:class:`NoPlainColumnError`), or several could be meant
            (:class:`AmbiguousColumnsError`).
    """
    found: dict[str, Any] = {}
    whole, hidden = columns, names_of(config.task_state)
    columns = {name: column for name, column in whole.items() if name not in hidden}
    if config.action == AUTO:
        found["action"] = _one("action", _actions(columns), where)
        if found["action"] is None:
            numbers = [name for name in _numbers(columns) if _parts(name)[-1] not in REWARD]
            useless = [n for n, c in columns.items() if _parts(n)[-1] in ACTION and c.note]
            odd = "".join(f" that can be used, {with_note(n, columns[n])}" for n in useless[:1])
            raise NoPlainColumnError(
                "action",
                numbers,
                f"source.action is not given, and {where} has no column called action{odd}; its "
                f"numbers: {', '.join(numbers) or 'none'}. Name those that are the action as "
                "`action: [NAME, NAME]` under `source:` of the recipe (`tokenwm inspect` writes "
                "one to choose in)",
            )
    if config.state == AUTO:
        found["state"] = _one("state", _states(columns), where)
    if config.reward == AUTO:
        found["reward"] = _one("reward", _called(columns, REWARD), where)
    if config.cameras == AUTO:
        found["cameras"] = camera_names(n for n, c in columns.items() if c.kind == "pictures")
    try:
        config = dataclasses.replace(config, **found)
    except RecipeError as error:
        observed = [name for name in _observed(columns) if _parts(name)[-1] not in REWARD]
        raise NoPlainColumnError(
            "state",
            observed,
            f"{where} has neither pictures nor a column that is plainly the state, its columns: "
            f"{', '.join(with_note(n, c) for n, c in columns.items())}; name what to use with "
            "source.cameras or source.state",
        ) from error
    _check(config, whole, where)
    if any(found.values()):
        chosen = ", ".join(f"{option}: {_shown(value)}" for option, value in found.items())
        logger.warning("%s: taken as the recipe does not name them: %s", where, chosen)
    if "cameras" in found:
        for name, column in columns.items():
            if column.note:
                logger.warning("%s: %s is not used: %s", where, name, column.note)
    return config


def with_note(name: str, column: Column) -> str:
    """The name of a column for messages, with the reason if it cannot be used."""
    return f"{name} ({column.note})" if column.note else name


def concatenate(arrays: Mapping[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any]:
    """Put columns side by side.

    Args:
        arrays: Column → ``(N, ...)``.
        names: Which, in order; at least one.

    Returns:
        ``(N, width)``; one column keeps its type.
    """
    flat = [
        arrays[name].reshape(len(arrays[name]), math.prod(arrays[name].shape[1:])) for name in names
    ]
    return flat[0] if len(flat) == 1 else np.concatenate(flat, axis=1)


def dimension_names(columns: Mapping[str, Column], names: Sequence[str]) -> tuple[str, ...]:
    """Names of the entries of columns put side by side; empty if one has no names.

    Of several columns, one that is a single number gives its own name.
    """

    def names_in(name: str) -> tuple[str, ...]:
        single = len(names) > 1 and math.prod(columns[name].shape) == 1
        return columns[name].names or ((name,) if single else ())

    parts = [names_in(name) for name in names]
    return tuple(name for part in parts for name in part) if all(parts) else ()


def camera_names(columns: Iterable[str]) -> dict[str, str]:
    """Our names of cameras: the last part of the source's, else all of it, else a number.

    Returns:
        Our name → the source's.
    """
    columns = list(columns)
    for ours in (
        [_plain(_parts(name)[-1]) for name in columns],
        [_plain(name) for name in columns],
    ):
        if len(set(ours)) == len(columns) and all(len(name) <= LONGEST_CAMERA for name in ours):
            return dict(zip(ours, columns, strict=True))
    return {f"camera_{index}": name for index, name in enumerate(columns)}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_") or "camera"


def _parts(name: str) -> list[str]:
    return re.split(r"[./]", name)


def _numbers(columns: Mapping[str, Column]) -> list[str]:
    return [
        name
        for name, column in columns.items()
        if column.kind == "numbers" and _parts(name)[-1] not in BOOKKEEPING
    ]


def _called(columns: Mapping[str, Column], words: Sequence[str]) -> list[str]:
    return [name for name in _numbers(columns) if _parts(name)[-1] in words]


def _actions(columns: Mapping[str, Column]) -> list[str]:
    """Return the column called action; else those that end so; else the parts of an action."""
    named = _called(columns, ACTION)
    parts = [name for name in _numbers(columns) if _parts(name)[0] in ACTION]
    return [name for name in named if name in ACTION] or named or parts


def _observed(columns: Mapping[str, Column]) -> list[str]:
    return [name for name in _numbers(columns) if _parts(name)[0] not in NOT_OBSERVED]


def _states(columns: Mapping[str, Column]) -> list[str]:
    """Return the column called state; else all numbers that were observed."""
    numbers = _observed(columns)
    named = [n for n in numbers if _parts(n)[-1] in STATE]
    observed = [n for n in named if _parts(n)[0] in OBSERVATION]
    return observed or named or [n for n in numbers if _parts(n)[0] in OBSERVATION]


def _one(option: str, candidates: Sequence[str], where: str) -> str | None:
    if len(candidates) > 1:
        several = "" if option == "reward" else ", or a list of those to put side by side"
        none = "" if option == "action" else ", or null for none"
        raise AmbiguousColumnsError(
            option, candidates, where, f"set source.{option} to one of them{several}{none}"
        )
    return candidates[0] if candidates else None


def _check(config: RecordedConfig, columns: Mapping[str, Column], where: str) -> None:
    named = [("action", name) for name in names_of(config.action)]
    named += [("state", name) for name in names_of(config.state)]
    named += [("reward", name) for name in names_of(config.reward)]
    named += [("task_state", name) for name in names_of(config.task_state)]
    assert not isinstance(config.cameras, str)
    named += [(f"cameras.{camera}", name) for camera, name in config.cameras.items()]
    twice = {*names_of(config.task_state)} & {*names_of(config.state), *names_of(config.action)}
    if twice:
        raise RecipeError(
            f"source.task_state names {min(twice)!r}, which is in source.state or source.action: "
            "the task state is hidden truth to measure with and never an input; leave it out of one"
        )
    for option, name in named:
        if name not in columns:
            near = difflib.get_close_matches(name, columns, n=1)
            guess = f"did you mean {near[0]!r}? " if near else ""
            raise RecipeError(
                f"source.{option} is {name!r}, which {where} does not have; {guess}"
                f"it has: {', '.join(columns)}"
            )
        wanted = "pictures" if option.startswith("cameras.") else "numbers"
        if columns[name].kind != wanted:
            note = f", {columns[name].note}" if columns[name].note else ""
            raise RecipeError(
                f"source.{option}: {name!r} has shape {columns[name].shape} and dtype "
                f"{columns[name].dtype!r}{note}; {wanted} are needed"
            )
        if option == "reward" and math.prod(columns[name].shape) != 1:
            raise RecipeError(
                f"source.reward: {name!r} has shape {columns[name].shape}; one number is needed"
            )
    units = config.task_state_units.split(",")
    width = sum(math.prod(columns[name].shape) for name in names_of(config.task_state))
    if len(units) not in (1, width):
        raise RecipeError(
            f"source.task_state_units names {len(units)} units ({config.task_state_units}) for "
            f"{width} numbers of source.task_state; give one for all, or one for each"
        )


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return "null" if value is None else str(value)
