"""Cards (``README.md``): where a checkpoint or a dataset comes from and how good it is."""

import json
from collections.abc import Mapping
from typing import Any

import tokenwm
from tokenwm.hub.private import without_private
from tokenwm.pages.words import seconds
from tokenwm.synthesis.lerobot.description import hub_licence

SHOWN_HORIZONS = (1, 5, 10, 20)


def make_card(
    kind: str,
    repository: str,
    provenance: Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
) -> str:
    """Return the card.

    Args:
        kind: ``model`` or ``dataset``.
        repository: ``owner/name``.
        provenance: Provenance of the checkpoint or the dataset.
        metrics: The report's ``metrics.json``, if there is one.
    """
    provenance = without_private(dict(provenance))
    data = provenance.get("data_provenance", provenance)
    licence = str(data.get("licence", "unknown"))
    name = repository.split("/")[-1]
    how = (
        f"tokenwm pull {repository} --out {name}\n```\n\n```python\nimport tokenwm\n\n"
        f'model = tokenwm.load("{name}")'
        if kind == "model"
        else f"tokenwm pull {repository} --dataset --out {name}\ntokenwm verify-shards {name}"
    )
    facts = {
        "Made with": provenance.get("tool", f"tokenwm {tokenwm.__version__}"),
        "Data": provenance.get("data_name") or data.get("recipe", {}).get("name"),
        "Source": data.get("source"),
        "Licence of the data": licence,
        "Steps of training": provenance.get("steps"),
    }
    lines = [f"- {key}: {_plain(value)}" for key, value in facts.items() if value is not None]
    front = f"license: {hub_licence(licence)}\nlicense_name: {json.dumps(licence)}\n"
    return (
        f"---\n{front}tags: [tokenwm, robotics, world-model]\n---\n\n# {name}\n\n"
        + "\n".join(lines)
        + f"\n\n{_figures(metrics)}## Use\n\n```sh\n{how}\n```\n"
    )


def _figures(metrics: Mapping[str, Any] | None) -> str:
    if metrics is None:
        return "No report was pushed: nothing is claimed about its quality.\n\n"
    horizons = [h for h in SHOWN_HORIZONS if h in metrics["horizons"]]
    rate = metrics["control_rate"]
    heads = [f"{h} step{'s' * (h > 1)} ({seconds(h / rate)})" for h in horizons]
    tables = []
    for title, key in (("where pixels change", "psnr_changed"), ("the whole picture", "psnr")):
        curves = metrics.get(key)
        if curves is None:  # a report of an older version
            continue
        rows = [f"| {title} | " + " | ".join(heads) + " |", "|---" * (len(horizons) + 1) + "|"]
        for name, curve in curves.items():
            means = [curve["mean"][metrics["horizons"].index(h)] for h in horizons]
            cells = ["–" if mean is None else f"{mean:.1f}" for mean in means]
            rows.append(f"| {_plain(name)} | " + " | ".join(cells) + " |")
        tables.append("\n".join(rows))
    count, least = metrics["num_episodes"], metrics["intervals"]["min_episodes_for_claims"]
    caution = f"; fewer than {least}, so nothing can be claimed" if count < least else ""
    return (
        f"## Quality\n\nPSNR in dB by imagined steps, over {count} held-out episodes{caution}. "
        "All but `model` are baselines or bounds; where pixels change persistence is wrong by "
        "definition.\n\n" + "\n\n".join(tables) + "\n\n"
    )


def _plain(value: Any) -> str:
    """Escape a text so that it contains no markup."""
    return "".join(
        " " if ord(c) < 32 else f"\\{c}" if c in "\\`*_[]<>|#" else c for c in str(value)
    )
