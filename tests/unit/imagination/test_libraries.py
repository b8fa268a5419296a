"""The imagined world as libraries of reinforcement learning want it: by name, scaled, for SB3."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tokenwm
from tests.moving_square import SIZE, SQUARE, make_model, save_model, write_squares
from tests.small_models import random_tokens, small_tokenizer, small_world_model
from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.token_world_model import TokenWorldModel

gymnasium = pytest.importorskip("gymnasium")

NAME = "tokenwm.imagination.gym:tokenwm/WorldModel-v0"
NEVER: dict[str, Any] = {"termination_threshold": 1.1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a dataset that it fits."""
    folder = tmp_path_factory.mktemp("world")
    write_squares(folder / "frames", {"train": (12, 9), "test": (8,)})
    return save_model(folder / "model", make_model()), folder / "frames"


@pytest.fixture(scope="module")
def starts(folders: tuple[Path, Path]) -> Any:
    return tokenwm.starts(folders[1], "train", 5, horizon=0)


def test_actions_between_minus_one_and_one_span_the_range_of_the_data(starts: Any) -> None:
    model = make_model()
    options: dict[str, Any] = {"observation": "tokens", **NEVER}
    raw = tokenwm.WorldModelVectorEnv(model, starts, 4, **options)
    scaled = tokenwm.WorldModelVectorEnv(model, starts, 4, normalize_actions=True, **options)
    assert raw.single_action_space == gymnasium.spaces.Box(-3.5, 3.5, (2,), np.float32)
    assert scaled.single_action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    raw.reset(seed=0)
    scaled.reset(seed=0)
    for actions in ([[-1, 1], [0.5, 0], [0, 0], [1, 1]], [[0, 1], [-0.5, 0], [1, 0], [0, -1]]):
        one = np.array(actions, dtype=np.float32)
        assert (scaled.step(one)[0] == raw.step(3.5 * one)[0]).all()


def test_ids_have_no_scale(starts: Any) -> None:
    world_model = small_world_model("discrete")
    loaded = LoadedWorldModel(
        tokenizer=small_tokenizer(),
        world_model=world_model,
        control_rate=10.0,
        cameras=("a",),
        provenance={},
    )
    model = TokenWorldModel(loaded)
    context = Context(tokens=random_tokens(world_model, 2, 3))
    with pytest.raises(TokenwmError, match="ids, which have no scale"):
        tokenwm.WorldModelVectorEnv(model, context, 2, normalize_actions=True)
    env = tokenwm.WorldModelVectorEnv(model, context, 2, observation="state", **NEVER)
    assert env.single_observation_space == gymnasium.spaces.Box(0.0, 4.0, (2,), np.float32)
    assert env.observation_space.contains(env.reset(seed=0)[0])


def test_the_robots_state_can_be_observed(starts: Any) -> None:
    env = tokenwm.WorldModelVectorEnv(make_model(), starts, 3, observation="state", **NEVER)
    assert env.single_observation_space == gymnasium.spaces.Box(
        0.0, SIZE - SQUARE, (2,), np.float32
    )
    observation, info = env.reset(seed=0)
    for _ in range(3):
        assert env.observation_space.contains(observation)
        np.testing.assert_allclose(observation, info["state"], atol=1e-4)
        observation, *_, info = env.step(env.action_space.sample())
    with pytest.raises(TokenwmError, match="the model has no state; choose pixels, tokens or emb"):
        tokenwm.WorldModelVectorEnv(make_model(has_state=False), starts, 2, observation="state")
    with pytest.raises(TokenwmError, match="render_mode='human'; choose rgb_array"):
        tokenwm.WorldModelVectorEnv(make_model(), starts, 2, render_mode="human")


@pytest.mark.filterwarnings("ignore:.*A Box (observation|action) space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")
def test_it_is_made_by_name_from_folders(folders: tuple[Path, Path]) -> None:
    model, frames = folders
    options: dict[str, Any] = {"model": str(model), "starts": str(frames), **NEVER}
    env = gymnasium.make(NAME, observation="state", normalize_actions=True, **options)
    env.reset(seed=3)
    for number in range(1, 51):
        *_, truncated, _ = env.step(env.action_space.sample())
        assert truncated == (number == 50)
    env = gymnasium.make(NAME, max_episode_steps=60, observation="state", **options)
    env.reset(seed=3)
    assert [env.step(env.action_space.sample())[3] for _ in range(60)] == [False] * 59 + [True]
    mode = gymnasium.VectorizeMode.VECTOR_ENTRY_POINT
    vector = gymnasium.make_vec(
        NAME, 3, vectorization_mode=mode, max_episode_steps=2, observation="tokens", **options
    )
    assert isinstance(vector.unwrapped, tokenwm.WorldModelVectorEnv)
    vector.reset(seed=0)
    vector.step(vector.action_space.sample())
    assert vector.step(vector.action_space.sample())[3].all()


@pytest.mark.parametrize("observation", ["embeddings", "state"])
def test_stable_baselines_learns_in_it(starts: Any, observation: str) -> None:
    pytest.importorskip("stable_baselines3", reason="Stable-Baselines3 is not installed")
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import VecMonitor, is_vecenv_wrapped

    env = tokenwm.WorldModelVecEnv(
        make_model(), starts, 4, observation=observation, max_episode_steps=3, **NEVER
    )
    assert env.action_space == gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    env.seed(5)
    first = env.reset()
    env.seed(5)
    assert (env.reset() == first).all() and len(env.reset_infos) == 4
    for number in range(1, 5):
        observed, reward, ended, infos = env.step(np.zeros((4, 2), dtype=np.float32))
        assert ended.all() == (number == 3) and reward.dtype == np.float32
        assert ended.all() == ("terminal_observation" in infos[0])
        if number == 3:
            assert infos[0]["TimeLimit.truncated"] and infos[0]["frame_nll"] > 0
            assert infos[1]["terminal_observation"].shape == observed[1].shape
            assert any(
                (info["terminal_observation"] != row).any()
                for info, row in zip(infos, observed, strict=True)
            )
    assert len(env.get_images()) == 4 and env.get_attr("num_envs", [0, 2]) == [4, 4]
    assert not is_vecenv_wrapped(env, VecMonitor)
    with pytest.raises(TokenwmError, match="cannot be called"):
        env.env_method("reset")
    torch.manual_seed(0)
    agent = PPO("MlpPolicy", VecMonitor(env), n_steps=6, batch_size=12, n_epochs=1, device="cpu")
    before = [weight.clone() for weight in agent.policy.parameters()]
    agent.learn(48)
    assert agent.num_timesteps == 48
    assert any(
        (old != new).any() for old, new in zip(before, agent.policy.parameters(), strict=True)
    )
    assert [info["l"] for info in agent.ep_info_buffer] == [3] * 16
