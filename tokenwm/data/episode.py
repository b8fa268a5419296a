"""Episode and Segment: THE time alignment of tokenwm.

::

    step         0          1          2                 T-1
    frames      o_0        o_1        o_2      ...     o_{T-1}
    state       s_0        s_1        s_2      ...     s_{T-1}
    action      a_0 ──┐    a_1 ──┐    a_2 ──┐          (none: zeros, not valid)
    reward      r_0   │    r_1   │    r_2   │          (none: zero)
    terminated  d_0   └──► d_1   └──► d_2   └──► ...   (none: False)
                    leads to     leads to

``a_t`` is chosen after seeing ``o_t`` and leads to ``o_{t+1}``; ``r_t``, ``terminated_t`` and
``truncated_t`` are what ``a_t`` caused. The last step has an observation and no valid action. Every
reader maps its format onto this picture.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import EpisodeError

NAME_PATTERN = re.compile(r"[A-Za-z0-9_-]+")
"""Keys of episodes and names of cameras: they become file names, so no dots or slashes."""

MAX_MEMBER_NAME = 100
"""Longest name that fits into a plain (ustar) header; longer ones would need a second header."""

MAX_MEMBER_BYTES = 2**33 - 2**12
"""Most bytes of one field of an episode: a plain header has room for sizes below 8 GiB."""

Scalar = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Episode:
    """One recorded episode of ``T`` steps, ``T >= 2``.

    Attributes:
        key: Name, unique in its dataset; letters, digits, ``_`` and ``-``.
        frames: Camera name → ``(T, H, W, 3)`` uint8 in [0, 255], RGB.
        state: ``(T, state_dim)`` float32 in the robot's own units, or None.
        action: ``(T, action_dim)`` float32 (continuous) or int64 (discrete: ids ``>= 0``, one or
            several a step); row ``T-1`` is zero.
        reward: ``(T,)`` float32, or None where the source records none; entry ``T-1`` is zero.
        terminated: ``(T,)`` bool; entry ``t`` is True if ``action[t]`` ended the task.
        truncated: ``(T,)`` bool; entry ``t`` is True if recording was cut after ``action[t]``.
        task_state: ``(T, task_state_dim)`` float32, hidden truth about the task (where the object
            lies) in the units that the manifest names, or None. To measure with only: no model
            gets it as an input.
        control_rate: Steps per second, Hz.
        task: What the robot was asked to do, in words; may be empty.
        metadata: Anything else worth keeping, JSON scalars only.
        measured: What was measured on the recording at the source's rate, JSON values, see
            :func:`tokenwm.data.quality.measures.measure_recording`; for the report, not kept in
            shards.
    """

    key: str
    frames: Mapping[str, NDArray[np.uint8]]
    state: NDArray[np.float32] | None = None
    action: NDArray[Any]
    reward: NDArray[np.float32] | None = None
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    task_state: NDArray[np.float32] | None = None
    control_rate: float
    task: str = ""
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_steps(self) -> int:
        """``T``, observations in the episode; one more than it has valid actions."""
        return len(self.action)

    @property
    def is_discrete(self) -> bool:
        """True if actions are ids, False if they are real-valued."""
        return np.issubdtype(self.action.dtype, np.integer)

    def check(self) -> None:
        """Check shapes, dtypes and lengths.

        Raises:
            EpisodeError: Names the episode, the array and what was expected.
        """
        if not NAME_PATTERN.fullmatch(self.key):
            raise EpisodeError(f"episode key {self.key!r} may hold letters, digits, '_', '-' only")
        longest = max((len(f".frames.{camera}") for camera in self.frames), default=0)
        if len(self.key) + longest + len(".npy") > MAX_MEMBER_NAME:
            raise EpisodeError(
                f"episode {self.key}: key and name of a camera are too long to be part of one file "
                f"name of {MAX_MEMBER_NAME} characters; shorten them"
            )
        num_steps = self.num_steps
        if num_steps < 2:
            raise EpisodeError(f"episode {self.key}: {num_steps} step(s); at least 2 are needed")
        if not self.frames and self.state is None:
            raise EpisodeError(f"episode {self.key}: neither a camera nor a state; one is needed")
        for camera, frames in self.frames.items():
            self._check(f"frames of {camera}", frames, (num_steps, None, None, 3), (np.uint8,))
            if not NAME_PATTERN.fullmatch(camera):
                raise EpisodeError(
                    f"episode {self.key}: camera name {camera!r} may hold letters, digits, "
                    "'_', '-' only"
                )
        observed = {"state": self.state, "task_state": self.task_state}
        for name, numbers in observed.items():
            if numbers is not None:
                self._check(name, numbers, (num_steps, None), (np.float32,))
        self._check("action", self.action, (num_steps, None), (np.float32, np.int64))
        for name, array in (*observed.items(), ("action", self.action)):
            if array is not None and array.shape[1] == 0:
                raise EpisodeError(
                    f"episode {self.key}: {name} has no dimensions, shape {array.shape}; at least "
                    "1 is needed (a recipe may leave the state and the task state out: "
                    f"`{name}: null`)"
                )
        if self.reward is not None:
            self._check("reward", self.reward, (num_steps,), (np.float32,))
        arrays = [("action", self.action), *self.frames.items()]
        for name, array in arrays:
            if array.nbytes > MAX_MEMBER_BYTES:
                raise EpisodeError(
                    f"episode {self.key}: {name} of {num_steps:,} steps takes {array.nbytes:,} "
                    f"bytes, at most {MAX_MEMBER_BYTES:,} can be stored; make image_size or "
                    "control_rate smaller, or record shorter episodes"
                )
        self._check("terminated", self.terminated, (num_steps,), (np.bool_,))
        self._check("truncated", self.truncated, (num_steps,), (np.bool_,))

    def _check(
        self,
        name: str,
        array: NDArray[Any],
        shape: tuple[int | None, ...],
        dtypes: tuple[type, ...],
    ) -> None:
        fits = array.ndim == len(shape) and all(
            want is None or want == got for want, got in zip(shape, array.shape, strict=True)
        )
        if not fits or array.dtype not in [np.dtype(d) for d in dtypes]:
            wanted = tuple("any" if size is None else size for size in shape)
            allowed = " or ".join(np.dtype(d).name for d in dtypes)
            raise EpisodeError(
                f"episode {self.key}: {name} is {array.dtype}{array.shape}; expected "
                f"{allowed}{wanted}"
            )


@dataclass(frozen=True, kw_only=True)
class CorruptSample:
    """An episode whose stored bytes are damaged.

    Attributes:
        root: Dataset it lies in.
        key: Its name.
        reason: Shard, key and what is wrong, for people.
    """

    root: str
    key: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Segment:
    """A window of ``T`` consecutive steps of one episode.

    Attributes:
        key: Episode the window was cut from.
        start: Step of the episode at which it starts.
        arrays: Field name (see :class:`tokenwm.data.loading.windows.Batch`) → array with leading
            axis ``T``.
        source: Name of what it was drawn from, in a mixture of datasets.
        skipped: Corrupt samples that it stands in for.
    """

    key: str
    start: int
    arrays: Mapping[str, NDArray[Any]]
    source: str = ""
    skipped: tuple[CorruptSample, ...] = ()
