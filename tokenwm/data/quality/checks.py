"""Quality rules that every recorded episode passes before it enters a dataset.

The path from a recording to an episode calls these, before anything is dropped by downsampling.
Each check raises :class:`EpisodeError`; :mod:`tokenwm.data.making.prepare` then leaves the episode
out and lists it with the message as its reason, or stops at once if the recipe says
``quality.strict: true``. What is only reported is measured too, and judged over the whole dataset
by :mod:`tokenwm.data.quality_report`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode
from tokenwm.data.quality.measures import MIN_STRETCH_SECONDS
from tokenwm.errors import EpisodeError, RecipeError

FEW_ROWS = 3
"""Most rows without a picture of which the error says that they can be dropped."""
FROZEN_STEPS = 10
"""An episode shorter than this is too short to say that a sensor is frozen."""

ALLOWED: tuple[tuple[Callable[[float], bool], str, tuple[str, ...]], ...] = (
    (lambda x: x > 0, "seconds > 0", ("timestamp_tolerance",)),
    (lambda x: x >= 2, "at least 2", ("min_steps",)),
    (lambda x: x >= 0, "rows >= 0", ("allow_short_video",)),
    (
        lambda x: x > 0,
        "> 0 or null",
        ("max_action_abs", "max_state_step", "max_spike", "max_lag"),
    ),
    (
        lambda x: x >= MIN_STRETCH_SECONDS,
        f">= {MIN_STRETCH_SECONDS} or null",
        ("max_frozen_seconds",),
    ),
    (lambda x: 0 < x <= 1, "a fraction in (0, 1] or null", ("max_saturation",)),
    (lambda x: x >= 0, ">= 0", ("near_duplicate",)),
    (lambda x: 0 <= x <= 1, "a fraction in [0, 1]", ("min_distinct_starts", "min_action_coverage")),
)
"""Test of a limit, the same in words, and names of the limits it is for."""


AS_IMAGINED: Mapping[str, Any] = {
    "allow_frozen": True,
    "max_frozen_seconds": None,
    "max_spike": None,
}
"""Rules of a recipe for robots that were imagined: they may stand still and jump."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """Limits of the quality rules.

    An episode beyond one of these is left out; null means no limit:

    Attributes:
        timestamp_tolerance: Largest deviation of a step in time from ``1 / rate``, seconds.
        min_steps: Fewest steps an episode may have after downsampling, at least 2.
        max_action_abs: Largest absolute action in the source's units.
        max_state_step: Largest change of a state from one row of the source to the next.
        max_spike: Largest value out and back within two rows, in usual steps of its dimension; see
            :func:`~tokenwm.data.quality.measures.largest_spike`.
        max_frozen_seconds: Longest time, at least 0.5 s, for which a camera may stand still while
            the robot moves, or a state while it is told to.
        max_lag: Most seconds by which the state may follow the action, or be ahead of it.
        max_saturation: Largest part of an episode, in (0, 1], that an action may stand at its
            extreme values.
        allow_short_video: Most rows at the end of a table for which a camera may have no picture;
            they are dropped, so the last step is an earlier one.
        allow_frozen: Accept a camera or a state that never changes over a whole episode.
        near_duplicate: Two episodes nearer than this are reported as the same, in standard
            deviations.
        min_distinct_starts: Report if a smaller part of the episodes, in [0, 1], starts from a
            place of its own.
        min_action_coverage: Report action dimensions that fill a smaller part of their range, in
            [0, 1].
        strict: Stop at the first bad episode instead of leaving it out.
    """

    timestamp_tolerance: float = 0.001
    min_steps: int = 2
    max_action_abs: float | None = None
    max_state_step: float | None = None
    max_spike: float | None = 10.0
    max_frozen_seconds: float | None = 1.0
    max_lag: float | None = None
    max_saturation: float | None = None
    allow_short_video: int = 0
    allow_frozen: bool = False
    near_duplicate: float = 0.05
    min_distinct_starts: float = 0.5
    min_action_coverage: float = 0.1
    strict: bool = False

    def __post_init__(self) -> None:
        for is_allowed, expected, names in ALLOWED:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_allowed(value):
                    raise RecipeError(f"{name} is {value}; expected {expected}")


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
        action: ``(T - 1, action_dim)``, any range.
        state: ``(T, state_dim)`` or None.
        reward: ``(T - 1,)`` or None.

    Raises:
        EpisodeError: NaN or infinity, an action beyond its limit, or a frozen state.
    """
    for name, array in (("action", action), ("state", state), ("reward", reward)):
        if array is not None:
            check_finite(key, name, array)
    if config.max_action_abs is not None and action.size:
        step, column = np.unravel_index(np.argmax(np.abs(action)), action.shape)
        if abs(action[step, column]) > config.max_action_abs:
            raise EpisodeError(
                f"episode {key}: action[{column}] is {action[step, column]:g} at row {step}; "
                f"quality.max_action_abs is {config.max_action_abs:g}; look for a faulty "
                "controller or wrong units, or raise the limit"
            )
    if config.allow_frozen or state is None or len(state) < FROZEN_STEPS:
        return
    if not np.ptp(state, axis=0).any() and np.ptp(action, axis=0).any():
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
    check_finite(key, "timestamp", times[:, None])
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
            f"quality.timestamp_tolerance is {config.timestamp_tolerance:g} s; record at a fixed "
            "rate, or resample before"
        )
    drift = times[-1] - times[0] - (len(times) - 1) / rate
    if abs(drift) > 0.5 / rate + rounding:
        raise EpisodeError(
            f"episode {key}: {len(times)} rows span {times[-1] - times[0]:.3f} s, that is "
            f"{(len(times) - 1) / (times[-1] - times[0]):.3f} Hz; the source declares {rate:g} Hz; "
            "correct what it declares"
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
            f"most half a period ({0.5 / rate:.3f} s) is allowed, so its rate is not {rate:g} Hz; "
            "encode it again, one frame per row"
        )


def check_video_length(key: str, camera: str, *, num_frames: int, num_rows: int) -> None:
    """Check that a video has exactly one frame per row.

    Raises:
        EpisodeError: It has fewer (truncated) or more.
    """
    if num_frames != num_rows:
        missing = num_rows - num_frames
        drop = f", or drop the last rows: quality.allow_short_video: {missing}"
        kind = "truncated or incomplete" if num_frames < num_rows else "too long"
        raise EpisodeError(
            f"episode {key}: video of {camera} is {kind}, it holds {num_frames} frames and the "
            f"table {num_rows} rows; they must be equal, copy or export it again"
            f"{drop if 0 < missing <= FEW_ROWS else ''}"
        )


def check_num_steps(key: str, config: QualityConfig, num_steps: int, control_rate: float) -> None:
    """Check that an episode is long enough after downsampling.

    Raises:
        EpisodeError: It is too short.
    """
    if num_steps < config.min_steps:
        raise EpisodeError(
            f"episode {key}: too short, {num_steps} step(s) at {control_rate:g} Hz; "
            f"quality.min_steps is {config.min_steps}; lower it, or drop the episode"
        )


def check_episode(config: QualityConfig, episode: Episode) -> None:
    """Check a finished episode: length, shapes and dtypes, and what was measured on its recording.

    Raises:
        EpisodeError: Names the episode and the rule.
    """
    check_num_steps(episode.key, config, episode.num_steps, episode.control_rate)
    episode.check()
    if episode.measured:
        check_measured(episode.key, config, episode.measured)


def check_measured(key: str, config: QualityConfig, measured: Mapping[str, Any]) -> None:
    """Check what :func:`~tokenwm.data.quality.measures.measure_recording` found.

    Args:
        key: Episode, for messages.
        config: Limits.
        measured: The measurements.

    Raises:
        EpisodeError: A camera or state is frozen, an encoder jumps, the state is too late, or the
            action stands at its extreme values for too long.
    """
    state = measured["state"]
    for camera, about in measured["cameras"].items():
        _check_camera(key, config, camera, about)
    if state is not None:
        if state["repeated"] < 1:  # one that never changes is for check_signals to judge
            _check_stretches(key, config, "state", state["frozen"], "actions change")
        _check_encoders(key, config, state)
    lag = measured["lag"]
    if config.max_lag is not None and lag is not None and abs(lag["seconds"]) > config.max_lag:
        order = "follows the action by" if lag["seconds"] > 0 else "is ahead of the action by"
        raise EpisodeError(
            f"episode {key}: the state {order} {abs(lag['seconds']):.3f} s (correlation "
            f"{lag['correlation']:.2f}); quality.max_lag is {config.max_lag:g} s; align both by "
            "the times at which they were recorded"
        )
    held = measured["saturation"]
    if config.max_saturation is not None and held and held["fraction"] > config.max_saturation:
        raise EpisodeError(
            f"episode {key}: action[{held['dimension']}] stands at its smallest or largest value "
            f"in {100 * held['fraction']:.0f} % of the rows; quality.max_saturation is "
            f"{config.max_saturation:g}; widen the limits of the controller, or drop the episode"
        )


def _check_camera(key: str, config: QualityConfig, camera: str, about: Mapping[str, Any]) -> None:
    whole = about["frozen_fraction"] == 1 and len(about["frozen"]) == 1
    if whole and about["frames"] >= FROZEN_STEPS and not config.allow_frozen:
        raise EpisodeError(
            f"episode {key}: camera {camera} is frozen, no pixel changes over {about['frames']} "
            "steps; set quality.allow_frozen: true if that is right"
        )
    if not whole:
        _check_stretches(key, config, f"camera {camera}", about["frozen"], "the robot moves")


def _check_stretches(
    key: str, config: QualityConfig, what: str, stretches: list[Any], meanwhile: str
) -> None:
    limit = config.max_frozen_seconds
    for start, stop, moving in stretches:
        if limit is not None and moving and stop - start > limit:
            raise EpisodeError(
                f"episode {key}: {what} is frozen from {start:.2f} to {stop:.2f} s while "
                f"{meanwhile}; quality.max_frozen_seconds is {limit:g}; look for dropped data, or "
                "raise the limit (null for none) if that is right"
            )


def _check_encoders(key: str, config: QualityConfig, state: Mapping[str, Any]) -> None:
    spike, step = state["spike"], state["step"]
    if config.max_spike is not None and spike and spike["factor"] > config.max_spike:
        raise EpisodeError(
            f"episode {key}: state[{spike['dimension']}] jumps by {spike['size']:g} and back at "
            f"row {spike['row']}, {spike['factor']:.0f} times its usual step; quality.max_spike is "
            f"{config.max_spike:g}; look for a faulty encoder, or set a higher limit (null for "
            "none) if such jumps are real"
        )
    if config.max_state_step is not None and step and step["size"] > config.max_state_step:
        raise EpisodeError(
            f"episode {key}: state[{step['dimension']}] changes by {step['size']:g} at row "
            f"{step['row']}; quality.max_state_step is {config.max_state_step:g}; look for lost "
            "rows or a faulty encoder, or set a higher limit"
        )


def check_finite(key: str, name: str, array: NDArray[Any]) -> None:
    """Check that all numbers were recorded.

    Raises:
        EpisodeError: One is missing, NaN or infinite; names its row, the first axis.
    """
    bad = np.argwhere(~np.isfinite(array))
    if len(bad):
        place = tuple(int(i) for i in bad[0])
        raise EpisodeError(
            f"episode {key}: {name} holds {len(bad)} NaN or infinite value(s) (what is missing is "
            f"NaN), the first at row {place[0]}; find out what was not recorded there, none can be "
            "filled in"
        )
