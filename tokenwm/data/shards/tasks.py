"""Shards as pure, idempotent tasks: made by any process in any order, resumed after any kill.

::

    plan ──► a task per shard ──► shard, then its record ──► merge in plan order ──► manifest
               (any engine)      (each whole or not at all)                     (the last file)

A plan is a function of what is to be made and of nothing else, and so is each shard. The record
beside a shard (``.{name}.record``, a SHA-256 and then NPZ) holds what the manifest needs to know of
it. A shard with a record of the same plan and the right checksum is finished; everything else is
made again. So a run continues where another one stopped, however that ended. Records are removed at
the end.
"""

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.manifest import SHARD_PATTERN, EpisodeInfo, ShardInfo
from tokenwm.data.shards.tar import ShardFile
from tokenwm.data.shards.writer import remove_own_files
from tokenwm.data.storage.folder import Folder, sha256_of, write_bytes
from tokenwm.engines import run_tasks
from tokenwm.errors import ShardError
from tokenwm.strict import build

logger = logging.getLogger(__name__)

UNFINISHED_NAME = ".unfinished.json"
"""Says what a run that has no manifest yet is making."""


class ShardTask(Protocol):
    """The contents of one shard that is to be made.

    Attributes:
        name: File name of the shard, ``{split}-{i:06d}.tar``.
        num_episodes: Episodes to look at; some of them may turn out to be unusable.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def num_episodes(self) -> int: ...  # noqa: D102


Task = TypeVar("Task", bound=ShardTask)


@dataclass(frozen=True, kw_only=True)
class Extra:
    """Values that a task hands to the merge besides its shard.

    Attributes:
        values: JSON values.
        arrays: Plain arrays.
    """

    values: dict[str, Any] = field(default_factory=dict)
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Record:
    """The record of a finished shard.

    Attributes:
        plan: Digest of the plan it belongs to.
        shard: The file; None if no episode was left for it, then there is none.
        episodes: Places of its episodes.
        values: JSON values of the task.
        arrays: Arrays of the task; not in the JSON part.
    """

    plan: str
    shard: ShardInfo | None
    episodes: list[EpisodeInfo]
    values: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict, metadata={"key": False})

    def save(self, folder: Folder, name: str) -> None:
        """Write the record of shard ``name``, whole or not at all."""
        about = asdict(replace(self, arrays={}))
        del about["arrays"]
        text = np.frombuffer(json.dumps(about).encode(), np.uint8)
        members: dict[str, Any] = {"about": text, **self.arrays}
        buffer = io.BytesIO()
        np.savez(buffer, **members)
        content = buffer.getvalue()
        write_bytes(folder, record_name(name), hashlib.sha256(content).digest() + content)

    @classmethod
    def load(cls, folder: Folder, name: str) -> "Record | None":
        """The record of shard ``name``; None if there is none that can be read."""
        try:
            content = folder.read(record_name(name))
            size = hashlib.sha256().digest_size
            if hashlib.sha256(content[size:]).digest() != content[:size]:
                raise ShardError("its SHA-256 is not that of its content")
            with np.load(io.BytesIO(content[size:]), allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            about = json.loads(arrays.pop("about").tobytes())
            record: Record = build(cls, about, allow_defaults=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged, the shard is made again: %s", record_name(name), error)
            return None
        return replace(record, arrays=arrays)


def record_name(shard: str) -> str:
    """Name of the record of a shard."""
    return f".{shard.removesuffix('.tar')}.record"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a run.

    Attributes:
        stage: Name of the current stage, one word.
        done: Episodes done, or shards where it says so.
        total: Episodes, or shards, in all.
        kept: Those of them that an earlier run had finished.
        new_steps: Steps that this run has made.
        message: Text about the last event.
    """

    stage: str
    done: int
    total: int
    kept: int = 0
    new_steps: int = 0
    message: str = ""


ShowProgress = Callable[[Progress], None]


@dataclass(frozen=True, kw_only=True)
class ShardJob(Generic[Task]):
    """Makes shards; a picklable function of a task.

    Attributes:
        folder: Folder of the shards.
        plan: Digest of the plan.
        make: Adds the episodes of a task to its shard; picklable, and a pure function of the task.
    """

    folder: Folder
    plan: str
    make: Callable[[Task, ShardFile], Extra]

    def __call__(self, task: Task) -> Progress:
        """Make one shard and its record, unless both are there; says what that adds to a run."""
        record = self._finished(task.name)
        kept = record is not None
        if record is None:
            with ShardFile(self.folder, task.name) as shard:
                extra = self.make(task, shard)
            record = Record(
                plan=self.plan,
                shard=shard.info,
                episodes=shard.episodes,
                values=extra.values,
                arrays=extra.arrays,
            )
            record.save(self.folder, task.name)
        return Progress(
            stage="shards",
            done=task.num_episodes,
            total=0,
            kept=task.num_episodes if kept else 0,
            new_steps=0 if kept else sum(episode.num_steps for episode in record.episodes),
            message=f"{task.name} {'kept' if kept else 'written'}",
        )

    def _finished(self, name: str) -> Record | None:
        record = Record.load(self.folder, name)
        if record is None or record.plan != self.plan:
            return None
        if record.shard is not None:
            if self.folder.size(name) != record.shard.num_bytes:
                return None
            if sha256_of(self.folder, name) != record.shard.sha256:
                logger.warning("%s is damaged and is made again", name)
                return None
        return record


def digest_of(values: Any) -> str:
    """Digest of JSON values, whatever the order of their keys."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def begin(folder: Folder, plan: Mapping[str, Any], *, overwrite: bool = False) -> dict[str, Any]:
    """Make a folder ready for a plan; keep what an unfinished run of the same plan has left.

    Args:
        folder: The dataset folder, without a manifest.
        plan: Named parts of the plan, JSON values.
        overwrite: Remove shards that lie there without a manifest and without notes of a run.

    Returns:
        Notes of that run (see :func:`note`); empty where this one begins from clean ground.

    Raises:
        ShardError: There are such shards: ``train-000000.tar`` is what others call theirs, too.
    """
    wanted = {name: digest_of(part) for name, part in plan.items()}
    found: dict[str, Any] = {}
    if folder.size(UNFINISHED_NAME) is not None:
        try:
            found = _read_notes(folder)
        except (OSError, ValueError) as error:
            logger.warning("%s is damaged: %s", UNFINISHED_NAME, error)
        if found.get("plan") == wanted:
            folder.clear_partials()
            notes: dict[str, Any] = found["notes"]
            return notes
        before = found.get("plan", {})
        changed = [name for name in wanted if before.get(name) != wanted[name]]
        logger.warning(
            "%s: an unfinished run left shards, but %s changed since; they are removed and this "
            "run begins anew",
            folder,
            ", ".join(changed),
        )
    elif not overwrite:
        _check_no_shards(folder)
    remove_own_files(folder, keep=UNFINISHED_NAME)  # the next run must know that these are ours
    note(folder, plan, {})
    return {}


def _check_no_shards(folder: Folder) -> None:
    found = [name for name in folder.names() if SHARD_PATTERN.fullmatch(name)]
    if found:
        raise ShardError(
            f"{folder} holds {found[0]} and {len(found) - 1} more such files, but no manifest and "
            "no notes of a run that was stopped, so they may be somebody else's; choose another "
            "folder, or replace them with --overwrite"
        )


def note(folder: Folder, plan: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
    """Write down what this run is making, and what it found out before its tasks began."""
    values = {"plan": {name: digest_of(part) for name, part in plan.items()}, "notes": notes}
    content = json.dumps({**values, "sha256": digest_of(values)}, indent=1)
    write_bytes(folder, UNFINISHED_NAME, content.encode())


def _read_notes(folder: Folder) -> dict[str, Any]:
    """Read back what :func:`note` wrote: the ``plan`` and the ``notes``.

    Raises:
        OSError: It cannot be read.
        ValueError: It is damaged.
    """
    values = json.loads(folder.read(UNFINISHED_NAME))
    if not isinstance(values, dict) or values.pop("sha256", None) != digest_of(values):
        raise ShardError("its SHA-256 is not that of its content")
    return values


def run_shard_tasks(
    job: ShardJob[Task],
    tasks: Sequence[Task],
    *,
    engine: str,
    num_workers: int,
    progress: ShowProgress | None = None,
) -> Iterator[Record]:
    """Run all tasks, then give their records in plan order, one in memory at a time.

    Args:
        job: Makes a shard.
        tasks: All shards of the plan.
        engine: See :func:`~tokenwm.engines.run_tasks`.
        num_workers: See there.
        progress: Called after each shard, in both stages: ``shards`` and ``merge``.

    Raises:
        ShardError: A record is not there, since workers do not write to this folder.
        TokenwmError: A task raised it; what is finished is kept.
    """
    show = progress or (lambda _: None)
    now = Progress(stage="shards", done=0, total=sum(task.num_episodes for task in tasks))
    show(now)
    try:
        for done in run_tasks(job, tasks, engine=engine, num_workers=num_workers):
            now = replace(
                done,
                done=now.done + done.done,
                total=now.total,
                kept=now.kept + done.kept,
                new_steps=now.new_steps + done.new_steps,
            )
            show(now)
    except BaseException:
        job.folder.clear_partials()  # of workers that were given up
        raise
    for index, task in enumerate(tasks, start=1):
        record = Record.load(job.folder, task.name)
        if record is None or record.plan != job.plan:
            raise ShardError(
                f"{job.folder}: shard {task.name} was made, but not here; workers must write to "
                "the same folder, so name one that all machines share, or a URL"
            )
        yield record
        show(Progress(stage="merge", done=index, total=len(tasks)))


def end(folder: Folder) -> None:
    """Remove the notes of a run; call it when the manifest is written."""
    for name in folder.names():
        if name == UNFINISHED_NAME or name.endswith(".record"):
            folder.remove(name)
