"""Interfaces that planners, policies, verifiers and judges share: a world, and who acts in it.

:class:`~tokenwm.imagination.token_world_model.TokenWorldModel` is a world; so is an exact toy world
in the tests, on which planners are tested without training anything.
"""

from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from tokenwm.imagination.context import Context
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.sequence.vocabulary import Vocabulary

State = TypeVar("State")
Memory = TypeVar("Memory")


@dataclass(frozen=True, kw_only=True)
class Observation:
    """One observed step of ``B`` rows.

    Attributes:
        frames: ``(B, cameras, H, W, 3)`` uint8 in [0, 255].
        state: ``(B, state_dim)`` in the units of the data; None where there is none.
    """

    frames: Tensor
    state: Tensor | None = None

    def __repr__(self) -> str:
        state = None if self.state is None else tuple(self.state.shape)
        return f"Observation(frames {tuple(self.frames.shape)}, state {state})"


class World(Protocol[State]):
    """A world in which actions can be tried out, ``B`` rows at a time.

    A state is a value of its own kind that callers pass on and do not look into. It is used once:
    ``observe`` and ``roll`` consume it, and a state that was used is an error. ``fork``, ``select``
    and ``snapshot`` leave it to be used. Nothing in these calls waits for the device, except that
    speculative decoding asks how far the rows are.

    Attributes:
        vocabulary: Sizes and meanings of actions, states and tokens.
        control_rate: Steps per second, Hz.
    """

    vocabulary: Vocabulary
    control_rate: float

    def start(
        self,
        context: Context,
        *,
        seed: int | Tensor = 0,
        noise_streams: int | Tensor | None = None,
    ) -> State:
        """Begin where a context of observed steps ends.

        Args:
            context: ``B`` rows.
            seed: Seed of all noise, or one for every row.
            noise_streams: Each row's stream of noise, or one for all rows, which then have the same
                luck; 0, 1, 2, … by default.
        """
        ...

    def observe(self, state: State, actions: Tensor, observed: Observation) -> tuple[State, Tensor]:
        """Append what really happened.

        The state that results is that of :meth:`start` on the whole history.

        Args:
            state: Before; it is used up.
            actions: ``(B, A)`` in the units of the data, what was done.
            observed: The step that followed.

        Returns:
            The state after, and how surprising it was: ``(B,)`` float32, nats per token.
        """
        ...

    def fork(
        self,
        state: State,
        num_copies: int,
        num_steps: int,
        *,
        noise_streams: int | Tensor | None = None,
    ) -> State:
        """Continue every row in several ways; copies of a row are neighbours.

        Args:
            state: Where; it can be forked again, and used once no fork of it is held.
            num_copies: Continuations per row.
            num_steps: Most steps that will be taken from here.
            noise_streams: As in :meth:`start`, of the ``B * num_copies`` rows.
        """
        ...

    def roll(
        self, state: State, actions: Tensor, sampling: SamplingConfig | None = None
    ) -> tuple[State, Rollout]:
        """Take ``H`` actions.

        Args:
            state: Before; it is used up.
            actions: ``(B, H, A)`` in the units of the data.
            sampling: Settings for drawing outcomes.

        Returns:
            The state after the last action, and what all of them led to.
        """
        ...

    def select(self, state: State, rows: Tensor) -> State:
        """Copy some rows, ``(n,)`` int64, also of a fork; repeats are allowed.

        Rows keep their noise: copies of one row that take the same actions have the same future.
        """
        ...

    def snapshot(self, state: State) -> State:
        """Copy a state, to go back to it whatever becomes of the state itself."""
        ...

    def features(self, state: State) -> Tensor:
        """Describe where the rows are for policies, values and other heads, ``(B, E)`` float32."""
        ...

    def features_of(self, rollout: Rollout) -> Tensor:
        """:meth:`features` of the states on the way of a rollout, ``(B, H, E)`` float32."""
        ...


class Policy(Protocol[Memory]):
    """A policy: chooses actions, by the same calls in the real and in an imagined world."""

    def begin(self, num_rows: int, seed: int) -> Memory:
        """Start ``num_rows`` episodes with nothing remembered."""
        ...

    def act(self, observation: Observation, memory: Memory) -> tuple[Tensor, Memory]:
        """Choose the next actions.

        Returns:
            ``(B, chunk, A)`` in the units of the data, to be taken one after another, and what is
            remembered.
        """
        ...
