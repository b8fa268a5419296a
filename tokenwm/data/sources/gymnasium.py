"""Record episodes from a Gymnasium environment with a named policy.

An episode is a function of (recipe, seed, episode index) only: every episode gets a fresh
environment, seeded by its index, so episodes can be recorded in any order by any number of
processes.

See :mod:`tokenwm.data.environments` for which environments can be made.
"""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from tokenwm.data import quality
from tokenwm.data.environments import (
    RENDER,
    as_rgb,
    check_action_space,
    check_env_id,
    encode_action,
    make_environment,
    packages_of,
    pick,
)
from tokenwm.data.episode import NAME_PATTERN, Episode, Scalar
from tokenwm.data.measures import measure_recording
from tokenwm.data.policies import get_policy
from tokenwm.data.sources import EpisodeFormat, EpisodeRef, SourceDescription
from tokenwm.data.video import FrameResizer
from tokenwm.errors import RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig:
    """Options of the Gymnasium recorder.

    Attributes:
        env_id: Registered id, for example ``gym_pusht/PushT-v0``.
        env_kwargs: Arguments of the environment.
        cameras: Our name of a camera → key of a dict observation, ``observation`` if that is
            the picture, or ``render`` for what ``env.render()`` returns.
        state: Key of a dict observation, ``observation`` if it is a vector, or null.
        policy: Name of a policy in ``tokenwm/data/policies.py``.
        num_episodes: Episodes to record.
        max_steps: Most environment steps of an episode; it has one more observation.
        seed: Changes every episode.
        state_units: Units of the state in words, stored with the data.
        action_units: Units of the action in words, stored with the data.
        task: What is to be done, in words.
        type: Name of this reader.
    """

    records: ClassVar[bool] = True

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    policy: str = "random"
    num_episodes: int = 100
    max_steps: int = 100
    seed: int = 0
    state_units: str = ""
    action_units: str = ""
    task: str = ""
    type: Literal["gymnasium"] = "gymnasium"

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in ("num_episodes", "max_steps"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}; expected at least 0")
        if not self.cameras and self.state is None:
            raise RecipeError("cameras is empty and state is null; at least one of them is needed")
        for camera in self.cameras:
            if not NAME_PATTERN.fullmatch(camera):
                raise RecipeError(f"cameras.{camera}: letters, digits, '_' and '-' only")
        get_policy(self.policy)

    @classmethod
    def recognise(cls, path: Path) -> None:
        """No file or folder is a simulator."""

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "GymnasiumSource":
        """Make the recorder; ``folder`` is not used.

        Raises:
            SourceError: The environment's package is not installed.
            RecipeError: There is no such environment, or it does not give what the recipe names.
        """
        return GymnasiumSource(self, episode_format)


class GymnasiumSource:
    """Episodes recorded when they are loaded; see :class:`~tokenwm.data.sources.Source`."""

    num_phases = 1

    def __init__(self, config: GymnasiumConfig, episode_format: EpisodeFormat) -> None:
        self.config = config
        self.format = episode_format
        env = _make(config)
        try:
            check_action_space(env.action_space)
            rate = (env.metadata or {}).get("render_fps")
        finally:
            env.close()
        if rate and float(rate) != episode_format.control_rate:
            logger.warning(
                "%s says it runs at %g Hz, the recipe says control_rate %g Hz; one environment "
                "step is one step of the dataset either way",
                config.env_id,
                float(rate),
                episode_format.control_rate,
            )

    def episodes(self) -> Sequence[EpisodeRef]:
        """One reference for each episode to record."""
        return [
            EpisodeRef(key=f"episode_{index:06d}", index=index, task=self.config.task)
            for index in range(self.config.num_episodes)
        ]

    def load(self, ref: EpisodeRef) -> Episode:
        """Record one episode.

        Raises:
            EpisodeError: A quality rule is broken.
        """
        env = _make(self.config)
        try:
            episode = _Recording(self, ref).run(env)
        finally:
            env.close()
        limits = self.format.quality
        quality.check_signals(
            ref.key, limits, action=episode.action, state=episode.state, reward=episode.reward
        )
        measured = measure_recording(
            rate=self.format.control_rate,
            action=episode.action[:-1],
            state=episode.state,
            timestamps=None,
            frames=episode.frames,
            frame_rate=self.format.control_rate,
        )
        episode = dataclasses.replace(episode, measured=measured)
        # A simulator drops no frames and has no faulty encoders: what looks so is so.
        limits = dataclasses.replace(limits, max_frozen_seconds=None, max_spike=None)
        quality.check_episode(limits, episode)
        return episode

    def describe(self) -> SourceDescription:
        """Number of discrete actions, and units from the recipe."""
        env = _make(self.config)
        try:
            num_actions = getattr(env.action_space, "n", None)
        finally:
            env.close()
        return SourceDescription(
            state_units=self.config.state_units,
            action_units=self.config.action_units,
            num_actions=None if num_actions is None else int(num_actions),
        )

    def provenance(self) -> dict[str, Any]:
        """The simulator and the versions of its packages; there are no files to sum up."""
        packages = packages_of(self.config.env_id)
        return {
            "source": f"simulator {self.config.env_id}, policy {self.config.policy}",
            "source_checksum": None,
            "source_packages": {name: importlib.metadata.version(name) for name in packages},
        }


class _Recording:
    """The arrays of one episode while it is recorded."""

    def __init__(self, source: GymnasiumSource, ref: EpisodeRef) -> None:
        self.config = source.config
        self.format = source.format
        self.ref = ref
        self.resizers = {
            camera: FrameResizer(*source.format.image_size, source.format.resize)
            for camera in self.config.cameras
        }
        self.frames: dict[str, list[NDArray[np.uint8]]] = {c: [] for c in self.config.cameras}
        self.state: list[NDArray[np.float32]] = []
        self.action: list[NDArray[Any]] = []
        self.reward: list[float] = []

    def run(self, env: Any) -> Episode:
        env_seed, policy_seed = np.random.SeedSequence(
            [self.config.seed, self.ref.index]
        ).generate_state(2)
        observation, info = env.reset(seed=int(env_seed) % 2**31)
        next_action = get_policy(self.config.policy)(env, np.random.default_rng(policy_seed))
        self._observe(env, observation)
        terminated = truncated = False
        had_contact: list[bool] = []
        for _ in range(self.config.max_steps):
            action = next_action()
            observation, reward, terminated, truncated, info = env.step(action)
            self.action.append(encode_action(env.action_space, action))
            self.reward.append(float(reward))
            self._observe(env, observation)
            if "n_contacts" in info:
                had_contact.append(bool(np.mean(info["n_contacts"]) > 0))
            if terminated or truncated:
                break
        metadata: dict[str, Scalar] = {
            "seed": self.config.seed,
            "source_index": self.ref.index,
            "return": float(sum(self.reward)),
        }
        if had_contact:
            metadata["contact_fraction"] = float(np.mean(had_contact))
        if "is_success" in info:
            metadata["success"] = bool(info["is_success"])
        return self._episode(bool(terminated), metadata)

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
            control_rate=self.format.control_rate,
            task=self.ref.task,
            metadata=metadata,
        )

    def _observe(self, env: Any, observation: Any) -> None:
        for camera, key in self.config.cameras.items():
            image = env.render() if key == RENDER else pick(observation, key, f"cameras.{camera}")
            image = as_rgb(image, f"cameras.{camera}: {key}")
            self.frames[camera].append(self.resizers[camera].resize_image(image))
        if self.config.state is not None:
            values = np.asarray(pick(observation, self.config.state, "state"))
            self.state.append(values.astype(np.float32).reshape(-1))


def _make(config: GymnasiumConfig) -> Any:
    renders = RENDER in config.cameras.values()
    return make_environment(config.env_id, config.env_kwargs, renders=renders)
