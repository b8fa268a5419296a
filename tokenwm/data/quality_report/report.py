"""Writing the report, and writing it again for a dataset that has one."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenwm
from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.quality_report import findings as finding
from tokenwm.data.quality_report.page import page
from tokenwm.data.quality_report.rules import outcomes
from tokenwm.data.quality_report.summary import Measured, summarize
from tokenwm.data.readers.one_episode import writable
from tokenwm.data.shards.manifest import GAPS, SPLITS, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.folder import join, open_folder, sha256_of, write_bytes
from tokenwm.errors import ShardError
from tokenwm.strict import build, plain

SCHEMA_VERSION = 1
"""Version of ``quality.json``; see CHANGELOG.md."""
REPORT_NAME = "quality.json"
PAGE_NAME = "quality.html"


def write(folder: Path | str, manifest: Manifest, measured: Measured) -> dict[str, Any]:
    """Write ``quality.json`` and ``quality.html`` of a frame dataset.

    The same shards and figures give the same bytes. The manifest need not be in the folder yet.

    Args:
        folder: Folder with the shards, a path or a URL.
        manifest: Manifest of these shards.
        measured: Key → ``Episode.measured`` of the episodes that were kept, in any order; those
            without figures (other phases of a recording) may be missing or empty.

    Returns:
        The content of ``quality.json``; ``verdict`` is one line for the person at the terminal.

    Raises:
        ShardError: A shard is damaged or a file cannot be written.
    """
    kept = {episode.key for episode in manifest.episodes}
    measured = {key: measured[key] for key in sorted(measured) if measured[key] and key in kept}
    config = _config(manifest)
    reader = ShardReader(folder, manifest=manifest)
    summary = summarize(reader, measured, config.near_duplicate)
    found = finding.find(manifest, summary, measured, config)
    excluded = finding.excluded_recordings(manifest)
    num_missing = sum(gap["num_missing"] for gap in manifest.extra.get(GAPS, []))
    report: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "tool": f"tokenwm {tokenwm.__version__}",
        "name": manifest.name,
        "verdict": finding.verdict(summary["recordings"], len(excluded), found, num_missing),
        "findings": plain(found),
        "rules": outcomes(manifest, summary, measured, config),
        "excluded": [{"key": item.key, "reason": item.reason} for item in excluded],
        "missing": num_missing,
        "splits": {
            split: {"episodes": manifest.num_episodes(split), "steps": manifest.num_steps(split)}
            for split in SPLITS
        },
        "summary": summary,
        "measured": measured,
    }
    files = open_folder(folder)
    write_bytes(files, REPORT_NAME, writable(_dump(report)).encode())
    write_bytes(files, PAGE_NAME, writable(page(reader, report)).encode())
    return report


def with_checksums(folder: Path | str, manifest: Manifest) -> Manifest:
    """The manifest with the checksums of the report in the folder.

    Raises:
        OSError: The report cannot be read.
    """
    files = open_folder(folder)
    checksums = {name: sha256_of(files, name) for name in (REPORT_NAME, PAGE_NAME)}
    return replace(manifest, files={**manifest.files, **checksums})


def rewrite(folder: Path | str) -> dict[str, Any]:
    """Write the report of a finished dataset again, from the figures in its ``quality.json``.

    Its checksums in the manifest are renewed as well.

    Raises:
        ShardError: There is no dataset, its shards are damaged, or it has no readable report.
    """
    with open_folder(folder).lock():
        manifest = Manifest.load(folder)
        report = write(folder, manifest, read(folder)["measured"])
        with_checksums(folder, manifest).save(folder)
    return report


def read(folder: Path | str) -> dict[str, Any]:
    """The content of the ``quality.json`` of a dataset.

    Raises:
        ShardError: There is none, it is damaged, or of another version.
    """
    path = join(folder, REPORT_NAME)
    try:
        report: dict[str, Any] = json.loads(open_folder(folder).read(REPORT_NAME))
        version = report["schema_version"]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ShardError(f"{path} cannot be read ({error}); prepare the dataset again") from error
    if version != SCHEMA_VERSION:
        raise ShardError(
            f"{path} has schema version {version}, this is version {SCHEMA_VERSION}; prepare the "
            "dataset again"
        )
    return report


def _config(manifest: Manifest) -> QualityConfig:
    """The limits in the recipe that made the dataset; its defaults where it is of an older tool."""
    recipe = manifest.provenance.get("recipe", {})
    values = recipe.get("quality", {}) if isinstance(recipe, Mapping) else {}
    config: QualityConfig = build(QualityConfig, values, "quality", allow_defaults=True)
    return config


def _dump(report: Mapping[str, Any]) -> str:
    """JSON that a person can read: one line per episode, since there may be ten thousand."""
    head = json.dumps({**report, "measured": None}, indent=1, ensure_ascii=False, allow_nan=False)
    lines = [
        f"  {json.dumps(key)}: {json.dumps(values, ensure_ascii=False, allow_nan=False)}"
        for key, values in report["measured"].items()
    ]
    body = "{\n" + ",\n".join(lines) + "\n }"
    return head.removesuffix("null\n}") + body + "\n}\n"
