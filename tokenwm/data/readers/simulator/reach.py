"""Recorded steps of a simulator, reached again: to try other actions from where one was taken."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from numpy.typing import NDArray

from tokenwm.data.readers.base import source_config_class
from tokenwm.data.readers.simulator.environments import decode_action
from tokenwm.data.readers.simulator.options import SimulatorOptions
from tokenwm.data.readers.simulator.recorder import (
    ENV_SEED,
    RESET_OPTIONS,
    make_watched,
    reset,
)
from tokenwm.errors import EpisodeError, SourceError, TokenwmError
from tokenwm.strict import build


class RecordedEpisodes(Protocol):
    """A dataset to read from: :class:`~tokenwm.data.shards.reader.ShardReader` is one."""

    root: str

    @property
    def manifest(self) -> Any:
        """The manifest."""

    def metadata(self, key: str) -> Mapping[str, Any]:
        """Metadata of an episode."""

    def arrays(
        self, key: str, fields: Sequence[str], start: int = 0, stop: int | None = None
    ) -> Mapping[str, NDArray[Any]]:
        """Steps of some fields of an episode."""


def reach(
    reader: RecordedEpisodes, key: str, step: int, *, env_kwargs: Mapping[str, Any] | None = None
) -> Any:
    """Bring a fresh simulator to a recorded step: reset as it was, the recorded actions replayed.

    Args:
        reader: A dataset recorded from a simulator.
        key: Episode.
        step: Step of the episode, ``0 <= step < num_steps``; its own action is not taken.
        env_kwargs: Arguments of the environment that are to be others: to draw no pictures, which
            takes most of the time, for example.

    Returns:
        The environment, about to take the action of ``step``: a
        :class:`~tokenwm.data.readers.simulator.watched.Watched`, whose ``observation`` and ``info``
        are those of ``step``. Pictures and task state are the recorded ones. The caller closes it.

    Raises:
        SourceError: The dataset was not recorded from a simulator, or its package is missing.
        EpisodeError: The episode does not say how its simulator was reset, or ends before ``step``.
    """
    config = _options(reader)
    config = replace(config, env_kwargs={**config.env_kwargs, **(env_kwargs or {})})
    about = reader.metadata(key)
    seed, options = about.get(ENV_SEED), about.get(RESET_OPTIONS)
    try:
        options = json.loads("null" if options is None else options)
    except (TypeError, ValueError, RecursionError):
        seed = None
    if type(seed) is not int or seed < 0 or not isinstance(options, dict | None):
        raise EpisodeError(
            f"{reader.root}, episode {key}: its metadata do not say how the simulator was reset "
            f"({ENV_SEED!r}, {RESET_OPTIONS!r}); older recordings did not: prepare the recipe "
            "again, into another folder"
        )
    actions = reader.arrays(key, ["action"])["action"]
    if not 0 <= step < len(actions):
        raise EpisodeError(
            f"{reader.root}, episode {key}: step {step} is outside [0, {len(actions)})"
        )
    count, control_rate = reader.manifest.actions_per_step, reader.manifest.control_rate
    if about.get("phase") or round((config.rate or control_rate) / control_rate) != count:
        raise EpisodeError(
            f"{reader.root}, episode {key}: not all actions of the simulator are in it; take an "
            "episode that begins at phase 0, with action_aggregation: stack"
        )
    env = make_watched(config)
    try:
        reset(env, seed, options)
        for action in actions.reshape(len(actions) * count, -1)[: step * count]:
            if env.step(decode_action(env.action_space, action))[2]:
                break  # an end within a step, which is whole in the dataset
    except BaseException:
        env.close()
        raise
    return env


def _options(reader: RecordedEpisodes) -> SimulatorOptions:
    recipe = reader.manifest.provenance.get("recipe")
    source = recipe.get("source") if isinstance(recipe, Mapping) else None
    kind = source.get("type") if isinstance(source, Mapping) else None
    try:
        options = build(source_config_class(kind), source, "source", allow_defaults=True)
    except TokenwmError as error:
        raise SourceError(
            f"{reader.root}: its recipe does not say how it was made: {error}"
        ) from error
    if not isinstance(options, SimulatorOptions):
        raise SourceError(
            f"{reader.root} was read from {kind}, not recorded from a simulator, so no step of it "
            "can be reached again"
        )
    return options
