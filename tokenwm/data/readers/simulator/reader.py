"""Record episodes from a Gymnasium environment with a named policy.

An episode is a function of (recipe, seed, episode index) only: every episode gets a fresh
environment, seeded by its index, so episodes can be recorded in any order by any number of
processes.

See :mod:`tokenwm.data.readers.simulator.environments` for which environments can be made.
"""

import dataclasses
import importlib.metadata
import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from tokenwm.data.episode import Episode
from tokenwm.data.readers.base import EpisodeFormat, EpisodeRef, Gap, SourceDescription
from tokenwm.data.readers.downsample import actions_per_step, downsampling_factor
from tokenwm.data.readers.simulator.environments import (
    check_action_space,
    num_actions_of,
    packages_of,
)
from tokenwm.data.readers.simulator.options import SimulatorOptions
from tokenwm.data.readers.simulator.recorder import (
    EpisodeRecorder,
    make_watched,
    record,
    record_together,
)
from tokenwm.data.readers.simulator.task_states import get_task_state
from tokenwm.errors import EpisodeError, RecipeError

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class GymnasiumConfig(SimulatorOptions):
    """Options of the Gymnasium reader, which records what it reads."""

    records: ClassVar[bool] = True

    type: Literal["gymnasium"] = "gymnasium"

    @classmethod
    def recognise(cls, path: Path) -> None:
        """No file or folder is a simulator."""

    def open(self, episode_format: EpisodeFormat, folder: Path | None) -> "GymnasiumSource":
        """Make the recorder; ``folder`` is not used."""
        return GymnasiumSource(self, episode_format)


class GymnasiumSource:
    """Episodes recorded when they are loaded; see :class:`~tokenwm.data.readers.base.Source`.

    The phases of an episode are one recording: the last one is kept for them.
    """

    def __init__(self, config: GymnasiumConfig, episode_format: EpisodeFormat) -> None:
        self.config = config
        self.format = episode_format
        if config.rate is None and episode_format.action_aggregation == "stack":
            raise RecipeError(
                "action_aggregation: stack, but each environment step is a step of the dataset; "
                "set source.rate to the environment's steps per second"
            )
        rate = episode_format.control_rate if config.rate is None else config.rate
        self.num_phases = downsampling_factor(rate, episode_format.control_rate)
        self.num_together = config.num_envs * (self.num_phases if config.num_envs > 1 else 1)
        self._kept: dict[int, EpisodeRecorder] = {}
        with closing(make_watched(config)) as env:
            check_action_space(env.action_space)
            says = (env.metadata or {}).get("render_fps")
        if says and float(says) != rate:
            logger.warning(
                "%s says it runs at %g Hz, the recipe says %s %g Hz; %s",
                config.env_id,
                float(says),
                "control_rate" if config.rate is None else "source.rate",
                rate,
                "one environment step is one step of the dataset unless source.rate is set"
                if config.rate is None
                else "that is what counts",
            )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": {}}

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
        return self._recorded([ref])[ref.index].finish(ref, self.num_phases)

    def load_together(self, refs: Sequence[EpisodeRef]) -> list[Episode | EpisodeError]:
        """Record several episodes at once.

        Returns:
            For each what :meth:`load` gives, to the byte, or raises.
        """
        recorders = self._recorded(refs)
        results: list[Episode | EpisodeError] = []
        for ref in refs:
            try:
                results.append(recorders[ref.index].finish(ref, self.num_phases))
            except EpisodeError as error:
                results.append(error)
        return results

    def _recorded(self, refs: Sequence[EpisodeRef]) -> dict[int, EpisodeRecorder]:
        """Recordings by number of the episode, as many at once as there are simulators."""
        wanted = dict.fromkeys(ref.index for ref in refs)
        found = {index: self._kept[index] for index in wanted if index in self._kept}
        missing = [index for index in wanted if index not in found]
        for start in range(0, len(missing), self.config.num_envs):
            group = missing[start : start + self.config.num_envs]
            recorders = [EpisodeRecorder(self.config, self.format, index) for index in group]
            if len(recorders) > 1:
                record_together(self.config, recorders, partial(make_watched, self.config))
            else:
                with closing(make_watched(self.config)) as env:
                    record(self.config, recorders[0], env)
            found |= dict(zip(group, recorders, strict=True))
        self._kept = found if self.num_phases > 1 else {}
        return found

    def describe(self) -> SourceDescription:
        """Number of discrete actions, units from the recipe, and what the task state holds."""
        config = self.config
        with closing(make_watched(config)) as env:
            num_actions = num_actions_of(env.action_space)
        described = SourceDescription(
            state_units=config.state_units,
            action_units=config.action_units,
            num_actions=num_actions,
            actions_per_step=actions_per_step(self.num_phases, self.format.action_aggregation),
        )
        if config.task_state is None:
            return described
        truth = get_task_state(config.task_state, config.env_id)
        return dataclasses.replace(
            described, task_state_names=truth.names, task_state_units=", ".join(truth.units)
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
