"""Measurements of one recording, at the rate of its source, by the process that loads it.

Nothing is judged here: :mod:`tokenwm.data.quality.checks` compares these figures with the recipe's
limits, and :mod:`tokenwm.data.quality_report` sums them up over a dataset. All results are plain
JSON values and few, so ten thousand episodes fit into memory.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.quality.lag import estimate_lag

FROZEN_PIXEL_RANGE = 4
"""A picture stands still while no pixel moves by more than this: as much as H.264 adds by itself
(measured: at most 4 of 255 after reduction to 64 px, default settings)."""
MIN_STRETCH_ROWS = 5
MIN_STRETCH_SECONDS = 0.5
"""A signal that stands still for less than both is not worth a word."""
MAX_STRETCHES = 20
"""Stretches kept per signal, the longest."""
MOVED = 0.05
"""A signal moves if it covers this part of its range in the episode."""
AT_EXTREME = 1e-4
"""An action this near (in parts of its range) to its extreme value stands at it."""

Signal = NDArray[Any]


def measure_recording(
    *,
    rate: float,
    action: Signal,
    state: Signal | None,
    timestamps: NDArray[np.floating[Any]] | None,
    frames: Mapping[str, NDArray[np.uint8]],
    frame_rate: float,
    source_repeated: Mapping[str, float | None] | None = None,
) -> dict[str, Any]:
    """Everything that is measured on one recording of finite numbers.

    Args:
        rate: Rows per second, Hz.
        action: ``(N, action_dim)``, or ``N - 1`` rows where the last observation has no action.
        state: ``(N, state_dim)`` or None.
        timestamps: ``(N,)`` seconds, or None where none are recorded.
        frames: Camera → ``(T, H, W, 3)`` uint8, those that are kept.
        frame_rate: Kept frames per second, Hz.
        source_repeated: Camera → part of the source's frames that equal the one before; None where
            not all were looked at.

    Returns:
        JSON values: ``rows``, ``seconds``, ``digest`` (equal for equal recordings),
        ``time_deviation`` (of a row from its even place, seconds, or None), ``lag`` (see
        :func:`~tokenwm.data.quality.lag.estimate_lag`), ``saturation`` (see :func:`saturation`),
        ``state`` (``repeated``, ``constant``, ``step``, ``spike``, ``frozen``, or None) and
        ``cameras`` (camera → ``frames``, ``repeated``, ``source_repeated``, ``frozen_fraction``,
        ``frozen``). Of these ``constant`` lists dimensions; ``repeated`` is the part of rows, or of
        kept frames, that equal the one before; ``frozen`` lists ``[start, stop, moving]``: from
        when to when, seconds, a signal stood still, and whether what it should show was moving.
    """
    num_rows = len(action) if state is None else len(state)
    continuous = action.dtype.kind not in "iub"
    action = action.astype(np.float64 if continuous else np.int64)
    state = None if state is None else state.astype(np.float64)
    moving = state if state is not None else (action if continuous else None)
    cameras = {}
    for camera, pictures in frames.items():
        still = still_stretches(pictures, frame_rate)
        num_still = sum(stop - start for start, stop in still)
        cameras[camera] = {
            "frames": len(pictures),
            "repeated": _repeated(pictures),
            "source_repeated": (source_repeated or {}).get(camera),
            "frozen_fraction": rounded(num_still / len(pictures)),
            "frozen": _with_motion(still, frame_rate, moving, rate),
        }
    values: dict[str, Any] = {
        "rows": num_rows,
        "seconds": round(num_rows / rate, 3),
        "digest": digest(action, state, frames),
        "time_deviation": None if timestamps is None else time_deviation(timestamps, rate),
        "lag": estimate_lag(state, action, rate) if continuous and state is not None else None,
        "saturation": saturation(action) if continuous else None,
        "state": None,
        "cameras": cameras,
    }
    if state is not None:
        still = equal_stretches(state, rate)
        # A robot that is pressed against a wall stands still, and so does its picture.
        seen = [start for start in still if _pictures_move(start, rate, cameras)]
        commanded = action if continuous else None
        frozen = _with_motion(seen, rate, commanded, rate)
        unseen = [[*_seconds(item, rate), False] for item in still if item not in seen]
        values["state"] = {
            "repeated": _repeated(state),
            "constant": np.flatnonzero(~np.ptp(state, axis=0).astype(bool)).tolist(),
            "step": largest_step(state),
            "spike": largest_spike(state),
            "frozen": _longest(frozen + unseen),
        }
    return values


def largest_step(state: Signal) -> dict[str, Any] | None:
    """The largest change between two rows: ``dimension``, ``row`` it leads to, ``size``."""
    if len(state) < 2:
        return None
    change = np.abs(np.diff(state, axis=0))
    row, dimension = np.unravel_index(np.argmax(change), change.shape)
    return {
        "dimension": int(dimension),
        "row": int(row) + 1,
        "size": rounded(change[row, dimension]),
    }


def largest_spike(state: Signal) -> dict[str, Any] | None:
    """The worst value that is out and back within two rows, as a faulty encoder reports it.

    A row is compared with the median of the five rows around it. What stays where it jumped to (a
    switch, an angle that wraps round) is no spike, and neither is a signal of two values. The
    scale of a dimension is the step that nine of ten of its steps stay below, at least 2 % of its
    range, so a spike of ``factor`` 10 is also at least a fifth of the range.

    Returns:
        ``dimension``, ``row``, ``size`` (distance to the median) and ``factor`` (size over scale);
        None below five rows or where nothing moves.
    """
    if len(state) < 5:
        return None
    change = np.abs(np.diff(state, axis=0))
    scale = np.maximum(np.quantile(change, 0.9, axis=0), 0.02 * np.ptp(state, axis=0))
    around = np.median(np.lib.stride_tricks.sliding_window_view(state, 5, axis=0), axis=-1)
    away = np.abs(state[2:-2] - around)
    switch = (state == state.min(axis=0)) | (state == state.max(axis=0))
    scale[switch.all(axis=0)] = np.inf
    factor = np.divide(away, scale, out=np.zeros_like(away), where=scale > 0)
    row, dimension = np.unravel_index(np.argmax(factor), factor.shape)
    if factor[row, dimension] == 0:
        return None
    return {
        "dimension": int(dimension),
        "row": int(row) + 2,
        "size": rounded(away[row, dimension]),
        "factor": rounded(factor[row, dimension]),
    }


def saturation(action: Signal) -> dict[str, Any] | None:
    """Return the largest share of rows in which an action stands at its least or largest value.

    Args:
        action: ``(N, action_dim)``, continuous.

    Returns:
        ``dimension`` and ``fraction`` of rows; dimensions of one or two values do not count, since
        a switch is always at an extreme. None if no other is left.
    """
    low, high = action.min(axis=0), action.max(axis=0)
    near = AT_EXTREME * (high - low)
    at_low, at_high = action <= low + near, action >= high - near
    fraction = (at_low | at_high).mean(axis=0)
    fraction[(at_low | at_high).all(axis=0)] = -1.0
    dimension = int(np.argmax(fraction))
    if fraction[dimension] < 0:
        return None
    return {"dimension": dimension, "fraction": rounded(fraction[dimension])}


def time_deviation(timestamps: NDArray[np.floating[Any]], rate: float) -> float:
    """Largest deviation of a step in time from ``1 / rate``, seconds."""
    steps = np.diff(np.asarray(timestamps, dtype=np.float64))
    return rounded(np.abs(steps - 1 / rate).max()) if len(steps) else 0.0


def digest(action: Signal, state: Signal | None, frames: Mapping[str, NDArray[np.uint8]]) -> str:
    """Half a SHA-256 of action and state; pictures count only where there is no state."""
    sha = hashlib.sha256()
    arrays = {"action": action, **(frames if state is None else {"state": state})}
    for name, array in arrays.items():
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(np.ascontiguousarray(array).tobytes())
    return sha.hexdigest()[:32]


def still_stretches(frames: NDArray[np.uint8], rate: float) -> list[tuple[int, int]]:
    """Stretches ``[start, stop)`` in which no pixel moves by more than ``FROZEN_PIXEL_RANGE``.

    Running extremes find slow drift too and keep the memory at three frames.
    """
    stretches, start = [], 0
    low, high = frames[0].copy(), frames[0].copy()
    for index in range(1, len(frames) + 1):
        if index < len(frames):
            frame = frames[index]
            lower, higher = np.minimum(low, frame), np.maximum(high, frame)
            if int((higher - lower).max()) <= FROZEN_PIXEL_RANGE:
                low, high = lower, higher
                continue
            low, high = frame.copy(), frame.copy()
        if _worth_a_word(index - start, rate):
            stretches.append((start, index))
        start = index
    return stretches


def equal_stretches(values: Signal, rate: float) -> list[tuple[int, int]]:
    """Stretches ``[start, stop)`` in which every row equals the one before."""
    changes = np.flatnonzero((values[1:] != values[:-1]).any(axis=1)) + 1
    starts = [0, *changes.tolist()]
    stops = [*changes.tolist(), len(values)]
    return [(a, b) for a, b in zip(starts, stops, strict=True) if _worth_a_word(b - a, rate)]


def _worth_a_word(num_rows: int, rate: float) -> bool:
    return num_rows >= max(MIN_STRETCH_ROWS, MIN_STRETCH_SECONDS * rate)


def _with_motion(
    stretches: list[tuple[int, int]], rate: float, signal: Signal | None, signal_rate: float
) -> list[list[Any]]:
    """Stretches in seconds, each with whether ``signal`` moved meanwhile."""
    result = []
    for stretch in stretches:
        start, stop = _seconds(stretch, rate)
        moved = False
        if signal is not None:
            part = signal[int(start * signal_rate) : int(stop * signal_rate)]
            whole = np.ptp(signal, axis=0)
            if len(part) and whole.any():
                moved = bool((np.ptp(part, axis=0)[whole > 0] >= MOVED * whole[whole > 0]).any())
        result.append([start, stop, moved])
    return _longest(result)


def _pictures_move(stretch: tuple[int, int], rate: float, cameras: Mapping[str, Any]) -> bool:
    """Return True if a camera sees something change in a stretch, or there are no cameras."""
    start, stop = _seconds(stretch, rate)
    half = 0.5 * (stop - start)

    def stands_still(camera: Mapping[str, Any]) -> bool:
        return any(min(b, stop) - max(a, start) > half for a, b, _ in camera["frozen"])

    return not cameras or not all(map(stands_still, cameras.values()))


def _longest(stretches: list[list[Any]]) -> list[list[Any]]:
    kept = sorted(stretches, key=lambda item: item[0] - item[1])[:MAX_STRETCHES]
    return sorted(kept)


def _seconds(stretch: tuple[int, int], rate: float) -> list[float]:
    return [round(stretch[0] / rate, 3), round(stretch[1] / rate, 3)]


def _repeated(rows: NDArray[Any]) -> float:
    """Fraction of rows that equal the row before."""
    if len(rows) < 2:
        return 0.0
    return rounded(np.mean([np.array_equal(a, b) for a, b in zip(rows, rows[1:], strict=False)]))


def rounded(value: Any) -> float:
    """Round to four digits, as many as a report needs."""
    return float(f"{float(value):.4g}")
