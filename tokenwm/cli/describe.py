"""A dataset in a few words, from its manifest, as plain values."""

from typing import Any

from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.strict import plain


def of_manifest(manifest: Manifest) -> dict[str, Any]:
    """Contents and origin of a dataset, as plain values."""
    provenance, extra = manifest.provenance, manifest.extra
    splits = {}
    for split in SPLITS:
        steps = manifest.num_steps(split)
        shards = [shard.num_bytes for shard in manifest.shards if shard.split == split]
        splits[split] = {
            "episodes": manifest.num_episodes(split),
            "steps": steps,
            "minutes": round(steps / manifest.control_rate / 60, 2),
            "shards": len(shards),
            "bytes": sum(shards),
        }
    found: dict[str, Any] = {
        "kind": manifest.kind,
        "name": manifest.name,
        "rate": manifest.control_rate,
        "cameras": list(manifest.cameras),
        "splits": splits,
        "features": {
            name: {k: v for k, v in plain(feature).items() if v or k == "shape"}
            for name, feature in manifest.features.items()
        },
        "excluded": {item.key: item.reason for item in manifest.excluded},
        "source": provenance.get("source"),
        "licence": provenance.get("licence"),
        "made_by": provenance.get("tool"),
        "schema_version": manifest.schema_version,
    }
    if manifest.kind == "tokens":
        names = ("tokenizer_hash", "frames_manifest", "shifted_copies")
        found |= {name: extra[name] for name in names if name in extra}
        vocabulary = extra.get("vocabulary", {})
        found["codebook_size"] = vocabulary.get("codebook_size")
        found["grid"] = vocabulary.get("grid")
    return found
