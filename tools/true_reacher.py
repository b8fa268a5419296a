"""Plan in MuJoCo's Reacher with its true dynamics and rewards: how far the search itself gets.

::

    python tools/true_reacher.py runs/reacher/world_model --out runs/acted_true --episodes 20

The recipe says ``state: joints``. Candidates are tried in a copy of the simulator in place of the
model; everything else is as ``tokenwm control`` has it, and so is what is written. Where this falls
short, search, horizon or bounds of the actions do; where only planning with the model does, the
model does.
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import tokenwm
from tokenwm.control.closed_loop import ClosedLoopConfig, run_closed_loop
from tokenwm.control.closed_loop_page import write_closed_loop
from tokenwm.control.controller import Controller
from tokenwm.control.objectives import Reward
from tokenwm.control.planners.icem import ICEM
from tokenwm.control.simulator import Simulator, simulator_for
from tokenwm.data.readers.simulator.environments import make_environment
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tokenwm.strict import key_values


@dataclass(frozen=True, kw_only=True)
class TrueState:
    """Joints and target, ``(B, 4)``, and their speeds, ``(B, 4)``."""

    position: NDArray[np.float64]
    speed: NDArray[np.float64]


class TrueReacher:
    """The simulator as a :class:`~tokenwm.imagination.world.World`, as far as a planner needs it.

    Args:
        model: Gives vocabulary and control rate.
        simulator: Which.
    """

    def __init__(self, model: TokenWorldModel, simulator: Simulator) -> None:
        self.vocabulary, self.control_rate = model.vocabulary, model.control_rate
        self._env = make_environment(simulator.options.env_id, simulator.options.env_kwargs)
        self._env.reset(seed=0)
        self._context: Any = None  # what a rollout started from: nobody asks

    def start(self, context: Observation, *, seed: int = 0) -> TrueState:
        """Where the arm is, by what is observed."""
        assert context.state is not None
        position, speed = np.split(context.state.double().numpy(), 2, axis=1)
        return TrueState(position=position, speed=speed)

    def observe(
        self, state: TrueState, actions: Tensor, observed: Observation
    ) -> tuple[TrueState, Tensor]:
        """Begin anew where the arm is; nothing surprises."""
        return self.start(observed), torch.zeros(len(actions))

    def fork(
        self, state: TrueState, num_copies: int, num_steps: int, *, noise_streams: Any = None
    ) -> TrueState:
        """Continue in several ways."""
        return TrueState(
            position=state.position.repeat(num_copies, axis=0),
            speed=state.speed.repeat(num_copies, axis=0),
        )

    def roll(
        self, state: TrueState, actions: Tensor, sampling: Any = None
    ) -> tuple[TrueState, Rollout]:
        """Take actions; where they lead is left out but for the rewards."""
        env, reward = self._env, torch.zeros(actions.shape[:2])
        for row, chunk in enumerate(actions.numpy()):
            env.reset()  # which sets the count of steps to 0, and the arm anywhere
            env.unwrapped.set_state(state.position[row], state.speed[row])
            for step, action in enumerate(chunk):
                reward[row, step] = float(env.step(action)[1])
        none = torch.zeros_like(reward)
        return state, Rollout(
            actions=actions,
            frame_tokens=none[..., None].long(),
            state_tokens=None,
            state=None,
            reward=reward,
            termination_probability=none,
            frame_nll=none,
            frame_entropy=none,
            context=self._context,
            context_rows=torch.zeros(len(actions), dtype=torch.int64),
        )

    def features(self, state: TrueState) -> Tensor:
        """Joints and target."""
        return torch.from_numpy(state.position).float()


class NoFilm:
    """A planner whose plans keep no future, since there is no picture of it."""

    def __init__(self, planner: ICEM) -> None:
        self.planner = planner

    def plan(self, *arguments: Any) -> Any:
        """The plan."""
        return replace(self.planner.plan(*arguments), rollout=None)


def main() -> None:
    """Act, and write figures, page and recordings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="settings of the planner, iCEM")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    model = tokenwm.load(given.model)
    simulator = simulator_for(model)
    planner = NoFilm(ICEM(seed=given.seed, **key_values("--set", given.set)))
    world: Any = TrueReacher(model, simulator)
    as_seen: Any = lambda observation: observation  # noqa: E731
    agent = Controller(world, planner, Reward(), context_of=as_seen)
    config = ClosedLoopConfig(num_episodes=given.episodes, seed=given.seed, num_films=0)
    about = {"model": "the simulator", "env_id": simulator.options.env_id, "planner": "icem"}
    loop = run_closed_loop(model, agent, simulator, given.out, config, about=about)
    print(loop.returns, write_closed_loop(given.out, loop))


if __name__ == "__main__":
    main()
