"""Make simulators from the ids in recipes, and read their pictures and actions.

Recipes may come from strangers, so only environments of Gymnasium itself and of the packages in
``PACKAGES`` can be made; an id that names a module to import is refused.
"""

import importlib
import json
import os
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import RecipeError, SourceError

PACKAGES = {  # start of the id → (module that registers it, package, how to install it)
    "gym_pusht/": ("gym_pusht", "gym-pusht", "pip install 'tokenwm[pusht]'"),
    "ALE/": ("ale_py", "ale-py", "pip install 'tokenwm[atari]'"),
    "MiniGrid-": ("minigrid", "minigrid", "pip install 'tokenwm[minigrid]'"),
    "BabyAI-": ("minigrid", "minigrid", "pip install 'tokenwm[minigrid]'"),
}
ENV_ID_PATTERN = re.compile(r"([A-Za-z0-9_-]+/)?[A-Za-z0-9_.-]+")
HEADLESS = {  # simulators draw without a screen unless the user has set it otherwise
    "SDL_VIDEODRIVER": "dummy",
    "MUJOCO_GL": "egl",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
RENDER = "render"
"""Name for the picture that ``env.render()`` returns."""
WHOLE = "observation"
"""Name for an observation that is one array."""
JOINTS = "joints"
"""Name for positions and speeds of all joints of a MuJoCo simulator, ``qpos`` and ``qvel``."""


def check_env_id(env_id: str) -> None:
    """Refuse ids that could make Gymnasium import a module of the recipe's choice.

    Raises:
        RecipeError: The id is not a plain registered one.
    """
    # GymV21Environment and GymV26Environment take an id of the old gym, which may name a module.
    if not ENV_ID_PATTERN.fullmatch(env_id) or env_id.startswith("GymV2"):
        raise RecipeError(
            f"env_id is {env_id!r}; only registered ids such as 'gym_pusht/PushT-v0' are allowed, "
            "none that names a module to import ('module:id')"
        )


def packages_of(env_id: str) -> list[str]:
    """Names of the installed packages an environment comes from."""
    starts = [start for start in PACKAGES if env_id.startswith(start)]
    return ["gymnasium", *(PACKAGES[start][1] for start in starts)]


def make_environment(env_id: str, env_kwargs: Mapping[str, Any], *, renders: bool = False) -> Any:
    """Make an environment, importing only packages that are named in this file.

    Args:
        env_id: Registered id.
        env_kwargs: Arguments of the environment.
        renders: ``env.render()`` must return pictures.

    Raises:
        RecipeError: There is no such environment, or it does not take these arguments.
        SourceError: Its package is not installed.
    """
    check_env_id(env_id)
    for name, value in HEADLESS.items():
        os.environ.setdefault(name, value)
    try:
        import gymnasium
    except ImportError as error:
        raise SourceError(
            f"gymnasium cannot be imported ({error}); pip install 'tokenwm[pusht]'"
        ) from error
    for start, (module_name, _, install) in PACKAGES.items():
        if env_id.startswith(start):
            try:
                gymnasium.register_envs(importlib.import_module(module_name))
            except ImportError as error:
                raise SourceError(
                    f"{env_id} needs {module_name}, which cannot be imported ({error}); {install}"
                ) from error
    arguments = dict(env_kwargs)
    if renders:
        arguments.setdefault("render_mode", "rgb_array")
    # The checker warns about style; what matters to a recording is checked by the recorder.
    arguments["disable_env_checker"] = True
    try:
        return _quickened(gymnasium.make(env_id, **arguments))
    except gymnasium.error.DependencyNotInstalled as error:
        raise SourceError(
            f"{env_id}: {error} (for MuJoCo: pip install 'tokenwm[mujoco]')"
        ) from error
    except (gymnasium.error.Error, TypeError, ValueError) as error:
        raise RecipeError(
            f"source: {env_id} cannot be made with env_kwargs "
            f"{json.dumps(dict(env_kwargs), default=str)}: {error}"
        ) from error


def _quickened(env: Any) -> Any:
    """Draw MuJoCo without shadows and multisampling, which take most of the time without a GPU.

    Edges are jagged then: let a recipe draw larger pictures than it keeps.
    """
    quality = getattr(getattr(getattr(env.unwrapped, "model", None), "vis", None), "quality", None)
    if quality is not None:
        quality.shadowsize = quality.offsamples = 0
    return env


def check_action_space(space: Any) -> None:
    """Check that actions are ids, one or several, or a vector of real numbers.

    Raises:
        RecipeError: They are something else.
    """
    from gymnasium import spaces

    known = spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary
    if not isinstance(space, known):
        raise RecipeError(
            f"source: action space {space} is not supported; Box, Discrete, MultiDiscrete and "
            "MultiBinary are"
        )


def num_actions_of(space: Any) -> int | None:
    """Number of ids, the most of any dimension; None where actions are real numbers."""
    from gymnasium import spaces

    if isinstance(space, spaces.MultiBinary):
        return 2
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.max())
    return int(space.n) if isinstance(space, spaces.Discrete) else None


def encode_action(space: Any, action: Any) -> NDArray[Any]:
    """An action as ``(action_dim,)`` float32, or as int64, ids counted from 0."""
    if num_actions_of(space) is None:
        return np.asarray(action, dtype=np.float32).reshape(-1)
    start = getattr(space, "start", 0)
    return np.asarray(np.asarray(action) - start, dtype=np.int64).reshape(-1)


def decode_action(space: Any, action: NDArray[Any]) -> Any:
    """The action of a space that :func:`encode_action` gives back."""
    if num_actions_of(space) is None:
        return np.asarray(action, dtype=space.dtype).reshape(space.shape)
    ids = np.asarray(action + getattr(space, "start", 0), dtype=space.dtype)
    return ids.reshape(space.shape) if space.shape else ids[0]


def pick(observation: Any, key: str, option: str) -> Any:
    """The part of an observation that a recipe names.

    Args:
        observation: A mapping, or one array.
        key: Key of the mapping, or ``observation`` for the one array.
        option: Option of the recipe, for messages.

    Raises:
        RecipeError: The observation has no such part.
    """
    if isinstance(observation, Mapping):
        if key in observation:
            return observation[key]
        known = ", ".join(map(str, observation))
        raise RecipeError(f"source.{option} is {key!r}; the observation has {known}, or {RENDER!r}")
    if key != WHOLE:
        raise RecipeError(
            f"source.{option} is {key!r}, but the observation is one array; "
            f"use {WHOLE!r} or {RENDER!r}"
        )
    return observation


def read_joints(simulator: Any) -> NDArray[np.float32]:
    """Positions, then speeds, of all joints.

    Angles go on beyond a turn. They move linearly, which cosines and sines of them do not.

    Args:
        simulator: An environment of MuJoCo, unwrapped.

    Raises:
        RecipeError: It is another one.
    """
    data = getattr(simulator, "data", None)
    if not (hasattr(data, "qpos") and hasattr(data, "qvel")):
        raise RecipeError(
            f"source.state is {JOINTS!r}, which environments of MuJoCo have, and {simulator} is "
            f"none; use a key of the observation, or {WHOLE!r}"
        )
    return np.concatenate([data.qpos, data.qvel]).astype(np.float32)


def as_rgb(image: Any, where: str) -> NDArray[np.uint8]:
    """A copy of an image as ``(H, W, 3)`` uint8; grey ones are repeated.

    Raises:
        RecipeError: It is no image.
    """
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise RecipeError(
            f"source.{where} gives {image.dtype}{image.shape}; "
            "expected uint8 (H, W, 3), (H, W, 1) or (H, W)"
        )
    # A copy in any case: simulators may draw the next frame into the same memory.
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image.copy()
