"""Figures of a dataset as a whole: duplicates, starts, coverage, and those of all its episodes.

Figures of recordings come from ``Episode.measured``, as a pure function of the mapping; what needs
the arrays is read from the shards, a bounded number of episodes, evenly spread.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.quality.measures import AT_EXTREME, rounded
from tokenwm.data.shards.manifest import Manifest
from tokenwm.data.shards.reader import ShardReader

MAX_EPISODES = 2000
MAX_STEPS = 500_000
"""Most episodes and steps that are read from the shards; bounds time and memory."""
MAX_STARTS = 200
"""Most first observations that are compared: in a small space many must be near another one."""
NUM_BINS = 32
"""Bins of an action histogram, between the smallest and the largest value in the dataset."""
NUM_POINTS = 8
"""Points in time at which two episodes are compared."""
THUMBNAIL = 8
"""Height and width of the grey pictures by which episodes without state are compared."""
SIMILAR_LENGTH = 0.1
"""Episodes whose lengths differ by more than this part are not compared."""

Measured = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """Values read from some episodes, evenly spread over the dataset.

    Attributes:
        keys: Their keys.
        lengths: ``(E,)`` steps.
        views: ``(E, NUM_POINTS, D)`` float32, state (else small pictures) at points evenly spread
            over each episode, in standard deviations.
        actions: ``(E, NUM_POINTS, A)`` float32 in standard deviations; ``A`` is 0 if discrete.
        rows: All their valid actions, ``(N, action_dim)``.
    """

    keys: Sequence[str]
    lengths: NDArray[np.int64]
    views: NDArray[np.float32]
    actions: NDArray[np.float32]
    rows: NDArray[Any]


def summarize(reader: ShardReader, measured: Measured, near_duplicate: float) -> dict[str, Any]:
    """All figures over a dataset; JSON values.

    Args:
        reader: The shards.
        measured: ``Episode.measured`` of the episodes in them.
        near_duplicate: Distance below which two episodes, or two starts, count as the same.

    Returns:
        ``recordings`` (number of them), ``sampled`` (how many of them were read from the shards),
        ``lag``, ``worst``, ``cameras``, ``duplicates``, ``starts``, ``actions``: see the functions.
    """
    keys = recordings(reader.manifest, measured)
    sampled = sample(reader, keys)
    return {
        "recordings": len(keys),
        "sampled": len(sampled.keys),
        "lag": lag_over_episodes(measured),
        "worst": worst(measured),
        "cameras": repeated_frames(measured),
        "duplicates": {
            "equal": equal_recordings(measured),
            "near": near_duplicates(sampled, near_duplicate),
        },
        "starts": starts(sampled, near_duplicate),
        "actions": action_coverage(sampled.rows, reader.manifest.features["action"].num_values),
    }


def recordings(manifest: Manifest, measured: Measured) -> list[str]:
    """Keys of the episodes in the dataset, sorted, without other phases of the same recording."""
    keys = sorted(episode.key for episode in manifest.episodes)
    return [key for key in keys if key in measured] or keys


def sample(reader: ShardReader, keys: Sequence[str]) -> Sampled:
    """Read what the summary needs of at most ``MAX_EPISODES`` episodes and ``MAX_STEPS`` steps."""
    steps = sum(reader.episode(key).num_steps for key in keys)
    stride = max(math.ceil(len(keys) / MAX_EPISODES), math.ceil(steps / MAX_STEPS))
    keys = list(keys)[::stride]
    views, actions, rows = [], [], []
    for key in keys:
        num_steps = reader.episode(key).num_steps
        points = np.linspace(0, num_steps - 1, NUM_POINTS).round().astype(int)
        values = reader.arrays(key, ["action"])["action"][:-1]
        rows.append(values)
        views.append(_view(reader, key, points))
        continuous = values.dtype == np.float32
        actions.append(
            values[np.minimum(points, len(values) - 1)] if continuous else [[]] * NUM_POINTS
        )
    return Sampled(
        keys=keys,
        lengths=np.array([reader.episode(key).num_steps for key in keys]),
        views=_in_deviations(np.stack(views)),
        actions=_in_deviations(np.stack(actions)),
        rows=np.concatenate(rows),
    )


def _view(reader: ShardReader, key: str, points: NDArray[Any]) -> NDArray[np.float32]:
    if "state" in reader.manifest.features:
        return np.asarray(reader.arrays(key, ["state"])["state"][points], dtype=np.float32)
    views = []
    for point in points.tolist():
        frames = reader.frames(key, point, point + 1)[0]  # (cameras, H, W, 3)
        height, width = frames.shape[1] // THUMBNAIL, frames.shape[2] // THUMBNAIL
        cut = frames[:, : height * THUMBNAIL, : width * THUMBNAIL].mean(axis=-1)
        tiles = cut.reshape(len(cut), THUMBNAIL, height, THUMBNAIL, width)
        views.append(tiles.mean(axis=(2, 4)).reshape(-1))
    return np.stack(views).astype(np.float32)


def _in_deviations(values: NDArray[Any]) -> NDArray[np.float32]:
    """Standard scores ``(E, NUM_POINTS, D)``; dimensions that never change are dropped."""
    moving = values[..., np.ptp(values, axis=(0, 1)) > 0].astype(np.float64)
    scores = (moving - moving.mean(axis=(0, 1))) / moving.std(axis=(0, 1))
    return np.asarray(scores, dtype=np.float32)


def equal_recordings(measured: Measured) -> list[list[str]]:
    """Groups of episodes whose recordings are equal to the last bit, sorted."""
    groups = defaultdict(list)
    for key, values in measured.items():
        groups[values["digest"]].append(key)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def near_duplicates(sampled: Sampled, limit: float) -> list[dict[str, Any]]:
    """Pairs of episodes that take nearly the same way, and are about as long.

    The distance is the root mean square over points and dimensions of the difference of states and
    actions, in standard deviations.

    Returns:
        ``first``, ``second``, ``distance`` of every pair below the limit, nearest first.
    """
    num_episodes = len(sampled.keys)
    values = np.concatenate([sampled.views, sampled.actions], axis=2).reshape(num_episodes, -1)
    values = values.astype(np.float64)
    squares = (values**2).sum(axis=1)
    pairs = []
    for index in range(num_episodes - 1):
        rest = slice(index + 1, None)
        squared = squares[rest] + squares[index] - 2 * values[rest] @ values[index]
        distance = np.sqrt(np.maximum(squared, 0) / max(1, values.shape[1]))
        longest = np.maximum(sampled.lengths[rest], sampled.lengths[index])
        alike = np.abs(sampled.lengths[rest] - sampled.lengths[index]) <= SIMILAR_LENGTH * longest
        for other in np.flatnonzero((distance < limit) & alike):
            first, second = sorted([sampled.keys[index], sampled.keys[index + 1 + int(other)]])
            pairs.append({"first": first, "second": second, "distance": rounded(distance[other])})
    return sorted(pairs, key=lambda pair: (pair["distance"], pair["first"], pair["second"]))


def starts(sampled: Sampled, limit: float) -> dict[str, Any]:
    """Differences between the first observations.

    Returns:
        ``episodes`` (at most 200); ``distinct``, of which no two are nearer than ``limit`` standard
        deviations; ``spread``, the standard deviation of first values over that of all values, mean
        over dimensions: 1 if episodes start anywhere they ever go, 0 if always at the same place.
    """
    stride = math.ceil(len(sampled.keys) / MAX_STARTS)
    first = sampled.views[::stride, 0].astype(np.float64)
    if not first.size:  # nothing ever moves
        return {"episodes": len(first), "distinct": 1, "spread": 0.0}
    near_one = np.zeros(len(first), dtype=np.bool_)
    distinct = 0
    for index, view in enumerate(first):
        if not near_one[index]:
            distinct += 1
            near_one |= np.sqrt(((first - view) ** 2).mean(axis=1)) <= limit
    spread = rounded(first.std(axis=0).mean())
    return {"episodes": len(first), "distinct": distinct, "spread": spread}


def action_coverage(rows: NDArray[Any], num_values: int | None) -> dict[str, Any]:
    """Coverage of their range by the actions.

    Args:
        rows: ``(N, action_dim)`` float32, or ids.
        num_values: Ids are in ``[0, num_values)``; None for continuous actions.

    Returns:
        ``steps``; ``effective_dimensions``, the participation ratio of the correlation matrix of
        the moving dimensions (None for ids); ``dimensions``, for each ``low``, ``high``, ``counts``
        (32 bins between both, or one per id), ``coverage`` (2 to the entropy, over the number of
        bins: 1 if all are used alike), ``at_low`` and ``at_high`` (fraction of steps at the
        extremes; None for ids).
    """
    if num_values is not None:
        entries = [_id_coverage(column, num_values) for column in rows.T]
        return {"steps": len(rows), "effective_dimensions": None, "dimensions": entries}
    dimensions = []
    for column in rows.T.astype(np.float64):
        low, high = float(column.min()), float(column.max())
        near = AT_EXTREME * (high - low)
        counts, _ = np.histogram(column, NUM_BINS, (low, high) if high > low else None)
        dimensions.append(
            {
                "low": rounded(low),
                "high": rounded(high),
                "counts": counts.tolist(),
                "coverage": _coverage(counts) if high > low else 0.0,
                "at_low": rounded((column <= low + near).mean()),
                "at_high": rounded((column >= high - near).mean()),
            }
        )
    moving = rows[:, np.ptp(rows, axis=0) > 0].astype(np.float64)
    effective = 0.0
    if moving.shape[1]:
        eigenvalues = np.linalg.eigvalsh(np.atleast_2d(np.corrcoef(moving, rowvar=False)))
        effective = rounded(eigenvalues.sum() ** 2 / (eigenvalues**2).sum())
    return {"steps": len(rows), "effective_dimensions": effective, "dimensions": dimensions}


def _id_coverage(ids: NDArray[Any], num_values: int) -> dict[str, Any]:
    counts = np.bincount(ids, minlength=num_values)
    about = {"low": 0, "high": num_values - 1, "at_low": None, "at_high": None}
    return about | {"counts": counts.tolist(), "coverage": _coverage(counts)}


def _coverage(counts: NDArray[np.int64]) -> float:
    part = counts[counts > 0] / counts.sum()
    return rounded(2.0 ** -(part * np.log2(part)).sum() / len(counts))


def lag_over_episodes(measured: Measured) -> dict[str, Any] | None:
    """The lag of state behind action over all episodes in which it could be told.

    Returns:
        ``episodes``; medians of ``rows``, ``seconds`` and ``correlation``; ``lowest`` and
        ``highest`` seconds; ``action`` as in most; ``dimensions``, median seconds of each, None
        where fewer than half of these episodes can tell. None if no episode can.
    """
    lags = [values["lag"] for values in measured.values() if values["lag"]]
    if not lags:
        return None
    seconds = sorted(lag["seconds"] for lag in lags)
    dimensions: list[float | None] = []
    for column in zip(*(lag["dimensions"] for lag in lags), strict=True):
        known = [value for value in column if value is not None]
        enough = 2 * len(known) >= len(lags)
        dimensions.append(round(float(np.median(known)), 3) if enough else None)
    return {
        "episodes": len(lags),
        "rows": rounded(np.median([lag["rows"] for lag in lags])),
        "seconds": rounded(np.median(seconds)),
        "correlation": rounded(np.median([lag["correlation"] for lag in lags])),
        "lowest": seconds[0],
        "highest": seconds[-1],
        "action": Counter(lag["action"] for lag in lags).most_common(1)[0][0],
        "dimensions": dimensions,
    }


def repeated_frames(measured: Measured) -> dict[str, dict[str, float | None]]:
    """Camera → part of the frames that equal the one before, mean over episodes.

    Returns:
        ``kept``, of the frames in the dataset, and ``source``, of those in the source; None where
        not all of these were looked at.
    """
    parts: dict[str, dict[str, list[float]]] = {}
    for values in measured.values():
        for camera, about in values["cameras"].items():
            lists = parts.setdefault(camera, {"kept": [], "source": []})
            lists["kept"].append(about["repeated"])
            if about["source_repeated"] is not None:
                lists["source"].append(about["source_repeated"])
    return {
        camera: {name: rounded(np.mean(part)) if part else None for name, part in lists.items()}
        for camera, lists in sorted(parts.items())
    }


def worst(measured: Measured) -> dict[str, dict[str, Any]]:
    """The episode that comes nearest to each limit.

    Returns:
        ``time_deviation`` (seconds), ``frozen`` (longest stretch in motion, seconds), ``spike``
        (factor), ``step`` (size) and ``saturation`` (fraction) → ``value``, ``episode`` and, where
        there is one, ``dimension``; without those that were measured nowhere.
    """
    found: dict[str, dict[str, Any]] = {}

    def note(name: str, key: str, value: float | None, dimension: int | None = None) -> None:
        if value is not None and (name not in found or value > found[name]["value"]):
            found[name] = {"value": value, "episode": key, "dimension": dimension}

    for key, values in sorted(measured.items()):
        note("time_deviation", key, values["time_deviation"])
        held = values["saturation"]
        if held:
            note("saturation", key, held["fraction"], held["dimension"])
        sensors = [*values["cameras"].values()]
        state = values["state"]
        if state is not None:
            sensors.append(state)
            for name, size in (("spike", "factor"), ("step", "size")):
                if state[name]:
                    note(name, key, state[name][size], state[name]["dimension"])
        for sensor in sensors:
            longest = max((b - a for a, b, moving in sensor["frozen"] if moving), default=0.0)
            note("frozen", key, rounded(longest))
    return found
