"""Hidden truth: from readers into shards, to no model; and recorded steps reached again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.data.conftest import LeRobotFolder
from tokenwm.data.loading.windows import BATCH_FIELDS, WindowDataset, collate
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.base import load_each
from tokenwm.data.readers.columns.columns import Column, RecordedConfig, resolve
from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.data.readers.simulator.environments import decode_action, encode_action
from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.recipes.recipe import load_recipe, parse_recipe
from tokenwm.data.shards.manifest import Feature
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError, RecipeError, ShardError, SourceError

PUSHT = Path(__file__).parents[3] / "data_recipes" / "pusht.yaml"


@pytest.fixture(scope="module")
def lerobot(tmp_path_factory: pytest.TempPathFactory) -> LeRobotFolder:
    """Three episodes with the place of an object beside the robot's state."""
    folder = LeRobotFolder(tmp_path_factory.mktemp("source"))
    for index in range(3):
        rows = np.arange(30 + 3 * index, dtype=np.float32)
        place = np.stack([rows + index, -rows, 0.1 * rows], axis=1)
        folder.add(index, len(rows), observation__place=place, observation__lid=rows % 2)
    return folder


TRUTH = {"task_state": ["observation.place", "observation.lid"], "task_state_units": "m, m, rad, 1"}


@pytest.fixture(scope="module")
def dataset(lerobot: LeRobotFolder, tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    out = tmp_path_factory.mktemp("dataset") / "data"
    prepare(lerobot.recipe(source=TRUTH), out)
    return ShardReader(out, verify=True)


def test_columns_become_hidden_truth(dataset: ShardReader) -> None:
    manifest = dataset.manifest
    feature = manifest.features["task_state"]
    assert feature.names == tuple(f"observation.place_{i}" for i in range(3)) + ("observation.lid",)
    assert feature.unit_of_each == ("m", "m", "rad", "1")
    assert len(manifest.statistics["task_state"]["std"]) == 4
    for key in dataset.keys("train"):
        arrays = dataset.arrays(key)
        rows = 3.0 * np.arange(len(arrays["action"]))  # 30 Hz kept at 10 Hz, as the state is
        expected = np.stack([rows + int(key[-1]), -rows, 0.1 * rows, rows % 2], axis=1)
        np.testing.assert_allclose(arrays["task_state"], expected, rtol=1e-6)
        np.testing.assert_allclose(arrays["state"][:, 0], 0.1 * rows, rtol=1e-6)


def test_no_window_holds_it(dataset: ShardReader) -> None:
    """Models are trained on windows: what is in none of them is no model's input."""
    assert "task_state" not in BATCH_FIELDS
    windows = WindowDataset(dataset, "train", num_steps=4)
    assert "task_state" in windows.manifest.features
    assert "task_state" not in windows[0].arrays
    assert not hasattr(collate([windows[0]]), "task_state")
    with pytest.raises(ShardError, match="has no field 'task_state'; it has frames, state"):
        WindowDataset(dataset, "train", num_steps=4, fields=["frames", "task_state"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task_state": "observation.state"}, "task_state names 'observation.state', which is in"),
        ({"task_state": "observation.plaec"}, "did you mean 'observation.place'"),
        ({**TRUTH, "task_state_units": "m, rad"}, "names 2 units .m, rad. for 4 numbers"),
        ({"task_state": "observation.images.front"}, "numbers are needed"),
    ],
    ids=["also the state", "misspelt", "too few units", "pictures"],
)
def test_impossible_columns_are_refused(
    lerobot: LeRobotFolder, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        lerobot.recipe(source=options).open_source()


def test_a_column_left_open_is_not_the_hidden_one() -> None:
    columns = {
        name: Column(kind="numbers", shape=(3,))
        for name in ("observation.state", "observation.joints", "action")
    }
    config = RecordedConfig(path="x", task_state="observation.state")
    assert resolve(config, columns, "the source").state == "observation.joints"


def test_truth_that_is_not_finite_costs_its_episode(tmp_path: Path) -> None:
    place = np.zeros((9, 3), dtype=np.float32)
    place[4, 1] = np.nan
    lerobot = LeRobotFolder(tmp_path, cameras=())
    lerobot.add(0, 9, observation__place=place, observation__lid=place[:, 0])
    source = lerobot.recipe(source=TRUTH).open_source()
    with pytest.raises(EpisodeError, match="task_state"):
        source.load(source.episodes()[0])


def test_one_unit_is_that_of_all() -> None:
    one = Feature(kind="continuous", shape=(3,), dtype="float32", units="px of 512, square")
    assert one.unit_of_each == ("px of 512, square",) * 3


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> ShardReader:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    small = [f"source.env_kwargs.observation_{side}=32" for side in ("width", "height")]
    changes = ["source.num_episodes=4", "source.max_steps=30", "image_size=[16,16]", "splits.val=0"]
    out = tmp_path_factory.mktemp("pusht") / "data"
    prepare(load_recipe(PUSHT, [*small, *changes]), out)
    return ShardReader(out)


def test_the_block_of_push_t(pusht: ShardReader) -> None:
    feature = pusht.manifest.features["task_state"]
    assert dict(zip(feature.names, feature.unit_of_each, strict=True)) == {
        "block_x": "px",
        "block_y": "px",
        "block_angle": "rad",
        "pusher_velocity_x": "px/s",
        "pusher_velocity_y": "px/s",
    }
    arrays = pusht.arrays(pusht.keys()[0])
    velocity = arrays["task_state"][1:, 3:]
    moved = 10.0 * np.diff(arrays["state"], axis=0)  # of a pusher that speeds up in between
    assert np.corrcoef(velocity[:, 0], moved[:, 0])[0, 1] > 0.7
    assert np.abs(arrays["task_state"][:, :2] - 256.0).max() < 300.0


@pytest.mark.parametrize("index", [1, 3], ids=["plain", "variation"])
def test_a_recorded_step_is_reached_again(pusht: ShardReader, index: int) -> None:
    key = f"episode_{index:06d}"
    assert ("reset_options" in pusht.metadata(key)) == (index == 3)
    arrays = pusht.arrays(key)
    last = len(arrays["action"]) - 1
    resizer = FrameResizer(16, 16, "crop")
    for step in (0, 7, last):
        env = reach(pusht, key, step)
        picture = resizer.resize_image(env.observation["pixels"])
        np.testing.assert_array_equal(picture, arrays["frames.top"][step])
        truth = np.asarray(env.info["task_state"], dtype=np.float32)
        np.testing.assert_array_equal(truth, arrays["task_state"][step])
        if step < last:  # and the future is the recorded one
            _, reward, *_ = env.step(arrays["action"][step])
            assert np.float32(reward) == arrays["reward"][step]
        env.close()


def test_a_step_of_action_chunks_is_reached_again(tmp_path: Path) -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    small = [f"source.env_kwargs.observation_{side}=16" for side in ("width", "height")]
    small += ["source.num_episodes=3", "source.max_steps=17", "image_size=[16,16]"]
    prepare(load_recipe(PUSHT.with_name("pusht_chunks.yaml"), small), tmp_path / "data")
    reader = ShardReader(tmp_path / "data")
    key = next(key for key in reader.keys("train") if not reader.metadata(key).get("phase"))
    truth = reader.arrays(key)["task_state"]
    for step in (0, 3):
        env = reach(reader, key, step)
        np.testing.assert_array_equal(np.float32(env.info["task_state"]), truth[step])
        env.close()
    with pytest.raises(EpisodeError, match="not all actions of the simulator are in it"):
        reach(reader, f"{key}_phase2", 1)


def test_what_cannot_be_reached_is_said(
    pusht: ShardReader, dataset: ShardReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EpisodeError, match=r"step 31 is outside \[0, 31\)"):
        reach(pusht, "episode_000001", 31)
    with pytest.raises(SourceError, match="was read from lerobot, not recorded from a simulator"):
        reach(dataset, dataset.keys()[0], 1)
    monkeypatch.setattr(pusht, "metadata", lambda key: {"seed": 0, "source_index": 1})
    with pytest.raises(EpisodeError, match="do not say how the simulator was reset"):
        reach(pusht, "episode_000001", 1)


def test_several_simulators_at_once_tell_the_same() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    source = {
        "type": "gymnasium",
        "env_id": "gym_pusht/PushT-v0",
        "state": "observation",  # of which entries 2 to 4 are the block's place and angle
        "task_state": "pusht_block",
        "num_episodes": 2,
        "max_steps": 4,
    }

    def load(num_envs: int) -> list[Any]:
        values = {"name": "a", "control_rate": 10, "source": {**source, "num_envs": num_envs}}
        opened = parse_recipe(values).open_source()
        return list(load_each(opened, opened.episodes()))

    for one, other in zip(load(1), load(2), strict=True):
        np.testing.assert_allclose(one.task_state[:, 2], one.state[:, 4])
        np.testing.assert_array_equal(one.task_state, other.task_state)


@pytest.mark.parametrize(
    ("name", "message"),
    [("ball", "unknown task_state 'ball'; known: pusht_block"), ("pusht_block", "is of gym_pusht")],
)
def test_unknown_names_are_refused(name: str, message: str) -> None:
    source = {"type": "gymnasium", "env_id": "CartPole-v1", "state": "observation"}
    with pytest.raises(RecipeError, match=message):
        parse_recipe({"name": "a", "control_rate": 50, "source": {**source, "task_state": name}})


@pytest.mark.parametrize("start", [0, 2])
def test_an_action_is_decoded_as_it_was_encoded(start: int) -> None:
    from gymnasium import spaces

    for space in (
        spaces.Discrete(5, start=start),
        spaces.MultiDiscrete([3, 4], start=[start, 0]),
        spaces.MultiBinary(3),
        spaces.Box(-1, 1, (2, 3), np.float32),
    ):
        space.seed(start)
        action: Any = space.sample()
        decoded = decode_action(space, encode_action(space, action))
        assert space.contains(decoded)
        np.testing.assert_array_equal(decoded, action)
