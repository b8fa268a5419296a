"""The protocol of Push-T goal reaching: pairs, successes, intervals."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import wilson_interval

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
import push_to_goal  # noqa: E402
from push_pairs import Pose, Task, candidates, task_of  # noqa: E402
from push_to_goal import paired_difference  # noqa: E402

RECIPES = Path(__file__).parents[3] / "data_recipes"


def test_wilsons_interval() -> None:
    """Figures of Newcombe (1998), table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson_interval(1, 29) == pytest.approx((0.0061, 0.1718), abs=1e-4)
    low, high = wilson_interval(29, 29)
    assert (low, high) == pytest.approx((1 - wilson_interval(0, 29)[1], 1.0))
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("pusher", "block", "angle", "reaches"),
    [
        ((12.0, 0.0), (0.0, 12.0), 0.0, True),
        ((15.0, 0.0), (0.0, 15.0), 0.0, False),  # 21.2 px together, though each is near
        ((0.0, 0.0), (0.0, 0.0), 2.0 * np.pi - 0.3, True),
        ((0.0, 0.0), (0.0, 0.0), 0.36, False),
    ],
    ids=["near", "far", "round", "turned"],
)
def test_success(pusher: Any, block: Any, angle: float, reaches: bool) -> None:
    goal = Pose(pusher=(0.0, 0.0), block=(0.0, 0.0), angle=0.0)
    assert Pose(pusher=pusher, block=block, angle=angle).reaches(goal) is reaches


def test_differences_are_paired_and_drawn_by_episode() -> None:
    one, other = np.array([1.0, 1.0, 0.0, 1.0]), np.array([1.0, 0.0, 0.0, 1.0])
    found = paired_difference(one, other, ["a", "a", "b", "c"])
    assert found["mean"] == 0.25 and (found["low"], found["high"]) == (0.0, 0.5)
    assert paired_difference(one, one, ["a", "a", "b", "c"])["high"] == 0.0


@pytest.fixture(scope="module")
def pusht(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    small = [f"source.env_kwargs.observation_{side}=16" for side in ("width", "height")]
    small += ["source.num_episodes=2", "source.max_steps=36", "image_size=[16,16]"]
    small += ["splits.val=0", "splits.test=0"]
    out = tmp_path_factory.mktemp("pusht") / "data"
    prepare(load_recipe(RECIPES / "pusht_chunks.yaml", small), out)
    return out


def test_replay_reaches_the_goal_and_standing_still_does_not(
    pusht: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arms = ["nothing", "replay", "straight"]
    options = ["--split", "train", "--starts", "2", "--pairs", "2", "--arms", *arms]
    assert push_to_goal.main([str(pusht), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["tried"] == len(found["pairs"]) == 2
    assert found["counts"]["candidates"] == 4  # of each recording once, whatever its phases
    rates = {name: found["arms"][name]["rate"] for name in arms}
    assert rates["replay"] == 1.0 and rates["nothing"] == 0.0
    assert found["arms"]["replay"]["less_nothing"]["mean"] == 1.0
    for pair in found["pairs"]:
        assert pair["goal"] - pair["start"] == 5 and pair["moved"] >= 1.0
        assert pair["arms"]["replay"]["steps"] <= 25
    parts = []
    for number, arm in ((0, "replay"), (1, "replay"), (0, "nothing"), (1, "nothing")):
        part = [*options[:-3], arm, "--part", f"{number}/2"]
        assert push_to_goal.main([str(pusht), *part]) == 0
        parts.append(tmp_path / f"{number}{arm}.json")
        parts[-1].write_text(capsys.readouterr().out)
    assert push_to_goal.main(["--join", *map(str, parts)]) == 0
    joined = json.loads(capsys.readouterr().out)
    for name in ("replay", "nothing"):
        del found["arms"][name]["seconds"], joined["arms"][name]["seconds"]
    found["arms"]["replay"].pop("less_nothing")
    assert joined["arms"]["replay"] == found["arms"]["replay"] and joined["tried"] == 2
    assert joined["arms"]["nothing"]["less_replay"]["mean"] == -1.0


def test_an_arm_sees_what_was_recorded_and_is_told_the_goal(
    pusht: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = ShardReader(pusht)
    pair = next(candidates(reader, "train", 1))
    task = task_of(reader, pair, None, 0)
    assert task.actions.shape == (25, 2)
    seen = []

    def arm(told: Task) -> Any:
        assert told is task

        def next_action(look: Any) -> Any:
            seen.append(look())
            return told.actions[len(seen) - 1]

        return next_action

    monkeypatch.setattr(push_to_goal, "BUDGET", 6)
    result = push_to_goal.attempt(task, arm)
    assert len(seen) == 6 and not result["success"]
    recorded = reader.arrays(pair.key)
    for robot_step, step in ((0, pair.start), (5, pair.start + 1)):
        frame = seen[robot_step].frames[0, 0].numpy()
        np.testing.assert_array_equal(frame, recorded["frames.top"][step])
        np.testing.assert_allclose(seen[robot_step].state[0], recorded["state"][step], atol=1e-3)
    assert (task.goal[0] == recorded["frames.top"][pair.goal]).all()
