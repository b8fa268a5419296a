"""Episodes in a simulator: what is recorded, measured and shown of them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from tests.moving_square import SIZE, SQUARE, make_model
from tokenwm.cli.main import main
from tokenwm.control.acted import ClosedLoop
from tokenwm.control.closed_loop import (
    ClosedLoopConfig,
    RandomAgent,
    latest,
    run_closed_loop,
)
from tokenwm.control.closed_loop_page import sentences, write_closed_loop
from tokenwm.control.controller import Controller
from tokenwm.control.decision import ControllerConfig, LimitsError
from tokenwm.control.planners.base import Plan, roll_candidates
from tokenwm.control.simulator import Simulator, simulator_for
from tokenwm.data.making.prepare import prepare
from tokenwm.data.recipes.recipe import load_recipe
from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel

ENV = "Squares-v0"


class Squares(gymnasium.Env[Any, Any]):
    """The moving square; at the right edge the task is done."""

    metadata = {"render_modes": ["rgb_array"]}

    def __init__(self, render_mode: str | None = None, length: int = 100) -> None:
        self.render_mode, self.length = render_mode, length
        self.action_space = spaces.Box(-3.0, 3.0, (2,), np.float32)
        self.observation_space = spaces.Box(0.0, SIZE, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.integers(0, 8, 2).astype(np.float32)
        self.left = self.length
        return self.place.copy(), {}

    def step(self, action: Any) -> Any:
        self.place = np.clip(self.place + action, 0, SIZE - SQUARE).astype(np.float32)
        self.left -= 1
        done = bool(self.place[0] >= SIZE - SQUARE)
        info = {"is_success": done}
        return self.place.copy(), float(self.place[0]), done, self.left == 0, info

    def render(self) -> Any:
        picture = np.full((SIZE, SIZE, 3), 60, dtype=np.uint8)
        x, y = self.place.astype(int)
        picture[y : y + SQUARE, x : x + SQUARE] = (230, 90, 40)
        return picture


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    gymnasium.register(ENV, entry_point=Squares)
    yield
    del gymnasium.registry[ENV]


class Rightwards:
    """Always to the right, and what the model imagines of it."""

    def plan(self, world: Any, state: Any, objective: Any, warm: Plan | None = None) -> Plan:
        actions = torch.tensor([[3.0, 0.0], [3.0, 0.0]])
        rollout = roll_candidates(world, state, actions[None])
        return Plan(actions=actions, expected_return=1.0, rollout=rollout, num_rollouts=1)


def no_objective(rollout: Any) -> Tensor:
    return torch.zeros(1, 2)


def act(model: TokenWorldModel, out: Path, agent: Any, **changes: Any) -> ClosedLoop:
    simulator = simulator_for(model, ENV, {"max_steps": 12, **changes})
    config = ClosedLoopConfig(num_episodes=3, num_films=1, seed=5)
    return run_closed_loop(model, agent, simulator, out, config, about={"env_id": ENV})


def test_episodes_figures_films_and_recordings(model: TokenWorldModel, tmp_path: Path) -> None:
    controller = Controller(model, Rightwards(), no_objective, ControllerConfig(every=2))
    loop = act(model, tmp_path, controller)
    assert loop.success is not None and loop.success["successes"] == 3
    assert loop.success["low"] == pytest.approx(0.438, abs=0.001) and loop.success["high"] == 1.0
    for episode in loop.episodes:
        assert episode.terminated and episode.num_steps <= 8
        assert [plan.step for plan in episode.plans] == list(range(0, episode.num_steps, 2))
        assert episode.came == {"plan": episode.num_steps}
        first, last = episode.plans[0], episode.plans[-1]
        assert first.surprise is not None and first.reward is not None and last.surprise is None
    film = loop.episodes[0].film
    assert film is not None and film.imagined is not None and loop.episodes[1].film is None
    assert len(film.real) == loop.episodes[0].num_steps + 1
    assert (film.imagined[0] == film.real[0]).all() and (film.imagined != 255).any(
        (1, 2, 3, 4)
    ).all()

    page = write_closed_loop(tmp_path, loop)
    figures = json.loads((tmp_path / "control.json").read_text())
    assert figures["success"]["trials"] == 3 and figures["latency_seconds"]["p99"] > 0
    assert figures["missed_deadlines"] == 0 and "film" not in figures["episodes"][0]
    assert "3 of 3 episodes succeed: 100 % (44 to 100 %)" in page.read_text()
    assert "data:image/gif" in page.read_text()

    prepare(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "data")
    reader = ShardReader(tmp_path / "data")
    assert len(reader.keys("train")) == 3
    for key, episode in zip(reader.keys("train"), loop.episodes, strict=True):
        arrays = reader.arrays(key)
        assert len(arrays["action"]) == episode.num_steps + 1
        assert (arrays["action"][:-1] == [3.0, 0.0]).all() and not arrays["action"][-1].any()
        assert arrays["reward"].sum() == pytest.approx(episode.reward)
        assert arrays["terminated"].tolist() == [*[False] * (episode.num_steps - 1), True, False]
        moved = np.diff(arrays["state"][:, 0])
        assert (moved[:-1] == 3.0).all() and arrays["state"][-1, 0] == SIZE - SQUARE
    first_frames = reader.frames(reader.keys("train")[0])
    assert (first_frames == film.real).all()


def test_the_same_seed_gives_the_same_episodes(model: TokenWorldModel, tmp_path: Path) -> None:
    runs = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        runs.append(act(model, tmp_path / name, RandomAgent(model)))
    one, two = (run.episodes for run in runs)
    assert [e.reward for e in one] == [e.reward for e in two]
    assert len({episode.reward for episode in one}) == 3
    assert "0 of 3 episodes succeed" in sentences(runs[0])[0] and runs[0].latency_seconds is None


def test_an_action_is_held_for_as_many_steps_as_the_simulator_is_faster(
    model: TokenWorldModel, tmp_path: Path
) -> None:
    controller = Controller(model, Rightwards(), no_objective, ControllerConfig(every=2))
    loop = act(model, tmp_path, controller, rate=20.0)
    recorded = np.load(tmp_path / loop.episodes[0].recording)
    assert recorded["state"][2, 0] == recorded["state"][0, 0] + 6.0
    assert loop.episodes[0].num_steps == -(-(len(recorded["action"]) - 1) // 2) <= 4
    prepare(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "data")
    reader = ShardReader(tmp_path / "data")
    assert reader.manifest.control_rate == 10.0
    key = reader.keys("train")[0]
    assert reader.episode(key).num_steps == loop.episodes[0].num_steps + 1
    assert reader.arrays(key, ["terminated"])["terminated"].any()  # within a step, and not lost


def test_the_latest_plan_that_reaches_a_step_is_shown() -> None:
    class Future:
        def __init__(self, steps: int) -> None:
            self.frame_tokens = torch.zeros(1, steps, 1)

    futures: Any = {0: Future(2), 3: Future(2), 5: Future(1)}
    assert latest(futures, 5, 5) == (futures[0], 0)
    assert latest(futures, 8, 5) == (futures[3], 0)
    assert latest(futures, 10, 5) == (futures[5], 0)
    assert latest(futures, 13, 5) == (futures[3], 1)
    assert latest(futures, 15, 5) is None and latest(futures, 6, 5) is None


def test_the_simulator_is_that_of_the_data_unless_another_is_named() -> None:
    source = {
        "type": "gymnasium",
        "env_id": ENV,
        "cameras": {"top": "render"},
        "state": "observation",
        "max_steps": 40,
        "policy": "smooth",
        "env_kwargs": {"length": 7},
    }
    recipe = {"source": source, "resize": "stretch", "action_aggregation": "last"}
    model = make_model(provenance={"data_provenance": {"recipe": recipe}})
    own = simulator_for(model)
    assert (own.options.env_id, own.options.max_steps, own.format.resize) == (ENV, 40, "stretch")
    assert own.options.policy == "random"
    more = simulator_for(model, None, {"env_kwargs.render_mode": "rgb_array"}).options
    assert more.env_kwargs == {"length": 7, "render_mode": "rgb_array"}  # the others stay
    assert own.options.env_kwargs == {"length": 7}
    other = simulator_for(model, "Pendulum-v1")
    assert other.options.env_id == "Pendulum-v1" and other.options.cameras == {"top": "render"}
    held = replace(own, num_repeats=2, format=replace(own.format, action_aggregation="sum"))
    assert isinstance(held, Simulator) and held.held(np.array([3.0])) == 1.5


@pytest.mark.parametrize(
    ("env_id", "changes", "message"),
    [
        (None, {}, "was not recorded from a simulator; name one"),
        ("Nowhere-v0", {}, "cannot be made"),
        (ENV, {"cameras": {"front": "render"}}, "env.cameras are front; the model was trained on"),
        (ENV, {"state": None}, "env.state is null; the model needs one"),
        (ENV, {"rate": 25.0}, "does not divide"),
        (ENV, {"stepps": 3}, "unknown key 'env.stepps'"),
        (ENV, {"state.observation": "it"}, "env.state"),
        ("os:Evil-v0", {}, "only registered ids"),
        ("CartPole-v1", {}, "the environment's actions are Discrete"),
    ],
    ids=["none", "unknown", "cameras", "state", "rate", "option", "entry", "module", "actions"],
)
def test_what_does_not_fit_gets_one_line(
    model: TokenWorldModel, tmp_path: Path, env_id: str | None, changes: Any, message: str
) -> None:
    with pytest.raises(TokenwmError, match=message):
        simulator = simulator_for(model, env_id, changes)
        run_closed_loop(
            model, RandomAgent(model), simulator, tmp_path, ClosedLoopConfig(num_episodes=1)
        )


def test_the_verb(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["control", str(model_folder), "--env", ENV, "--out", str(tmp_path / "out")]
    arguments += ["--episodes", "1", "--steps", "2", "--horizon", "2", "--candidates", "4"]
    assert main([*arguments, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["success"]["trials"] == 1 and Path(result["page"]).is_file()
    assert main(arguments) == 0
    assert "made before" in capsys.readouterr().out
    cheap = [*arguments, "--planner", "cem", "--rounds", "2", "--passes", "2", "--json"]
    assert main(cheap) == 0
    plans = json.loads(capsys.readouterr().out)["episodes"][0]
    figures = json.loads((tmp_path / "out" / "control.json").read_text())["episodes"][0]
    # Two rounds of four, and the one elite once more, exactly.
    assert [plan["num_rollouts"] for plan in figures["plans"]] == [9] * plans["num_steps"]
    named = [*arguments, "--set", "cameras.top=render", "env_kwargs.length=50"]
    assert main([*named, "--planner", "random", "--objective", "goal-image"]) == 0
    assert main([*arguments, "--planner", "graph"]) == 1
    assert "GraphSearch chooses from a few actions" in capsys.readouterr().err
    assert main([*arguments, "--discount", "1.5"]) == 1
    assert "--discount 1.5: use a number in [0, 1]" in capsys.readouterr().err
    assert main([*arguments, "--objective", "goal-image"]) == 1
    assert "needs --goal FILE" in capsys.readouterr().err
    (tmp_path / "limits.yaml").write_text("rate: 10\nposition: [[0, 1], [0, 1]]\n")
    limited = [*arguments, "--limits", str(tmp_path / "limits.yaml"), "--safe-action", "0", "0"]
    assert main(limited) == 0
    assert "by the safe action" in capsys.readouterr().out
    assert main([*limited, "--planner", "random"]) == 1
    assert "--planner random knows no limits" in capsys.readouterr().err
    assert main([*arguments, "--every", "0"]) == 1
    assert "every=0; use whole robot steps" in capsys.readouterr().err
    assert main([*arguments, "--goals", str(tmp_path), "--discount", "0.5"]) == 1
    assert "--discount, --steps, --env beside --goals" in capsys.readouterr().err


def test_where_no_action_is_allowed_the_robot_stops_and_the_rest_is_done(
    model: TokenWorldModel, tmp_path: Path
) -> None:
    class Stops(RandomAgent):
        ended = 0

        def begin(self, *, seed: int) -> None:
            super().begin(seed=seed)
            self.steps_left = {5: 2, 6: 0}.get(seed, 99)

        def act(self, observation: Any) -> Any:
            self.steps_left -= 1
            if self.steps_left < 0:
                raise LimitsError("nothing is allowed")
            return super().act(observation)

        def end(self) -> None:
            self.ended += 1

    agent = Stops(model)
    loop = act(model, tmp_path, agent)
    assert loop.stopped == 2 and agent.ended == 3
    assert [episode.num_steps for episode in loop.episodes[:2]] == [2, 0]
    assert [bool(episode.recording) for episode in loop.episodes] == [True, False, True]
    page = write_closed_loop(tmp_path, loop).read_text()
    assert "In 2 episodes the robot was stopped, first by: nothing is allowed." in page
    assert json.loads((tmp_path / "control.json").read_text())["stopped"] == 2
