from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tokenwm.data.quality import measures
from tokenwm.data.quality.lag import estimate_lag
from tokenwm.data.quality.measures import (
    digest,
    equal_stretches,
    largest_spike,
    largest_step,
    measure_recording,
    saturation,
    still_stretches,
    time_deviation,
)

RATE = 30.0


def smooth(seed: int, num_rows: int, num_dimensions: int) -> NDArray[np.float64]:
    """A random signal whose changes are correlated over a few rows, as a moving arm's are."""
    noise = np.random.default_rng(seed).normal(size=(num_rows + 8, num_dimensions))
    velocity = np.stack(
        [np.convolve(column, np.ones(5) / 5, "valid") for column in noise.T], axis=1
    )
    return np.cumsum(velocity, axis=0)[:num_rows]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    lag=st.integers(-12, 20),
    num_dimensions=st.integers(1, 6),
    noise=st.floats(0, 0.02),
)
def test_a_known_lag_is_found(seed: int, lag: int, num_dimensions: int, noise: float) -> None:
    """Also with units of its own and noise on the state."""
    whole = smooth(seed, 340, num_dimensions)
    action = whole[20:320]
    state = 3.0 * whole[20 - lag : 320 - lag] + 7.0
    state = state + noise * np.random.default_rng(seed).normal(size=state.shape)
    found = estimate_lag(state, action, RATE)
    assert found is not None and found["action"] == "target"
    assert found["rows"] == pytest.approx(lag, abs=0.5)
    assert found["seconds"] == pytest.approx(lag / RATE, abs=0.5 / RATE)
    assert found["correlation"] > 0.6


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), lag=st.integers(1, 12))
def test_the_lag_of_a_velocity_command_is_found(seed: int, lag: int) -> None:
    action = np.diff(smooth(seed, 301, 3), axis=0)
    late = np.concatenate([np.zeros((lag, 3)), action])[:300]
    # An action moves the state by the next row at the earliest.
    state = np.cumsum(np.concatenate([np.zeros((1, 3)), late]), axis=0)[1 : len(action) + 1]
    found = estimate_lag(state, action, RATE)
    assert found is not None and found["action"] == "rate"
    assert found["rows"] == pytest.approx(lag, abs=0.5)


def test_every_dimension_has_a_lag_of_its_own() -> None:
    whole = smooth(3, 340, 3)
    state = np.stack([whole[17:317, 0], whole[17:317, 1], whole[11:311, 2]], axis=1)
    found = estimate_lag(state, whole[20:320], RATE)
    assert found is not None
    assert found["dimensions"] == pytest.approx([0.1, 0.1, 0.3], abs=0.02)
    assert found["rows"] == pytest.approx(3, abs=0.5)


def test_a_lag_that_cannot_be_told_is_none() -> None:
    rng = np.random.default_rng(0)
    action = smooth(0, 100, 2)
    assert estimate_lag(smooth(1, 100, 3), action, RATE) is None  # other dimensions
    assert estimate_lag(action[:15], action[:15], RATE) is None  # too short
    assert estimate_lag(np.ones((100, 2)), action, RATE) is None  # nothing moves
    assert estimate_lag(rng.normal(size=(2000, 2)), rng.normal(size=(2000, 2)), RATE) is None
    constant = np.full(100, 0.1)  # the mean of these is not exactly 0.1
    assert estimate_lag(np.stack([constant, constant], axis=1), action, RATE) is None
    half = estimate_lag(np.stack([action[:, 0], constant], axis=1), action, RATE)
    assert half is not None and half["dimensions"] == [0.0, None]


def test_a_spike_is_out_and_back() -> None:
    state = smooth(0, 200, 3)
    clean = largest_spike(state)
    assert clean is not None and clean["factor"] < 3
    for width in (1, 2):
        broken = state.copy()
        broken[70 : 70 + width, 1] += 100
        spike = largest_spike(broken)
        assert spike is not None
        assert (spike["dimension"], spike["factor"] > 10) == (1, True)
        assert spike["row"] in range(70, 70 + width)
        assert spike["size"] == pytest.approx(100, rel=0.05)


def test_what_is_no_spike() -> None:
    still = np.zeros((50, 1))
    assert largest_spike(still) is None
    assert largest_spike(still[:4]) is None
    switch = still.copy()
    switch[20] = 1  # two values: a button that was pressed for a row
    assert largest_spike(switch) is None
    angle = (np.linspace(0, 6, 200)[:, None] + np.pi) % (2 * np.pi) - np.pi
    wrapped = largest_spike(angle)
    assert wrapped is None or wrapped["factor"] < 3
    assert largest_step(angle) == {
        "dimension": 0,
        "row": pytest.approx(104, abs=2),
        "size": pytest.approx(2 * np.pi, abs=0.2),
    }
    assert largest_step(angle[:1]) is None


@settings(max_examples=25)
@given(seed=st.integers(0, 2**32 - 1), scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_the_factor_of_a_spike_knows_no_units(seed: int, scale: float, shift: float) -> None:
    state = smooth(seed, 120, 2)
    state[40, 1] += 50
    here, there = largest_spike(state), largest_spike(scale * state + shift)
    assert here is not None and there is not None
    assert there["factor"] == pytest.approx(here["factor"], rel=1e-2)
    assert (there["dimension"], there["row"]) == (here["dimension"], here["row"])


def test_saturation() -> None:
    action = smooth(0, 100, 3)
    action[:, 2] = np.arange(100) % 2  # a switch is always at an extreme
    action[:, 1] = np.clip(action[:, 1], *np.quantile(action[:, 1], [0.2, 0.9]))
    found = saturation(action)
    assert found == {"dimension": 1, "fraction": pytest.approx(0.3, abs=0.03)}
    assert saturation(action[:, 2:]) is None
    assert saturation(np.ones((10, 1))) is None


def test_stretches_in_which_pictures_stand_still() -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 200, (40, 8, 8, 3), dtype=np.uint8)
    frames[10:25] = frames[10] + rng.integers(0, 4, (15, 8, 8, 3), dtype=np.uint8)
    frames[30:33] = frames[30]  # too short
    assert still_stretches(frames, 10.0) == [(10, 25)]
    assert still_stretches(frames[10:25], 10.0) == [(0, 15)]
    assert still_stretches(frames[:1], 10.0) == []
    drift = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None], (40, 8, 8, 3))
    assert all(stop - start == 5 for start, stop in still_stretches(drift, 1.0))


def test_stretches_in_which_numbers_are_equal() -> None:
    state = np.arange(100.0)[:, None].repeat(2, axis=1)
    state[30:60] = state[30]
    state[80:85] = state[80]
    assert equal_stretches(state, RATE) == [(30, 60)]
    assert equal_stretches(state, 5.0) == [(30, 60), (80, 85)]
    assert equal_stretches(state[30:60], RATE) == [(0, 30)]


@settings(max_examples=30)
@given(changes=st.lists(st.booleans(), min_size=1, max_size=60))
def test_equal_stretches_against_a_slow_reference(changes: list[bool]) -> None:
    values = np.cumsum([False, *changes]).astype(float)[:, None]
    expected = []
    for value in np.unique(values):
        rows = np.flatnonzero(values[:, 0] == value)
        if len(rows) >= 5:
            expected.append((int(rows[0]), int(rows[-1]) + 1))
    assert equal_stretches(values, 1.0) == expected


def recording(**changes: Any) -> dict[str, Any]:
    """Ten seconds of a robot with one camera; ``changes`` replace what is measured."""
    action = smooth(0, 300, 2)
    frames = np.random.default_rng(0).integers(0, 255, (100, 8, 8, 3), dtype=np.uint8)
    values: dict[str, Any] = {
        "rate": RATE,
        "action": action,
        "state": np.concatenate([action[:1].repeat(3, axis=0), action[:-3]]),
        "timestamps": np.arange(300) / RATE,
        "frames": {"top": frames},
        "frame_rate": 10.0,
    }
    return measure_recording(**values | changes)


def test_a_good_recording() -> None:
    found = recording(source_repeated={"top": 0.25})
    assert (found["rows"], found["seconds"]) == (300, 10.0)
    assert found["time_deviation"] < 1e-9
    assert found["lag"]["rows"] == pytest.approx(3, abs=0.2)
    assert found["state"]["constant"] == []
    assert found["state"]["frozen"] == []
    assert found["cameras"]["top"] == {
        "frames": 100,
        "repeated": 0.0,
        "source_repeated": 0.25,
        "frozen_fraction": 0.0,
        "frozen": [],
    }


def test_frozen_while_the_robot_moves() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (100, 8, 8, 3), dtype=np.uint8)
    frames[40:70] = frames[40]
    action = smooth(0, 300, 2)
    found = recording(frames={"top": frames})
    assert found["cameras"]["top"]["frozen"] == [[4.0, 7.0, True]]
    assert found["cameras"]["top"]["repeated"] == pytest.approx(29 / 99, abs=1e-3)
    resting = action.copy()
    resting[110:220] = resting[110]
    found = recording(frames={"top": frames}, state=resting)
    assert found["cameras"]["top"]["frozen"] == [[4.0, 7.0, False]]
    # The picture stands still as well, so the robot may just be pressed against something.
    assert found["state"]["frozen"] == [[pytest.approx(3.667), pytest.approx(7.333), False]]
    found = recording(state=resting)
    assert found["state"]["frozen"] == [[pytest.approx(3.667), pytest.approx(7.333), True]]
    ids = np.arange(300)[:, None] % 4
    assert recording(action=ids, state=resting)["state"]["frozen"][0][2] is False
    assert recording(action=ids, state=resting)["lag"] is None


def test_only_the_longest_stretches_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measures, "MAX_STRETCHES", 2)
    state = np.arange(300.0)[:, None]
    for start, length in ((0, 20), (50, 40), (120, 30), (200, 25)):
        state[start : start + length] = start
    found = recording(state=state)["state"]["frozen"]
    assert [start for start, _, _ in found] == [1.667, 4.0]


def test_equal_recordings_have_equal_digests() -> None:
    action, state = smooth(0, 30, 2), smooth(1, 30, 3)
    frames = {"top": np.zeros((30, 8, 8, 3), np.uint8)}
    other = {"top": np.ones((30, 8, 8, 3), np.uint8)}
    assert digest(action, state, frames) == digest(action.copy(), state.copy(), other)
    assert digest(action, None, frames) != digest(action, None, other)
    changed = state.copy()
    changed[-1, -1] += 1e-6
    assert digest(action, state, frames) != digest(action, changed, frames)


def test_time_deviation() -> None:
    times = np.arange(10) / 10
    times[4] += 0.02
    assert time_deviation(times, 10.0) == pytest.approx(0.02)
    assert time_deviation(times[:1], 10.0) == 0.0
