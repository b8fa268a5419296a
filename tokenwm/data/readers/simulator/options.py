"""Options of recording episodes from a simulator."""

from dataclasses import dataclass, field
from typing import Any

from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.readers.simulator.environments import check_env_id
from tokenwm.data.readers.simulator.scripts import READ_THE_SIMULATOR, get_policy, get_start
from tokenwm.data.readers.simulator.task_states import get_task_state
from tokenwm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class Variation:
    """Variation of a recording: some episodes with another policy, start or options.

    Attributes:
        every: Each ``every``-th episode is one, 2 or more: with 5 the fifth, the tenth, ….
        policy: As in :class:`SimulatorOptions`, and so are the others.
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
class SimulatorOptions:
    """The choice of a simulator and of the episodes to record from it.

    Attributes:
        env_id: Registered id, for example ``gym_pusht/PushT-v0``.
        env_kwargs: Arguments of the environment.
        cameras: Our name of a camera → key of a dict observation, ``observation`` if that is
            the picture, or ``render`` for what ``env.render()`` returns.
        state: Key of a dict observation, ``observation`` if it is a vector, ``joints`` for
            positions and speeds of all joints of a MuJoCo simulator, or null.
        task_state: Name of an entry of ``tokenwm/data/readers/simulator/task_states.py``: hidden
            truth about the task, recorded to measure with and no model's input; or null.
        policy: Name of a policy in ``tokenwm/data/readers/simulator/scripts.py``.
        start: Name of a start there, which draws options for ``env.reset`` in each episode, or
            null: the environment's own.
        reset_options: Further options for ``env.reset``, the same in all episodes.
        variation: Some episodes with another policy and start, or null.
        num_episodes: Episodes to record.
        max_steps: Most environment steps of an episode; it has one more observation.
        rate: Environment steps per second, Hz: several of them make one step where that is more
            than the recipe's control rate. Null: one environment step is one step.
        num_envs: Simulators that run at once where episodes are loaded one after the other, each in
            a process of its own; changes no episode. The policy must not read the simulator.
        seed: Changes every episode.
        state_units: Units of the state in words, stored with the data.
        action_units: Units of the action in words, stored with the data.
        task: What is to be done, in words.
    """

    env_id: str
    env_kwargs: dict[str, Any] = field(default_factory=dict)
    cameras: dict[str, str] = field(default_factory=dict)
    state: str | None = None
    task_state: str | None = None
    policy: str = "random"
    start: str | None = None
    reset_options: dict[str, Any] = field(default_factory=dict)
    variation: Variation | None = None
    num_episodes: int = 100
    max_steps: int = 100
    rate: float | None = None
    num_envs: int = 1
    seed: int = 0
    state_units: str = ""
    action_units: str = ""
    task: str = ""

    def __post_init__(self) -> None:
        check_env_id(self.env_id)
        for name in ("num_episodes", "max_steps", "num_envs"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} is {getattr(self, name)}; expected at least 1")
        if self.rate is not None and not self.rate > 0:
            raise RecipeError(f"rate is {self.rate}; expected Hz > 0, or null")
        if self.seed < 0:
            raise RecipeError(f"seed is {self.seed}; expected at least 0")
        if not self.cameras and self.state is None:
            raise RecipeError("cameras is empty and state is null; at least one of them is needed")
        for camera in self.cameras:
            if not NAME_PATTERN.fullmatch(camera):
                raise RecipeError(f"cameras.{camera}: letters, digits, '_' and '-' only")
        if self.task_state is not None:
            get_task_state(self.task_state, self.env_id)
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

    def script_of(self, index: int) -> "SimulatorOptions | Variation":
        """Options that say policy, start and reset options of an episode."""
        variation = self.variation
        return self if variation is None or (index + 1) % variation.every else variation
