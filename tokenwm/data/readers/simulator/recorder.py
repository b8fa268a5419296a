"""Recording of one episode of a simulator, or of several at once."""

import json
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.episode import Episode, Scalar
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef
from tokenwm.data.readers.pictures.frames import ArrayFrames
from tokenwm.data.readers.pictures.video import FrameResizer
from tokenwm.data.readers.recorded.recording import Recording, to_episode
from tokenwm.data.readers.simulator.environments import (
    JOINTS,
    RENDER,
    as_rgb,
    encode_action,
    make_environment,
    num_actions_of,
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
    """The arrays of one episode while it is recorded, a row for each step of the environment.

    Args:
        config: What to record.
        episode_format: What the episode is to be.
        index: Number of the episode.

    Attributes:
        policy: The policy that chooses the actions.
        env_seed: For the simulator's ``reset``.
        reset_options: The same, or None.
        policy_rng: For the policy; all follow from the recipe's seed and the episode's index.
        done: Whether the episode is over.
    """

    def __init__(self, config: SimulatorOptions, episode_format: EpisodeFormat, index: int) -> None:
        self.config = config
        self.format = episode_format
        script = config.script_of(index)
        seeds = np.random.SeedSequence([config.seed, index]).generate_state(3)
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
        self.num_actions: int | None = None

    def observe(self, observation: Any, info: Mapping[str, Any], picture: Any) -> None:
        """Add an observation; ``picture`` is what ``render`` gives, if a camera asks for it."""
        for camera, key in self.config.cameras.items():
            image = picture if key == RENDER else pick(observation, key, f"cameras.{camera}")
            image = as_rgb(image, f"cameras.{camera}: {key}")
            self.frames[camera].append(self.resizers[camera].resize_image(image))
        if self.config.state is not None:
            name = self.config.state
            values = info[JOINTS] if name == JOINTS else pick(observation, name, "state")
            values = np.asarray(values)
            self.state.append(values.astype(np.float32).reshape(-1))
        if self.config.task_state is not None:
            self.task_state.append(np.asarray(info[TASK_STATE], dtype=np.float32))

    def add(self, space: Any, action: Any, result: tuple[Any, ...], picture: Any) -> None:
        """Add an action of a space and what ``step`` returned for it."""
        observation, reward, terminated, truncated, info = result
        self.num_actions = num_actions_of(space)
        self.action.append(encode_action(space, action))
        self.reward.append(float(reward))
        self.observe(observation, info, picture)
        if CONTACTS in info:
            self.had_contact.append(bool(np.mean(info[CONTACTS]) > 0))
        self.success = bool(info[SUCCESS]) if SUCCESS in info else None
        self.terminated = bool(terminated)
        self.done = self.terminated or bool(truncated) or len(self.action) == self.config.max_steps

    def finish(self, ref: EpisodeRef, factor: int) -> Episode:
        """The episode, or another phase of it.

        Args:
            ref: Its name, and the row at which downsampling begins.
            factor: Environment steps that make one step.

        Raises:
            EpisodeError: A quality rule is broken.
        """
        metadata: dict[str, Scalar] = {
            "seed": self.config.seed,
            "return": float(sum(self.reward)),
            ENV_SEED: self.env_seed,
        }
        if self.reset_options is not None:
            metadata[RESET_OPTIONS] = json.dumps(self.reset_options)
        if self.had_contact:
            metadata["contact_fraction"] = float(np.mean(self.had_contact))
        if self.success is not None:
            metadata["success"] = self.success
        recording = self.recording(ref.phase, factor, metadata)
        # A simulator drops no frames and has no faulty encoders: stillness and jumps are real.
        limits = replace(self.format.quality, max_frozen_seconds=None, max_spike=None)
        wanted = replace(self.format, quality=limits)
        return to_episode(recording, ref, wanted, factor * wanted.control_rate, self.num_actions)

    def recording(self, phase: int, factor: int, metadata: Mapping[str, Scalar]) -> Recording:
        """All rows; of an end within a step, as many more as make the step whole.

        Nothing happens in these: the last observation stays, and so does the last action, of which
        a sum gets none.

        Args:
            phase: Row at which downsampling begins.
            factor: Environment steps that make one step.
            metadata: Of the recording.
        """
        num_actions = len(self.action)
        num_missing = (phase - num_actions) % factor if self.terminated else 0
        num_rows = num_actions + 1 + num_missing

        def lengthened(rows: list[Any], length: int) -> NDArray[Any]:
            return np.stack([*rows, *rows[-1:] * (length - len(rows))])

        action = lengthened(self.action, num_rows - 1)
        if self.format.action_aggregation == "sum":
            action[num_actions:] = 0
        terminated = np.zeros(num_rows - 1, dtype=np.bool_)
        terminated[num_actions - 1] = True
        reward = np.zeros(num_rows - 1, dtype=np.float32)
        reward[:num_actions] = self.reward
        return Recording(
            num_rows=num_rows,
            action=action,
            frames={
                camera: ArrayFrames(images=lengthened(frames, num_rows), name="pictures")
                for camera, frames in self.frames.items()
            },
            state=lengthened(self.state, num_rows) if self.state else None,
            reward=reward,
            terminated=terminated if self.terminated else None,
            task_state=lengthened(self.task_state, num_rows) if self.task_state else None,
            metadata=metadata,
            num_padded=num_missing,
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
    task_state = None if name is None else get_task_state(name, config.env_id)
    return Watched(env, task_state, tells_joints=config.state == JOINTS)


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
        for name in (CONTACTS, SUCCESS, TASK_STATE, JOINTS)
        if name in infos and infos[f"_{name}"][index]
    }
