"""The imagined world as a vector environment of Stable-Baselines3."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from tokenwm.errors import TokenwmError
from tokenwm.imagination.context import Context
from tokenwm.imagination.env import WorldModelVectorEnv
from tokenwm.imagination.starts import RecordedStarts
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer


class WorldModelVecEnv(VecEnv):
    """A :class:`WorldModelVectorEnv` behind the interface of Stable-Baselines3.

    ::

        starts = tokenwm.starts("runs/quickstart/frames", "train", horizon=0)
        PPO("MlpPolicy", tokenwm.WorldModelVecEnv(model, starts, 64, observation="state"))

    What Stable-Baselines3 recommends is the default: actions that are quantities are in [-1, 1].

    Args:
        model: The world model.
        starts: Observed steps to start from.
        num_envs: Episodes imagined at once.
        options: Those of :class:`WorldModelVectorEnv`, but for ``autoreset_mode``.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        starts: Context | RecordedStarts,
        num_envs: int,
        **options: Any,
    ) -> None:
        options.setdefault("normalize_actions", isinstance(model.vocabulary.action, BinTokenizer))
        self.env = WorldModelVectorEnv(
            model, starts, num_envs, autoreset_mode=AutoresetMode.SAME_STEP, **options
        )
        self._actions: NDArray[Any] | None = None
        observations, actions = self.env.single_observation_space, self.env.single_action_space
        super().__init__(num_envs, observations, actions)

    def reset(self) -> NDArray[Any]:
        """Start all episodes anew, with the seed of :meth:`seed` if there was one."""
        observation, info = self.env.reset(seed=self._seeds[0])
        self._reset_seeds()
        self._reset_options()
        self.reset_infos = [self._info(info, row) for row in range(self.num_envs)]
        return observation

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions that :meth:`step_wait` takes."""
        self._actions = actions

    def step_wait(
        self,
    ) -> tuple[NDArray[Any], NDArray[np.float32], NDArray[np.bool_], list[dict[str, Any]]]:
        """Take the actions; episodes that end start anew at once."""
        if self._actions is None:
            raise TokenwmError("there are no actions to take: call step_async before step_wait")
        observation, reward, terminated, truncated, info = self.env.step(self._actions)
        self._actions = None
        ended, infos = terminated | truncated, []
        for row in range(self.num_envs):
            if ended[row]:  # of the step that ended the episode, not of the next one's start
                of_row = self._info(info["final_info"], row)
                of_row["terminal_observation"] = info["final_obs"][row]
                of_row["TimeLimit.truncated"] = bool(truncated[row] and not terminated[row])
            else:
                of_row = self._info(info, row)
            infos.append(of_row)
        return observation, reward.astype(np.float32), ended, infos

    def get_images(self) -> Sequence[NDArray[np.uint8] | None]:
        """A picture of every episode."""
        return self.env.render()

    def close(self) -> None:
        """Do nothing: there is nothing to close."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute, which all environments share."""
        return [getattr(self.env, attr_name)] * len(self._rows(indices))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Set an attribute of all environments, which cannot be told apart."""
        if len(self._rows(indices)) != self.num_envs:
            raise TokenwmError(f"{attr_name} can be set for all {self.num_envs} environments only")
        setattr(self.env, attr_name, value)

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: these are not environments of their own.

        Raises:
            TokenwmError: Always.
        """
        raise TokenwmError(f"{method_name} cannot be called: episodes are imagined together")

    def env_is_wrapped(self, wrapper_class: type[Any], indices: Any = None) -> list[bool]:
        """No environment is wrapped."""
        return [False] * len(self._rows(indices))

    def _rows(self, indices: None | int | Iterable[int]) -> list[int]:
        rows: list[int] = list(self._get_indices(indices))
        return rows

    @staticmethod
    def _info(info: dict[str, Any], row: int) -> dict[str, Any]:
        return {
            name: values[row]
            for name, values in info.items()
            if not name.startswith(("_", "final_"))
        }
