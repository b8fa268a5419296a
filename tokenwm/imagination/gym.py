"""The imagined world by name, for ``gymnasium.make``; importing this file registers it."""

from pathlib import Path
from typing import Any

import gymnasium

from tokenwm.imagination.context import Context
from tokenwm.imagination.env import WorldModelEnv, WorldModelVectorEnv
from tokenwm.imagination.starts import RecordedStarts, recorded_starts
from tokenwm.imagination.token_world_model import TokenWorldModel, load

ENVIRONMENT_ID = "tokenwm/WorldModel-v0"


def make_env(
    model: TokenWorldModel | str | Path,
    starts: Context | RecordedStarts | str | Path,
    *,
    num_envs: int | None = None,
    device: str = "cpu",
    split: str = "train",
    num_starts: int = 64,
    num_context: int = 4,
    max_episode_steps: int | None = None,
    **options: Any,
) -> WorldModelEnv | WorldModelVectorEnv:
    """Make an environment from folders, for ``gymnasium.make`` and ``gymnasium.make_vec``.

    ::

        name = "tokenwm.imagination.gym:tokenwm/WorldModel-v0"
        env = gymnasium.make(name, model="runs/g1/world_model", starts="runs/g1/frames")

    Args:
        model: A model, or the folder of a training run.
        starts: Observed steps, or the dataset that ``tokenwm prepare`` wrote.
        num_envs: Episodes of one vector environment; None for a single environment.
        device: Device of a model that is loaded here.
        split: Split of the dataset that starts are taken from.
        num_starts: Recorded starts to read.
        num_context: Observed steps before each.
        max_episode_steps: Gymnasium cuts episodes itself, after 50 steps or as ``make`` is told.
        options: Those of :class:`WorldModelVectorEnv`.
    """
    if not isinstance(model, TokenWorldModel):
        model = load(model, device)
    if isinstance(starts, str | Path):
        starts = recorded_starts(starts, split, num_starts, num_context, horizon=0)
    options["max_episode_steps"] = max_episode_steps
    if num_envs is None:
        return WorldModelEnv(model, starts, **options)
    return WorldModelVectorEnv(model, starts, num_envs, **options)


if ENVIRONMENT_ID not in gymnasium.registry:
    gymnasium.register(
        id=ENVIRONMENT_ID,
        entry_point=f"{__name__}:make_env",
        vector_entry_point=f"{__name__}:make_env",
        max_episode_steps=50,
    )
