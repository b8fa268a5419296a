"""A simulator that says in its ``info`` what nobody observes."""

from typing import Any

import gymnasium

from tokenwm.data.readers.simulator.environments import JOINTS, read_joints
from tokenwm.data.readers.simulator.task_states import TASK_STATE, TaskState


class Watched(gymnasium.Wrapper[Any, Any, Any, Any]):
    """A simulator with its task state in ``info``, which keeps what was observed last.

    Attributes:
        observation: What ``reset`` or ``step`` gave last.
        info: The same.
    """

    def __init__(
        self, env: Any, task_state: TaskState | None, *, tells_joints: bool = False
    ) -> None:
        super().__init__(env)
        self._task_state, self._tells_joints = task_state, tells_joints
        self.observation: Any = None
        self.info: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        observation, info = self.env.reset(seed=seed, options=options)
        return self._watch(observation, info)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Take a step."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        observation, info = self._watch(observation, info)
        return observation, reward, terminated, truncated, info

    def _watch(self, observation: Any, info: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        if self._task_state is not None:
            info = {**info, TASK_STATE: self._task_state.read(self.unwrapped)}
        if self._tells_joints:
            info = {**info, JOINTS: read_joints(self.unwrapped)}
        self.observation, self.info = observation, info
        return observation, info
