"""Recording of one episode of a simulator, or of several at once."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode, Scalar
from tokenwm.data.quality import checks
from tokenwm.data.quality.measures import measure_recording
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef
from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.data.readers.simulator.environments import (
    RENDER,
    as_rgb,
    encode_action,
    make_environment,
    pick,
)
from tokenwm.data.readers.simulator.options import SimulatorOptions
from tokenwm.data.readers.simulator.scripts import get_policy, get_start
from tokenwm.data.readers.simulator.task_states import TASK_STATE, get_task_state
from tokenwm.errors import RecipeError

CONTACTS, SUCCESS = "n_contacts", "is_success"
"""Keys that are kept of a simulator's ``info``."""
ENV_SEED, RESET_OPTIONS = "env_seed", "reset_options"
"""Names, in an episode's metadata, of what its simulator was reset with; the options as JSON."""


class EpisodeRecorder:
    """The arrays of one episode while it is recorded.

    Attributes:
        policy: The policy that chooses the actions.
        env_seed: For the simulator's ``reset``.
        reset_options: The same, or None.
        policy_rng: For the policy; all follow from the recipe's seed and the episode's index.
        done: Whether the episode is over.
    """

    def __init__(
        self, config: SimulatorOptions, episode_format: EpisodeFormat, ref: EpisodeRef
    ) -> None:
        self.config = config
        self.format = episode_format
        self.ref = ref
        script = config.script_of(ref.index)
        seeds = np.random.SeedSequence([config.seed, ref.index]).generate_state(3)
        self.policy = get_policy(script.policy)
        self.env_seed = int(seeds[0]) % 2**31
        self.policy_rng = np.random.default_rng(seeds[1])
        self.reset_options: dict[str, Any] | None = dict(script.reset_options) or None
        if script.start is not None:
            drawn = get_start(script.start, config.env_id)(np.random.default_rng(seeds[2]))
            self.reset_options = {**script.reset_options, **drawn}
        self.done = self.terminated = False
        self.resizers = {
            camera: FrameResizer(*episode_format.image_size, episode_format.resize)
            for camera in config.cameras
        }
        self.frames: dict[str, list[NDArray[np.uint8]]] = {c: [] for c in config.cameras}
        self.state: list[NDArray[np.float32]] = []
        self.task_state: list[NDArray[np.float32]] = []
        self.action: list[NDArray[Any]] = []
        self.reward: list[float] = []
        self.had_contact: list[bool] = []
        self.success: bool | None = None

    def observe(self, observation: Any, info: Mapping[str, Any], picture: Any) -> None:
        """Add an observation; ``picture`` is what ``render`` gives, if a camera asks for it."""
        for camera, key in self.config.cameras.items():
            image = picture if key == RENDER else pick(observation, key, f"cameras.{camera}")
            image = as_rgb(image, f"cameras.{camera}: {key}")
            self.frames[camera].append(self.resizers[camera].resize_image(image))
        if self.config.state is not None:
            values = np.asarray(pick(observation, self.config.state, "state"))
            self.state.append(values.astype(np.float32).reshape(-1))
        if self.config.task_state is not None:
            self.task_state.append(np.asarray(info[TASK_STATE], dtype=np.float32))

    def add(self, space: Any, action: Any, result: tuple[Any, ...], picture: Any) -> None:
        """Add an action of a space and what ``step`` returned for it."""
        observation, reward, terminated, truncated, info = result
        self.action.append(encode_action(space, action))
        self.reward.append(float(reward))
        self.observe(observation, info, picture)
        if CONTACTS in info:
            self.had_contact.append(bool(np.mean(info[CONTACTS]) > 0))
        self.success = bool(info[SUCCESS]) if SUCCESS in info else None
        self.terminated = bool(terminated)
        self.done = self.terminated or bool(truncated) or len(self.action) == self.config.max_steps

    def finish(self) -> Episode:
        """The episode.

        Raises:
            EpisodeError: A quality rule is broken.
        """
        metadata: dict[str, Scalar] = {
            "seed": self.config.seed,
            "source_index": self.ref.index,
            "return": float(sum(self.reward)),
            ENV_SEED: self.env_seed,
        }
        if self.reset_options is not None:
            metadata[RESET_OPTIONS] = json.dumps(self.reset_options)
        if self.had_contact:
            metadata["contact_fraction"] = float(np.mean(self.had_contact))
        if self.success is not None:
            metadata["success"] = self.success
        episode = self._episode(self.terminated, metadata)
        limits = self.format.quality
        checks.check_signals(
            self.ref.key,
            limits,
            action=episode.action[:-1],
            state=episode.state,
            reward=episode.reward,
        )
        if episode.task_state is not None:
            checks.check_finite(self.ref.key, "task_state", episode.task_state)
        measured = measure_recording(
            rate=self.format.control_rate,
            action=episode.action[:-1],
            state=episode.state,
            timestamps=None,
            frames=episode.frames,
            frame_rate=self.format.control_rate,
        )
        episode = dataclasses.replace(episode, measured=measured)
        # A simulator drops no frames and has no faulty encoders: stillness and jumps are real.
        limits = dataclasses.replace(limits, max_frozen_seconds=None, max_spike=None)
        checks.check_episode(limits, episode)
        return episode

    def _episode(self, terminated: bool, metadata: dict[str, Scalar]) -> Episode:
        num_steps = len(self.action) + 1
        flags = np.zeros((2, num_steps), dtype=np.bool_)
        flags[0 if terminated else 1, -2] = True
        return Episode(
            key=self.ref.key,
            frames={camera: np.stack(frames) for camera, frames in self.frames.items()},
            state=np.stack(self.state) if self.state else None,
            action=np.stack([*self.action, np.zeros_like(self.action[0])]),
            reward=np.array([*self.reward, 0.0], dtype=np.float32),
            terminated=flags[0],
            truncated=flags[1],
            task_state=np.stack(self.task_state) if self.task_state else None,
            control_rate=self.format.control_rate,
            task=self.ref.task,
            metadata=metadata,
        )


def make_watched(config: SimulatorOptions) -> Any:
    """A fresh simulator, which gives the task state if the options ask for it.

    Raises:
        RecipeError: There is no such environment, or it does not take its arguments.
        SourceError: Its package is not installed.
    """
    renders = RENDER in config.cameras.values()
    env = make_environment(config.env_id, config.env_kwargs, renders=renders)
    from tokenwm.data.readers.simulator.watched import Watched  # imports gymnasium

    name = config.task_state
    return Watched(env, None if name is None else get_task_state(name, config.env_id))


def record(config: SimulatorOptions, recorder: EpisodeRecorder, env: Any) -> None:
    """Record one episode from a fresh simulator."""
    renders = RENDER in config.cameras.values()
    observation, info = reset(env, recorder.env_seed, recorder.reset_options)
    next_action = recorder.policy(env, recorder.policy_rng)
    recorder.observe(observation, info, env.render() if renders else None)
    while not recorder.done:
        action = next_action()
        result = env.step(action)
        recorder.add(env.action_space, action, result, env.render() if renders else None)


def reset(env: Any, seed: int | None, options: Mapping[str, Any] | None) -> Any:
    """Begin an episode; what ``env.reset`` returns.

    Raises:
        RecipeError: The environment does not take these options.
    """
    try:
        return env.reset(seed=seed, options=None if options is None else dict(options))
    except (TypeError, ValueError, KeyError, IndexError) as error:
        if options is None:
            raise
        raise RecipeError(
            f"source: the environment cannot be reset with the options {dict(options)}: {error!r}; "
            "see reset_options and start"
        ) from error


def _with_options(make: Callable[[], Any], options: Mapping[str, Any] | None) -> Any:
    """A simulator that is always reset with these options: a group is reset with common ones."""
    env = make()
    begin = SimpleNamespace(reset=env.reset)
    env.reset = lambda *, seed=None, **_: reset(begin, seed, options)
    return env


def record_together(
    config: SimulatorOptions, recorders: Sequence[EpisodeRecorder], make: Callable[[], Any]
) -> None:
    """Record several episodes at once, each from a fresh simulator in a process of its own.

    Each simulator and each policy gets the same seeds and sees the same as alone, so the episodes
    are the same to the byte. Where one is over its simulator idles until the longest is.

    Args:
        config: Options; its policies must not read the simulator.
        recorders: One for each episode.
        make: Makes a simulator; is sent to the processes.
    """
    from gymnasium.vector import AsyncVectorEnv, AutoresetMode

    renders = RENDER in config.cameras.values()
    vector: Any = AsyncVectorEnv(
        [partial(_with_options, make, recorder.reset_options) for recorder in recorders],
        context="spawn",
        autoreset_mode=AutoresetMode.DISABLED,
    )
    try:
        space = vector.single_action_space
        policies = [
            recorder.policy(SimpleNamespace(action_space=deepcopy(space)), recorder.policy_rng)
            for recorder in recorders
        ]
        observations, infos = vector.reset(seed=[recorder.env_seed for recorder in recorders])
        pictures = vector.render() if renders else [None] * len(recorders)
        for index, recorder in enumerate(recorders):
            observation, info = _item(observations, index), _info(infos, index)
            recorder.observe(observation, info, pictures[index])
        actions: list[Any] = [None] * len(recorders)
        while True:
            going_on = [index for index, recorder in enumerate(recorders) if not recorder.done]
            if not going_on:
                return
            for index in going_on:
                actions[index] = policies[index]()
            results = vector.step(np.stack(actions))
            pictures = vector.render() if renders else pictures
            for index in going_on:
                result = tuple(_item(part, index) for part in results[:-1])
                info = _info(results[-1], index)
                recorders[index].add(space, actions[index], (*result, info), pictures[index])
            over = results[2] | results[3]
            if over.any():
                vector.reset(options={"reset_mask": over})
    finally:
        vector.close()


def _item(batch: Any, index: int) -> Any:
    """The part of one simulator."""
    if isinstance(batch, Mapping):
        return {name: part[index] for name, part in batch.items()}
    return batch[index]


def _info(infos: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Return the ``info`` of one simulator; ``_name`` says which of them gave a value."""
    return {
        name: infos[name][index]
        for name in (CONTACTS, SUCCESS, TASK_STATE)
        if name in infos and infos[f"_{name}"][index]
    }
