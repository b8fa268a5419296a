"""Quality rules that every recorded episode passes before it enters a dataset.

Readers call these at the rate of the source, before anything is dropped by downsampling. Each check
raises :class:`EpisodeError`; :mod:`tokenwm.data.prepare` then leaves the episode out and lists it
with the message as its reason, or stops at once if the recipe says ``quality.strict: true``.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.errors import EpisodeError, RecipeError

FROZEN_STEPS = 10
"""An episode shorter than this is too short to say that a sensor is frozen."""
FROZEN_PIXEL_RANGE = 2
"""A camera is frozen if no pixel ever moves by more than this; video coding adds about 1."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Limits of the quality rules.

    Attributes:
        timestamp_tolerance: Largest deviation of a step in time from ``1 / rate``, seconds.
        min_steps: Fewest steps an episode may have after downsampling, at least 2.
        max_action_abs: Largest absolute action in the source's units; null for no limit.
        allow_frozen: Accept a camera or a state that never changes over a whole episode.
        strict: Stop at the first bad episode instead of leaving it out.
    """

    timestamp_tolerance: float = 0.001
    min_steps: int = 2
    max_action_abs: float | None = None
    allow_frozen: bool = False
    strict: bool = False

    def __post_init__(self) -> None:
        if not self.timestamp_tolerance > 0:
            raise RecipeError(
                f"timestamp_tolerance is {self.timestamp_tolerance}; expected seconds > 0"
            )
        if self.min_steps < 2:
            raise RecipeError(f"min_steps is {self.min_steps}; expected at least 2")
        if self.max_action_abs is not None and not self.max_action_abs > 0:
            raise RecipeError(f"max_action_abs is {self.max_action_abs}; expected > 0 or null")


def check_signals(
    key: str,
    config: QualityConfig,
    *,
    action: NDArray[Any],
    state: NDArray[np.float32] | None,
    reward: NDArray[np.float32] | None,
) -> None:
    """Check the numbers of one episode, ``T`` rows at the rate of the source.

    Args:
        key: Episode, for messages.
        config: Limits.
        action: ``(T, action_dim)``, any range.
        state: ``(T, state_dim)`` or None.
        reward: ``(T,)`` or None.

    Raises:
        EpisodeError: NaN or infinity, an action beyond its limit, or a frozen state.
    """
    for name, array in (("action", action), ("state", state), ("reward", reward)):
        if array is not None:
            _check_finite(key, name, array)
    if config.max_action_abs is not None and action.size:
        step, column = np.unravel_index(np.argmax(np.abs(action)), action.shape)
        if abs(action[step, column]) > config.max_action_abs:
            raise EpisodeError(
                f"episode {key}: action[{column}] is {action[step, column]:g} at row {step}; "
                f"quality.max_action_abs is {config.max_action_abs:g}"
            )
    if config.allow_frozen or state is None or len(state) < FROZEN_STEPS:
        return
    if not np.ptp(state, axis=0).any() and np.ptp(action[:-1], axis=0).any():
        raise EpisodeError(
            f"episode {key}: state is frozen, all {len(state)} rows are equal and actions are not; "
            "set quality.allow_frozen: true if that is right"
        )


def check_timestamps(
    key: str, config: QualityConfig, *, timestamps: NDArray[np.floating[Any]], rate: float
) -> None:
    """Check that rows are evenly spaced in time.

    Args:
        key: Episode, for messages.
        config: Limits.
        timestamps: ``(T,)``, seconds.
        rate: Rate the source declares, Hz.

    Raises:
        EpisodeError: The control rate changes, rows are missing, or the declared rate is wrong.
    """
    times = np.asarray(timestamps, dtype=np.float64)
    _check_finite(key, "timestamp", times[:, None])
    if len(times) < 2:
        return
    # A float32 clock cannot resolve better than this late in a long episode.
    rounding = float(2 * np.spacing(np.float32(np.abs(times).max())))
    steps = np.diff(times)
    uneven = np.flatnonzero(np.abs(steps - 1 / rate) > config.timestamp_tolerance + rounding)
    if len(uneven):
        row = int(uneven[0])
        raise EpisodeError(
            f"episode {key}: control rate changes, rows {row} and {row + 1} are "
            f"{steps[row]:.4f} s apart; {rate:g} Hz means {1 / rate:.4f} s, "
            f"quality.timestamp_tolerance is {config.timestamp_tolerance:g} s"
        )
    drift = times[-1] - times[0] - (len(times) - 1) / rate
    if abs(drift) > 0.5 / rate + rounding:
        raise EpisodeError(
            f"episode {key}: {len(times)} rows span {times[-1] - times[0]:.3f} s, that is "
            f"{(len(times) - 1) / (times[-1] - times[0]):.3f} Hz; the source declares {rate:g} Hz"
        )


def check_frame_times(
    key: str,
    camera: str,
    *,
    frame_times: NDArray[np.float64],
    timestamps: NDArray[np.floating[Any]],
    rate: float,
) -> None:
    """Check that the video runs in step with the rows, to half a period.

    Args:
        key: Episode, for messages.
        camera: Camera, for messages.
        frame_times: ``(T,)`` presentation time of each frame, seconds; NaN where there is none.
        timestamps: ``(T,)`` of the rows, seconds.
        rate: Rate of the rows, Hz.

    Raises:
        EpisodeError: A frame is shown closer to another row than to its own.
    """
    offset = (frame_times - frame_times[0]) - (timestamps - timestamps[0]).astype(np.float64)
    if np.isnan(offset).any():
        return
    worst = int(np.argmax(np.abs(offset)))
    if abs(offset[worst]) > 0.5 / rate:
        raise EpisodeError(
            f"episode {key}: video of {camera} is {offset[worst]:+.3f} s off its row {worst}; at "
            f"most half a period ({0.5 / rate:.3f} s) is allowed, so its rate is not {rate:g} Hz"
        )


def check_video_length(key: str, camera: str, *, num_frames: int, num_rows: int) -> None:
    """Check that a video has exactly one frame per row.

    Raises:
        EpisodeError: It has fewer (truncated) or more.
    """
    if num_frames != num_rows:
        kind = "truncated or incomplete" if num_frames < num_rows else "too long"
        raise EpisodeError(
            f"episode {key}: video of {camera} is {kind}, it holds {num_frames} frames and the "
            f"table {num_rows} rows; they must be equal"
        )


def check_num_steps(key: str, config: QualityConfig, num_steps: int, control_rate: float) -> None:
    """Check that an episode is long enough after downsampling.

    Raises:
        EpisodeError: It is too short.
    """
    if num_steps < config.min_steps:
        raise EpisodeError(
            f"episode {key}: too short, {num_steps} step(s) at {control_rate:g} Hz; "
            f"quality.min_steps is {config.min_steps}"
        )


def check_episode(config: QualityConfig, episode: Episode) -> None:
    """Check a finished episode: length, shapes and dtypes, frozen cameras.

    Raises:
        EpisodeError: Names the episode and the rule.
    """
    check_num_steps(episode.key, config, episode.num_steps, episode.control_rate)
    episode.check()
    if config.allow_frozen or episode.num_steps < FROZEN_STEPS:
        return
    for camera, frames in episode.frames.items():
        if _pixel_range(frames) <= FROZEN_PIXEL_RANGE:
            raise EpisodeError(
                f"episode {episode.key}: camera {camera} is frozen, no pixel changes over "
                f"{episode.num_steps} steps; set quality.allow_frozen: true if that is right"
            )


def _pixel_range(frames: NDArray[np.uint8]) -> int:
    """Largest change of any pixel over time; running extremes keep the memory at two frames."""
    low, high = frames[0].copy(), frames[0].copy()
    for frame in frames[1:]:
        np.minimum(low, frame, out=low)
        np.maximum(high, frame, out=high)
        if int((high - low).max()) > FROZEN_PIXEL_RANGE:
            break
    return int((high - low).max())


def _check_finite(key: str, name: str, array: NDArray[Any]) -> None:
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise EpisodeError(
            f"episode {key}: {name} holds {len(bad)} NaN or infinite value(s), the first at row "
            f"{place[0]}"
        )
