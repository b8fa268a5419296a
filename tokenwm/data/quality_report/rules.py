"""The table of rules: each check with its limit and its outcome."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.quality_report.findings import dimension
from tokenwm.data.quality_report.summary import Measured
from tokenwm.data.shards.manifest import GAPS, Manifest
from tokenwm.pages.words import count


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One data rule.

    Attributes:
        title: Name in the table.
        key: Key of its limit under ``quality:`` in a recipe; empty if it has none.
        failing: Fate of an episode beyond the limit: ``left out``, or ``reported`` only.
    """

    title: str
    key: str = ""
    failing: Literal["left out", "reported"]


RULES = (
    Rule(title="all there that the source declares", failing="reported"),
    Rule(title="files whole, video as long as its table", failing="left out"),
    Rule(title="rows without a picture at the end", key="allow_short_video", failing="left out"),
    Rule(title="no NaN, infinity or missing value", failing="left out"),
    Rule(title="fixed rate", key="timestamp_tolerance", failing="left out"),
    Rule(title="shortest episode, steps", key="min_steps", failing="left out"),
    Rule(title="camera or state that never changes", key="allow_frozen", failing="left out"),
    Rule(title="still while the robot moves, s", key="max_frozen_seconds", failing="left out"),
    Rule(title="encoder out and back, usual steps", key="max_spike", failing="left out"),
    Rule(title="step of the state", key="max_state_step", failing="left out"),
    Rule(title="absolute action", key="max_action_abs", failing="left out"),
    Rule(title="lag of state behind action, s", key="max_lag", failing="left out"),
    Rule(title="action at its extremes, part", key="max_saturation", failing="left out"),
    Rule(title="repeated frames, part", failing="reported"),
    Rule(title="state dimensions that never change", failing="reported"),
    Rule(title="equal recordings", failing="reported"),
    Rule(title="near duplicates, deviations", key="near_duplicate", failing="reported"),
    Rule(title="distinct starts, part", key="min_distinct_starts", failing="reported"),
    Rule(title="action coverage, part", key="min_action_coverage", failing="reported"),
)
"""In the order of the page; docs/quality.md has the same table with remedies."""


def outcomes(
    manifest: Manifest, summary: Mapping[str, Any], measured: Measured, config: QualityConfig
) -> list[dict[str, Any]]:
    """Every rule with its limit and what came out, in words; JSON values."""
    worst, lag, starts = summary["worst"], summary["lag"], summary["starts"]

    def most(name: str, unit: str = "", field: str = "state") -> str:
        if name not in worst:
            return "not measured"
        about = worst[name]
        place = about["episode"]
        if about["dimension"] is not None:
            place += f", {dimension(manifest, field, about['dimension'])}"
        return f"at most {about['value']:.3g}{unit} ({place})" if about["value"] else "none"

    coverage = [about["coverage"] for about in summary["actions"]["dimensions"]]
    constant = {i for m in measured.values() if m["state"] for i in m["state"]["constant"]}
    equal, near = summary["duplicates"]["equal"], summary["duplicates"]["near"]
    lengths = [episode.num_steps for episode in manifest.episodes]
    short = sum(bool(m.get("rows_without_picture")) for m in measured.values())
    texts = {
        "all there that the source declares": f"{len(manifest.extra.get(GAPS, []))} difference(s)"
        if manifest.extra.get(GAPS)
        else "yes",
        "timestamp_tolerance": most("time_deviation", " s"),
        "min_steps": f"shortest has {min(lengths)}",
        "allow_short_video": f"{short} episode(s) shortened" if short else "none",
        "max_frozen_seconds": most("frozen", " s"),
        "max_spike": most("spike"),
        "max_state_step": most("step"),
        "max_saturation": most("saturation", field="action"),
        "max_lag": "cannot be told"
        if lag is None
        else f"{lag['lowest']:.3g} to {lag['highest']:.3g} s",
        "repeated frames, part": ", ".join(
            f"{camera} {about['kept']:.3g}"
            + ("" if about["source"] is None else f" (in the source {about['source']:.3g})")
            for camera, about in summary["cameras"].items()
        ),
        "state dimensions that never change": f"{len(constant) or 'none'}",
        "equal recordings": f"{sum(map(len, equal)) or 'none'}",
        "near_duplicate": count(len(near), "pair") if near else "none",
        "min_distinct_starts": f"{starts['distinct'] / starts['episodes']:.3g} "
        f"({starts['distinct']} of {starts['episodes']})",
        "min_action_coverage": f"{min(coverage):.3g} to {max(coverage):.3g}",
    }
    return [
        {
            "rule": rule.title,
            "key": rule.key,
            "limit": getattr(config, rule.key) if rule.key else None,
            "failing": rule.failing,
            "outcome": texts.get(rule.key or rule.title, ""),
        }
        for rule in RULES
    ]
