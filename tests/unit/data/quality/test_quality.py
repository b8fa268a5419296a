from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenwm.data.episode import Episode
from tokenwm.data.quality.checks import (
    QualityConfig,
    check_episode,
    check_frame_times,
    check_signals,
    check_timestamps,
    check_video_length,
)
from tokenwm.data.quality.measures import measure_recording
from tokenwm.data.quality_report.rules import RULES
from tokenwm.data.readers.downsample import (
    Signals,
    actions_per_step,
    downsample,
    downsampling_factor,
    stacked_names,
)
from tokenwm.errors import EpisodeError, RecipeError

DOCS = Path(__file__).parents[4] / "docs" / "quality.md"
CONFIG = QualityConfig()
ACTION = np.arange(40, dtype=np.float32).reshape(20, 2)
STATE = np.arange(60, dtype=np.float32).reshape(20, 3)


def test_good_signals_pass() -> None:
    check_signals("e", CONFIG, action=ACTION, state=STATE, reward=np.zeros(20, np.float32))
    check_signals("e", CONFIG, action=ACTION, state=None, reward=None)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["action", "state", "reward"])
def test_nan_and_infinity_are_found_wherever_they_are(name: str, value: float) -> None:
    arrays: dict[str, Any] = {
        "action": ACTION.copy(),
        "state": STATE.copy(),
        "reward": np.zeros((20, 1)),
    }
    arrays[name][7, -1] = value
    with pytest.raises(EpisodeError, match=f"episode e: {name} holds 1 NaN or infinite.* row 7"):
        check_signals("e", CONFIG, **arrays)


def test_action_limit() -> None:
    config = QualityConfig(max_action_abs=38.0)
    with pytest.raises(EpisodeError, match=r"action\[1\] is 39 at row 19; .*max_action_abs is 38"):
        check_signals("e", config, action=ACTION, state=None, reward=None)


def test_frozen_state() -> None:
    frozen = np.ones_like(STATE)
    with pytest.raises(EpisodeError, match="state is frozen"):
        check_signals("e", CONFIG, action=ACTION, state=frozen, reward=None)
    check_signals("e", QualityConfig(allow_frozen=True), action=ACTION, state=frozen, reward=None)
    still = np.ones_like(ACTION)  # nothing was asked of the robot, so nothing has to move
    check_signals("e", CONFIG, action=still, state=frozen, reward=None)


def test_even_timestamps_pass_also_late_in_float32() -> None:
    for start in (0.0, 5000.0):
        times = (start + np.arange(300) / 30).astype(np.float32)
        check_timestamps("e", CONFIG, timestamps=times, rate=30.0)


def test_changing_control_rate() -> None:
    times = np.concatenate([np.arange(10) / 30, 10 / 30 + np.arange(10) / 15])
    with pytest.raises(EpisodeError, match=r"control rate changes, rows 10 and 11 are 0\.0667 s"):
        check_timestamps("e", CONFIG, timestamps=times, rate=30.0)


def test_missing_row_and_wrong_rate() -> None:
    with pytest.raises(EpisodeError, match="rows 4 and 5"):
        check_timestamps("e", CONFIG, timestamps=np.delete(np.arange(20) / 30, 5), rate=30.0)
    slow = np.arange(200) / 29.5  # each step is within the tolerance, the sum of them is not
    with pytest.raises(EpisodeError, match=r"29\.500 Hz; the source declares 30 Hz"):
        check_timestamps("e", CONFIG, timestamps=slow, rate=30.0)
    with pytest.raises(EpisodeError, match="timestamp holds 1 NaN"):
        check_timestamps("e", CONFIG, timestamps=np.array([0.0, np.nan]), rate=30.0)


def test_tolerance_is_an_option() -> None:
    times = np.arange(20) / 30
    times[7] += 0.002
    with pytest.raises(EpisodeError, match="timestamp_tolerance is 0.001"):
        check_timestamps("e", CONFIG, timestamps=times, rate=30.0)
    check_timestamps("e", QualityConfig(timestamp_tolerance=0.003), timestamps=times, rate=30.0)


def test_video_and_rows_must_agree() -> None:
    check_video_length("e", "top", num_frames=5, num_rows=5)
    with pytest.raises(EpisodeError, match="truncated or incomplete, it holds 4 frames .* 5 rows"):
        check_video_length("e", "top", num_frames=4, num_rows=5)
    with pytest.raises(EpisodeError, match="too long"):
        check_video_length("e", "top", num_frames=6, num_rows=5)
    rows = np.arange(20) / 30
    check_frame_times("e", "top", frame_times=rows + 3, timestamps=rows, rate=30.0)
    check_frame_times("e", "top", frame_times=rows * np.nan, timestamps=rows, rate=30.0)
    with pytest.raises(EpisodeError, match=r"off its row 19"):
        check_frame_times("e", "top", frame_times=rows * 1.2, timestamps=rows, rate=30.0)


def make_episode(frames: np.ndarray, **changes: Any) -> Episode:
    """An episode of a camera, and of a robot that is told to move, with what is measured on it."""
    num_steps = len(frames)
    state = np.stack([np.sin(np.arange(num_steps) / 3), np.arange(num_steps)], axis=1)
    state = state.astype(np.float32)
    values: dict[str, Any] = {"state": state, "action": state.copy(), "frames": {"top": frames}}
    values |= changes
    measured = measure_recording(rate=10.0, timestamps=None, frame_rate=10.0, **values)
    return Episode(
        key="e",
        terminated=np.zeros(num_steps, np.bool_),
        truncated=np.zeros(num_steps, np.bool_),
        control_rate=10.0,
        measured=measured,
        **values,
    )


def moving_frames(num_steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (num_steps, 8, 8, 3), np.uint8)


EVERY_LIMIT = QualityConfig(
    max_action_abs=1e3,
    max_state_step=1e3,
    max_lag=1.0,
    max_saturation=0.9,
)


def test_a_good_episode_passes_every_limit() -> None:
    check_episode(EVERY_LIMIT, make_episode(moving_frames(60)))


def test_frozen_camera_and_short_episode() -> None:
    rng = np.random.default_rng(0)
    frames = np.full((12, 8, 8, 3), 100, np.uint8) + rng.integers(0, 4, (12, 8, 8, 3), np.uint8)
    with pytest.raises(EpisodeError, match="camera top is frozen, no pixel .* 12 steps; .*_frozen"):
        check_episode(CONFIG, make_episode(frames))
    check_episode(QualityConfig(allow_frozen=True), make_episode(frames))
    check_episode(CONFIG, make_episode(frames[:9]))  # too short to tell
    frames[5, 3, 3] = 200
    check_episode(CONFIG, make_episode(frames))
    with pytest.raises(EpisodeError, match=r"too short, 12 step\(s\).*min_steps is 13; lower it"):
        check_episode(QualityConfig(min_steps=13), make_episode(frames))


def test_a_camera_that_is_stuck_for_a_while() -> None:
    frames = moving_frames(60)
    frames[20:34] = frames[20]
    message = (
        r"episode e: camera top is frozen from 2\.00 to 3\.40 s while the robot moves; "
        r"quality\.max_frozen_seconds is 1; look for dropped data"
    )
    with pytest.raises(EpisodeError, match=message):
        check_episode(CONFIG, make_episode(frames))
    check_episode(QualityConfig(max_frozen_seconds=1.5), make_episode(frames))
    check_episode(QualityConfig(max_frozen_seconds=None), make_episode(frames))
    state = np.zeros((60, 2), np.float32)
    state[:15], state[40:] = 1, 2  # it stands still just then, so nothing has to be seen
    check_episode(CONFIG, make_episode(frames, state=state, action=state.copy()))


def test_a_state_that_is_stuck_for_a_while() -> None:
    good = make_episode(moving_frames(60))
    assert good.state is not None
    state = good.state.copy()
    state[30:45] = state[30]
    with pytest.raises(EpisodeError, match=r"state is frozen from 3\.00 to 4\.50 s while actions"):
        check_episode(CONFIG, make_episode(moving_frames(60), state=state))
    check_episode(CONFIG, make_episode(moving_frames(60), state=state, action=state.copy()))
    never = make_episode(moving_frames(60), state=np.ones_like(state))
    check_episode(QualityConfig(allow_frozen=True), never)  # else check_signals refuses it


def test_a_jumping_encoder() -> None:
    good = make_episode(moving_frames(60))
    assert good.state is not None
    state = good.state.copy()
    state[40, 1] += 500
    message = (
        r"state\[1\] jumps by 499 and back at row 40, \d+ times its usual step; quality\.max_spike "
        "is 10; look for a faulty encoder"
    )
    with pytest.raises(EpisodeError, match=message):
        check_episode(CONFIG, make_episode(moving_frames(60), state=state))
    unlimited = QualityConfig(max_spike=None)
    check_episode(unlimited, make_episode(moving_frames(60), state=state))
    state[40:, 1] += 500  # it stays where it jumped to: an angle may, so a limit is for the recipe
    state[40, 1] -= 500
    check_episode(CONFIG, make_episode(moving_frames(60), state=state))
    with pytest.raises(
        EpisodeError, match=r"state\[1\] changes by 501 at row 40; .*state_step is 9"
    ):
        check_episode(QualityConfig(max_state_step=9), make_episode(moving_frames(60), state=state))


def test_a_state_that_is_too_late_or_ahead() -> None:
    rng = np.random.default_rng(0)
    way = np.cumsum(rng.normal(size=(80, 2)), axis=0).astype(np.float32)
    late = make_episode(moving_frames(60), action=way[10:70], state=way[5:65])
    ahead = make_episode(moving_frames(60), action=way[10:70], state=way[13:73])
    check_episode(CONFIG, late)
    config = QualityConfig(max_lag=0.2)
    with pytest.raises(EpisodeError, match=r"follows the action by 0\.5.*max_lag is 0\.2 s; align"):
        check_episode(config, late)
    with pytest.raises(EpisodeError, match=r"the state is ahead of the action by 0\.3.*max_lag"):
        check_episode(config, ahead)


def test_a_saturated_action() -> None:
    good = make_episode(moving_frames(60))
    action = np.clip(good.action, -0.5, 0.5)
    with pytest.raises(EpisodeError, match=r"action\[0\] stands .* \d+ % of the rows; .* is 0\.3"):
        check_episode(
            QualityConfig(max_saturation=0.3), make_episode(moving_frames(60), action=action[:, :1])
        )
    check_episode(CONFIG, make_episode(moving_frames(60), action=action))


def test_every_limit_is_in_the_report_and_in_the_docs() -> None:
    keys = {field.name for field in fields(QualityConfig)} - {"strict"}
    assert {rule.key for rule in RULES} - {""} == keys
    text = DOCS.read_text()
    assert [key for key in keys if f"`{key}`" not in text] == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_spike", 0),
        ("max_state_step", -1.0),
        ("max_lag", 0.0),
        ("max_frozen_seconds", 0.1),
        ("max_saturation", 0.0),
        ("max_saturation", 1.1),
        ("near_duplicate", -0.1),
        ("min_distinct_starts", 1.5),
        ("min_action_coverage", -0.1),
    ],
)
def test_impossible_limits_are_refused(key: str, value: float) -> None:
    with pytest.raises(RecipeError, match=f"{key} is {value}; expected"):
        QualityConfig(**{key: value})


def signals(num_rows: int) -> Signals:
    rows = np.arange(num_rows, dtype=np.float32)
    return Signals(
        action=np.stack([rows, -rows], axis=1),
        state=rows[:, None] * 10,
        reward=np.ones(num_rows, np.float32),
        terminated=rows == 4,
    )


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("last", [2, 5, 8, 0]),
        ("first", [0, 3, 6, 0]),
        ("mean", [1, 4, 7, 0]),
        ("sum", [3, 12, 21, 0]),
    ],
)
@pytest.mark.parametrize("num_rows", [10, 11, 12])
def test_downsampling_gives_a_step_all_that_happened_until_the_next(
    aggregation: str, expected: list[int], num_rows: int
) -> None:
    kept = downsample(signals(num_rows), 3, aggregation)  # type: ignore[arg-type]
    assert kept.state is not None and kept.reward is not None
    np.testing.assert_array_equal(kept.state[:, 0], [0, 30, 60, 90])
    np.testing.assert_array_equal(kept.action[:, 0], expected)
    np.testing.assert_array_equal(kept.reward, [3, 3, 3, 0])
    np.testing.assert_array_equal(kept.terminated, [False, True, False, False])


@pytest.mark.parametrize("num_rows", [10, 11, 12])
def test_stacked_actions_are_all_those_until_the_next_step(num_rows: int) -> None:
    kept = downsample(signals(num_rows), 3, "stack")
    expected = [[0, 0, 1, -1, 2, -2], [3, -3, 4, -4, 5, -5], [6, -6, 7, -7, 8, -8], [0] * 6]
    np.testing.assert_array_equal(kept.action, expected)
    assert kept.action.dtype == np.float32
    assert kept.state is not None and kept.reward is not None
    np.testing.assert_array_equal(kept.state[:, 0], [0, 30, 60, 90])
    np.testing.assert_array_equal(kept.reward, [3, 3, 3, 0])
    np.testing.assert_array_equal(kept.terminated, [False, True, False, False])


def test_stacked_actions_are_named_and_counted() -> None:
    assert stacked_names(("x", "y"), 2) == ("x@0", "y@0", "x@1", "y@1")
    assert stacked_names(("x", "y"), 1) == ("x", "y")
    assert stacked_names((), 5) == ()
    assert (actions_per_step(5, "stack"), actions_per_step(5, "last")) == (5, 1)
    with pytest.raises(RecipeError, match="actions of 2,049 × 2 numbers, at most 4,096 are"):
        downsample(signals(10), 2049, "stack")


def test_factor_one_only_drops_the_last_action() -> None:
    kept = downsample(signals(5), 1, "sum")
    np.testing.assert_array_equal(kept.action[:, 0], [0, 1, 2, 3, 0])
    np.testing.assert_array_equal(kept.terminated, [False] * 5)


def test_discrete_actions_are_never_averaged() -> None:
    discrete = Signals(
        action=np.arange(6)[:, None], state=None, reward=None, terminated=np.zeros(6, np.bool_)
    )
    assert downsample(discrete, 2, "last").action.dtype == np.int64
    stacked = downsample(discrete, 2, "stack").action
    assert stacked.dtype == np.int64
    assert stacked.tolist() == [[0, 1], [2, 3], [0, 0]]
    with pytest.raises(RecipeError, match="mean makes no sense for discrete actions"):
        downsample(discrete, 2, "mean")


def test_rates_must_divide() -> None:
    assert downsampling_factor(30.0, 10.0) == 3
    assert downsampling_factor(29.97, 29.97) == 1
    for rate in (20.0, 60.0):
        with pytest.raises(RecipeError, match="does not divide the source's 30 Hz"):
            downsampling_factor(30.0, rate)
