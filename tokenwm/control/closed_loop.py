"""Episodes in a simulator with a controller at the wheel, and their figures."""

import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenwm.control.acted import ActedEpisode, ClosedLoop, Film, PlanRecord
from tokenwm.control.decision import Decision, LimitsError
from tokenwm.control.recordings import FOLDER, clear_recordings, write_recipe, write_recording
from tokenwm.control.simulator import Simulator, check_space, seeded
from tokenwm.data.readers.simulator.environments import RENDER, decode_action, num_actions_of
from tokenwm.data.readers.simulator.recorder import SUCCESS, EpisodeRecorder, make_watched, reset
from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tokenwm.shapes import is_whole, shown
from tokenwm.tokenizer.actions import BinTokenizer


class Agent(Protocol):
    """Whoever acts: a :class:`~tokenwm.control.controller.Controller`, for example."""

    def begin(self, *, seed: int) -> None:
        """Start an episode."""
        ...

    def act(self, observation: Observation) -> tuple[NDArray[Any], Decision]:
        """Choose the robot's next action, ``(dims,)``."""
        ...

    def end(self) -> None:
        """End the episode: the model is not used any more."""
        ...


class RandomAgent:
    """Uniform actions within the range of the training data: what any controller has to beat.

    Args:
        model: Model of the robot.
    """

    def __init__(self, model: TokenWorldModel) -> None:
        action, count = model.vocabulary.action, model.actions_per_step
        self._action, self._dims = action, action.num_dimensions // count
        self.begin(seed=0)

    def begin(self, *, seed: int) -> None:
        """Start an episode."""
        self._generator, self._step = np.random.default_rng(seed), 0

    def act(self, observation: Observation) -> tuple[NDArray[Any], Decision]:
        """Draw an action."""
        decision = Decision(step=self._step, came="plan")
        self._step += 1
        if isinstance(self._action, BinTokenizer):
            low, high = (end[: self._dims] for end in self._action.training_range)
            return self._generator.uniform(low, high).astype(np.float32), decision
        sizes = self._action.used_sizes[: self._dims]
        return self._generator.integers(0, sizes), decision

    def end(self) -> None:
        """Do nothing: nothing is under way."""


@dataclass(frozen=True, kw_only=True)
class ClosedLoopConfig:
    """Settings of episodes in a simulator.

    Attributes:
        num_episodes: How many.
        seed: Of the episodes' starts and of all noise.
        num_films: Episodes, from the first on, of which a film is kept.
        in_real_time: Whether steps take as long as they would: where plans have a deadline, the
            time between two steps is theirs as well.
    """

    num_episodes: int = 10
    seed: int = 0
    num_films: int = 2
    in_real_time: bool = False

    def __post_init__(self) -> None:
        for name, least in (("num_episodes", 1), ("num_films", 0), ("seed", 0)):
            if not is_whole(getattr(self, name), least):
                raise TokenwmError(
                    f"{name}={shown(getattr(self, name))}; use a whole number, at least {least}"
                )


def run_closed_loop(
    model: TokenWorldModel,
    agent: Agent,
    simulator: Simulator,
    out: Path,
    config: ClosedLoopConfig,
    *,
    about: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> ClosedLoop:
    """Act in a simulator, one episode after the other; recordings are written as they end.

    Args:
        model: The model of the robot; decodes what was imagined, for films.
        agent: Who acts.
        simulator: Where; its options' seed is not used, that of ``config`` is.
        out: Folder, which must be there; gets recordings and their recipe.
        config: Settings.
        about: What to keep beside the figures.
        progress: Told of episodes, done and in all.

    Raises:
        TokenwmError: The simulator's actions are not the model's, or the agent cannot go on.
    """
    simulator = seeded(simulator, config.seed)
    clear_recordings(out)
    (out / FOLDER).mkdir(exist_ok=True)
    episodes = []
    for index in range(config.num_episodes):
        progress(index, config.num_episodes)
        run = Run(model, simulator, config, index)
        with closing(make_watched(simulator.options)) as env:
            check_space(model, env.action_space)
            if index == 0:
                write_recipe(out, simulator, num_actions_of(env.action_space))
            run.act(agent, env)
        recording = ""
        if run.decisions:
            path = write_recording(out, index, run.recorder, simulator)
            recording = str(path.relative_to(out))
        episodes.append(run.episode(recording))
    progress(config.num_episodes, config.num_episodes)
    rate = model.control_rate * model.actions_per_step
    return ClosedLoop(about=dict(about or {}), rate=rate, episodes=tuple(episodes))


class Run:
    """One episode while it goes on.

    Args:
        model: The model of the robot.
        simulator: Where.
        config: Settings.
        index: Number of the episode.
    """

    def __init__(
        self, model: TokenWorldModel, simulator: Simulator, config: ClosedLoopConfig, index: int
    ) -> None:
        self.model, self.simulator, self.config, self.index = model, simulator, config, index
        self.recorder = EpisodeRecorder(simulator.options, simulator.format, index)
        self.decisions: list[Decision] = []
        self.success: bool | None = None
        self.stopped = ""

    def act(self, agent: Agent, env: Any) -> None:
        """Act until the episode is over, or no action is within the hard limits."""
        recorder, simulator = self.recorder, self.simulator
        renders = RENDER in simulator.options.cameras.values()
        observation, info = self.begin(env)
        recorder.observe(observation, info, env.render() if renders else None)
        agent.begin(seed=self.config.seed + self.index)
        seconds = simulator.num_repeats / simulator.rate
        due = time.perf_counter()
        try:
            while not self.is_over:
                action, decision = agent.act(simulator.observed(recorder))
                self.decisions.append(decision)
                if self.config.in_real_time:
                    due = max(due + seconds, time.perf_counter())
                    time.sleep(max(0.0, due - time.perf_counter()))
                self._step(env, decode_action(env.action_space, simulator.held(action)), renders)
        except LimitsError as error:
            self.stopped = str(error)
        finally:
            agent.end()

    def begin(self, env: Any) -> tuple[Any, Any]:
        """Bring the simulator to the start; what is observed there."""
        observation, info = reset(env, self.recorder.env_seed, self.recorder.reset_options)
        return observation, info

    @property
    def is_over(self) -> bool:
        """True if the episode is over."""
        return self.recorder.done

    def judge(self, info: Mapping[str, Any]) -> None:
        """Say after a step of the simulator whether the task is done."""
        if SUCCESS in info:
            self.success = bool(self.success) or bool(info[SUCCESS])

    def _step(self, env: Any, action: Any, renders: bool) -> None:
        """Take one action of the robot, for as many steps of the environment as it is held."""
        for _ in range(self.simulator.num_repeats):
            result = env.step(action)
            picture = env.render() if renders else None
            self.recorder.add(env.action_space, action, result, picture)
            self.judge(result[4])
            if self.is_over:
                return

    def episode(self, recording: str) -> ActedEpisode:
        """The figures of the episode."""
        came: dict[str, int] = {}
        for decision in self.decisions:
            came[decision.came] = came.get(decision.came, 0) + 1
        return ActedEpisode(
            index=self.index,
            env_seed=self.recorder.env_seed,
            num_steps=len(self.decisions),
            success=self.success,
            reward=float(sum(self.recorder.reward)),
            terminated=self.recorder.terminated,
            came=came,
            missed_deadlines=sum(decision.missed_deadline for decision in self.decisions),
            latencies=tuple(each.seconds for each in self.decisions if each.is_planned),
            plans=tuple(self._plans()),
            recording=recording,
            stopped=self.stopped,
            film=self.film() if self.index < self.config.num_films else None,
        )

    def _plans(self) -> list[PlanRecord]:
        made = [decision for decision in self.decisions if decision.plan is not None]
        records = []
        for decision, following in zip_longest(made, made[1:]):
            plan = decision.plan
            assert plan is not None
            first = decision.step * self.simulator.num_repeats
            length = len(plan.actions) * self.simulator.factor
            rewards = self.recorder.reward[first : first + length]
            records.append(
                PlanRecord(
                    step=decision.step,
                    expected_return=float(plan.expected_return),
                    spread=None if plan.spread is None else float(plan.spread),
                    doubt=None if plan.doubt is None else float(plan.doubt),
                    num_rollouts=plan.num_rollouts,
                    seconds=decision.seconds,
                    surprise=None if following is None else following.surprise,
                    reward=float(sum(rewards)) if len(rewards) == length else None,
                    verdict=None if decision.verdict is None else decision.verdict.decision,
                )
            )
        return records

    def film(self) -> Film:
        """Real frames at steps of the model, and each as the latest plan had imagined it."""
        cameras, factor = self.simulator.cameras, self.simulator.factor
        frames = np.stack([np.stack(self.recorder.frames[camera]) for camera in cameras], axis=1)
        real, count = frames[::factor], self.model.actions_per_step
        rate = self.model.control_rate
        plans = {decision.step: decision.plan for decision in self.decisions}
        futures = {
            step: plan.rollout
            for step, plan in plans.items()
            if plan is not None and plan.rollout is not None
        }
        if not futures:
            return Film(real=real, imagined=None, rate=rate)
        imagined = np.full_like(real, 255)
        imagined[0] = real[0]
        for number in range(1, len(real)):
            found = latest(futures, number * count, count)
            if found is not None:
                rollout, step = found
                imagined[number] = self.model.decode_frames(rollout, steps=[step])[0, 0].cpu()
        return Film(real=real, imagined=imagined, rate=rate)


def latest(futures: dict[int, Rollout], robot_step: int, count: int) -> tuple[Rollout, int] | None:
    """The latest future that was imagined before a robot step and reaches it, and its step there.

    Args:
        futures: Robot step that each begins at → future.
        robot_step: Where.
        count: Robot steps of a step of the future.
    """
    for begin in sorted(futures, reverse=True):
        step, rest = divmod(robot_step - begin, count)
        if step >= 1 and not rest and step <= futures[begin].frame_tokens.shape[1]:
            return futures[begin], step - 1
    return None
