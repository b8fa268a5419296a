"""The simulator in which a model is to act: what it was recorded from, or any that is named."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.data.quality.checks import QualityConfig
from tokenwm.data.readers.base import EpisodeFormat, source_config_class
from tokenwm.data.readers.downsample import Aggregation, downsampling_factor
from tokenwm.data.readers.simulator.environments import RENDER, WHOLE, num_actions_of
from tokenwm.data.readers.simulator.options import SimulatorOptions
from tokenwm.data.readers.simulator.recorder import EpisodeRecorder
from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world import Observation
from tokenwm.strict import build
from tokenwm.tokenizer.actions import BinTokenizer


@dataclass(frozen=True, kw_only=True)
class Simulator:
    """A simulator, and how a model's observations and actions are made of its own.

    Attributes:
        options: As a recipe has them; policy and variation are not used.
        format: What recorded episodes are to be: what the model was trained on.
        cameras: Names of the cameras, in the model's order.
        factor: Environment steps that make a step of the model.
        num_repeats: Environment steps that each action of the robot is held for.
    """

    options: SimulatorOptions
    format: EpisodeFormat
    cameras: tuple[str, ...]
    factor: int
    num_repeats: int

    @property
    def rate(self) -> float:
        """Environment steps per second, Hz."""
        rate = self.options.rate
        return self.format.control_rate if rate is None else rate

    def observed(self, recorder: EpisodeRecorder) -> Observation:
        """The last step that was recorded, as the model gets it."""
        frames = np.stack([recorder.frames[camera][-1] for camera in self.cameras])
        state = recorder.state[-1] if recorder.state else None
        return Observation(
            frames=torch.from_numpy(frames)[None],
            state=None if state is None else torch.from_numpy(state)[None],
        )

    def held(self, action: NDArray[Any]) -> NDArray[Any]:
        """An action of the robot as each of its environment steps takes it."""
        if self.format.action_aggregation == "sum" and self.num_repeats > 1:
            return action / self.num_repeats
        return action


def simulator_for(
    model: TokenWorldModel, env_id: str | None = None, changes: Mapping[str, Any] | None = None
) -> Simulator:
    """The simulator that a model's data was recorded from, or another.

    Args:
        model: The model.
        env_id: Registered id; None takes that of the data. Of another one than that, the picture is
            what ``render`` gives and the state the whole observation, unless ``changes`` say more.
        changes: Options of :class:`SimulatorOptions` that are to be others; a dotted name is one
            entry of an option, such as ``env_kwargs.width``, whose others stay.

    Raises:
        TokenwmError: Nothing says which simulator, an option is impossible, or rates, cameras or
            the state are not the model's.
    """
    recipe = _recipe_of(model)
    source = recipe.get("source") or {}
    if env_id is None and source.get("type") != "gymnasium":
        raise TokenwmError(
            "the model's data was not recorded from a simulator; name one: --env gym_pusht/PushT-v0"
        )
    count, has_state = model.actions_per_step, model.vocabulary.state is not None
    if env_id not in (None, source.get("env_id")) or source.get("type") != "gymnasium":
        recipe = {}
        source = {
            "type": "gymnasium",
            "env_id": env_id,
            "cameras": dict.fromkeys(model.cameras, RENDER),
            "state": WHOLE if has_state else None,
            "rate": model.control_rate * count if count > 1 else None,
        }
    not_used = {"policy": "random", "variation": None, "num_envs": 1}
    values = {**source, **not_used}
    for name, value in (changes or {}).items():
        values = _with(values, name.split("."), value)
    options = build(source_config_class("gymnasium"), values, "env", allow_defaults=True)
    assert isinstance(options, SimulatorOptions)
    if set(options.cameras) != set(model.cameras):
        raise TokenwmError(
            f"env.cameras are {_names(options.cameras)}; the model was trained on "
            f"{_names(model.cameras)}: name these, each with a key of the observation or render"
        )
    if (options.state is None) == has_state:
        known = f"'{options.state}'"
        raise TokenwmError(
            f"env.state is {'null' if options.state is None else known}; the model "
            f"{'needs one: name a key of the observation' if has_state else 'takes none: null'}"
        )
    aggregation: Aggregation = recipe.get("action_aggregation", "stack" if count > 1 else "last")
    rate = model.control_rate if options.rate is None else options.rate
    factor = downsampling_factor(rate, model.control_rate)
    if factor % count or (count == 1) == (aggregation == "stack" and factor > 1):
        raise TokenwmError(
            f"env.rate is {rate:g} Hz, and a step of the model holds {count} action(s) and takes "
            f"{1 / model.control_rate:g} s; use a multiple of {model.control_rate * count:g} Hz"
        )
    return Simulator(
        options=options,
        format=EpisodeFormat(
            control_rate=model.control_rate,
            action_aggregation=aggregation,
            image_size=model.tokenizer.image_size,
            resize=recipe.get("resize", "crop"),
            quality=QualityConfig(),
        ),
        cameras=tuple(model.cameras),
        factor=factor,
        num_repeats=factor // count,
    )


def check_space(model: TokenWorldModel, space: Any) -> None:
    """Check that an action space takes the robot's actions of a model.

    Raises:
        TokenwmError: Its actions have another kind or size.
    """
    action, num_ids = model.vocabulary.action, num_actions_of(space)
    dims = action.num_dimensions // model.actions_per_step
    size = int(np.prod(space.shape)) if space.shape else 1
    if size != dims or (num_ids is None) != isinstance(action, BinTokenizer):
        kind = "real numbers" if isinstance(action, BinTokenizer) else "ids"
        raise TokenwmError(f"the environment's actions are {space}; the model's are {dims} {kind}")


def seeded(simulator: Simulator, seed: int) -> Simulator:
    """A copy whose episodes follow from another seed."""
    return replace(simulator, options=replace(simulator.options, seed=seed))


def _recipe_of(model: TokenWorldModel) -> Mapping[str, Any]:
    data = model.provenance.get("data_provenance")
    recipe = data.get("recipe") if isinstance(data, Mapping) else None
    source = recipe.get("source") if isinstance(recipe, Mapping) else None
    return recipe if isinstance(recipe, Mapping) and isinstance(source, Mapping) else {}


def _with(values: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """Values with another one at a path; what is on its way and holds no entries is replaced."""
    first, *rest = path
    if rest:
        inner = values.get(first)
        value = _with(inner if isinstance(inner, Mapping) else {}, rest, value)
    return {**values, first: value}


def _names(names: Any) -> str:
    return ", ".join(names) or "(none)"
