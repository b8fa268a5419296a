"""What can be asked of a world model over the wire, checked as far as it can be uncomputed."""

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.imagination.sampling import SamplingConfig
from tokenwm.imagination.token_world_model import TokenWorldModel

Arrays = dict[str, NDArray[Any]]

FRAMES_PER_ROW = 32
"""Observed frames that take as much memory as an imagined row, about (measured: 160 kB each)."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server accepts.

    Attributes:
        max_body_bytes: Of a request, and of the frames in an answer.
        max_bytes: Of all requests that are being received or answered, with their answers' frames.
        max_connections: Open at a time.
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
class ImagineRequest:
    """Futures of candidates.

    Attributes:
        frames: ``(B, C, cameras, H, W, 3)`` uint8.
        past_actions: ``(B, C - 1, A)`` in the units of the data.
        states: ``(B, C, state_dim)``, or None.
        actions: ``(B * n, steps, A)``: ``n`` candidates for every row.
        seed: Of the noise.
        sampling: How ids are drawn.
        pixels: Steps whose frames are wanted.
    """

    frames: NDArray[np.uint8]
    past_actions: NDArray[Any]
    states: NDArray[Any] | None
    actions: NDArray[Any]
    seed: int
    sampling: SamplingConfig
    pixels: tuple[int, ...]

    @property
    def key(self) -> Hashable:
        """Requests with the same can be imagined together."""
        copies = len(self.actions) // len(self.frames)
        return (self.frames.shape[1:], copies, self.sampling, self.states is None)

    @property
    def num_rows(self) -> int:
        """Imagined rows."""
        return len(self.actions)

    @property
    def size(self) -> int:
        """What it takes of a batch and of the queue."""
        num_frames = self.frames.shape[0] * self.frames.shape[1]
        return max(self.num_rows, int(num_frames // FRAMES_PER_ROW))

    @property
    def length(self) -> int:
        """Imagined steps."""
        return int(self.actions.shape[1])

    @property
    def num_pixel_bytes(self) -> int:
        """Of the frames in the answer."""
        return self.num_rows * len(self.pixels) * math.prod(self.frames.shape[2:])


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """How likely what happened is.

    Attributes:
        frames: ``(B, C, cameras, H, W, 3)`` uint8, ``C`` at least 2.
        past_actions: ``(B, C - 1, A)`` in the units of the data.
        states: ``(B, C, state_dim)``, or None.
    """

    frames: NDArray[np.uint8]
    past_actions: NDArray[Any]
    states: NDArray[Any] | None
    key: Hashable = None
    length: int = 1
    num_pixel_bytes: int = 0

    @property
    def size(self) -> int:
        """What it takes of the queue."""
        return max(1, int(np.prod(self.frames.shape[:2])) // FRAMES_PER_ROW)


@dataclass(frozen=True, kw_only=True)
class EncodeRequest:
    """Tokens of frames.

    Attributes:
        frames: ``(N, cameras, H, W, 3)`` uint8.
    """

    frames: NDArray[np.uint8]
    key: Hashable = None
    length: int = 1
    num_pixel_bytes: int = 0

    @property
    def size(self) -> int:
        """What it takes of the queue."""
        return max(1, len(self.frames) // FRAMES_PER_ROW)


Request = ImagineRequest | ScoreRequest | EncodeRequest


def parse(
    path: str,
    model: TokenWorldModel,
    arrays: Arrays,
    options: Mapping[str, Any],
    limits: Limits,
) -> Request:
    """Check a request as far as it can be without computing.

    Args:
        path: One of :data:`PARSERS`.
        model: What is asked.
        arrays: By name.
        options: By name; ``timeout`` is checked elsewhere.
        limits: What is accepted.

    Raises:
        TokenwmError: Something is missing, unknown, too large or of another shape.
    """
    return PARSERS[path](model, arrays, options, limits)


def _parse_imagine(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> ImagineRequest:
    _check_names("array", arrays, _observed(model) | {"actions"})
    allowed = {"seed", "temperature", "top_k", "top_p", "pixels", "timeout"}
    _check_names("option", options, set(), allowed)
    actions = arrays["actions"]
    num_rows = _check_observed(model, arrays, limits)
    _check("actions", actions, (None, None, model.vocabulary.action.num_dimensions))
    if len(actions) % num_rows:
        raise TokenwmError(
            f"actions has {len(actions)} rows for {num_rows} of frames; give a multiple"
        )
    if len(actions) > limits.max_rows:
        raise TokenwmError(f"{len(actions)} rows asked; at most {limits.max_rows} are imagined")
    num_steps = actions.shape[1]
    if not 1 <= num_steps <= limits.max_steps:
        raise TokenwmError(f"{num_steps} actions; 1 to {limits.max_steps} each are allowed")
    if len(actions) * num_steps > limits.max_row_steps:
        raise TokenwmError(
            f"{len(actions)} rows of {num_steps} steps asked; rows times steps may be "
            f"{limits.max_row_steps}"
        )
    pixels = options.get("pixels", [])
    if not isinstance(pixels, list) or not all(
        type(step) is int and 0 <= step < num_steps for step in pixels
    ):
        raise TokenwmError(f"pixels={pixels!r}; a list of steps in [0, {num_steps})")
    seed = options.get("seed", 0)
    if type(seed) is not int or abs(seed) > 2**62:
        raise TokenwmError(f"seed={seed!r}; a whole number in [-2**62, 2**62]")
    request = ImagineRequest(
        frames=arrays["frames"],
        past_actions=arrays["past_actions"],
        states=arrays.get("states"),
        actions=actions,
        seed=seed,
        sampling=_sampling(options),
        pixels=tuple(pixels),
    )
    if len(set(pixels)) < len(pixels) or request.num_pixel_bytes > limits.max_body_bytes:
        raise TokenwmError(
            f"pixels of {len(pixels)} steps are {request.num_pixel_bytes} bytes; at most "
            f"{limits.max_body_bytes} are sent, each step once"
        )
    return request


def _parse_score(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> ScoreRequest:
    _check_names("array", arrays, _observed(model))
    _check_names("option", options, set(), {"timeout"})
    num_steps = arrays["frames"].shape[1] if arrays["frames"].ndim > 1 else 0
    positions = num_steps * model.world_model.layout.positions_per_step
    if positions > limits.max_score_positions:
        raise TokenwmError(
            f"{num_steps} steps are {positions} positions; at most "
            f"{limits.max_score_positions} are scored at once"
        )
    num_rows = _check_observed(model, arrays, limits)
    if num_rows > limits.max_rows:
        raise TokenwmError(f"{num_rows} rows asked; at most {limits.max_rows} are scored")
    if num_steps < 2:
        raise TokenwmError("frames has 1 step; at least 2 are needed, the first is not scored")
    return ScoreRequest(
        frames=arrays["frames"],
        past_actions=arrays["past_actions"],
        states=arrays.get("states"),
    )


def _parse_encode(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> EncodeRequest:
    _check_names("array", arrays, {"frames"})
    _check_names("option", options, set(), {"timeout"})
    frames = arrays["frames"]
    _check("frames", frames, (None, *model.tokenizer.frame_shape), np.uint8)
    if len(frames) > limits.max_rows:
        raise TokenwmError(f"{len(frames)} frames; 1 to {limits.max_rows} are allowed")
    return EncodeRequest(frames=frames)


PARSERS: dict[str, Callable[..., Request]] = {
    "/v1/imagine": _parse_imagine,
    "/v1/score": _parse_score,
    "/v1/encode": _parse_encode,
}


def _observed(model: TokenWorldModel) -> set[str]:
    names = {"frames", "past_actions"}
    return names if model.vocabulary.state is None else names | {"states"}


def _check_observed(model: TokenWorldModel, arrays: Arrays, limits: Limits) -> int:
    """Check ``frames``, ``past_actions`` and ``states``; returns their rows."""
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
    return int(num_rows)


def _check_names(
    kind: str, given: Mapping[str, Any], needed: set[str], allowed: set[str] | None = None
) -> None:
    missing, unknown = needed - set(given), set(given) - needed - (allowed or set())
    if missing or unknown:
        raise TokenwmError(
            f"{kind}s missing: {sorted(missing)}; unknown: {sorted(unknown)}; "
            f"known: {sorted(needed | (allowed or set()))}"
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


def number_option(
    options: Mapping[str, Any], name: str, default: float, low: float, high: float
) -> float:
    """A number among the options, checked.

    Raises:
        TokenwmError: It is none, or outside [low, high].
    """
    value = options.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise TokenwmError(f"{name}={value!r}; a number in [{low:g}, {high:g}]")
    return value


def _sampling(options: Mapping[str, Any]) -> SamplingConfig:
    top_k = options.get("top_k")
    if top_k is not None and (type(top_k) is not int or not 1 <= top_k <= 2**31):
        raise TokenwmError(f"top_k={top_k!r}; a whole number in [1, 2**31]")
    return SamplingConfig(
        temperature=float(number_option(options, "temperature", 1.0, 0.0, 1e6)),
        top_k=top_k,
        top_p=float(number_option(options, "top_p", 1.0, 1e-6, 1.0)),
    )
