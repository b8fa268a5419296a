"""What the last row holds beside its observation leads nowhere: it may be NaN or missing there."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from tests.unit.data.conftest import LeRobotFolder, write_video
from tests.unit.data.readers.opening import load_all, open_source
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.columns.arrow import to_numbers
from tokenwm.data.recipes.survey import survey
from tokenwm.errors import EpisodeError

ROWS = 13
NAN = float("nan")


def with_nan(values: Any, row: int) -> Any:
    changed = np.array(values, dtype=np.float32)
    changed[row] = NAN
    return changed


def columns(row: int = ROWS - 1) -> dict[str, Any]:
    """Action, reward, end and success with a NaN in one row."""
    action = np.stack([np.arange(ROWS), 2 * np.arange(ROWS)], axis=1)
    return {
        "action": with_nan(action, row),
        "next__reward": with_nan(np.ones(ROWS), row),
        "next__done": with_nan(np.zeros(ROWS), row),
        "next__success": with_nan(np.zeros(ROWS), row),
    }


@pytest.mark.parametrize("control_rate", [30, 10])
def test_nan_in_the_last_row_is_in(tmp_path: Path, control_rate: int) -> None:
    folder = LeRobotFolder(tmp_path / "source")
    for index in range(3):
        folder.add(index, ROWS, **columns())
    found = survey(folder.folder)
    assert not found.problems
    np.testing.assert_array_equal(found.ranges["action"], [[0, 0], [ROWS - 2, 2 * ROWS - 4]])
    made = folder.recipe(control_rate=control_rate, splits={"val": 0, "test": 0}, all_phases=True)
    manifest = prepare(made, tmp_path / "out")
    assert not manifest.excluded
    source = made.open_source()
    episode = source.load(source.episodes()[0])
    factor = 30 // control_rate
    np.testing.assert_array_equal(episode.action[:-1, 0], np.arange(ROWS - 1)[factor - 1 :: factor])
    np.testing.assert_array_equal(episode.action[-1], 0)
    assert episode.reward is not None
    np.testing.assert_array_equal(episode.reward[:-1], factor)
    assert not episode.terminated.any()
    assert episode.metadata["terminated_after_end"] is False
    assert episode.metadata["success"] is False
    assert np.isfinite(episode.measured["saturation"]["fraction"])


@pytest.mark.parametrize("name", ["action", "next__reward", "next__done"])
@pytest.mark.parametrize("row", [0, ROWS - 2])
def test_nan_elsewhere_costs_the_episode(lerobot: Any, name: str, row: int) -> None:
    lerobot.add(0, ROWS, **{name: columns(row)[name]})
    source = lerobot.recipe(control_rate=30).open_source()
    with pytest.raises(EpisodeError, match=rf"NaN or infinite value\(s\).* row {row};"):
        source.load(source.episodes()[0])


def test_a_number_too_large_for_our_type_costs_the_episode(lerobot: Any) -> None:
    action = np.ones((ROWS, 2))
    action[4] = 1e300
    lerobot.add(0, ROWS, action=action)
    source = lerobot.recipe(control_rate=30).open_source()
    with pytest.raises(EpisodeError, match=r"action holds 2 NaN or infinite value\(s\).* row 4;"):
        source.load(source.episodes()[0])


def test_nan_in_the_last_state_costs_the_episode(lerobot: Any) -> None:
    lerobot.add(0, ROWS, observation__state=with_nan(np.ones((ROWS, 2)), ROWS - 1))
    source = lerobot.recipe(control_rate=30).open_source()
    with pytest.raises(EpisodeError, match=f"state holds 2 NaN.* row {ROWS - 1};"):
        source.load(source.episodes()[0])


def test_missing_is_as_nan(lerobot: Any) -> None:
    lerobot.add(0, ROWS)
    table = pyarrow.parquet.read_table(lerobot.parquet(0))
    place = table.column_names.index("action")
    rows: list[Any] = [[float(i), 0.5] for i in range(ROWS)]
    for missing in (None, [None, None]):
        changed = table.set_column(
            place, "action", pyarrow.array([*rows[:-1], missing], pyarrow.list_(pyarrow.float32()))
        )
        pyarrow.parquet.write_table(changed, lerobot.parquet(0))
        (episode,) = load_all(lerobot.recipe(control_rate=30).open_source())
        np.testing.assert_array_equal(episode.action[:-1], rows[:-1])


@pytest.mark.parametrize("last", ["", "nan"])
def test_buttons_with_nothing_in_the_last_row_are_buttons(tmp_path: Path, last: str) -> None:
    for index in range(2):
        write_video(tmp_path / f"run_{index}.mp4", ROWS, 10)
        lines = [f"{row % 2},{row % 3}" for row in range(ROWS - 1)]
        text = "\n".join(["action_0,action_1", *lines, f"{last},{last}"])
        (tmp_path / f"run_{index}.csv").write_text(text + "\n")
    for episode in load_all(open_source("videos", tmp_path)):
        assert episode.action.dtype == np.int64
        np.testing.assert_array_equal(episode.action[:-1, 1], np.arange(ROWS - 1) % 3)


def test_an_empty_list_is_missing() -> None:
    kind = pyarrow.list_(pyarrow.float32())
    found = to_numbers(pyarrow.array([[1, 2], [3, 4], []], kind))
    np.testing.assert_array_equal(found, [[1, 2], [3, 4], [NAN, NAN]])
    np.testing.assert_array_equal(to_numbers(pyarrow.array([[], None, []], kind)).shape, (3, 0))
    with pytest.raises(ValueError, match="rows of different lengths"):
        to_numbers(pyarrow.array([[1, 2], [3], []], kind))
