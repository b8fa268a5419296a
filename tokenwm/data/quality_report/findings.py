"""Things that deserve attention in a dataset, with what is to be done about each.

A finding is a sentence for the person who collected the data, with a remedy. Levels: ``wrong``
(data was left out, or training on it would mislead) and ``look`` (may be right; somebody who was
there can tell).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.quality_report.summary import Measured
from tokenwm.data.readers.base import PHASE
from tokenwm.data.shards.manifest import GAPS, Excluded, Manifest
from tokenwm.pages.words import count, few

Level = Literal["wrong", "look"]

REPEATED = 0.05
"""Report a camera of which a larger part of the frames repeats the one before."""
SATURATED = 0.2
"""Report an action that stands at its extremes in a larger part of all steps."""
SURE = 0.5
"""A lag with a smaller correlation is shown but not judged."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that deserves attention.

    Attributes:
        rule: Name of the rule, see ``RULES``.
        level: ``wrong`` or ``look``.
        text: The finding, in a sentence.
        remedy: A sentence about what to do.
        episodes: Keys of the episodes concerned; empty for all.
    """

    rule: str
    text: str
    remedy: str
    level: Level = "look"
    episodes: tuple[str, ...] = ()


def find(
    manifest: Manifest, summary: Mapping[str, Any], measured: Measured, config: QualityConfig
) -> list[Finding]:
    """Everything that deserves attention, the worst first."""
    found = [
        *_not_there(manifest),
        *_left_out([item.key for item in excluded_recordings(manifest)]),
        *_duplicates(manifest, summary),
        *_lag(summary),
        *_repeated(summary),
        *_sensors(manifest, measured),
        *_actions(manifest, summary, config),
        *_starts(summary, config),
    ]
    return sorted(found, key=lambda finding: finding.level != "wrong")


def verdict(
    num_kept: int, num_excluded: int, findings: Sequence[Finding], num_missing: int = 0
) -> str:
    """The first sentence of the page: is the data fine?

    Args:
        num_kept: Recordings in the dataset.
        num_excluded: Recordings that were left out.
        findings: All that deserves attention.
        num_missing: Recordings that the source declares and does not hold.
    """
    wrong = sum(finding.level == "wrong" for finding in findings)
    look = len(findings) - wrong
    total = num_kept + num_excluded + num_missing
    inside = f"{num_kept:,} of {count(total, 'episode')} are in" if total > num_kept else ""
    inside = inside or (f"All {num_kept:,} episodes are in" if total > 1 else "The episode is in")
    if not findings:
        return f"{inside}, and nothing looks wrong."
    parts = []
    if wrong:
        parts.append(f"{count(wrong, 'thing')} should be mended")
    if look:
        parts.append(f"{count(look, 'thing')} deserve{'s' if look == 1 else ''} a look")
    return f"{inside}; {' and '.join(parts)}."


def excluded_recordings(manifest: Manifest) -> list[Excluded]:
    """Recordings that were left out, each once and not again for each of its other phases."""
    keys = {item.key for item in manifest.excluded}
    return [
        item for item in manifest.excluded if item.key.partition(PHASE)[0] not in keys - {item.key}
    ]


def dimension(manifest: Manifest, field: str, index: int) -> str:
    """The name of a dimension, else ``action[3]``."""
    names = manifest.features[field].names if field in manifest.features else ()
    return names[index] if index < len(names) else f"{field}[{index}]"


def _not_there(manifest: Manifest) -> Iterator[Finding]:
    for gap in manifest.extra.get(GAPS, []):
        yield Finding(
            rule="declared",
            level="wrong",
            text=f"What the source declares and what is there differ: {gap['text']}.",
            remedy="Copy or download what is missing, or mend what the source says about itself, "
            "then prepare the dataset again.",
        )


def _left_out(keys: Sequence[str]) -> Iterator[Finding]:
    if keys:
        yield Finding(
            rule="excluded",
            level="wrong",
            text=f"{count(len(keys), 'episode')} could not be used: {few(keys)}.",
            remedy="The table below gives the reason for each; mend or record them again, then "
            "prepare the dataset again.",
            episodes=tuple(keys),
        )


def _duplicates(manifest: Manifest, summary: Mapping[str, Any]) -> Iterator[Finding]:
    split_of = {episode.key: episode.split for episode in manifest.episodes}
    equal = [set(group) for group in summary["duplicates"]["equal"]]
    pairs = [{pair["first"], pair["second"]} for pair in summary["duplicates"]["near"]]
    near = [pair for pair in pairs if not any(pair <= group for group in equal)]
    for rule, same, groups in (
        ("duplicates", "the same recording", equal),
        ("near duplicates", "almost the same motion", near),
    ):
        if not groups:
            continue
        keys = sorted(set().union(*groups))
        leaks = any(len({split_of[key] for key in group}) > 1 for group in groups)
        yield Finding(
            rule=rule,
            level="wrong" if leaks else "look",
            text=f"{count(len(keys), 'episode')} hold {same} as another: {few(keys)}."
            + (" Some are in different splits, so held-out figures are too good." if leaks else ""),
            remedy="Keep one of each with source.episodes, or record others.",
            episodes=tuple(keys),
        )


def _lag(summary: Mapping[str, Any]) -> Iterator[Finding]:
    lag = summary["lag"]
    if lag is None or lag["correlation"] < SURE:
        return
    if lag["rows"] < 0.5:
        yield Finding(
            rule="lag",
            level="wrong",
            text=f"The state does not follow the action: it is there {_late(-lag['seconds'])} "
            "the action that should have caused it.",
            remedy="Record the action when it is sent, not when it has been carried out, and give "
            "both the time at which they happened.",
        )


def _late(seconds: float) -> str:
    return f"{seconds:.3f} s before" if seconds > 0.0005 else "together with"


def _repeated(summary: Mapping[str, Any]) -> Iterator[Finding]:
    for camera, about in summary["cameras"].items():
        kept, source = about["kept"], about["source"] or 0.0
        if max(kept, source) <= REPEATED:
            continue
        text = f"{100 * kept:.0f} % of the frames equal the one before."
        if source > REPEATED:
            text = f"{100 * source:.0f} % of the source's frames equal the one before, and " + (
                f"{100 * kept:.0f} % of those kept."
            )
        yield Finding(
            rule="repeated frames",
            text=f"Camera {camera}: {text}",
            remedy="A camera slower than its recording, dropped frames, or an encoder that skips "
            "small changes"
            + ("; at this control rate it does no harm." if kept <= REPEATED else "."),
        )


def _sensors(manifest: Manifest, measured: Measured) -> Iterator[Finding]:
    cameras: dict[str, list[str]] = {}
    frozen_state, constant = [], dict[int, list[str]]()
    for key, values in measured.items():
        for camera, about in values["cameras"].items():
            if about["frozen"]:
                cameras.setdefault(camera, []).append(key)
        state = values["state"]
        if state is not None:
            if state["frozen"]:
                frozen_state.append(key)
            for index in state["constant"]:
                constant.setdefault(index, []).append(key)
    for camera, still in cameras.items():
        yield Finding(
            rule="frozen",
            text=f"Camera {camera} stands still for a while in {count(len(still), 'episode')}: "
            f"{few(still)}.",
            remedy="Right if nothing was to be seen moving; the timeline shows when.",
            episodes=tuple(still),
        )
    if frozen_state:
        yield Finding(
            rule="frozen",
            text=f"The state stands still for a while in {count(len(frozen_state), 'episode')}: "
            f"{few(frozen_state)}.",
            remedy="Right if the robot did not move; the timeline shows when.",
            episodes=tuple(frozen_state),
        )
    yield from _constant(manifest, constant, len(measured))


def _constant(
    manifest: Manifest, constant: Mapping[int, Sequence[str]], num_recordings: int
) -> Iterator[Finding]:
    """Dimensions of the state that never change; those of the same episodes in one sentence."""
    together: dict[tuple[str, ...], list[str]] = {}
    for index, keys in sorted(constant.items()):
        together.setdefault(tuple(keys), []).append(dimension(manifest, "state", index))
    for keys, names in together.items():
        everywhere = len(keys) == num_recordings
        never = f"{few(names)} never change{'s' if len(names) == 1 else ''}"
        yield Finding(
            rule="constant state",
            text=f"{never} in any episode."
            if everywhere
            else f"{never} in {few(keys)}, but {'does' if len(names) == 1 else 'do'} elsewhere.",
            remedy="Right for joints that are not used."
            if everywhere
            else "Look for an encoder that was not connected there.",
            episodes=() if everywhere else keys,
        )


def _actions(
    manifest: Manifest, summary: Mapping[str, Any], config: QualityConfig
) -> Iterator[Finding]:
    held, narrow = [], []
    for index, about in enumerate(summary["actions"]["dimensions"]):
        name = dimension(manifest, "action", index)
        switch = about["at_low"] is not None and about["at_low"] + about["at_high"] >= 1
        if about["at_low"] is not None and SATURATED < about["at_low"] + about["at_high"] < 1:
            held.append(f"{name} in {100 * (about['at_low'] + about['at_high']):.0f} %")
        if about["coverage"] < config.min_action_coverage and not switch:
            narrow.append(f"{name} ({100 * about['coverage']:.0f} %)")
    if held:
        yield Finding(
            rule="saturation",
            text=f"Actions stand at their smallest or largest value: {few(held)} of the steps.",
            remedy="Right for a hand that is fully open or closed; else widen the limits of the "
            "controller or move less abruptly.",
        )
    if narrow:
        yield Finding(
            rule="coverage",
            text=f"Actions use little of their own range: {few(narrow)}.",
            remedy="A model learns the effect of what it has seen; record more varied motion there "
            "if the robot shall do more.",
        )


def _starts(summary: Mapping[str, Any], config: QualityConfig) -> Iterator[Finding]:
    about = summary["starts"]
    if about["distinct"] < config.min_distinct_starts * about["episodes"]:
        yield Finding(
            rule="starts",
            text=f"Episodes start from {count(about['distinct'], 'distinct place')} only "
            f"({about['episodes']} looked at).",
            remedy="Vary where the robot and the objects are at the beginning.",
        )
