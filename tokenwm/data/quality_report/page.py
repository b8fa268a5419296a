"""The page of the report: one HTML file with every picture inside, so that it can be forwarded.

Pictures are capped, so the page of ten thousand episodes is as large as that of fifty; the page
says what it leaves out.
"""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tokenwm.data.quality_report.findings import dimension
from tokenwm.data.quality_report.summary import recordings
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.reader import ShardReader
from tokenwm.pages.render import render
from tokenwm.pages.words import count

MAX_PICTURES = 72
"""Pictures on the page: three per episode and camera."""
MAX_LINES = 40
"""Episodes in the timeline."""
MAX_EXCLUDED = 200
MAX_DIMENSIONS = 64
MAX_THUMBNAIL = 96
"""Height of a thumbnail, pixels; larger frames are made smaller."""


def page(reader: ShardReader, report: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        reader: The shards, for the pictures.
        report: The content of ``quality.json``.
    """
    manifest, summary, excluded = reader.manifest, report["summary"], report["excluded"]
    keys = recordings(manifest, report["measured"])
    flagged = {key for found in report["findings"] for key in found["episodes"]}
    per_episode = 3 * max(1, len(manifest.cameras))
    pictured = choose(keys, flagged, MAX_PICTURES // per_episode) if manifest.cameras else []
    tasks = {key: str(reader.metadata(key).get("task", "")) for key in pictured}
    one_task = next(iter(tasks.values()), "") if len(set(tasks.values())) == 1 else ""
    lines = choose(keys, flagged, MAX_LINES)
    longest = max(_seconds(reader, report, key) for key in lines)
    levels = [found["level"] for found in report["findings"]]
    return render(
        "data/quality_report/quality.html",
        title=f"{manifest.name}: data quality",
        heading=f"{manifest.name}: is the data fine?",
        subtitle=_subtitle(manifest, keys),
        level="wrong" if "wrong" in levels else "look" if levels else "",
        verdict=report["verdict"],
        findings=report["findings"],
        tiles=_tiles(report, Counter(reader.episode(key).split for key in keys)),
        excluded_note=_note(min(len(excluded), MAX_EXCLUDED), len(excluded)),
        excluded=[
            (item["key"], item["reason"].removeprefix(f"episode {item['key']}: "))
            for item in excluded[:MAX_EXCLUDED]
        ],
        task=one_task,
        pictures_note=_note(len(pictured), len(keys)) if manifest.cameras else "No camera.",
        episodes=[
            _episode(reader, key, key in flagged, "" if task == one_task else task)
            for key, task in tasks.items()
        ],
        timeline_note=_note(len(lines), len(keys)),
        longest=f"{longest:.3g} s",
        lines=[_line(reader, report, key, longest) for key in lines],
        lag_text=_lag_text(summary["lag"]),
        lags=_lags(manifest, summary["lag"]),
        actions_text=_actions_text(manifest, summary["actions"]),
        actions=_actions(manifest, summary["actions"]),
        rules=report["rules"],
        tool=report["tool"],
    )


def choose(keys: Sequence[str], flagged: set[str], most: int) -> list[str]:
    """At most ``most`` keys in their order: those flagged first, then evenly spread ones."""
    first = [key for key in keys if key in flagged][:most]
    rest = [key for key in keys if key not in flagged]
    room = most - len(first)
    if len(rest) > room:
        rest = [rest[index] for index in np.linspace(0, len(rest) - 1, room).round().astype(int)]
    chosen = {*first, *rest}
    return [key for key in keys if key in chosen]


def _note(shown: int, all_of_them: int) -> str:
    if shown == all_of_them:
        return ""
    return f"Shown are {shown:,} of {all_of_them:,}; the others are in quality.json."


def _subtitle(manifest: Manifest, keys: Sequence[str]) -> str:
    provenance = manifest.provenance
    lengths = {episode.key: episode.num_steps for episode in manifest.episodes}
    minutes = sum(lengths[key] for key in keys) / manifest.control_rate / 60
    parts = [
        f"{minutes:.1f} minutes recorded; {count(sum(lengths.values()), 'step')} at "
        f"{manifest.control_rate:g} Hz",
        f"cameras: {', '.join(manifest.cameras) or 'none'}",
        f"source: {provenance.get('source', 'unknown')}",
        f"licence: {provenance.get('licence', 'unknown')}",
    ]
    return " · ".join(parts)


def _tiles(report: Mapping[str, Any], num_of: Mapping[str, int]) -> list[tuple[str, str, str]]:
    summary = report["summary"]
    lag, starts, actions = summary["lag"], summary["starts"], summary["actions"]
    cameras = summary["cameras"].values()
    repeated = max((about["kept"] for about in cameras), default=None)
    in_source = max((about["source"] or 0.0 for about in cameras), default=0.0)
    effective = actions["effective_dimensions"]
    num_missing = report.get("missing", 0)
    missing = f"{num_missing:,} declared and not there; " if num_missing else ""
    return [
        (
            "recordings in",
            f"{summary['recordings']:,}",
            f"{len(report['excluded']):,} left out; {missing}"
            + ", ".join(f"{num_of.get(split, 0)} {split}" for split in SPLITS),
        ),
        (
            "state follows action by",
            "–" if lag is None else f"{lag['seconds']:.2f} s",
            "cannot be told"
            if lag is None
            else f"{lag['lowest']:.2f} to {lag['highest']:.2f} s over episodes",
        ),
        (
            "repeated frames",
            "–" if repeated is None else f"{100 * repeated:.1f} %",
            f"{100 * in_source:.0f} % in the source" if in_source else "equal the one before",
        ),
        (
            "distinct starts",
            f"{starts['distinct']:,} of {starts['episodes']:,}",
            f"spread {starts['spread']:.2f} of where episodes ever go",
        ),
        (
            "action dimensions",
            f"{len(actions['dimensions'])}" if effective is None else f"{effective:.1f}",
            "discrete"
            if effective is None
            else f"independent ones, of {len(actions['dimensions'])} recorded",
        ),
    ]


def _episode(reader: ShardReader, key: str, is_flagged: bool, task: str) -> dict[str, Any]:
    """Pictures of an episode: first, middle and last of each camera."""
    about = reader.episode(key)
    moments = [0, about.num_steps // 2, about.num_steps - 1]
    frames = np.stack([reader.frames(key, step, step + 1)[0] for step in moments], axis=1)
    strips = [
        (camera, [(step, thumbnail(frame)) for step, frame in zip(moments, strip, strict=True)])
        for camera, strip in zip(reader.manifest.cameras, frames, strict=True)
    ]
    seconds = about.num_steps / reader.manifest.control_rate
    note = f"{about.split}, {seconds:.1f} s" + (f" · {task}" if task else "")
    return {"key": key, "flagged": is_flagged, "strips": strips, "note": note}


def thumbnail(frame: NDArray[np.uint8]) -> bytes:
    """A frame ``(H, W, 3)`` as a small JPEG."""
    image = Image.fromarray(frame)
    if image.height > MAX_THUMBNAIL:
        width = max(1, round(image.width * MAX_THUMBNAIL / image.height))
        image = image.resize((width, MAX_THUMBNAIL), Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85, subsampling=0)
    return buffer.getvalue()


def _seconds(reader: ShardReader, report: Mapping[str, Any], key: str) -> float:
    """Length of a recording, or of the episode where it was not measured."""
    measured = report["measured"].get(key)
    if measured is not None:
        return float(measured["seconds"])
    return reader.episode(key).num_steps / reader.manifest.control_rate


def _line(
    reader: ShardReader, report: Mapping[str, Any], key: str, longest: float
) -> dict[str, Any]:
    """An episode in the timeline, with marks where a sensor stood still."""
    seconds = _seconds(reader, report, key)
    measured = report["measured"].get(key) or {"cameras": {}, "state": None, "lag": None}
    cameras, state, lag = measured["cameras"], measured["state"], measured["lag"]
    sensors = [("camera", f"camera {name}", item) for name, item in cameras.items()]
    sensors += [("state", "state", state)] if state else []
    repeated = [
        item["repeated"] if item["source_repeated"] is None else item["source_repeated"]
        for item in cameras.values()
    ]
    return {
        "key": _shortened(key),
        "split": reader.episode(key).split,
        "width": _percent(seconds / longest),
        "marks": [
            {
                "kind": kind,
                "left": _percent(start / longest),
                "width": _percent((stop - start) / longest),
                "title": f"{name}: {start:.2f} to {stop:.2f} s",
            }
            for kind, name, item in sensors
            for start, stop, _ in item["frozen"]
        ],
        "figures": (
            f"{seconds:.1f} s",
            f"{lag['seconds']:.2f} s" if lag else "–",
            f"{100 * max(repeated):.0f} %" if repeated else "–",
        ),
    }


def _lag_text(lag: Mapping[str, Any] | None) -> str:
    if lag is None:
        return (
            "That cannot be told here: state and action have different numbers of dimensions, "
            "actions are discrete, or nothing moves together."
        )
    total = len(lag["dimensions"])
    return (
        f"Changes of the state follow changes of the action by {lag['seconds']:.3f} s "
        f"({lag['rows']:.1f} rows of the recording, correlation {lag['correlation']:.2f}; median "
        f"of {count(lag['episodes'], 'episode')}). An action that is carried out at once shows in "
        "the next row. Each dimension of the action against the same one of the state: "
        f"{_note(min(MAX_DIMENSIONS, total), total)}"
    )


def _lags(manifest: Manifest, lag: Mapping[str, Any] | None) -> list[dict[str, str]]:
    """A bar per dimension, from zero to the right or, where the state comes first, to the left."""
    values = lag["dimensions"][:MAX_DIMENSIONS] if lag else []
    known = [0.0, *(value for value in values if value is not None)]
    low, reach = min(known), (max(known) - min(known)) or 1.0
    return [
        {
            "name": _shortened(dimension(manifest, "action", index)),
            "left": _percent((min(0.0, value or 0.0) - low) / reach),
            "width": _percent(abs(value or 0.0) / reach),
            "right": _percent((max(0.0, value or 0.0) - low) / reach),
            "text": "–" if value is None else f"{value:.2f} s",
        }
        for index, value in enumerate(values)
    ]


def _actions_text(manifest: Manifest, actions: Mapping[str, Any]) -> str:
    units, total = manifest.features["action"].units, len(actions["dimensions"])
    text = f"How often each value was commanded, over {count(actions['steps'], 'step')}"
    text += f", {units}. " if units else ". "
    if actions["effective_dimensions"] is not None:
        text += (
            f"The {total} dimensions move like {actions['effective_dimensions']:.1f} independent "
            "ones. Covers: part of its range that a dimension fills evenly. Limits: part of the "
            "steps at its smallest or largest value. "
        )
    return text + _note(min(MAX_DIMENSIONS, total), total)


def _actions(manifest: Manifest, actions: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A histogram per dimension, and how much of its range it covers."""
    shown = []
    for index, about in enumerate(actions["dimensions"][:MAX_DIMENSIONS]):
        text = f"covers {100 * about['coverage']:.0f} %"
        if about["at_low"] is not None:
            text += f", limits {100 * min(1.0, about['at_low'] + about['at_high']):.0f} %"
        shown.append({**about, "name": dimension(manifest, "action", index), "text": text})
    return shown


def _percent(part: float) -> str:
    """A length in CSS."""
    return f"{100 * part:.2f}%"


def _shortened(text: str, length: int = 28) -> str:
    return text if len(text) <= length else f"{text[:8]}…{text[-(length - 9) :]}"
