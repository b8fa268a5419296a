"""Requests for a world model over the wire, checked as far as they can be without computing."""

import math
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel

Arrays = dict[str, NDArray[Any]]

IMAGINE, SCORE, ENCODE = PATHS = ("/v1/imagine", "/v1/score", "/v1/encode")
FRAMES_PER_ROW = 32
"""Observed frames that take about as much memory as an imagined row."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of one server.

    Attributes:
        max_body_bytes: Most bytes of a request, and of the frames in an answer.
        max_bytes: Most bytes of all requests in progress together, with their answers' frames.
        max_connections: Open at a time; a few more are kept for ``/health`` and ``/metrics``.
        max_rows: Imagined rows of a request.
        max_batch_rows: Rows computed at once; a larger request is computed part by part. More is
            faster up to where the machine is busy, takes more memory, and lets others wait longer.
        max_steps: Context steps and actions of a request.
        max_row_steps: Imagined rows times actions of a request: how long it may take.
        max_score_positions: Positions of a row to score; memory grows with their square.
        max_queued_rows: Rows that may wait; 32 observed frames count as one, at least.
        timeout: Seconds until a request is given up, unless it asks for fewer.
    """

    max_body_bytes: int = 64 * 2**20
    max_bytes: int = 512 * 2**20
    max_connections: int = 256
    max_rows: int = 1024
    max_batch_rows: int = 32
    max_steps: int = 1000
    max_row_steps: int = 2**16
    max_score_positions: int = 4096
    max_queued_rows: int = 4096
    timeout: float = 60.0

    def __post_init__(self) -> None:
        counts = [value for name, value in vars(self).items() if name != "timeout"]
        if min(counts) < 1 or not 0.0 < self.timeout <= 86400.0:
            raise TokenwmError(f"limits must be at least 1 and timeout in (0, 86400] s: {self}")
        if self.max_bytes < 2 * self.max_body_bytes:
            raise TokenwmError(
                f"max_bytes={self.max_bytes} has no room for a request and the frames of its "
                f"answer, each of max_body_bytes={self.max_body_bytes}; raise it or lower those"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A checked request.

    Attributes:
        path: One of :data:`PATHS`.
        timeout: Seconds it may take.
        frames: ``(B, C, cameras, H, W, 3)`` uint8, observed; to encode, ``(N, cameras, H, W, 3)``.
        past_actions: ``(B, C - 1, A)`` in the units of the data.
        states: ``(B, C, state_dim)``, or None.
        actions: To imagine, ``(B * n, steps, A)``: ``n`` candidates for every row; else empty.
        seed: Seed of the noise.
        sampling: Settings for drawing ids.
        pixels: Steps whose frames are wanted.
    """

    path: str
    timeout: float
    frames: NDArray[np.uint8]
    past_actions: NDArray[Any]
    states: NDArray[Any] | None = None
    actions: NDArray[Any]
    seed: int = 0
    sampling: SamplingConfig = SamplingConfig()
    pixels: tuple[int, ...] = ()

    @property
    def key(self) -> Hashable:
        """A key that is equal for requests that can be imagined together; None: computed alone."""
        if self.path != IMAGINE:
            return None
        copies = len(self.actions) // len(self.frames)
        return (self.frames.shape[1:], copies, self.sampling, self.states is None)

    @property
    def size(self) -> int:
        """The rows that it takes of a batch and of the queue, at least 1."""
        return max(1, len(self.actions), math.prod(self.frames.shape[:-4]) // FRAMES_PER_ROW)

    @property
    def length(self) -> int:
        """Imagined steps."""
        return int(self.actions.shape[1])

    @property
    def num_pixel_bytes(self) -> int:
        """The bytes of the frames in the answer."""
        return len(self.actions) * len(self.pixels) * math.prod(self.frames.shape[2:])


def parse(
    path: str,
    model: TokenWorldModel,
    arrays: Arrays,
    options: Mapping[str, Any],
    limits: Limits,
) -> Request:
    """Check a request as far as it can be without computing.

    Raises:
        TokenwmError: Something is missing, unknown, too large or of another shape.
    """
    timeout = _number(options, "timeout", limits.timeout, 0.0, limits.timeout)
    _check_names("array", arrays, arrays_of(path, model))
    _check_names("option", options, (), OPTIONS[path])
    nothing = np.zeros((0, 1, 0))
    if path == ENCODE:
        frames = arrays["frames"]
        _check("frames", frames, (None, *model.tokenizer.frame_shape), np.uint8)
        _check_at_most(len(frames), limits.max_rows, "frames are encoded")
        return Request(
            path=path, timeout=timeout, frames=frames, past_actions=nothing, actions=nothing
        )
    frames = arrays["frames"]
    if path == SCORE:
        num_steps = frames.shape[1] if frames.ndim > 1 else 0
        positions = num_steps * model.world_model.layout.positions_per_step
        _check_at_most(
            positions, limits.max_score_positions, f"positions ({num_steps} steps) are scored"
        )
    _check_observed(model, arrays, limits)
    observed: dict[str, Any] = {name: arrays[name] for name in arrays if name != "actions"}
    if path == SCORE:
        _check_at_most(len(frames), limits.max_rows, "rows are scored")
        if num_steps < 2:
            raise TokenwmError("frames has 1 step; at least 2 are needed, the first is not scored")
        return Request(path=path, timeout=timeout, actions=nothing, **observed)
    actions = arrays["actions"]
    _check("actions", actions, (None, None, model.vocabulary.action.num_dimensions))
    if len(actions) % len(frames):
        raise TokenwmError(
            f"actions has {len(actions)} rows for {len(frames)} of frames; give a multiple"
        )
    num_steps = actions.shape[1]
    _check_at_most(len(actions), limits.max_rows, "rows are imagined")
    if not 1 <= num_steps <= limits.max_steps:
        raise TokenwmError(f"{num_steps} actions; 1 to {limits.max_steps} each are allowed")
    _check_at_most(len(actions) * num_steps, limits.max_row_steps, "rows times steps are imagined")
    pixels = options.get("pixels", [])
    if not isinstance(pixels, list) or not all(
        type(step) is int and 0 <= step < num_steps for step in pixels
    ):
        raise TokenwmError(f"pixels={pixels!r}; a list of steps in [0, {num_steps})")
    request = Request(
        path=path,
        timeout=timeout,
        actions=actions,
        seed=_whole_number(options, "seed", 0, -(2**62), 2**62),
        sampling=SamplingConfig(
            temperature=_number(options, "temperature", 1.0, 0.0, 1e6),
            top_k=_whole_number(options, "top_k", None, 1, 2**31),
            top_p=_number(options, "top_p", 1.0, 1e-6, 1.0),
        ),
        pixels=tuple(pixels),
        **observed,
    )
    if len(set(pixels)) < len(pixels) or request.num_pixel_bytes > limits.max_body_bytes:
        raise TokenwmError(
            f"pixels of {len(pixels)} steps are {request.num_pixel_bytes} bytes; at most "
            f"{limits.max_body_bytes} are sent, each step once"
        )
    return request


OPTIONS: Mapping[str, Collection[str]] = {
    IMAGINE: ("seed", "temperature", "top_k", "top_p", "pixels", "timeout"),
    SCORE: ("timeout",),
    ENCODE: ("timeout",),
}


def arrays_of(path: str, model: TokenWorldModel) -> list[str]:
    """Return the names of the arrays that a request must have."""
    if path == ENCODE:
        return ["frames"]
    states = [] if model.vocabulary.state is None else ["states"]
    return ["frames", "past_actions", *states, *(["actions"] if path == IMAGINE else [])]


def _check_observed(model: TokenWorldModel, arrays: Arrays, limits: Limits) -> None:
    vocabulary = model.vocabulary
    _check("frames", arrays["frames"], (None, None, *model.tokenizer.frame_shape), np.uint8)
    num_rows, num_steps = arrays["frames"].shape[:2]
    if not 1 <= num_steps <= limits.max_steps:
        raise TokenwmError(f"frames has {num_steps} steps; 1 to {limits.max_steps} are allowed")
    shape = (num_rows, num_steps - 1, vocabulary.action.num_dimensions)
    _check("past_actions", arrays["past_actions"], shape)
    if vocabulary.state is not None:
        shape = (num_rows, num_steps, vocabulary.state.num_dimensions)
        _check("states", arrays["states"], shape)


def _check_at_most(count: int, most: int, text: str) -> None:
    if count > most:
        what, _, verb = text.rpartition(" are ")
        raise TokenwmError(f"{count} {what} asked; at most {most} are {verb}")


def _check_names(
    kind: str, given: Mapping[str, Any], needed: Collection[str], allowed: Collection[str] = ()
) -> None:
    missing, unknown = {*needed} - {*given}, {*given} - {*needed, *allowed}
    if missing or unknown:
        raise TokenwmError(
            f"{kind}s missing: {sorted(missing)}; unknown: {sorted(unknown)}; "
            f"known: {sorted({*needed, *allowed})}"
        )


def _check(
    name: str, array: NDArray[Any], shape: tuple[int | None, ...], dtype: Any = None
) -> None:
    fits = array.ndim == len(shape) and all(
        wanted is None or wanted == size for wanted, size in zip(shape, array.shape, strict=True)
    )
    is_type = array.dtype.kind in "fiu" if dtype is None else array.dtype == dtype
    if not fits or not is_type:
        wanted = ", ".join("·" if size is None else str(size) for size in shape)
        raise TokenwmError(
            f"{name} has shape {array.shape} and type {array.dtype}; expected ({wanted}) "
            f"{np.dtype(dtype).name if dtype is not None else 'numbers'}"
        )
    if array.shape[0] < 1:
        raise TokenwmError(f"{name} has no row")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise TokenwmError(f"{name} has NaN or infinite values; only finite values can be binned")


def _number(
    options: Mapping[str, Any], name: str, default: float, low: float, high: float
) -> float:
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TokenwmError(f"{name}={value!r}; a number in [{low:g}, {high:g}]")
    return float(value)


def _whole_number(
    options: Mapping[str, Any], name: str, default: int | None, low: int, high: int
) -> Any:
    value = options.get(name, default)
    if value is not None and (type(value) is not int or not low <= value <= high):
        raise TokenwmError(f"{name}={value!r}; a whole number in [{low}, {high}]")
    return default if value is None else value
