"""Scripted policies of Push-T, of MuJoCo's Reacher and of MiniGrid: they do what they are for."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from tokenwm.data.readers.simulator.environments import make_environment, read_joints
from tokenwm.data.readers.simulator.minigrid_scripts import places_from_here, shortest_way
from tokenwm.data.readers.simulator.options import SimulatorOptions
from tokenwm.data.readers.simulator.pusht_scripts import (
    TEE_CENTRE,
    is_at,
    pose_nearby,
    pose_of,
    pushing_to,
)
from tokenwm.data.readers.simulator.reacher_scripts import (
    ELBOW_LIMIT,
    FOREARM,
    UPPER_ARM,
    joint_targets,
    torque_to,
)
from tokenwm.data.readers.simulator.scripts import get_policy
from tokenwm.errors import RecipeError


@pytest.mark.parametrize("place", [(0.2, 0.0), (-0.05, 0.12), (0.03, -0.09), (0.0, 0.21)])
def test_joints_bring_the_fingertip_to_a_place(place: tuple[float, float]) -> None:
    targets = joint_targets(np.array(place))
    for shoulder, elbow in targets:
        tip = UPPER_ARM * np.array([np.cos(shoulder), np.sin(shoulder)])
        tip += FOREARM * np.array([np.cos(shoulder + elbow), np.sin(shoulder + elbow)])
        np.testing.assert_allclose(tip, place, atol=1e-3)
    assert targets[0][1] == -targets[1][1] and abs(targets[0][1]) <= ELBOW_LIMIT


def test_what_cannot_be_reached_is_neared() -> None:
    far, near = joint_targets(np.array([0.0, 0.5]))[0], joint_targets(np.array([1e-4, 0.0]))[0]
    np.testing.assert_allclose(far, [np.pi / 2, 0.0], atol=0.01)
    assert near[1] == ELBOW_LIMIT


def test_the_shoulder_turns_the_shorter_way() -> None:
    position, goal = np.array([3.0, 0.0]), np.array([-3.0, 0.5])
    torque = torque_to(position, np.zeros(2), goal, 0.1, 0.02)
    np.testing.assert_allclose(torque, 0.1 * np.array([2 * np.pi - 6.0, 0.5]))
    assert torque_to(position, np.array([0.0, 99.0]), goal, 0.1, 0.02)[1] == -1.0


def test_the_reacher_reaches_and_its_wanderer_rests_now_and_then() -> None:
    pytest.importorskip("mujoco", reason="mujoco is not installed (extra 'mujoco')")
    env = make_environment("Reacher-v5", {"frame_skip": 10})
    env.reset(seed=1)
    action = get_policy("reacher_solver")(env, np.random.default_rng(0))
    distances = [-float(env.step(action())[4]["reward_dist"]) for _ in range(15)]
    assert distances[0] > 0.05 and max(distances[-3:]) < 0.003
    env.reset(seed=1)
    action = get_policy("reacher_wanderer")(env, np.random.default_rng(0))
    torques, speeds = [], []
    for _ in range(150):
        torques.append(action())
        speeds.append(np.abs(env.step(torques[-1])[0][6:8]).max())
    assert np.min(speeds) < 0.2 < 5.0 < np.max(speeds) < 20.0
    assert np.abs(torques).max() <= 1.0 and torques[0].dtype == np.float32


def made(env_id: str = "MiniGrid-DoorKey-5x5-v0", seed: int = 3) -> Any:
    pytest.importorskip("minigrid", reason="minigrid is not installed (extra 'minigrid')")
    env = make_environment(env_id, {})
    env.reset(seed=seed)
    return env


def test_the_way_is_the_shortest_and_the_simulator_is_left_as_it_is() -> None:
    env = made("MiniGrid-Empty-5x5-v0")
    before = env.unwrapped.hash(), env.unwrapped.step_count
    way = shortest_way(places_from_here(env.unwrapped))
    assert way in ([2, 2, 1, 2, 2], [1, 2, 2, 0, 2, 2]) and len(way) == 5
    assert (env.unwrapped.hash(), env.unwrapped.step_count) == before
    # 9 cells and 4 directions; a place is the same from wherever it is come to.
    assert len(places_from_here(env.unwrapped)) == 8 * 4 + 2


def test_the_solver_fetches_the_key_and_stays_where_nothing_is_to_be_had() -> None:
    env = made()
    action, opened = get_policy("minigrid_solver")(env, np.random.default_rng(0)), []
    for _ in range(20):
        chosen = action()
        opened.append(chosen)
        _, reward, done, _, _ = env.step(chosen)
        if done:
            break
    assert done and reward > 0.9 and opened.count(3) == opened.count(5) == 1
    env = made()
    env.unwrapped.grid.set(3, 3, None)  # no goal any more
    assert get_policy("minigrid_solver")(env, np.random.default_rng(0))() == 6


def test_the_wanderer_does_everything_and_the_same_again() -> None:
    def actions(seed: int) -> list[int]:
        env = made()
        action = get_policy("minigrid_wanderer")(env, np.random.default_rng(seed))
        done, taken = False, list[int]()
        for _ in range(70):
            if done:
                env.reset(seed=3)
            taken.append(action())
            done = env.step(taken[-1])[2]
        return taken

    taken = actions(0)
    assert set(taken) == set(range(7)) and taken == actions(0) != actions(1)


def test_joints_are_told_by_mujoco_only() -> None:
    joints = SimpleNamespace(qpos=np.array([3.5, 1.0]), qvel=np.array([0.0, -2.0]))
    told = read_joints(SimpleNamespace(data=joints))
    assert told.tolist() == [3.5, 1.0, 0.0, -2.0] and told.dtype == np.float32
    with pytest.raises(RecipeError, match="'joints', which environments of MuJoCo have"):
        read_joints(SimpleNamespace(data=None))


@pytest.mark.parametrize("name", ["minigrid_wanderer", "reacher_wanderer"])
def test_scripts_of_another_world_are_refused(name: str) -> None:
    env = make_environment("CartPole-v1", {})
    with pytest.raises(RecipeError, match=f"policy {name} is for"):
        get_policy(name)(env, np.random.default_rng(0))
    with pytest.raises(RecipeError, match="leave num_envs out"):
        SimulatorOptions(env_id="CartPole-v1", state="observation", policy=name, num_envs=2)


def test_the_block_is_pushed_to_a_pose_nearby() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    env = make_environment("gym_pusht/PushT-v0", {"obs_type": "state"})
    reached = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        env.reset(seed=seed, options={"reset_to_state": [100.0, 400.0, 250.0, 200.0, 0.3]})
        goal = pose_nearby(pose_of(env.unwrapped), rng)
        action = pushing_to(env.unwrapped, rng, goal, pace=14.0)
        for _ in range(100):
            env.step(action())
            if is_at(pose_of(env.unwrapped), goal):
                break
        reached.append(is_at(pose_of(env.unwrapped), goal))
    assert sum(reached) >= 3


def test_poses_are_drawn_off_the_walls_and_near_by() -> None:
    rng, block = np.random.default_rng(0), np.array([300.0, 80.0, 2.0])
    poses = np.array([pose_nearby(block, rng) for _ in range(300)])
    cos, sin = np.cos(poses[:, 2]), np.sin(poses[:, 2])
    centres = poses[:, :2] + np.stack([cos, sin], 1) * TEE_CENTRE[0]
    centres += np.stack([-sin, cos], 1) * TEE_CENTRE[1]
    assert centres.min() >= 109.9 and centres.max() <= 402.1
    assert np.abs(poses[:, 2] - 2.0).max() <= 1.0 < 1.9 < np.ptp(poses[:, 2])


def test_the_mover_pushes_and_explores() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    env = make_environment("gym_pusht/PushT-v0", {"obs_type": "state"})
    env.reset(seed=3)
    action = get_policy("pusht_mover")(env, np.random.default_rng(3))
    poses = []
    for _ in range(120):
        target = action()
        assert target.dtype == np.float32 and 0.0 <= target.min() <= target.max() <= 512.0
        env.step(target)
        poses.append(pose_of(env.unwrapped))
    moved = np.linalg.norm(np.diff(poses, axis=0)[:, :2], axis=1) > 1.0
    assert 0.1 < moved.mean() < 0.9
