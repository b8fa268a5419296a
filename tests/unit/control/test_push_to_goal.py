"""The protocol of Push-T goal reaching: pairs, successes, intervals."""

import json
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokenwm.data.readers.simulator.reach import reach
from tokenwm.data.shards.reader import ShardReader
from tokenwm.evaluation.metrics import wilson_interval

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
import push_chunks  # noqa: E402
import push_to_goal  # noqa: E402
from push_pairs import Pose, Task, candidates, pose_in, task_of  # noqa: E402
from push_to_goal import paired_difference  # noqa: E402
from push_world import Look, PushState, PushWorld  # noqa: E402


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
    assert found["value"] == 0.25 and (found["low"], found["high"]) == (0.0, 0.5)
    assert paired_difference(one, one, ["a", "a", "b", "c"])["high"] == 0.0


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
    assert found["arms"]["replay"]["less_nothing"]["value"] == 1.0
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
    assert joined["arms"]["nothing"]["less_replay"]["value"] == -1.0


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


def test_the_true_dynamics_are_those_of_the_simulator(pusht: Path) -> None:
    """The recorded actions lead where they led; what is seen on the way is what was recorded."""
    reader = ShardReader(pusht)
    pair = next(candidates(reader, "train", 1))
    actions = task_of(reader, pair, None, 0).actions.astype(np.float64)[None]
    model: Any = SimpleNamespace(vocabulary=None, control_rate=2.0)
    context: Any = None
    with closing(reach(reader, pair.key, pair.start, env_kwargs={"obs_type": "state"})) as env:
        world = PushWorld(model, Look(reader, env.unwrapped), context)
        before = world.now()
        ends, poses, frames = world.paths(before, actions, draw_every=5)
        assert (world.now().bodies == before.bodies).all()
        elsewhere = world.paths(world.fork(before, 2, 5), np.full((2, 25, 2), 400.0))[1]
        again = world.paths(before, actions)[1]
        world.put(PushState(bodies=ends))
        at_end = pose_in(env.unwrapped)
    assert max(at_end.off(pair.end)) < 1e-3 < max(at_end.off(pair.begin))
    np.testing.assert_allclose(poses[0, -1, :4], [*pair.end.pusher, *pair.end.block], atol=1e-3)
    assert frames is not None
    recorded = reader.frames(pair.key, pair.start + 1, pair.goal + 1)
    np.testing.assert_array_equal(frames[0].numpy(), recorded)
    assert (elsewhere[0, -1] - elsewhere[1, -1])[:2] == pytest.approx(0.0, abs=1e-6)
    np.testing.assert_allclose(again[0, :, :2], poses[0, :, :2], atol=1e-6)  # the pusher, always


def test_a_block_knows_its_walls_and_its_centre() -> None:
    """The bar's outer edge lies along y = 40, so that it is 33 px from the edge of the wall."""
    block = np.array([[256.0, 40.0, 0.0], [256.0, 40.0, np.pi]])
    assert push_chunks.wall_distance(block).tolist() == pytest.approx([33.0, -87.0])
    centre = np.array([[256.0, 85.0, 0.0], [256.0, -5.0, np.pi]])
    np.testing.assert_allclose(push_chunks.with_origin(centre), block, atol=1e-9)
    poses = np.concatenate([np.zeros((2, 2)), block], axis=1)
    np.testing.assert_allclose(push_chunks.centres(poses), 256.0)


def test_a_ranking_closes_what_its_first_choice_is_better_than_the_mean() -> None:
    truth, scores = [0.0, 1.0, 2.0, 5.0], [0.1, 0.2, 0.9, 0.3]
    record = {"key": "a", "truth": {"left": truth}, "scores": {"left": scores}}
    found = push_chunks.ranking([record], "left", 2.0)
    assert found["gap_closed"]["value"] == 0.0  # the third is as good as the mean
    assert found["spearman"]["value"] == pytest.approx(0.8)
    assert found["starts"] == 1


def test_alarms_are_compared_with_what_happened() -> None:
    scores, happened = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert push_chunks.auroc(scores, happened) == 0.75
    assert push_chunks.found_at(scores, happened, 0.0) == 0.5
