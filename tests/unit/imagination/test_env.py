"""Imagined episodes as an environment."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.moving_square import make_episode, make_model
from tests.small_models import random_tokens, small_tokenizer, small_world_model
from tokenwm.checkpoint import LoadedWorldModel
from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.transformer.frozen import unpack_linear_maps

gymnasium = pytest.importorskip("gymnasium")
from gymnasium import spaces  # noqa: E402
from gymnasium.utils import env_checker, passive_env_checker  # noqa: E402
from gymnasium.vector import AutoresetMode  # noqa: E402

from tokenwm.imagination.env import WorldModelEnv, WorldModelVectorEnv  # noqa: E402
from tokenwm.imagination.episodes import ImaginedEpisodes  # noqa: E402

NUM_STARTS, CONTEXT, NUM_ENVS = 5, 3, 4
KINDS = ["pixels", "tokens", "embeddings"]


def starts_of(model: TokenWorldModel) -> Context:
    episodes = [make_episode(CONTEXT, seed, model.cameras) for seed in range(NUM_STARTS)]
    frames = [np.stack([e[f"frames.{c}"] for c in model.cameras], axis=1) for e in episodes]
    states = None
    if model.vocabulary.state is not None:
        states = np.stack([e["state"] for e in episodes])
    return model.context(np.stack(frames), np.stack([e["action"] for e in episodes]), states)


@pytest.fixture(scope="module")
def model() -> TokenWorldModel:
    return make_model()


def make_env(model: TokenWorldModel, **options: Any) -> WorldModelVectorEnv:
    defaults: dict[str, Any] = {"termination_threshold": 1.1, "max_episode_steps": 100}
    return WorldModelVectorEnv(model, starts_of(model), NUM_ENVS, **(defaults | options))


def actions_for(env: WorldModelVectorEnv, seed: int) -> Any:
    env.action_space.seed(seed)
    return env.action_space.sample()


def test_actions_end_with_the_training_range_and_states_with_the_margin() -> None:
    model = make_model()
    action, state = model.vocabulary.action, model.vocabulary.state
    assert isinstance(action, BinTokenizer) and isinstance(state, BinTokenizer)
    model.vocabulary = replace(
        model.vocabulary, action=replace(action, margin_bins=1), state=replace(state, margin_bins=2)
    )
    env = make_env(model, observation="state")
    actions, states = env.single_action_space, env.single_observation_space
    assert isinstance(actions, spaces.Box) and isinstance(states, spaces.Box)
    np.testing.assert_allclose(actions.low, action.edges[:, 1], rtol=1e-6)
    np.testing.assert_allclose(actions.high, action.edges[:, -2], rtol=1e-6)
    np.testing.assert_allclose(states.low, state.edges[:, 0], rtol=1e-6)
    np.testing.assert_allclose(states.high, state.edges[:, -1], rtol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cameras", [("top",), ("top", "side")])
@pytest.mark.parametrize("has_state", [True, False])
def test_spaces_hold_what_is_observed(kind: str, cameras: tuple[str, ...], has_state: bool) -> None:
    env = make_env(make_model(cameras=cameras, has_state=has_state), observation=kind)
    observation, info = env.reset(seed=1)
    assert env.observation_space.contains(observation)
    assert observation.std() > 0
    assert not info["frame_nll"].any() and not info["frame_entropy"].any()
    for number in range(3):
        observation, reward, terminated, truncated, info = env.step(actions_for(env, number))
        assert env.observation_space.contains(observation)
        assert reward.shape == terminated.shape == truncated.shape == (NUM_ENVS,)
        assert (reward.dtype, terminated.dtype, truncated.dtype) == (np.float64, bool, bool)
        assert (info["frame_nll"] > 0).all()
        assert (info["frame_entropy"] > 0).all()
        assert info["frame_entropy"].dtype == np.float32
        assert ("state" in info) == has_state
    assert env.render()[0].shape == (32, 32 * len(cameras), 3)
    env.close()


def test_a_seed_and_actions_decide_everything(model: TokenWorldModel) -> None:
    def play(seed: int) -> list[bytes]:
        env = make_env(model, observation="tokens", max_episode_steps=2)
        seen = [env.reset(seed=seed)[0].tobytes()]
        for number in range(6):
            observation, reward, *_ = env.step(actions_for(env, number))
            seen += [observation.tobytes(), reward.tobytes()]
        return seen

    assert play(3) == play(3)
    assert play(3) != play(4)


def test_episodes_end_and_start_anew_in_the_next_step(model: TokenWorldModel) -> None:
    env = make_env(model, observation="tokens", max_episode_steps=3)
    env.reset(seed=0)
    starts = {tokens.tobytes() for tokens in starts_of(model).tokens.frame[:, -1].numpy()}
    for number in range(1, 9):
        observation, reward, _, truncated, info = env.step(actions_for(env, number))
        assert truncated.all() == (number % 4 == 3)  # three steps, then one to start anew
        if number % 4 == 0:
            assert all(row.tobytes() in starts for row in observation)
            assert (reward == 0).all()
            assert not info["frame_nll"].any() and not info["frame_entropy"].any()


def test_episodes_start_anew_in_the_same_step(model: TokenWorldModel) -> None:
    env = make_env(
        model, observation="tokens", max_episode_steps=3, autoreset_mode=AutoresetMode.SAME_STEP
    )
    env.reset(seed=0)
    starts = {tokens.tobytes() for tokens in starts_of(model).tokens.frame[:, -1].numpy()}
    for number in range(1, 7):
        observation, _, _, truncated, info = env.step(actions_for(env, number))
        assert truncated.all() == (number % 3 == 0)
        if truncated.all():
            assert all(row.tobytes() in starts for row in observation)
            assert info["_final_obs"].all()
            assert env.single_observation_space.contains(info["final_obs"][0])
            assert (info["final_info"]["frame_entropy"] > 0).all()
            assert (info["final_info"]["frame_nll"] > 0).all()
            assert not info["frame_nll"].any() and not info["frame_entropy"].any()
        else:
            assert "final_obs" not in info


def test_without_autoreset_the_caller_says_which_start_anew(model: TokenWorldModel) -> None:
    env = make_env(
        model, observation="tokens", max_episode_steps=1, autoreset_mode=AutoresetMode.DISABLED
    )
    env.reset(seed=0)
    before = env.step(actions_for(env, 0))[0]
    with pytest.raises(TokenwmError, match=r"episodes \[0, 1, 2, 3\] have ended"):
        env.step(actions_for(env, 1))
    mask = np.array([True, False, True, False])
    after, _ = env.reset(options={"reset_mask": mask})
    assert (after[~mask] == before[~mask]).all()
    assert (after[mask] != before[mask]).any()
    with pytest.raises(TokenwmError, match=r"episodes \[1, 3\] have ended"):
        env.step(actions_for(env, 2))
    env.reset(options={"reset_mask": [False, True, False, True]})
    env.step(actions_for(env, 2))
    for wrong in (mask[:2], mask.astype(int), np.zeros(4, dtype=bool), [1, 0], "1"):
        with pytest.raises(TokenwmError, match="reset_mask"):
            env.reset(options={"reset_mask": wrong})


@torch.inference_mode()
@pytest.mark.parametrize("has_state", [True, False])
@pytest.mark.parametrize("speculative", [True, False])
def test_a_restarted_episode_is_as_if_alone_and_the_others_go_on(
    has_state: bool, speculative: bool
) -> None:
    """Past the window too: nothing of the episode before is seen."""
    model = make_model(has_state=has_state, window=3)
    model.speculative = speculative
    starts = starts_of(model)
    action = torch.randint(7, (12, NUM_ENVS, 2))
    undisturbed, restarted = (
        ImaginedEpisodes(model, starts, NUM_ENVS, termination_threshold=1.1) for _ in range(2)
    )
    alone = None
    for number in range(12):
        if number == 5:
            restarted.restart(torch.tensor([2]))
            row = (starts.tokens.frame[:, -1] == restarted.frame_tokens[2]).all(1).nonzero()[0]
            first = restarted._state.step - (CONTEXT - 1)
            streams = torch.tensor([NUM_ENVS])
            alone = model.start_rows(starts, row, noise_streams=streams, first_step=first)
        undisturbed.step_tokens(action[number])
        restarted.step_tokens(action[number])
        others = torch.tensor([0, 1, 3])
        assert torch.equal(restarted.frame_tokens[others], undisturbed.frame_tokens[others])
        if alone is not None:
            alone, _ = model.step_tokens(alone, action[number, 2:3], SamplingConfig())
            assert torch.equal(alone.frame_tokens[0], restarted.frame_tokens[2])
            assert not torch.equal(restarted.frame_tokens[2], undisturbed.frame_tokens[2])


def test_actions_in_units_and_a_mask_are_tokens_and_numbers(model: TokenWorldModel) -> None:
    """Actions as arrays, as tensors, and as tokens; restarts by mask and by numbers."""
    one, two, three = (ImaginedEpisodes(model, starts_of(model), NUM_ENVS) for _ in range(3))
    actions = np.array([[-3.0, 0.1], [2.0, 9.0], [1.0, -9.0], [0.0, 3.0]], dtype=np.float32)
    for ended in (torch.tensor([False, True, False, True]), torch.zeros(4, dtype=torch.bool)):
        one.step_tokens(model.encode_actions(actions))
        two.step(actions)
        three.step(torch.from_numpy(actions).requires_grad_())
        assert torch.equal(two.frame_tokens, one.frame_tokens)
        assert torch.equal(three.frame_tokens, one.frame_tokens)
        one.restart(ended.nonzero()[:, 0])
        two.restart(ended)
        three.restart(ended)
        assert torch.equal(two.frame_tokens, one.frame_tokens)
        assert two.num_steps.eq(0).equal(ended)
    for wrong in (np.full((4, 2), np.nan), torch.full((4, 2), torch.inf)):
        with pytest.raises(TokenwmError, match="only finite values"):
            one.step(wrong)
    with pytest.raises(TokenwmError, match=r"actions has shape \(3, 2\)"):
        one.step(torch.zeros(3, 2))
    with pytest.raises(TokenwmError, match="episodes has shape"):
        one.restart(torch.ones(3, dtype=torch.bool))


def start_rows(episodes: ImaginedEpisodes, rows: Sequence[int] = range(NUM_ENVS)) -> list[int]:
    """Which starts episodes that have just begun are at."""
    last = episodes.starts.tokens.frame[:, -1]
    return [int((last == episodes.frame_tokens[row]).all(1).nonzero()[0]) for row in rows]


@pytest.mark.parametrize("cameras", [("top",), ("top", "side")])
def test_pixels_are_those_of_a_rollout(cameras: tuple[str, ...]) -> None:
    """Anchored: what the tokenizer lost of the start is there as long as nothing moves over it."""
    model = make_model(cameras=cameras)
    starts = starts_of(model)
    assert starts.anchor is not None
    episodes = ImaginedEpisodes(model, starts, NUM_ENVS, termination_threshold=1.1)
    order = start_rows(episodes)
    assert torch.equal(episodes.observe("pixels"), starts.anchor[order])
    actions = np.ones((NUM_ENVS, 2), dtype=np.float32)
    for number in range(3):
        episodes.step(actions)
        if number == 1:
            episodes.restart(torch.tensor([1, 2]))
            order[1], order[2] = start_rows(episodes, [1, 2])
        expected = model.decode_tokens(
            episodes.frame_tokens[:, None], starts.tokens.frame[order, -1], starts.anchor[order]
        )[:, 0]
        assert torch.equal(episodes.observe("pixels"), expected)
    plain = ImaginedEpisodes(model, replace(starts, anchor=None), NUM_ENVS)
    assert torch.equal(
        plain.observe("pixels"), model.decode_tokens(plain.frame_tokens[:, None])[:, 0]
    )


def test_terminations_have_the_models_probability(model: TokenWorldModel) -> None:
    torch.nn.init.constant_(model.world_model.termination_head.bias, 0.0)
    torch.nn.init.zeros_(model.world_model.termination_head.weight)
    unpack_linear_maps(model.world_model)  # packed ones do not see the new weights
    episodes = ImaginedEpisodes(model, starts_of(model), 400)
    ended = episodes.step_tokens(torch.zeros(400, 2, dtype=torch.int64)).terminated
    assert 150 < int(ended.sum()) < 250
    never = ImaginedEpisodes(model, starts_of(model), 400, termination_threshold=0.6)
    assert not never.step_tokens(torch.zeros(400, 2, dtype=torch.int64)).terminated.any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"observation": "smell"},
            "observation='smell'; choose pixels, tokens, embeddings or state",
        ),
        ({"max_episode_steps": 0}, "max_steps=0"),
        ({"autoreset_mode": "sometimes"}, "sometimes"),
    ],
)
def test_wrong_options_are_refused(
    model: TokenWorldModel, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_env(model, **options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_envs", [1, NUM_ENVS])
def test_gymnasiums_checks_pass(model: TokenWorldModel, kind: str, num_envs: int) -> None:
    """All that can be asked of a vector environment; the others want plain bools of one episode."""
    env = WorldModelVectorEnv(model, starts_of(model), num_envs, observation=kind)  # type: ignore[arg-type]
    if num_envs == 1:  # asks whether "it" ended
        env_checker.check_returned_data_not_reused(env)
    for check in (
        env_checker.check_seed_deprecation,
        env_checker.check_reset_return_info_deprecation,
        env_checker.check_reset_return_type,
        env_checker.check_reset_seed_determinism,
        env_checker.check_reset_options,
        passive_env_checker.env_reset_passive_checker,
    ):
        check(env)
    passive_env_checker.check_action_space(env.action_space)
    passive_env_checker.check_observation_space(env.observation_space)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:.*A Box (observation|action) space:UserWarning")
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend:UserWarning")
def test_all_of_check_env_passes_for_one_episode(model: TokenWorldModel, kind: str) -> None:
    """Made by ``gymnasium.make``, so that the checks that need a spec are run too.

    It recommends finite spaces and actions in [-1, 1]; these are in the units of the data.
    """

    def make(render_mode: str = "rgb_array") -> WorldModelEnv:
        env = WorldModelEnv(model, starts_of(model), observation=kind)
        assert env.render_mode == render_mode
        return env

    gymnasium.register(id="tokenwm/Imagined-v0", entry_point=make)
    try:
        env = gymnasium.make("tokenwm/Imagined-v0", disable_env_checker=True)
        assert env.unwrapped.spec is not None
        env_checker.check_env(env.unwrapped)
    finally:
        del gymnasium.registry["tokenwm/Imagined-v0"]


def test_one_episode_is_the_row_of_a_vector_of_one(model: TokenWorldModel) -> None:
    options: dict[str, Any] = {"max_episode_steps": 2, "termination_threshold": 1.1}
    one = WorldModelEnv(model, starts_of(model), observation="tokens", **options)
    row = WorldModelVectorEnv(model, starts_of(model), 1, observation="tokens", **options)
    assert (one.reset(seed=3)[0] == row.reset(seed=3)[0][0]).all()
    action = np.ones(2, dtype=np.float32)
    for is_last in (False, True):
        observation, reward, terminated, truncated, info = one.step(action)
        expected, rewards, *_, infos = row.step(action[None])
        assert (observation == expected[0]).all()
        assert reward == rewards[0]
        assert info["frame_nll"] == infos["frame_nll"][0]
        assert truncated is is_last
    with pytest.raises(TokenwmError, match="have ended"):
        one.step(action)
    one.reset()
    one.step(action)


def test_the_seed_is_remembered(model: TokenWorldModel) -> None:
    env = make_env(model, seed=5)
    assert env.np_random_seed == 5
    env.reset(seed=np.int64(7))
    assert env.np_random_seed == 7
    env.reset()
    assert env.np_random_seed == 7


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, "1", [1, 2, 3, 4], [None, 1, 2, 3]])
def test_a_seed_that_is_none_is_refused(model: TokenWorldModel, seed: Any) -> None:
    with pytest.raises(TokenwmError, match=r"use one whole number in \[0, 2\^63\)"):
        make_env(model).reset(seed=seed)
    with pytest.raises(TokenwmError, match="use one whole number"):
        ImaginedEpisodes(model, starts_of(model), 2, seed=seed)


@pytest.mark.parametrize("shape", [(3, 2), (4, 3), (8,), (4, 1, 2), ()])
def test_actions_of_another_shape_are_refused(
    model: TokenWorldModel, shape: tuple[int, ...]
) -> None:
    env = make_env(model, observation="tokens")
    with pytest.raises(TokenwmError, match=r"actions has shape"):
        env.step(np.zeros(shape))


def test_discrete_actions_come_without_an_axis() -> None:
    tokenizer, world_model = small_tokenizer(), small_world_model("discrete")
    loaded = LoadedWorldModel(
        tokenizer=tokenizer,
        world_model=world_model,
        control_rate=10.0,
        cameras=("a",),
        provenance={},
    )
    starts = Context(tokens=random_tokens(world_model, 2, 3))
    options: dict[str, Any] = {"observation": "tokens", "termination_threshold": 1.1}
    env = WorldModelVectorEnv(TokenWorldModel(loaded), starts, NUM_ENVS, **options)
    assert env.action_space.shape == (NUM_ENVS,)
    env.reset(seed=0)
    first = env.step(env.action_space.sample() * 0 + 5)[0]
    env.reset(seed=0)
    assert (env.step(np.full((NUM_ENVS, 1), 5))[0] == first).all()
    with pytest.raises(TokenwmError, match=r"span \[0, 6\]; allowed is \[0, 6\)"):
        env.step(np.array([0, 1, 2, 6]))
    one = WorldModelEnv(TokenWorldModel(loaded), starts, **options)
    one.reset(seed=0)
    one.step(np.int64(5))


def test_gymnasiums_wrappers_work_on_it(model: TokenWorldModel) -> None:
    from gymnasium.wrappers.vector import ClipReward, RecordEpisodeStatistics

    env = ClipReward(RecordEpisodeStatistics(make_env(model, max_episode_steps=2)), -0.1, 0.1)
    env.reset(seed=0)
    for _ in range(2):
        _, reward, *_, info = env.step(np.ones((NUM_ENVS, 2), dtype=np.float32))
        assert np.abs(reward).max() <= 0.1
    assert (info["episode"]["l"] == 2).all()


class Agent(nn.Module):
    """The agent of CleanRL's ``ppo_continuous_action.py`` (Huang et al. 2022)."""

    def __init__(self, num_inputs: int, num_actions: int) -> None:
        super().__init__()

        def network(num_outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(num_inputs, 64), nn.Tanh(), nn.Linear(64, num_outputs))

        self.critic, self.actor_mean = network(1), network(num_actions)
        nn.init.zeros_(self.actor_mean[-1].weight)
        self.actor_logstd = nn.Parameter(torch.zeros(1, num_actions))

    def act(
        self, x: torch.Tensor, action: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        mean = self.actor_mean(x)
        normal = torch.distributions.Normal(mean, self.actor_logstd.exp().expand_as(mean))
        action = normal.sample() if action is None else action
        return action, normal.log_prob(action).sum(1), self.critic(x)[:, 0]


def test_ppo_learns_in_it_without_an_adapter() -> None:
    """CleanRL's loop on Gymnasium's interface alone; what it is paid rises."""
    torch.manual_seed(0)
    model = make_model()
    model.world_model.set_reward_range((-1000.0, 1000.0))  # its weights are random: much to earn
    env = WorldModelVectorEnv(
        model,
        starts_of(model),
        32,
        observation="embeddings",
        max_episode_steps=6,
        autoreset_mode=AutoresetMode.SAME_STEP,
        termination_threshold=1.1,
    )
    agent = Agent(env.single_observation_space.shape[0], env.single_action_space.shape[0])
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    observation, _ = env.reset(seed=0)
    earned = []
    for _ in range(12):
        steps = []
        for _ in range(6):
            x = torch.from_numpy(observation)
            with torch.no_grad():
                action, log_probability, value = agent.act(x)
            observation, reward, terminated, truncated, _ = env.step(action.numpy())
            ended = torch.from_numpy(terminated | truncated)
            steps.append(
                (x, action, log_probability, value, torch.from_numpy(reward).float(), ended)
            )
        xs, actions, old, values, rewards, ends = (torch.stack(p) for p in zip(*steps, strict=True))
        earned.append(float(rewards.mean()))
        advantages, last = torch.zeros_like(rewards), torch.zeros(32)
        following = torch.zeros(32)  # every collection ends with the episodes
        for t in reversed(range(6)):
            alive = 1.0 - ends[t].float()
            last = rewards[t] + 0.99 * following * alive - values[t] + 0.99 * 0.95 * alive * last
            advantages[t], following = last, values[t]
        returns = (advantages + values).flatten()
        scaled = (advantages.flatten() - advantages.mean()) / (advantages.std() + 1e-8)
        for _ in range(4):
            _, new, value = agent.act(xs.flatten(0, 1), actions.flatten(0, 1))
            ratio = (new - old.flatten()).exp()
            clipped = torch.min(ratio * scaled, ratio.clamp(0.8, 1.2) * scaled).mean()
            loss = 0.5 * (value - returns).square().mean() - clipped
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert np.mean(earned[-3:]) > np.mean(earned[:3]) + 0.2, earned


def test_without_rewards_an_environment_is_told_what_a_step_is_worth_or_refuses() -> None:
    model = make_model(has_reward=False)
    starts = starts_of(model)
    for make in (WorldModelEnv, lambda *args: WorldModelVectorEnv(*args, 2)):
        with pytest.raises(TokenwmError, match=r"source\.reward.*give the environment a reward_fn"):
            make(model, starts)  # type: ignore[operator]
    assert ImaginedEpisodes(model, starts, 2).step(torch.zeros(2, 2)).reward is None

    seen: list[Rollout] = []

    def distance(rollout: Rollout) -> torch.Tensor:
        seen.append(rollout)
        assert rollout.state is not None
        return -rollout.state[:, 0].norm(dim=1)

    env = WorldModelVectorEnv(
        model, starts, NUM_ENVS, termination_threshold=1.1, reward_fn=distance
    )
    env.reset(seed=2)
    for number in range(3):
        actions = actions_for(env, number)
        observation, reward, *_, info = env.step(actions)
        np.testing.assert_allclose(reward, -np.linalg.norm(info["state"], axis=1), rtol=1e-5)
        assert (reward < 0).all()
        rollout = seen[-1]
        assert torch.equal(rollout.actions[:, 0], torch.from_numpy(actions))
        assert rollout.frame_tokens.shape == (NUM_ENVS, 1, 16) and rollout.reward is None
        pixels = model.decode_frames(rollout)[:, 0, 0].numpy()
        assert (pixels == observation).all()  # anchored where each episode started
    one = WorldModelEnv(model, starts, reward_fn=lambda rollout: torch.full((1,), 3.0))
    one.reset(seed=0)
    assert one.step(one.action_space.sample())[1] == 3.0
    for wrong in (lambda _: 1.0, lambda _: torch.zeros(NUM_ENVS, 1)):
        bad = ImaginedEpisodes(model, starts, NUM_ENVS, reward_fn=wrong)  # type: ignore[arg-type]
        with pytest.raises(TokenwmError, match="reward_fn returned"):
            bad.step(torch.zeros(NUM_ENVS, 2))


def test_a_reward_that_is_not_finite_reaches_no_agent(model: TokenWorldModel) -> None:
    env = make_env(model, reward_fn=lambda rollout: rollout.frame_nll[:, 0] * torch.inf)
    env.reset()
    with pytest.raises(
        TokenwmError, match=r"the step of episodes \[0, .* is not finite: reward in"
    ):
        env.step(env.action_space.sample())


def test_a_reward_function_takes_the_place_of_the_models_reward(model: TokenWorldModel) -> None:
    plain, doubled = (
        ImaginedEpisodes(model, starts_of(model), NUM_ENVS, reward_fn=reward_fn)
        for reward_fn in (None, lambda rollout: 2 * rollout.reward[:, 0])
    )
    first, second = (e.step(torch.ones(NUM_ENVS, 2)).reward for e in (plain, doubled))
    assert first is not None and second is not None and first.std() > 0
    torch.testing.assert_close(second, 2 * first)
