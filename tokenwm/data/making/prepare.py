"""Recipe → a folder of frame shards, by :mod:`~tokenwm.data.shards.tasks` on any engine.

The same recipe and source give the same bytes whatever the number of workers, their order or the
engine. The manifest is written last. A run that is stopped leaves its finished shards, and the next
one of the same recipe and source continues from there; a finished dataset is kept as it is.
"""

import contextlib
from pathlib import Path
from typing import Any

import tokenwm
from tokenwm.data import quality_report
from tokenwm.data.making.builder import DatasetMerger, FrameShardMaker
from tokenwm.data.making.plan import PlannedShard, make_plan
from tokenwm.data.readers.base import Source
from tokenwm.data.recipes.first_look import FirstLook
from tokenwm.data.recipes.recipe import UNKNOWN, Recipe, parse_recipe, takes_recorded
from tokenwm.data.shards import tasks as shard_tasks
from tokenwm.data.shards.manifest import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.shards.tasks import ShardJob, ShowProgress, run_shard_tasks
from tokenwm.data.shards.verify import check_files
from tokenwm.data.storage.folder import Folder, open_folder
from tokenwm.errors import ShardError, SourceError, TokenwmError
from tokenwm.strict import plain


def prepare(
    recipe: Recipe,
    out_dir: Path | str,
    num_workers: int = 0,
    progress: ShowProgress | None = None,
    overwrite: bool = False,
    engine: str = "local",
) -> Manifest:
    """Make a dataset, or continue where an earlier run stopped.

    Args:
        recipe: The recipe of the dataset.
        out_dir: Folder of the dataset, a path or an fsspec URL; made if missing.
        num_workers: Tasks that run at once. The local engine runs fewer than 2 in this process and
            spawns processes for more, so a script that calls this needs
            ``if __name__ == "__main__":``.
        progress: Called after each shard.
        overwrite: Replace a finished dataset of another recipe or source, or one that is damaged;
            then all of its bytes are checked.
        engine: One of :data:`~tokenwm.engines.ENGINES`.

    Returns:
        The manifest, as written. Episodes that break a quality rule are in ``excluded``.

    Raises:
        SourceError: The source is missing, has changed, or none of its episodes can be used.
        RecipeError: The recipe does not fit the source.
        EpisodeError: An episode breaks a rule and the recipe is strict.
        ShardError: The folder holds another dataset, or shards of somebody else, or another process
            is writing there, or writing failed.
        EngineError: The engine is not installed, or lost a worker.
    """
    folder = open_folder(out_dir)
    source = recipe.open_source()
    provenance = _provenance(recipe, source)
    with folder.lock():
        finished = _finished(folder, out_dir, provenance, overwrite)
        if finished is not None:
            shard_tasks.end(folder)  # a run may have been killed right after it wrote the manifest
            return finished
        strict = recipe.quality.strict
        # What a simulator records is alike; a strict run ends at the first odd episode anyway.
        look = FirstLook(source, strict=strict, agreeing=1 if strict or recipe.records else 2)
        plan = make_plan(recipe, source, look)
        folder.remove(MANIFEST_NAME)
        parts = {
            **provenance,
            "schema_version": SCHEMA_VERSION,
            "shards": plan.to_json(),
            "layout": plan.layout,
        }
        shard_tasks.begin(folder, parts, overwrite=overwrite)
        job = ShardJob[PlannedShard](
            folder=folder,
            plan=shard_tasks.digest_of(parts),
            make=FrameShardMaker(source=source, layout=plan.layout, strict=strict),
        )
        merger = DatasetMerger(recipe, source.describe(), plan)
        records = run_shard_tasks(
            job, plan.shards, engine=engine, num_workers=num_workers, progress=progress
        )
        bad: list[str] = []
        for task, record in zip(plan.shards, records, strict=True):
            merger.add(record)
            if record.values["excluded"]:
                bad.append(task.name)
        _check_unchanged(recipe, provenance)
        try:
            manifest = merger.finish(folder, provenance, source.gaps())
        except SourceError:
            # Bad episodes may be mended before the next run, so this run's verdicts are removed.
            for name in bad:
                folder.remove(shard_tasks.record_name(name))
            raise
        quality_report.write(out_dir, manifest, merger.measured)
        manifest = quality_report.with_checksums(out_dir, manifest)
        manifest.save(out_dir)
        shard_tasks.end(folder)
        return manifest


def _provenance(recipe: Recipe, source: Source) -> dict[str, Any]:
    """Return the origin of the data and the way it is made, as JSON values for a manifest."""
    plain_recipe = recipe.to_dict()
    plain_recipe["splits"]["recorded"] = takes_recorded(source.episodes(), recipe.splits)
    values: dict[str, Any] = {
        **source.provenance(),
        "licence": recipe.licence
        if recipe.licence != UNKNOWN
        else source.describe().licence or UNKNOWN,
        "tool": f"tokenwm {tokenwm.__version__}",
        "recipe": plain_recipe,
    }
    return {name: plain(value) for name, value in values.items()}


def _finished(
    folder: Folder, out_dir: Path | str, provenance: dict[str, Any], overwrite: bool
) -> Manifest | None:
    """The manifest of a dataset that is there already and is what is asked for."""
    if folder.size(MANIFEST_NAME) is None:
        return None
    differing = ["the manifest, which is damaged"]
    with contextlib.suppress(ShardError):
        manifest = Manifest.load(out_dir)
        before = {**manifest.provenance, "recipe": _of_today(manifest.provenance.get("recipe"))}
        differing = sorted(
            key
            for key in provenance.keys() | before.keys()
            if provenance.get(key) != before.get(key) and key != "tool"
        )
        if any(folder.size(shard.path) != shard.num_bytes for shard in manifest.shards):
            differing.append("the shards, which are not all there")
        if not differing:
            if overwrite:  # the user may have been told of damage
                ShardReader(out_dir, verify=True, manifest=manifest)
                if any(check_files(folder, manifest)):
                    return None
            return manifest
    if not overwrite:
        raise ShardError(
            f"{out_dir} holds another dataset (it differs in {', '.join(differing)}); choose "
            "another folder, or replace it with --overwrite"
        )
    return None


def _of_today(recipe: Any) -> Any:
    """The recipe in a manifest, with the keys that recipes did not have when it was written."""
    try:
        return parse_recipe(recipe).to_dict()
    except TokenwmError:
        return recipe


def _check_unchanged(recipe: Recipe, provenance: dict[str, Any]) -> None:
    """Check that the source is still what it was when the plan was made."""
    now = _provenance(recipe, recipe.open_source())
    changed = sorted(key for key in provenance if now.get(key) != provenance[key])
    if changed:
        raise SourceError(
            f"{recipe.name}: the source changed while it was read ({', '.join(changed)}); "
            "run the same command again when nothing writes to it any more"
        )
