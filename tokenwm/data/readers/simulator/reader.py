"""Record episodes from a Gymnasium environment with a named policy.

An episode is a function of (recipe, seed, episode index) only: every episode gets a fresh
environment, seeded by its index, so episodes can be recorded in any order by any number of
processes.

See :mod:`tokenwm.data.readers.simulator.environments` for which environments can be made.
"""

import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokenwm.data.episode import NAME_PATTERN, Episode
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, SourceDescription
from tokenwm.data.readers.simulator.environments import (
    RENDER,
    check_action_space,
    check_env_id,
    make_environment,
    num_actions_of,
    packages_of,
)
from tokenwm.data.readers.simulator.recorder import EpisodeRecorder, record, record_together
from tokenwm.data.readers.simulator.scripts import READ_THE_SIMULATOR, get_policy, get_start
from tokenwm.errors import EpisodeError, RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Variation of a recording: some episodes with another policy, start or options.

    Attributes:
        every: Each ``every``-th episode is one, 2 or more: with 5 the fifth, the tenth, ….
        policy: As in :class:`GymnasiumConfig`, and so are the others.
        start: See there.
        reset_options: See there.
    """

    every: int
    policy: str
    start: str | None = None
    reset_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.every < 2:
            raise RecipeError(f"every is {self.every}; expected at least 2")


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig:
    """Options of the Gymnasium recorder.

    Attributes:
        env_id: Registered id, for example ``gym_pusht/PushT-v0``.
        env_kwargs: Arguments of the environment.
        cameras: Our name of a camera → key of a dict observation, ``observation`` if that is
            the picture, or ``render`` for what ``env.render()`` returns.
        state: Key of a dict observation, ``observation`` if it is a vector, or null.
        policy: Name of a policy in ``tokenwm/data/readers/simulator/scripts.py``.
        start: Name of a start there, which draws options for ``env.reset`` in each episode, or
            null: the environment's own.
        reset_options: Further options for ``env.reset``, the same in all episodes.
        variation: Some episodes with another policy and start, or null.
        num_episodes: Episodes to record.
        max_steps: Most environment steps of an episode; it has one more observation.
        num_envs: Simulators that run at once where episodes are loaded one after the other, each in
            a process of its own; changes no episode. The policy must not read the simulator.
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
    start: str | None = None
    reset_options: dict[str, Any] = field(default_factory=dict)
    variation: Variation | None = None
    num_episodes: int = 100
    max_steps: int = 100
    num_envs: int = 1
    seed: int = 0
    state_units: str = ""
    action_units: str = ""
    task: str = ""
    type: Literal["gymnasium"] = "gymnasium"

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in ("num_episodes", "max_steps", "num_envs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}; expected at least 0")
        if not self.cameras and self.state is None:
            raise RecipeError("cameras is empty and state is null; at least one of them is needed")
        for camera in self.cameras:
            if not NAME_PATTERN.fullmatch(camera):
                raise RecipeError(f"cameras.{camera}: letters, digits, '_' and '-' only")
        for script in (self, self.variation):
            if script is None:
                continue
            get_policy(script.policy)
            if script.start is not None:
                get_start(script.start, self.env_id)
            if self.num_envs > 1 and script.policy in READ_THE_SIMULATOR:
                raise RecipeError(
                    f"num_envs is {self.num_envs}, and policy {script.policy} reads the simulator, "
                    "which runs in another process then; leave num_envs out and use --workers"
                )

    def script_of(self, index: int) -> "GymnasiumConfig | Variation":
        """Options that say policy, start and reset options of an episode."""
        variation = self.variation
        return self if variation is None or (index + 1) % variation.every else variation

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
    """Episodes recorded when they are loaded; see :class:`~tokenwm.data.readers.base.Source`."""

    num_phases = 1

    def __init__(self, config: GymnasiumConfig, episode_format: EpisodeFormat) -> None:
        self.config = config
        self.num_together = config.num_envs
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

    def gaps(self) -> Sequence[Gap]:
        """None: a simulator gives what is asked for."""
        return ()

    def load(self, ref: EpisodeRef) -> Episode:
        """Record one episode.

        Raises:
            EpisodeError: A quality rule is broken.
        """
        recorder = EpisodeRecorder(self.config, self.format, ref)
        env = _make(self.config)
        try:
            record(self.config, recorder, env)
        finally:
            env.close()
        return recorder.finish()

    def load_together(self, refs: Sequence[EpisodeRef]) -> list[Episode | EpisodeError]:
        """Record several episodes at once.

        Returns:
            For each what :meth:`load` gives, to the byte, or raises.
        """
        recorders = [EpisodeRecorder(self.config, self.format, ref) for ref in refs]
        record_together(self.config, recorders, partial(_make, self.config))
        results: list[Episode | EpisodeError] = []
        for recorder in recorders:
            try:
                results.append(recorder.finish())
            except EpisodeError as error:
                results.append(error)
        return results

    def describe(self) -> SourceDescription:
        """Number of discrete actions, and units from the recipe."""
        env = _make(self.config)
        try:
            num_actions = num_actions_of(env.action_space)
        finally:
            env.close()
        return SourceDescription(
            state_units=self.config.state_units,
            action_units=self.config.action_units,
            num_actions=num_actions,
        )

    def provenance(self) -> dict[str, Any]:
        """The simulator and the versions of its packages; there are no files to sum up."""
        packages, variation = packages_of(self.config.env_id), self.config.variation
        policies = self.config.policy
        if variation is not None:
            policies += f", one episode in {variation.every} by {variation.policy}"
        return {
            "source": f"simulator {self.config.env_id}, policy {policies}",
            "source_checksum": None,
            "source_packages": {name: importlib.metadata.version(name) for name in packages},
        }


def _make(config: GymnasiumConfig) -> Any:
    renders = RENDER in config.cameras.values()
    return make_environment(config.env_id, config.env_kwargs, renders=renders)
