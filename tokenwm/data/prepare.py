"""Recipe → a folder of frame shards.

Episodes are loaded by any number of processes and written in the order of the source, so the result
is the same to the byte whatever their number. The manifest is written last: a run that is stopped
or that fails leaves no dataset, and the next one starts from clean ground. A finished dataset of
the same recipe and source is kept as it is, so running again is cheap.
"""

import contextlib
import json
import multiprocessing
import signal
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import tokenwm
from tokenwm.data.dataset_builder import DatasetBuilder
from tokenwm.data.episode import Episode
from tokenwm.data.manifest import MANIFEST_NAME, SPLITS, Manifest
from tokenwm.data.recipe import Recipe, split_keys
from tokenwm.data.shard_writer import ShardWriter, remove_own_files
from tokenwm.data.sources import EpisodeRef, Source
from tokenwm.errors import EpisodeError, ShardError, SourceError

Progress = Callable[[int, int, str], None]
"""Called with (episodes done, episodes in all, what happened)."""

EPISODES_AHEAD = 2
"""Episodes per process that may wait to be written; bounds the memory."""


def prepare(
    recipe: Recipe,
    out_dir: Path | str,
    num_workers: int = 0,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Manifest:
    """Make a dataset.

    Args:
        recipe: What to make.
        out_dir: Folder of the dataset; made if missing.
        num_workers: Processes that load episodes; 0 loads in this one. Processes are spawned, so a
            script that calls this with more than 0 needs ``if __name__ == "__main__":``.
        progress: Called after each episode.
        overwrite: Replace a finished dataset of another recipe or source.

    Returns:
        The manifest, as written. Episodes that break a quality rule are in ``excluded``.

    Raises:
        SourceError: The source is missing or none of its episodes can be used.
        RecipeError: The recipe does not fit the source.
        EpisodeError: An episode breaks a rule and the recipe is strict.
        ShardError: The folder holds another dataset, or writing failed.
    """
    out_dir = Path(out_dir)
    source = recipe.open_source()
    refs = list(source.episodes())
    split_of = split_keys([ref.key for ref in refs], recipe.splits)
    if recipe.all_phases:
        refs = _with_phases(refs, split_of, source.num_phases)
    provenance = {
        **source.provenance(),
        "licence": recipe.licence,
        "tool": f"tokenwm {tokenwm.__version__}",
        "recipe": recipe.to_dict(),
    }
    finished = _finished(out_dir, provenance, overwrite)
    if finished is not None:
        if progress is not None:
            progress(len(refs), len(refs), "already prepared")
        return finished
    remove_own_files(out_dir)
    dataset = DatasetBuilder(recipe, source.describe())
    try:
        with contextlib.ExitStack() as stack:
            writers = {name: stack.enter_context(ShardWriter(out_dir, name)) for name in SPLITS}
            results = stack.enter_context(
                contextlib.closing(_load_all(source, refs, min(num_workers, len(refs))))
            )
            for done, (ref, result) in enumerate(zip(refs, results, strict=True), start=1):
                message = dataset.add(result, ref.key, split_of[ref.key], writers)
                if progress is not None:
                    progress(done, len(refs), message)
            manifest = dataset.finish(out_dir, writers, split_of, provenance)
            manifest.save(out_dir)
    except BaseException:
        # The writers have removed their shards; what else was made goes too.
        remove_own_files(out_dir)
        raise
    return manifest


def _with_phases(
    refs: Sequence[EpisodeRef], split_of: dict[str, str], num_phases: int
) -> list[EpisodeRef]:
    """Add the other phases of training episodes, each behind its own, also to ``split_of``."""
    every = []
    for ref in refs:
        every.append(ref)
        if split_of[ref.key] == "train":
            others = [
                replace(ref, key=f"{ref.key}_phase{phase}", phase=phase)
                for phase in range(1, num_phases)
            ]
            split_of.update({other.key: "train" for other in others})
            every += others
    return every


def _finished(out_dir: Path, provenance: dict[str, Any], overwrite: bool) -> Manifest | None:
    """The manifest of a dataset that is there already and is what is asked for."""
    if not (out_dir / MANIFEST_NAME).exists():
        return None
    differing = ["the manifest, which is damaged"]
    with contextlib.suppress(ShardError):
        manifest = Manifest.load(out_dir)
        wanted = json.loads(json.dumps(provenance))
        differing = sorted(
            key
            for key in wanted.keys() | manifest.provenance.keys()
            if wanted.get(key) != manifest.provenance.get(key) and key != "tool"
        )
        complete = all(
            (out_dir / shard.path).is_file()
            and (out_dir / shard.path).stat().st_size == shard.num_bytes
            for shard in manifest.shards
        )
        if not complete:
            differing.append("the shards, which are not all there")
        if not differing:
            return manifest
    if not overwrite:
        raise ShardError(
            f"{out_dir} holds another dataset (it differs in {', '.join(differing)}); choose "
            "another folder, or replace it with --overwrite"
        )
    return None


def _load_all(
    source: Source, refs: Sequence[EpisodeRef], num_workers: int
) -> Generator[Episode | EpisodeError, None, None]:
    """Load episodes in order, a few ahead of the one being written."""
    if num_workers < 2:
        for ref in refs:
            yield _load(source, ref)
        return
    pool = ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(source,),
    )
    waiting: deque[Future[Episode | EpisodeError]] = deque()
    remaining = iter(refs)
    try:
        for ref in islice(remaining, EPISODES_AHEAD * num_workers):
            waiting.append(pool.submit(_load_in_worker, ref))
        while waiting:
            result = waiting.popleft().result()
            for ref in islice(remaining, 1):
                waiting.append(pool.submit(_load_in_worker, ref))
            yield result
    except BrokenProcessPool as error:
        raise SourceError(
            "a process that loads episodes died, most likely for lack of memory; "
            "run again with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _load(source: Source, ref: EpisodeRef) -> Episode | EpisodeError:
    try:
        return source.load(ref)
    except EpisodeError as error:
        return error


_worker_source: Source | None = None


def _start_worker(source: Source) -> None:
    """Keep the source in this worker process, and leave Ctrl-C to the parent."""
    global _worker_source
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _worker_source = source


def _load_in_worker(ref: EpisodeRef) -> Episode | EpisodeError:
    assert _worker_source is not None
    return _load(_worker_source, ref)
