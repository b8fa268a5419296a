import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from tokenwm.data.episode import Episode
from tokenwm.data.making.prepare import prepare
from tokenwm.data.readers.base import load_each
from tokenwm.data.recipes.recipe import Recipe, load_recipe, parse_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import EpisodeError, RecipeError, SourceError


class Counter(gymnasium.Env[Any, Any]):
    """Observes its own step count; ends after ``length`` steps."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self, kind: str = "dict", length: int = 1000, discrete: bool = False, **kwargs: Any
    ) -> None:
        self.kind, self.length = kind, length
        self.render_mode = kwargs.get("render_mode")
        self.action_space = (
            spaces.Discrete(4, start=1) if discrete else spaces.Box(-1, 1, (3,), np.float32)
        )
        several = {
            "multi": spaces.MultiDiscrete([3, 2, 5], start=[0, 1, 0]),
            "buttons": spaces.MultiBinary(3),
            "tuple": spaces.Tuple([spaces.Discrete(2)]),
        }
        self.action_space = several.get(kind, self.action_space)
        self.observation_space = spaces.Box(0, 1, (2,))
        self.canvas = np.zeros((20, 30, 3), np.uint8)

    def observe(self) -> Any:
        self.canvas[:] = min(255, 10 * self.count)  # one canvas, drawn over and over
        vector = np.array([self.count, self.offset])
        if self.kind == "vector":
            return vector
        if self.kind == "grey":
            return self.canvas[:, :, 0]
        if self.kind == "float":
            return self.canvas.astype(np.float32)
        return self.canvas if self.kind == "image" else {"pixels": self.canvas, "pose": vector}

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.count, self.offset = 0, self.np_random.uniform()
        if options and "offset" in options:
            self.offset = float(options["offset"])
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action)
        self.count += 1
        info = {"n_contacts": int(self.count % 4 == 0), "is_success": self.count == self.length}
        return self.observe(), float(self.count), self.count == self.length, False, info

    def render(self) -> Any:
        return self.canvas


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register("TokenwmCounter-v0", Counter)
    yield
    gymnasium.registry.pop("TokenwmCounter-v0")


def make_recipe(env_kwargs: dict[str, Any] | None = None, **source: Any) -> Recipe:
    values = {
        "type": "gymnasium",
        "env_id": "TokenwmCounter-v0",
        "env_kwargs": env_kwargs or {},
        "cameras": {"top": "pixels"},
        "state": "pose",
        "num_episodes": 3,
        "max_steps": 8,
    }
    return parse_recipe(
        {"name": "a", "source": values | source, "control_rate": 10, "image_size": [16, 16]}
    )


def load(recipe: Recipe, index: int = 0) -> Any:
    source = recipe.open_source()
    return source.load(source.episodes()[index])


def test_steps_are_aligned() -> None:
    episode = load(make_recipe())
    steps = np.arange(9)
    assert episode.frames["top"].shape == (9, 16, 16, 3)
    np.testing.assert_allclose(episode.frames["top"].mean(axis=(1, 2, 3)), 10 * steps, atol=1)
    np.testing.assert_array_equal(episode.state[:, 0], steps)
    np.testing.assert_array_equal(episode.reward, [*(steps[:-1] + 1), 0])
    assert episode.action.dtype == np.float32
    np.testing.assert_array_equal(episode.action[-1], 0)
    np.testing.assert_array_equal(episode.truncated, [False] * 7 + [True, False])
    assert not episode.terminated.any()
    assert episode.metadata["contact_fraction"] == 0.25
    assert episode.metadata["success"] is False


def test_termination_is_not_truncation() -> None:
    episode = load(make_recipe({"length": 5}))
    np.testing.assert_array_equal(episode.terminated, [False] * 4 + [True, False])
    assert not episode.truncated.any()
    assert episode.metadata["success"] is True


def test_an_episode_depends_on_seed_and_index_only() -> None:
    source = make_recipe().open_source()
    refs = source.episodes()
    forwards: list[Any] = [source.load(ref) for ref in refs]
    copy = pickle.loads(pickle.dumps(source))
    backwards = [copy.load(ref) for ref in reversed(refs)][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        np.testing.assert_array_equal(one.action, other.action)
        np.testing.assert_array_equal(one.state, other.state)
    assert not np.array_equal(forwards[0].action, forwards[1].action)
    assert forwards[0].state[0, 1] != forwards[1].state[0, 1]
    assert not np.array_equal(load(make_recipe(seed=1)).action, forwards[0].action)


def test_discrete_actions_are_counted_from_zero() -> None:
    recipe = make_recipe({"discrete": True}, max_steps=100)
    episode = load(recipe)
    assert episode.action.dtype == np.int64
    assert set(episode.action[:-1, 0].tolist()) == {0, 1, 2, 3}
    assert recipe.open_source().describe().num_actions == 4


@pytest.mark.parametrize(("kind", "sizes"), [("multi", (3, 2, 5)), ("buttons", (2, 2, 2))])
def test_several_ids_a_step(kind: str, sizes: tuple[int, ...]) -> None:
    recipe = make_recipe({"kind": kind}, max_steps=100)
    episode = load(recipe)
    assert episode.action.dtype == np.int64
    assert episode.action.shape == (101, 3)
    for column, size in zip(episode.action[:-1].T, sizes, strict=True):
        assert set(column.tolist()) == set(range(size))
    assert recipe.open_source().describe().num_actions == max(sizes)


@pytest.mark.parametrize("kind", ["image", "grey"])
def test_observation_is_the_picture(kind: str) -> None:
    episode = load(make_recipe({"kind": kind}, cameras={"eye": "observation"}, state=None))
    assert episode.state is None
    np.testing.assert_allclose(episode.frames["eye"][3], 30, atol=1)


def test_vector_observation_and_rendered_picture() -> None:
    recipe = make_recipe({"kind": "vector"}, cameras={"eye": "render"}, state="observation")
    episode = load(recipe)
    np.testing.assert_array_equal(episode.state[:, 0], np.arange(9))
    np.testing.assert_allclose(episode.frames["eye"][3], 30, atol=1)


@pytest.mark.parametrize(
    "env_id", ["os:Thing-v0", "../x", "a/b/c", "GymV26Environment-v0", "GymV21Environment-v0", ""]
)
def test_ids_that_could_import_a_module_are_refused(env_id: str) -> None:
    with pytest.raises(RecipeError, match="only registered ids"):
        make_recipe(env_id=env_id)


def test_wrong_options_are_named() -> None:
    with pytest.raises(RecipeError, match="NoSuchThing-v0 cannot be made"):
        load(make_recipe(env_id="NoSuchThing-v0"))
    with pytest.raises(
        RecipeError, match=r"source\.state is 'position'; the observation has pixels"
    ):
        load(make_recipe(state="position"))
    with pytest.raises(RecipeError, match="the observation is one array; use 'observation'"):
        load(make_recipe({"kind": "image"}))
    with pytest.raises(RecipeError, match=r"float32\(20, 30, 3\); expected uint8"):
        load(make_recipe({"kind": "float"}, cameras={"eye": "observation"}, state=None))
    with pytest.raises(RecipeError, match="Box, Discrete, MultiDiscrete and MultiBinary are"):
        make_recipe({"kind": "tuple"}).open_source()
    with pytest.raises(RecipeError, match="num_episodes is 0"):
        make_recipe(num_episodes=0)


def test_missing_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(SourceError, match=r"pip install 'tokenwm\[atari\]'"):
        load(make_recipe(env_id="ALE/Pong-v5"))


def test_quality_rules_hold_for_simulators_too() -> None:
    recipe = make_recipe({"length": 1000}, max_steps=20)
    assert load(recipe).num_steps == 21
    still = make_recipe({"kind": "vector"}, cameras={}, state="observation", max_steps=1)
    with pytest.raises(EpisodeError, match="too short"):
        load(parse_recipe(still.to_dict() | {"quality": {"min_steps": 3}}))


def test_another_rate_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    values = make_recipe().to_dict() | {"control_rate": 25}
    parse_recipe(values).open_source()
    assert "runs at 10 Hz, the recipe says control_rate 25 Hz" in caplog.text


def test_push_t_records_contacts() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    recipe = make_recipe(
        {"obs_type": "pixels_agent_pos", "observation_width": 64, "observation_height": 64},
        env_id="gym_pusht/PushT-v0",
        state="agent_pos",
        policy="pusht_pusher",
        max_steps=40,
    )
    source = recipe.open_source()
    episodes = [source.load(ref) for ref in source.episodes()]
    assert episodes[0].frames["top"].shape == (41, 16, 16, 3)
    assert episodes[0].action.shape == (41, 2)
    assert np.mean([float(e.metadata["contact_fraction"] or 0) for e in episodes]) > 0.2
    assert source.provenance()["source_packages"].keys() == {"gymnasium", "gym-pusht"}


def test_the_pusher_of_the_shipped_recipe_touches_the_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a fifth of the steps at least. The simulator's figure also counts the block at a wall."""
    pusht = pytest.importorskip("gym_pusht.envs.pusht", reason="needs the extra 'pusht'").PushTEnv
    handle, step = pusht._handle_collision, pusht.step
    touching: list[bool] = []

    def note_contact(env: Any, arbiter: Any, space: Any, data: Any) -> None:
        touching[-1] |= env.agent in [shape.body for shape in arbiter.shapes]
        handle(env, arbiter, space, data)

    def note_step(env: Any, action: Any) -> Any:
        touching.append(False)
        return step(env, action)

    monkeypatch.setattr(pusht, "_handle_collision", note_contact)
    monkeypatch.setattr(pusht, "step", note_step)
    recipe = load_recipe(Path(__file__).parents[4] / "data_recipes" / "pusht.yaml")
    source = recipe.open_source()
    refs = source.episodes()[:10]
    for ref in refs[:3] + refs[4:7] + refs[8:]:  # not those of the finisher
        source.load(ref)
    assert len(touching) == 8 * 120
    assert 0.2 < np.mean(touching) < 0.6


def test_each_fourth_episode_of_the_shipped_recipe_is_to_end_in_success() -> None:
    pytest.importorskip("gym_pusht", reason="gym-pusht is not installed (extra 'pusht')")
    path = Path(__file__).parents[4] / "data_recipes" / "pusht.yaml"
    small = [f"source.env_kwargs.observation_{side}=16" for side in ("width", "height")]
    source = load_recipe(path, small).open_source()
    ended = [source.load(ref) for ref in source.episodes()[3:31:4]]
    assert sum(bool(episode.terminated.any()) for episode in ended) >= 6  # of 7; 73 of all 75
    for episode in ended:
        if episode.terminated.any():
            assert episode.reward is not None and episode.reward[-2] == 1.0
            assert episode.metadata["success"] is True
            assert np.flatnonzero(episode.terminated).tolist() == [episode.num_steps - 2]
            assert episode.num_steps > 24  # long enough to be evaluated as docs/evaluation.md says


VARIATION = {"every": 3, "policy": "smooth", "reset_options": {"offset": 7.0}}


def test_some_episodes_may_begin_and_act_otherwise() -> None:
    """The others are to the byte what they are without."""
    plain = make_recipe(num_episodes=6).open_source()
    varied = make_recipe(num_episodes=6, variation=VARIATION).open_source()
    for index, ref in enumerate(varied.episodes()):
        one, other = plain.load(ref), varied.load(ref)
        assert other.state is not None and one.state is not None
        if index in (2, 5):
            assert (other.state[:, 1] == 7.0).all()
            steps = np.abs(np.diff(other.action[:-1], axis=0)).mean()
            assert steps < 0.5 * np.abs(np.diff(one.action[:-1], axis=0)).mean()
        else:
            np.testing.assert_array_equal(one.state, other.state)
            np.testing.assert_array_equal(one.action, other.action)
    assert "policy random, one episode in 3 by smooth" in varied.provenance()["source"]


def test_all_episodes_may_begin_as_the_recipe_says() -> None:
    recipe = make_recipe(reset_options={"offset": 3.0}, variation={"every": 2, "policy": "random"})
    source = recipe.open_source()
    first, second = (source.load(ref).state[0, 1] for ref in source.episodes()[:2])
    assert first == 3.0
    assert second != 3.0  # a variation has its own


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({"variation": {"every": 1, "policy": "random"}}, "variation.*every is 1; .* least 2"),
        ({"variation": {"every": 2, "policy": "fly"}}, "unknown policy 'fly'; known: .*smooth"),
        ({"variation": {"every": 2}}, "'source.variation.policy' is missing"),
        ({"variation": {**VARIATION, "starts": 1}}, "unknown key 'source.variation.starts'.*start"),
        ({"start": "nowhere"}, "unknown start 'nowhere'; known: pusht_near_target"),
        ({"start": "pusht_near_target"}, "pusht_near_target is of gym_pusht/.*, not of Tokenwm"),
        (
            {"variation": {"every": 2, "policy": "pusht_finisher"}, "num_envs": 2},
            "policy pusht_finisher reads the simulator",
        ),
    ],
)
def test_impossible_variations_are_refused(source: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(**source)


def test_options_that_an_environment_does_not_take_are_named() -> None:
    recipe = make_recipe(
        env_id="CartPole-v1", cameras={}, state="observation", reset_options={"low": "left"}
    )
    with pytest.raises(RecipeError, match="cannot be reset with the options .*left.*reset_options"):
        load(recipe)


@pytest.mark.parametrize(
    ("name", "package", "discrete"),
    [
        ("atari_pong", "ale_py", True),
        ("atari_breakout", "ale_py", True),
        ("mujoco_reacher", "mujoco", False),
        ("minigrid_doorkey", "minigrid", True),
    ],
)
def test_shipped_recipes_record(name: str, package: str, discrete: bool, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed (an extra of its name)")
    path = Path(__file__).parents[4] / "data_recipes" / f"{name}.yaml"
    recipe = load_recipe(path, ["source.num_episodes=3", "source.max_steps=20"])
    manifest = prepare(recipe, tmp_path)
    assert not manifest.excluded
    feature = manifest.features["action"]
    assert (feature.kind == "discrete") == discrete
    reader = ShardReader(tmp_path, verify=True)
    source = recipe.open_source()
    for ref in source.episodes()[:1]:
        again, arrays = source.load(ref), reader.arrays(ref.key)
        assert len(arrays["action"]) == 21
        for camera, frames in again.frames.items():
            assert frames.std() > 5 and np.ptp(frames, axis=0).max() > 20  # something moves
            np.testing.assert_array_equal(frames, arrays[f"frames.{camera}"])
        np.testing.assert_array_equal(again.action, arrays["action"])


def test_the_smooth_policy_wanders() -> None:
    recipe = make_recipe(policy="smooth", max_steps=200)
    action = load(recipe).action[:-1]
    assert np.abs(action).max() == 1 and np.ptp(action, axis=0).min() > 1.5
    steps = np.abs(np.diff(action, axis=0)).mean()
    assert steps < 0.5 * np.abs(np.diff(load(make_recipe(max_steps=200)).action, axis=0)).mean()
    with pytest.raises(RecipeError, match="policy smooth needs a bounded box of actions"):
        load(make_recipe({"discrete": True}, policy="smooth"))


@pytest.mark.parametrize(
    ("env_id", "camera", "policy", "package"),
    [
        ("CartPole-v1", None, "random", "gymnasium"),  # ends after 9 to 60 steps
        ("ALE/Breakout-v5", "observation", "random", "ale_py"),
        ("Reacher-v5", "render", "smooth", "mujoco"),  # its state: its joints
    ],
)
def test_episodes_are_the_same_however_many_run_at_once(
    env_id: str, camera: str | None, policy: str, package: str
) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    options: dict[str, Any] = {
        "env_id": env_id,
        "cameras": {"eye": camera} if camera else {},
        "state": {"ALE/Breakout-v5": None, "Reacher-v5": "joints"}.get(env_id, "observation"),
        "policy": policy,
        "num_episodes": 2 if camera else 4,
        "max_steps": 8 if camera else 40,
    }
    if env_id == "CartPole-v1":  # which draws its first state between these
        options["variation"] = {
            "every": 2,
            "policy": "random",
            "reset_options": {"low": 0.01, "high": 0.02},
        }
    one = make_recipe(**options).open_source()
    alone = [one.load(ref) for ref in one.episodes()]
    several = make_recipe(**options, num_envs=2 if camera else 3).open_source()
    together = list(load_each(several, several.episodes()))
    assert len({episode.num_steps for episode in alone}) > 1 or camera
    for a, b in zip(alone, together, strict=True):
        assert isinstance(b, Episode)
        for name, value in vars(a).items():
            if name == "frames":
                value, other = value.get("eye"), b.frames.get("eye")
            else:
                other = getattr(b, name)
            np.testing.assert_array_equal(value, other, err_msg=name)


def test_a_policy_that_reads_the_simulator_runs_beside_it() -> None:
    with pytest.raises(RecipeError, match="policy pusht_pusher reads the simulator"):
        make_recipe(policy="pusht_pusher", num_envs=2)


def test_a_bad_episode_costs_no_other_of_its_group() -> None:
    recipe = make_recipe(
        env_id="CartPole-v1", cameras={}, state="observation", num_envs=3, max_steps=40
    )
    recipe = parse_recipe(recipe.to_dict() | {"quality": {"min_steps": 20}})
    source = recipe.open_source()
    kinds = [type(result) for result in load_each(source, source.episodes())]
    assert set(kinds) == {Episode, EpisodeError}
