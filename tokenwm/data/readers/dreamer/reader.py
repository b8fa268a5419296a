"""Replay of the Dreamers in NPZ files: DreamerV3's chain of chunks, or one file per episode.

Row ``t`` holds observation ``t`` together with the reward and the end that came *with* it, which
are what the action before it caused: they move up by one row here. The action of a row is

- ``after`` (DreamerV3): chosen after observation ``t``, as ours is;
- ``before`` (Dreamer, DreamerV2): what *led to* observation ``t``; it moves up by one row too.

Chunks ``{time}-{uuid}-{successor}-{length}.npz`` form one stream per environment by naming their
successor, and an episode begins where ``is_first`` is set, anywhere in a chunk.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Scalar
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, Recognised
from tokenwm.data.readers.columns.arrays import (
    RatedConfig,
    as_numbers,
    check_claims,
    spread,
    usual_columns,
)
from tokenwm.data.readers.columns.columns import Column, names_of
from tokenwm.data.readers.columns.npz import Header, columns_of, read_arrays, read_headers
from tokenwm.data.readers.one_episode import costs_one_episode, readable, writable
from tokenwm.data.readers.paths import inside
from tokenwm.data.readers.pictures.frames import StoredFrames
from tokenwm.data.readers.recorded.recording import RecordedSource, Recording
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import EpisodeError, RecipeError, SourceError
from tokenwm.pages.words import few

LAYOUT = (
    "expected: a folder with DreamerV3's chunks, TIME-UUID-SUCCESSOR-LENGTH.npz, or with one .npz "
    "per episode; arrays action, reward, is_first, is_terminal, image, …"
)
CHUNK = re.compile(r"[A-Za-z0-9]+-(?P<uuid>[A-Za-z0-9]+)-(?P<next>[A-Za-z0-9]+)-(?P<length>\d+)")
EPISODE = re.compile(r"\d{8}T\d{6}\w*-[A-Za-z0-9]+-(?P<length>\d+)")
"""Name of a file that holds one episode: its steps are rows, or one less (Dreamer, DreamerV2)."""
FIRST, TERMINAL, DISCOUNT = "is_first", "is_terminal", "discount"
SYNTHETIC = "synthetic"
"""Array of our own export: whether a model imagined the episode."""
MARKS = (FIRST, TERMINAL, DISCOUNT)

Convention = Literal["after", "before"]


@dataclass(frozen=True, kw_only=True)
class DreamerConfig(RatedConfig):
    """Options of the Dreamer reader; columns are the arrays of a file.

    Attributes:
        action_convention: Whether the action of a row was chosen ``after`` its observation or led
            to it (``before``). Null takes ``after`` for DreamerV3's chunks; with one file per
            episode it must be given, since nothing in the files tells for sure.
        one_hot: Actions are rows of zeros with a single one, and become ids.
    """

    action_convention: Convention | None = None
    one_hot: bool = False
    type: Literal["dreamer"] = "dreamer"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.one_hot and self.action_kind == "continuous":
            raise RecipeError("one_hot makes ids of actions, and action_kind is continuous")

    @classmethod
    def recognise(cls, path: Path) -> Recognised | None:
        """A folder of NPZ files with an action and one of Dreamer's marks.

        Raises:
            SourceError: A file is a link that leads out of the folder.
        """
        paths = _files(path)
        columns = _columns(paths)
        if "action" not in columns or not any(mark in columns for mark in MARKS):
            return None
        chained = _chained(paths)
        hint = None if chained else _hint(paths)
        config = cls(
            path=str(path),
            action_convention=None if chained else hint or "before",
            one_hot=_looks_one_hot(paths),
        )
        how = "after the observation of its row (DreamerV3)"
        if not chained:
            why = "its first or last row is zero" if hint else "a guess, look at the data"
            how = f"{config.action_convention} the observation of its row ({why})"
        kind = "DreamerV3 chunks" if chained else "NPZ, one file per episode"
        return Recognised(config=config, rate=None, facts={"format": kind, "actions": how})

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "DreamerSource":
        """Open the folder; see :meth:`tokenwm.data.readers.base.SourceConfig.open`."""
        return DreamerSource(self, episode_format, self.find(folder, LAYOUT))


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Rows of one file; ``stop`` is None for all from ``start`` on.

    With a problem: a file of which is not known what episodes it holds.
    """

    path: Path
    start: int = 0
    stop: int | None = None
    problem: str = ""


class DreamerSource(RecordedSource):
    """The episodes of one replay folder."""

    def __init__(self, config: DreamerConfig, episode_format: EpisodeFormat, folder: Path) -> None:
        self.folder = folder
        self.paths = _files(folder)
        columns = _columns(self.paths)
        if not columns:
            for path in self.paths:
                refuse_pointer(path, SourceError)
            raise SourceError(f"{folder} holds no NPZ file that can be read; {LAYOUT}")
        chained = _chained(self.paths)
        self.pieces: list[tuple[Piece, ...]] = [(Piece(path=p),) for p in self.paths]
        self._gaps: list[Gap] = []
        if chained:
            chains, odd = _chains(self.paths)
            self.pieces = [pieces for chain in chains for pieces in _episodes_of(chain)]
            self._gaps = [*_lost_chunks(self.paths), *odd]
        if config.action_convention is None and not chained:
            hint = _hint(self.paths)
            seems = f"; its actions look like {hint}" if hint else ""
            raise RecipeError(
                f"source.action_convention is not given, and {folder} has one file per episode: "
                "say 'after' if action[t] was chosen after seeing row t, or 'before' if it led to "
                f"row t (Dreamer, DreamerV2){seems}"
            )
        self.convention = config.action_convention or "after"
        self.one_hot = config.one_hot
        if config.one_hot:
            config = replace(config, action_kind="discrete")
        self.mark = next((mark for mark in (TERMINAL, DISCOUNT) if mark in columns), None)
        rate = config.rows_per_second(None, str(folder))
        self.marks_synthetic = SYNTHETIC in columns
        columns = {n: c for n, c in columns.items() if n not in (FIRST, "is_last", SYNTHETIC)}
        super().__init__(config, columns, str(folder), episode_format, rate)

    def episodes(self) -> Sequence[EpisodeRef]:
        """All episodes, stream by stream in the order of the files' names."""
        return [EpisodeRef(key=f"episode_{i:06d}", index=i) for i in range(len(self.pieces))]

    def read(self, ref: EpisodeRef) -> Recording:
        """Read the numbers of one episode.

        Raises:
            EpisodeError: A file is damaged, or arrays are missing or differ in length.
        """
        pieces = self.pieces[ref.index]
        if pieces[0].problem:
            raise EpisodeError(f"episode {ref.key}: {pieces[0].problem}")
        names = list(dict.fromkeys((*self.numbers, *names_of(self.mark))))
        cameras = list(self.cameras.values())
        headers = [_check_lengths(piece, [*names, *cameras]) for piece in pieces]
        arrays = _read(pieces, names)
        num_rows = len(next(iter(arrays.values())))
        for name, array in arrays.items():
            where = f"episode {ref.key}: {name}"
            check_claims(array.shape, where)
            arrays[name] = as_numbers(array, num_rows, where)
        metadata: dict[str, Scalar] = {"file": writable(pieces[0].path.name)}
        if self.marks_synthetic and _read(pieces, [SYNTHETIC])[SYNTHETIC].astype(bool).any():
            metadata["synthetic"] = True
        signals = self.signals(arrays)
        action = signals["action"][1:] if self.convention == "before" else signals["action"][:-1]
        reward = signals["reward"]
        terminated = None
        if self.mark is not None:
            mark = arrays[self.mark][1:, 0]
            ends = mark == 0 if self.mark == DISCOUNT else mark > 0
            terminated = np.where(np.isnan(mark), np.nan, ends)
        return Recording(
            num_rows=num_rows,
            action=_ids(action, ref.key) if self.one_hot else action,
            state=signals["state"],
            task_state=signals["task_state"],
            reward=None if reward is None else reward[1:],
            terminated=terminated,
            frames={
                camera: StoredFrames(
                    open=partial(_open_images, pieces, name),
                    name=name,
                    shape=(num_rows, *headers[0][name].shape[1:]),
                    dtype=headers[0][name].dtype,
                )
                for camera, name in self.cameras.items()
            },
            metadata=metadata,
        )

    def provenance(self) -> dict[str, Any]:
        """The path, and a SHA-256 over names and sizes of the files."""
        return self.origin(self.folder, self.paths)


def _files(folder: Path) -> list[Path]:
    return [inside(folder, path) for path in sorted(folder.glob("*.npz"))]


def _columns(paths: Sequence[Path]) -> dict[str, Column]:
    """Columns that most of some files hold, of those that can be read."""
    return usual_columns(list(readable(spread(paths), lambda path: columns_of(read_headers(path)))))


def _chained(paths: Sequence[Path]) -> bool:
    """Return True if the files are chunks.

    Raises:
        SourceError: Only some are.
    """
    others = [path for path in paths if not CHUNK.fullmatch(path.stem)]
    if 0 < len(others) < len(paths):
        raise SourceError(
            f"{paths[0].parent} holds chunks of DreamerV3 and other NPZ files, for example "
            f"{others[0].name}; keep them in folders of their own"
        )
    return not others


def _lost_chunks(paths: Sequence[Path]) -> list[Gap]:
    names = [name for path in paths if (name := CHUNK.fullmatch(path.stem))]
    there = {name["uuid"] for name in names}
    # A chunk that has no successor yet names number 0.
    lost = [n.string for n in names if n["next"] not in there and n["next"].strip("0")]
    if not lost:
        return []
    text = f"{len(lost)} chunk(s) name a successor that is not in {paths[0].parent}: {few(lost)}"
    return [Gap(text=text)]


def _chains(paths: Sequence[Path]) -> tuple[list[list[Path]], list[Gap]]:
    """Chunks in the order in which they follow each other, and the oddities of that order.

    Where it is not known what follows, a chain ends: an episode may then be in two pieces, and
    nothing is put together that does not belong together.
    """
    names = {path: CHUNK.fullmatch(path.stem) for path in paths}
    of_uuid = {name["uuid"]: path for path, name in names.items() if name}
    following = {path: of_uuid.get(name["next"]) for path, name in names.items() if name}
    named = Counter(path for path in following.values() if path is not None)
    doubled = [path for path in paths if named[path] > 1]
    gaps = [Gap(text=f"{path} is the successor of two chunks; it follows none") for path in doubled]
    following = {path: None if n in doubled else n for path, n in following.items()}
    heads = [path for path in paths if path not in set(following.values())]
    chains: list[list[Path]] = []
    seen: set[Path] = set()
    for head in (*heads, *paths):  # of a circle, whatever comes first
        if head in seen:
            continue
        if head not in heads:
            gaps.append(Gap(text=f"{head} begins chunks that follow one another in a circle"))
        chains.append([])
        path: Path | None = head
        while path is not None and path not in seen:
            seen.add(path)
            chains[-1].append(path)
            path = following[path]
    return chains, gaps


def _episodes_of(chain: Sequence[Path]) -> Iterator[tuple[Piece, ...]]:
    """Cut one stream; a damaged chunk ends an episode, and stands for itself so that it is seen."""
    current: list[Piece] = []
    for path in chain:
        try:
            with costs_one_episode(path.stem):
                is_first = _marks(path)
        except EpisodeError as error:
            if current:
                yield tuple(current)
            yield (Piece(path=path, problem=str(error)),)
            current = []
            continue
        edges = [*map(int, np.flatnonzero(is_first)), len(is_first)]
        if edges[0] > 0:
            current.append(Piece(path=path, start=0, stop=edges[0]))
        for start, stop in pairwise(edges):
            if current:
                yield tuple(current)
            current = [Piece(path=path, start=start, stop=stop)]
    if current:
        yield tuple(current)


def _marks(path: Path) -> NDArray[Any]:
    """Rows of a chunk at which episodes begin."""
    is_first = read_arrays(path, [FIRST])[FIRST]
    if is_first.ndim != 1 or not len(is_first) or is_first.dtype.kind not in "biuf":
        raise EpisodeError(f"{path}: {FIRST} is {is_first.dtype}{is_first.shape}; expected rows")
    return is_first


def _read(pieces: Sequence[Piece], names: Iterable[str]) -> dict[str, NDArray[Any]]:
    """Arrays over the rows of an episode."""
    parts = [(piece, read_arrays(piece.path, names)) for piece in pieces]
    return {
        name: np.concatenate([arrays[name][piece.start : piece.stop] for piece, arrays in parts])
        for name in names
    }


def _check_lengths(piece: Piece, names: Sequence[str]) -> Mapping[str, Header]:
    """The headers of a file whose arrays have as many rows as each other and as its name says."""
    headers = read_headers(piece.path)
    missing = [name for name in names if name not in headers]
    if missing:
        raise EpisodeError(f"{piece.path} has no array {missing[0]!r}; it has {', '.join(headers)}")
    lengths = {name: headers[name].shape[:1] for name in names}
    name = CHUNK.fullmatch(piece.path.stem)
    if name:
        lengths["the file's name"] = (int(name["length"]),)
    if len(set(lengths.values())) > 1 or () in lengths.values():
        told = ", ".join(
            f"{name}: {rows[0] if rows else 'no rows'}" for name, rows in lengths.items()
        )
        raise EpisodeError(f"{piece.path}: arrays differ in length, {told}")
    whole = EPISODE.fullmatch(piece.path.stem)
    declared = int(whole["length"]) if whole else None
    for (num_rows,) in lengths.values():
        if declared is not None and num_rows not in (declared, declared + 1):
            raise EpisodeError(
                f"{piece.path}: the file's name declares {declared} steps, and it holds "
                f"{num_rows} rows; copy or write it again"
            )
    return headers


@contextmanager
def _open_images(pieces: Sequence[Piece], name: str) -> Iterator[NDArray[Any]]:
    yield _read(pieces, [name])[name]


def _ids(action: NDArray[Any], key: str) -> NDArray[Any]:
    """Rows of zeros with a single one → ``(N, 1)`` its place."""
    good = ((action == 0) | (action == 1)).all(axis=1) & (action.sum(axis=1) == 1)
    if not good.all():
        row = int(np.argmin(good))
        raise EpisodeError(f"episode {key}: action {action[row][:8]} of row {row} is not one-hot")
    ids: NDArray[Any] = np.argmax(action, axis=1).astype(np.int64)
    return ids[:, None]


def _first_actions(paths: Sequence[Path]) -> Iterator[NDArray[Any]]:
    for action in readable(spread(paths), lambda path: read_arrays(path, ["action"])["action"]):
        if action.ndim == 2 and len(action) > 2 and action.dtype.kind == "f":
            yield action


def _hint(paths: Sequence[Path]) -> Convention | None:
    """Return the convention that rows without an action hint at: the first or the last."""
    zero = [(not action[0].any(), not action[-1].any()) for action in _first_actions(paths)]
    if zero and all(first and not last for first, last in zero):
        return "before"
    if zero and all(last and not first for first, last in zero):
        return "after"
    return None


def _looks_one_hot(paths: Sequence[Path]) -> bool:
    ones = [
        action.shape[1] > 1
        and bool(np.isin(action, (0, 1)).all())
        and bool((action.sum(axis=1) <= 1).all())
        and bool((action.sum(axis=1) == 1).mean() > 0.5)
        for action in _first_actions(paths)
    ]
    return bool(ones) and all(ones)
