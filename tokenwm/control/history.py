"""The observed history of one robot, read once: a state of the world for each phase of its chunks.

A model of action chunks sees every n-th step of the robot. To plan at any step of the robot, the
history that ends there is kept as well: one state for each of the n phases, each of which goes on
by :meth:`World.observe` every n steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.imagination.context import Context
from tokenwm.imagination.world import Observation, World

State = TypeVar("State")
Numbers = NDArray[Any]


class History(Generic[State]):
    """States of a world that end at a robot's last steps.

    Args:
        world: The world.
        context_of: Makes a context of one observation; None takes ``world.context``.

    Attributes:
        surprise: Nats per token of the last observation; None at a beginning.
    """

    def __init__(
        self, world: World[State], context_of: Callable[[Observation], Context] | None
    ) -> None:
        self.world = world
        self._num_phases = world.vocabulary.actions_per_step
        self._context_of = self._context if context_of is None else context_of
        self.begin(None, 0)

    def begin(self, context: Context | None, seed: int) -> None:
        """Forget everything; the first observation is the last step of ``context``, if given."""
        self._first, self._seed = context, seed
        self._states: dict[int, State] = {}
        self.surprise: float | None = None

    def observe(self, step: int, observation: Observation, taken: Sequence[Numbers]) -> None:
        """Go on with what is observed at a robot step.

        Args:
            step: Steps since the beginning.
            observation: One row.
            taken: The robot's last actions, ``(dims,)`` each; those of one chunk if there were as
                many.
        """
        phase, count = step % self._num_phases, self._num_phases
        state = self._states.get(phase)
        if state is None:
            known = self._first if step == 0 else None
            context = self._context_of(observation) if known is None else known
            self._states[phase] = self.world.start(context, seed=self._seed)
            return
        action = torch.from_numpy(np.concatenate(taken[-count:])[None])
        self._states[phase], surprise = self.world.observe(state, action, observation)
        self.surprise = float(surprise)

    def state_at(self, step: int) -> State:
        """The state that ends at a robot step, which was just observed."""
        return self._states[step % self._num_phases]

    def _context(self, observation: Observation) -> Context:
        world: Any = self.world
        frames = observation.frames[:, None]
        states = None if observation.state is None else observation.state[:, None]
        no_actions = torch.zeros((len(frames), 0, world.vocabulary.action.num_dimensions))
        context: Context = world.context(frames, no_actions, states)
        return context
