"""Reacher's true dynamics as a world: the rewards it foretells are those that come."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tokenwm.data.readers.simulator.environments import make_environment, read_joints
from tokenwm.imagination.world import Observation

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
from true_reacher import TrueReacher  # noqa: E402


def test_what_is_foretold_comes_true() -> None:
    pytest.importorskip("mujoco", reason="mujoco is not installed (extra 'mujoco')")
    kwargs = {"frame_skip": 10}
    options = SimpleNamespace(env_id="Reacher-v5", env_kwargs=kwargs)
    model: Any = SimpleNamespace(vocabulary=None, control_rate=10.0)
    world = TrueReacher(model, SimpleNamespace(options=options))  # type: ignore[arg-type]
    env = make_environment("Reacher-v5", kwargs)
    env.reset(seed=4)
    rng = np.random.default_rng(0)
    for _ in range(6):
        env.step(rng.uniform(-0.3, 0.3, 2))
    state = torch.from_numpy(read_joints(env.unwrapped))[None]
    seen = Observation(frames=torch.zeros(1, 1, 8, 8, 3, dtype=torch.uint8), state=state)
    chunks = torch.from_numpy(rng.uniform(-0.3, 0.3, (2, 4, 2))).float()
    _, rollout = world.roll(world.fork(world.start(seen), 2, 4), chunks)
    came = [env.step(action.numpy())[1] for action in chunks[1]]
    assert rollout.reward is not None
    np.testing.assert_allclose(rollout.reward[1].numpy(), came, atol=1e-3)
    assert (rollout.reward[0] - rollout.reward[1]).abs().max() > 0.01
