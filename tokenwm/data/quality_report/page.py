"""The page of the report: one HTML file with every picture inside, so that it can be forwarded.

Every text that comes from the data is escaped. Pictures are capped, so the page of ten thousand
episodes is as large as that of fifty; the page says what it leaves out.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tokenwm.data.quality_report import pictures
from tokenwm.data.quality_report.findings import count, dimension
from tokenwm.data.quality_report.summary import recordings
from tokenwm.data.shards.manifest import SPLITS, Manifest
from tokenwm.data.shards.reader import ShardReader

MAX_PICTURES = 72
"""Pictures on the page: three per episode and camera."""
MAX_LINES = 40
"""Episodes in the timeline."""
MAX_EXCLUDED = 200
MAX_DIMENSIONS = 64


def page(reader: ShardReader, report: Mapping[str, Any]) -> str:
    """The whole page.

    Args:
        reader: The shards, for the pictures.
        report: What ``quality.json`` holds.
    """
    manifest = reader.manifest
    keys = recordings(manifest, report["measured"])
    flagged = {key for found in report["findings"] for key in found["episodes"]}
    per_episode = 3 * max(1, len(manifest.cameras))
    pictured = choose(keys, flagged, MAX_PICTURES // per_episode) if manifest.cameras else []
    tasks = {key: str(reader.metadata(key).get("task", "")) for key in pictured}
    one_task = set(tasks.values()) if len(set(tasks.values())) == 1 else {""}
    lines = choose(keys, flagged, MAX_LINES)
    levels = [found["level"] for found in report["findings"]]
    return PAGE.substitute(
        name=escape(manifest.name),
        subtitle=escape(_subtitle(manifest, keys)),
        level="wrong" if "wrong" in levels else "look" if levels else "",
        verdict=escape(report["verdict"]),
        findings=_findings(report["findings"]),
        tiles=_tiles(report, Counter(reader.episode(key).split for key in keys)),
        excluded=_excluded(report["excluded"]),
        task=escape("".join(f"“{task}” " for task in one_task if task)),
        pictures_note=_note(len(pictured), len(keys)) if manifest.cameras else "No camera.",
        episodes="".join(
            _episode(reader, key, key in flagged, "" if task in one_task else task)
            for key, task in tasks.items()
        ),
        timeline_note=_note(len(lines), len(keys)),
        timeline=pictures.timeline([_line(reader, report, key) for key in lines]),
        lag=_lag(manifest, report["summary"]["lag"]),
        actions=_actions(manifest, report["summary"]),
        rules="".join(map(_rule, report["rules"])),
        tool=escape(report["tool"]),
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


def _findings(findings: Sequence[Mapping[str, Any]]) -> str:
    heads = {"wrong": "Mend", "look": "Look"}
    items = "".join(
        f'<li><b class="{found["level"]}">{heads[found["level"]]}:</b> {escape(found["text"])}'
        f"<span>→ {escape(found['remedy'])}</span></li>"
        for found in findings
    )
    return f"<ol>{items}</ol>" if items else ""


def _tiles(report: Mapping[str, Any], num_of: Mapping[str, int]) -> str:
    summary = report["summary"]
    lag, starts, actions = summary["lag"], summary["starts"], summary["actions"]
    cameras = summary["cameras"].values()
    repeated = max((about["kept"] for about in cameras), default=None)
    in_source = max((about["source"] or 0.0 for about in cameras), default=0.0)
    effective = actions["effective_dimensions"]
    num_missing = report.get("missing", 0)
    missing = f"{num_missing:,} declared and not there; " if num_missing else ""
    tiles = [
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
    return "".join(
        f'<div class="tile"><h3>{escape(title)}</h3><b>{escape(value)}</b>'
        f"<span>{escape(note)}</span></div>"
        for title, value, note in tiles
    )


def _excluded(excluded: Sequence[Mapping[str, str]]) -> str:
    if not excluded:
        return ""
    rows = []
    for item in excluded[:MAX_EXCLUDED]:
        reason = item["reason"].removeprefix(f"episode {item['key']}: ")
        rows.append(f"<tr><td>{escape(item['key'])}</td><td>{escape(reason)}</td></tr>")
    note = _note(min(len(excluded), MAX_EXCLUDED), len(excluded))
    return (
        f"<h2>Left out</h2>{note}<table><thead><tr><th>episode</th><th>why, and what to do</th>"
        f"</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _episode(reader: ShardReader, key: str, is_flagged: bool, task: str) -> str:
    about = reader.episode(key)
    seconds = about.num_steps / reader.manifest.control_rate
    moments = [0, about.num_steps // 2, about.num_steps - 1]
    frames = np.stack([reader.frames(key, step, step + 1)[0] for step in moments], axis=1)
    strips = []
    for camera, strip in zip(reader.manifest.cameras, frames, strict=True):
        images = "".join(
            f'<img alt="{escape(camera)} at step {step}" src="{pictures.thumbnail(frame)}">'
            for step, frame in zip(moments, strip, strict=True)
        )
        strips.append(f"<div>{images}</div>")
    note = f"{about.split}, {seconds:.1f} s" + (f" · {task}" if task else "")
    return (
        f'<div class="episode{" flagged" if is_flagged else ""}">{"".join(strips)}'
        f"<h3>{escape(key)} <span>{escape(note)}</span></h3></div>"
    )


def _line(reader: ShardReader, report: Mapping[str, Any], key: str) -> pictures.Line:
    about = reader.episode(key)
    seconds = about.num_steps / reader.manifest.control_rate
    measured = report["measured"].get(key)
    if measured is None:
        return pictures.Line(
            key=key,
            split=about.split,
            seconds=seconds,
            stretches=(),
            figures=(f"{seconds:.1f} s", "–", "–"),
        )
    sensors = [(f"camera {name}", item, True) for name, item in measured["cameras"].items()]
    if measured["state"] is not None:
        sensors.append(("state", measured["state"], False))
    repeated = [
        item["repeated"] if item["source_repeated"] is None else item["source_repeated"]
        for _, item, is_camera in sensors
        if is_camera
    ]
    lag = measured["lag"]
    return pictures.Line(
        key=key,
        split=about.split,
        seconds=measured["seconds"],
        stretches=[
            (start, stop, name, is_camera)
            for name, item, is_camera in sensors
            for start, stop, _ in item["frozen"]
        ],
        figures=(
            f"{measured['seconds']:.1f} s",
            f"{lag['seconds']:.2f} s" if lag else "–",
            f"{100 * max(repeated):.0f} %" if repeated else "–",
        ),
    )


def _lag(manifest: Manifest, lag: Mapping[str, Any] | None) -> str:
    if lag is None:
        return (
            "<p>That cannot be told here: state and action have different numbers of dimensions, "
            "actions are discrete, or nothing moves together.</p>"
        )
    text = (
        f"Changes of the state follow changes of the action by {lag['seconds']:.3f} s "
        f"({lag['rows']:.1f} rows of the recording, correlation {lag['correlation']:.2f}; median "
        f"of {count(lag['episodes'], 'episode')}). An action that is carried out at once shows in "
        "the next row. Each dimension of the action against the same one of the state:"
    )
    names = [dimension(manifest, "action", index) for index in range(len(lag["dimensions"]))]
    values = dict(zip(names, lag["dimensions"], strict=True))
    shown = dict(list(values.items())[:MAX_DIMENSIONS])
    return f"<p>{escape(text)} {_note(len(shown), len(values))}</p>{pictures.bars(shown, 's')}"


def _actions(manifest: Manifest, summary: Mapping[str, Any]) -> str:
    actions = summary["actions"]
    units = manifest.features["action"].units
    text = f"How often each value was commanded, over {count(actions['steps'], 'step')}"
    text += f", {units}. " if units else ". "
    if actions["effective_dimensions"] is not None:
        text += (
            f"The {len(actions['dimensions'])} dimensions move like "
            f"{actions['effective_dimensions']:.1f} independent ones. Covers: part of its range "
            "that a dimension fills evenly. Limits: part of the steps at its smallest or largest "
            "value. "
        )
    about = actions["dimensions"]
    items = []
    for index, item in enumerate(about[:MAX_DIMENSIONS]):
        name = dimension(manifest, "action", index)
        figures = f"covers {100 * item['coverage']:.0f} %"
        if item["at_low"] is not None:
            figures += f", limits {100 * min(1.0, item['at_low'] + item['at_high']):.0f} %"
        items.append(
            f"<div><h3>{escape(name)}</h3>{pictures.histogram(item['counts'], name)}"
            f"<span><i>{item['low']:.3g}</i><i>{item['high']:.3g}</i></span>"
            f"<span>{figures}</span></div>"
        )
    note = _note(len(items), len(about))
    return f'<p>{escape(text)}{note}</p><div class="histograms">{"".join(items)}</div>'


def _rule(rule: Mapping[str, Any]) -> str:
    limit = "none" if rule["limit"] is None else str(rule["limit"]).lower()
    key = f"<code>{escape(rule['key'])}</code>" if rule["key"] else ""
    return (
        f"<tr><td>{escape(rule['rule'])}</td><td>{key}</td><td>{escape(limit) if key else ''}</td>"
        f"<td>{escape(rule['failing'])}</td><td>{escape(rule['outcome'])}</td></tr>"
    )


PAGE = Template(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
