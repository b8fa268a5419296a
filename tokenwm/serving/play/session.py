"""A game of one player: an imagined world, its history, and the way back to any step of it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import Rollout
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.imagination.world_state import WorldState
from tokenwm.serving.play.beginnings import Beginning, png
from tokenwm.serving.play.controls import Controls
from tokenwm.serving.play.trust import doubt_of

SNAPSHOTS = 32
"""Most snapshots of a session; the rest of the way back is imagined again."""
SNAPSHOT_BYTES = 64 * 2**20
"""Most memory of a session's snapshots; two are kept, however large."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One step of a history, of ``R`` futures side by side.

    Attributes:
        pictures: A PNG of each future.
        numbers: Those of the step for the page, by name; lists have an entry for each future.
        actions: ``(R, A)`` in the units of the data, what led here; None at the beginning.
        rows: ``R`` numbers: which of the futures before each of these goes on from.
        seed: Seed of the noise.
    """

    pictures: tuple[bytes, ...]
    numbers: dict[str, Any]
    actions: NDArray[Any] | None = None
    rows: tuple[int, ...] = (0,)
    seed: int = 0


class Session:
    """One player's world. All calls come from the thread that the model belongs to.

    Args:
        model: The model, which others may use between two calls.
        controls: The actions that can be chosen.
        sampling: Settings for drawing outcomes.
        max_steps: Most imagined steps of a history.

    Attributes:
        history: Moments, the beginning first; undone ones are gone.
        beginning: Where it began.
        num_rows: ``R``, futures side by side: 1, or 2 that are compared.
    """

    def __init__(
        self,
        model: TokenWorldModel,
        controls: Controls,
        sampling: SamplingConfig,
        max_steps: int,
    ) -> None:
        self.model, self.controls, self.sampling = model, controls, sampling
        self.max_steps = max_steps
        self.history: list[Moment] = []
        self.beginning: Beginning | None = None
        self.seed = 0
        self._state: WorldState | None = None
        self._rows: tuple[int, ...] = (0,)
        self._snapshots: dict[int, WorldState] = {}

    @property
    def step_number(self) -> int:
        """Imagined steps since the beginning."""
        return len(self.history) - 1

    @property
    def num_rows(self) -> int:
        """``R``."""
        return len(self._rows)

    @property
    def followed_row(self) -> int:
        """The future of the last moment that goes on, the first of those that do."""
        return self._rows[0]

    def begin(self, beginning: Beginning) -> None:
        """Begin anew, with the luck of before."""
        self.beginning, self._rows, self._snapshots = beginning, (0,), {}
        self._state = self.model.start(beginning.context, seed=self.seed)
        state = None if beginning.state is None else [[float(x) for x in beginning.state]]
        self.history = [Moment(pictures=(png(beginning.frames),), numbers={"state": state})]

    def step(self, held: Sequence[Sequence[float]] | None) -> None:
        """Take one action of the model in every future.

        Args:
            held: The robot's action in each future; None takes what was really done.

        Raises:
            TokenwmError: Nothing has begun, the history is full, or what was done is not known.
        """
        if self._state is None:
            raise TokenwmError("nothing to go on from; begin at a recorded step or at a picture")
        if self.step_number >= self.max_steps:
            raise TokenwmError(
                f"{self.max_steps} steps were imagined, the most of an episode; undo or begin anew"
            )
        began = time.perf_counter()
        actions = self._actions(held)
        self._keep_snapshot()
        rows = self._rows
        rollout = self._advance(actions, rows, self.seed)
        self._rows = tuple(range(len(rows)))
        frames = self.model.decode_frames(rollout)[:, 0].cpu().numpy()
        numbers = numbers_of(rollout)
        numbers["milliseconds"] = 1e3 * (time.perf_counter() - began)
        self.history.append(
            Moment(
                pictures=tuple(png(frame) for frame in frames),
                numbers=numbers,
                actions=actions,
                rows=rows,
                seed=self.seed,
            )
        )

    def go_back(self, step: int) -> None:
        """Undo everything behind a step: what follows has the luck that it had.

        Raises:
            TokenwmError: There is no such step.
        """
        if not 0 <= step <= self.step_number:
            raise TokenwmError(f"step {step} is not one of 0 to {self.step_number}")
        if step == self.step_number:
            return
        near = max(number for number in self._snapshots if number <= step)
        self._snapshots = {n: state for n, state in self._snapshots.items() if n <= near}
        self._state = self.model.snapshot(self._snapshots[near])
        for moment in self.history[near + 1 : step + 1]:
            assert moment.actions is not None
            self._advance(moment.actions, moment.rows, moment.seed)
        self.seed = self.history[step + 1].seed
        del self.history[step + 1 :]
        self._rows = tuple(range(len(self.history[-1].pictures)))

    def compare(self) -> None:
        """Let two futures go on from here, with the same luck."""
        self._rows = (self._rows[0], self._rows[0])

    def keep(self, row: int) -> None:
        """Go on with one of the futures.

        Raises:
            TokenwmError: There is no such future.
        """
        if not 0 <= row < self.num_rows:
            raise TokenwmError(f"there is no future {row}; 0 to {self.num_rows - 1}")
        self._rows = (self._rows[row],)

    def done(self) -> NDArray[Any] | None:
        """``(A,)``, what was really done at this step; None if nobody knows."""
        actions = None if self.beginning is None else self.beginning.actions
        if actions is None or self.step_number >= len(actions):
            return None
        action: NDArray[Any] = actions[self.step_number]
        return action

    def _actions(self, held: Sequence[Sequence[float]] | None) -> NDArray[Any]:
        """``(R, A)``."""
        if held is not None:
            chosen = [held[min(row, len(held) - 1)] for row in range(self.num_rows)]
            return np.stack([self.controls.action(values) for values in chosen])
        done = self.done()
        if done is None:
            raise TokenwmError("the recorded episode ends here; steer on by hand")
        return np.stack([done] * self.num_rows)

    def _advance(self, actions: NDArray[Any], rows: tuple[int, ...], seed: int) -> Rollout:
        """Take one action in each of some of the futures, which then are all there is."""
        state = self._state
        assert state is not None
        if rows != tuple(range(state.num_rows)):
            state = self.model.select(state, torch.tensor(rows))
        self._state, rollout = self.model.step(state.with_seed(seed), actions, self.sampling)
        return rollout

    def _keep_snapshot(self) -> None:
        """Keep where we are; further back in time, snapshots lie further apart."""
        state, now = self._state, self.step_number
        assert state is not None
        self._snapshots[now] = self.model.snapshot(state)
        most = max(2, min(SNAPSHOTS, SNAPSHOT_BYTES // max(1, state.num_bytes)))
        while len(self._snapshots) > most:
            steps = list(self._snapshots)
            gaps = {
                steps[i]: (steps[i + 1] - steps[i - 1]) / (now - steps[i] + 1)
                for i in range(1, len(steps) - 1)
            }
            del self._snapshots[min(gaps, key=gaps.__getitem__)]


def numbers_of(rollout: Rollout) -> dict[str, Any]:
    """Numbers of a rollout of one step, as lists with an entry for each future."""
    named = {
        "state": rollout.state,
        "reward": rollout.reward,
        "ends": rollout.termination_probability,
        "surprise": rollout.frame_nll,
        "doubt": doubt_of(rollout),
    }
    return {
        name: None if value is None else value[:, 0].cpu().tolist() for name, value in named.items()
    }
