"""``tokenwm info PATH``: what something that tokenwm made is, and where it came from."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console

from tokenwm.checkpoint import CONFIG, VOCABULARY, WEIGHTS, model_folder, read_provenance
from tokenwm.cli.console import console_of, give, printable, say, show_table
from tokenwm.cli.describe import of_manifest
from tokenwm.cli.options import parse
from tokenwm.cli.training.run_folder import CONFIG_NAME, last_checkpoint, parameters_of
from tokenwm.control.proposed_limits import propose_limits
from tokenwm.data.quality_report import PAGE_NAME, REPORT_NAME
from tokenwm.data.quality_report import read as read_quality
from tokenwm.data.shards.manifest import MANIFEST_NAME, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.data.storage.atomic import open_atomically
from tokenwm.data.storage.folder import is_url, join, open_folder, sha256_of
from tokenwm.errors import ShardError, TokenwmError
from tokenwm.heads.folder import HEAD, HEADS
from tokenwm.parent import lineage
from tokenwm.scaling.runs.runs import RESULT_FILE
from tokenwm.strict import dump_yaml, parse_yaml

SHOWN_ORIGIN = (
    *("steps", "windows_seen", "data", "data_manifest_sha256", "tokenwm_version", "code_revision"),
)
SHOWN_FIGURES = ("val/loss", "val/psnr", "val/frame_nll", "val/frame_accuracy", "train/loss")


def main(argv: list[str]) -> int:
    """Run the verb; returns the exit code."""
    arguments = parse("info", argv)
    found = describe(arguments.path)
    if arguments.limits is not None:
        write_limits(arguments.limits, found)
    show(console_of(arguments), found)
    give(arguments, found)
    return 0


def describe(path: Path | str) -> dict[str, Any]:
    """Describe a dataset, checkpoint, run, quick start, sweep, plan of one, or report.

    Args:
        path: File, folder, or URL of a dataset.

    Returns:
        Plain values; ``is`` says in words what it is, ``next`` what to do with it.

    Raises:
        TokenwmError: It is none of these, or damaged.
    """
    if open_folder(path).size(MANIFEST_NAME) is not None:
        return _dataset(path)
    path = Path(path)
    if is_url(path) or not path.exists():
        raise TokenwmError(f"{path} does not exist, or is no dataset")
    if path.is_file():
        return _file(path)
    kinds = (
        (path / CONFIG, _checkpoint),
        (path / "plan.json", _quickstart),
        (path / "sweep.yaml", _sweep),
        (path / "metrics.json", _report),
        (path / "fit.json", _fit),
        (path / "model" / CONFIG, _run),
        (path / "checkpoints", _run),
        (path / "logs" / CONFIG_NAME, _run),
    )
    for mark, tell in kinds:
        if mark.exists():
            return {"path": str(path), **tell(path)}
    raise TokenwmError(
        f"{path} is no dataset, checkpoint, run, sweep or report of tokenwm; of recordings, "
        f"tokenwm inspect {path} says what they hold"
    )


def write_limits(path: Path, found: Mapping[str, Any]) -> None:
    """Write the limits that a dataset proposes.

    Raises:
        TokenwmError: It proposes none.
    """
    if "limits" not in found:
        raise TokenwmError(
            f"{found['path']} proposes no limits: frame shards in a local folder do, whose actions "
            "are quantities"
        )
    with open_atomically(path) as file:
        file.write(dump_yaml(found["limits"]).encode())


def _dataset(path: Path | str) -> dict[str, Any]:
    manifest, folder = Manifest.load(path), open_folder(path)
    found = {"path": str(path), "is": f"a dataset of {manifest.kind}", **of_manifest(manifest)}
    found["manifest_sha256"] = sha256_of(folder, MANIFEST_NAME)
    if folder.size(REPORT_NAME) is not None:
        found |= {"quality": read_quality(path)["verdict"], "page": join(path, PAGE_NAME)}
    if manifest.kind == "frames":
        has_limits = manifest.features["action"].kind == "continuous"
        if has_limits and manifest.num_episodes("train") and not is_url(path):
            with suppress(ShardError):  # what is damaged is told by verify-shards
                found["limits"] = propose_limits(ShardReader(path)).to_dict()
        return {**found, "next": f"tokenwm tokenizer fit --size small --data {path} --out DIR"}
    return {**found, "next": f"tokenwm world-model fit --size small --data {path} --out DIR"}


def _checkpoint(path: Path) -> dict[str, Any]:
    config = parse_yaml((path / CONFIG).read_text(encoding="utf-8"))
    kind, origin = str(config.get("kind")).replace("_", " "), read_provenance(path)
    data = origin.get("data_provenance") or {}
    found = {
        "is": f"a checkpoint of a {kind}",
        "parameters": parameters_of(path / WEIGHTS),
        "config": config,
        **{name: origin.get(name) for name in SHOWN_ORIGIN},
        "parents": [_parent(each) for each in list(lineage(origin))[1:]],
        "data_source": data.get("source"),
        "licence": data.get("licence"),
        "figures": {k: v for k, v in origin.get("metrics", {}).items() if k in SHOWN_FIGURES},
    }
    run = path.parent if path.name == "model" else path
    if config.get("kind") != "world_model":
        frames = origin.get("data", "FRAMES")
        return {**found, "next": f"tokenwm tokenize {frames} --tokenizer {run} --out DIR"}
    vocabulary = json.loads((path / VOCABULARY).read_text(encoding="utf-8"))
    found["actions_per_step"] = vocabulary.get("actions_per_step", 1)
    found["heads"] = sorted(head.parent.name for head in path.glob(f"{HEADS}/*/{HEAD}"))
    return {**found, "next": f"tokenwm evaluate {run}"}


def _parent(origin: Mapping[str, Any]) -> str:
    """A model that another was fine-tuned from, in a few words."""
    weights, steps = str(origin.get("weights_sha256"))[:12], origin.get("steps")
    return f"{weights}… ({steps} steps on {origin.get('data_name')}, {origin.get('data')})"


def _run(path: Path) -> dict[str, Any]:
    last = last_checkpoint(path)
    found: dict[str, Any] = {"is": "a training run", "resumes_from": last and str(last)}
    if (path / "model" / CONFIG).is_file():
        model = _checkpoint(model_folder(path))
        then = model.pop("next")
        return {**found, "model": {"path": str(path / "model"), **model}, "next": then}
    return {**found, "next": "its model is written at the end; the same command continues"}


def _quickstart(path: Path) -> dict[str, Any]:
    plan = json.loads((path / "plan.json").read_text(encoding="utf-8"))
    stages = ("frames", "tokenizer", "tokens", "world_model", "report")
    return {
        "is": "a quick start",
        "settings": plan.get("settings"),
        "seconds_used": plan.get("seconds_used"),
        "holds": [name for name in stages if (path / name).exists()],
        "next": f"tokenwm info {path / 'world_model'}, or {path / 'report' / 'index.html'}",
    }


def _sweep(path: Path) -> dict[str, Any]:
    results = sorted(path.glob(f"*/*/{RESULT_FILE}")) + sorted(path.glob(f"*/{RESULT_FILE}"))
    statuses = [json.loads(file.read_text(encoding="utf-8")).get("status") for file in results]
    plan = _plan(path / "sweep.yaml")
    return {
        **plan,
        "is": "a sweep",
        "results": dict(Counter(statuses)),
        "next": f"tokenwm sweep fit {path}",
    }


def _plan(path: Path) -> dict[str, Any]:
    values = parse_yaml(path.read_text(encoding="utf-8"))
    if not isinstance(values, Mapping) or not {"sizes", "training"} <= values.keys():
        raise TokenwmError(f"{path} is no plan of a sweep")
    return {
        "is": "a plan of a sweep",
        "name": values.get("name"),
        "data": values.get("data"),
        "sizes": [size.get("name") for size in values["sizes"]],
        "training": values["training"],
        "next": f"tokenwm sweep run {path} --out DIR",
    }


def _report(path: Path) -> dict[str, Any]:
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))
    origin = metrics.get("provenance", {})
    return {
        "is": "a report of an evaluation",
        "model": origin.get("model_folder"),
        "data": origin.get("data_folder"),
        "data_manifest_sha256": origin.get("data_manifest_sha256"),
        "episodes": metrics.get("num_episodes"),
        "starts": metrics.get("num_starts"),
        "horizon": len(metrics.get("horizons", ())),
        "horizon_seconds": (metrics.get("horizon_seconds") or [None])[-1],
        "page": str(path / "index.html"),
        "next": f"tokenwm report {path} writes the page again",
    }


def _fit(path: Path) -> dict[str, Any]:
    values = json.loads((path / "fit.json").read_text(encoding="utf-8"))
    return {"is": "the fit of a sweep", "holds": sorted(values), "page": str(path / "index.html")}


def _file(path: Path) -> dict[str, Any]:
    values = parse_yaml(path.read_text(encoding="utf-8")) if path.suffix == ".yaml" else None
    if isinstance(values, Mapping) and "source" in values:
        then = f"tokenwm prepare {path} --out DIR"
        return {"path": str(path), "is": "a recipe", "name": values.get("name"), "next": then}
    if isinstance(values, Mapping) and "sizes" in values:
        return {"path": str(path), **_plan(path)}
    raise TokenwmError(
        f"{path} is no recipe, and no plan of a sweep; of recordings, tokenwm inspect {path} says "
        "what they hold"
    )


def show(console: Console, found: Mapping[str, Any]) -> None:
    """Print what was found, a line for each value."""
    lines = _lines({k: v for k, v in found.items() if k != "next"})
    show_table(console, ((printable(name, "bold"), text) for name, text in lines), box=None)
    if "next" in found:
        say(console, f"next: {found['next']}")


def _lines(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if value is None or value in ({}, []):
            continue
        name = indent + str(key).replace("_", " ")
        if isinstance(value, Mapping) and any(isinstance(v, Mapping) for v in value.values()):
            yield name, ""
            yield from _lines(value, indent + "  ")
        elif isinstance(value, Mapping):
            yield name, ", ".join(f"{k} {_text(v)}" for k, v in value.items())
        else:
            yield name, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_text, value)) or "()"
    return str(value)
