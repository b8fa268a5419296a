"""What can be asked of a world model over the wire, checked, and how it is answered."""

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tokenwm.errors import TokenwmError
from tokenwm.imagination.rollout import TokenWorldModel
from tokenwm.imagination.sampling import SamplingConfig

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one server accepts.

    Attributes:
        max_body_bytes: Of a request.
        max_rows: Imagined rows of a request, and of a batch.
        max_steps: Context steps and actions of a request.
        max_row_steps: Imagined rows times actions of a request: how long it may take.
        max_score_positions: Positions of a row to score; memory grows with their square.
        max_queued_rows: Rows that may wait.
        timeout: Seconds until a request is given up, unless it asks for fewer.

    ``max_body_bytes`` holds for the frames in an answer, too.
    """

    max_body_bytes: int = 64 * 2**20
    max_rows: int = 1024
    max_steps: int = 1000
    max_row_steps: int = 2**16
    max_score_positions: int = 4096
    max_queued_rows: int = 4096
    timeout: float = 60.0

    def __post_init__(self) -> None:
        counts = [value for name, value in vars(self).items() if name != "timeout"]
        if min(counts) < 1 or not 0.0 < self.timeout <= 86400.0:
            raise TokenwmError(f"limits must be at least 1 and timeout in (0, 86400] s: {self}")


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


def parse_imagine(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> ImagineRequest:
    """Check a request as far as it can be without computing.

    Raises:
        TokenwmError: Something is missing, unknown, too large or of another shape.
    """
    names = {"frames", "past_actions", "actions"}
    if model.vocabulary.state is not None:
        names.add("states")
    _check_names("array", arrays, names)
    allowed = {"seed", "temperature", "top_k", "top_p", "pixels", "timeout"}
    _check_names("option", options, set(), allowed)
    frames, past, actions = arrays["frames"], arrays["past_actions"], arrays["actions"]
    states = arrays.get("states")
    tokenizer, vocabulary = model.tokenizer, model.vocabulary
    _check("frames", frames, (None, None, *tokenizer.frame_shape), np.uint8)
    num_rows, num_context = frames.shape[:2]
    num_actions = vocabulary.action.num_dimensions
    _check("past_actions", past, (num_rows, num_context - 1, num_actions))
    _check("actions", actions, (None, None, num_actions))
    if states is not None and vocabulary.state is not None:
        _check("states", states, (num_rows, num_context, vocabulary.state.num_dimensions))
    if len(actions) % num_rows or len(actions) == 0:
        raise TokenwmError(
            f"actions has {len(actions)} rows for {num_rows} of frames; give a multiple"
        )
    if len(actions) > limits.max_rows:
        raise TokenwmError(f"{len(actions)} rows asked; at most {limits.max_rows} are imagined")
    steps = max(num_context, actions.shape[1])
    if steps > limits.max_steps or actions.shape[1] < 1:
        raise TokenwmError(
            f"{num_context} context steps and {actions.shape[1]} actions; 1 to {limits.max_steps} "
            "each are allowed"
        )
    if len(actions) * actions.shape[1] > limits.max_row_steps:
        raise TokenwmError(
            f"{len(actions)} rows of {actions.shape[1]} steps asked; rows times steps may be "
            f"{limits.max_row_steps}"
        )
    pixels = options.get("pixels", [])
    if not isinstance(pixels, list) or not all(
        type(step) is int and 0 <= step < actions.shape[1] for step in pixels
    ):
        raise TokenwmError(f"pixels={pixels!r}; a list of steps in [0, {actions.shape[1]})")
    num_bytes = len(actions) * len(pixels) * math.prod(tokenizer.frame_shape)
    if len(set(pixels)) < len(pixels) or num_bytes > limits.max_body_bytes:
        raise TokenwmError(
            f"pixels of {len(pixels)} steps are {num_bytes} bytes; at most {limits.max_body_bytes} "
            "are sent, each step once"
        )
    return ImagineRequest(
        frames=frames,
        past_actions=past,
        states=states,
        actions=actions,
        seed=int(number_option(options, "seed", 0, -(2**62), 2**62)),
        sampling=_sampling(options),
        pixels=tuple(pixels),
    )


def imagine(model: TokenWorldModel, requests: list[ImagineRequest]) -> list[Arrays]:
    """Imagine requests with one key together; each gets what it would get alone."""
    frames = np.concatenate([request.frames for request in requests])
    past = np.concatenate([request.past_actions for request in requests])
    states = [request.states for request in requests if request.states is not None]
    longest = max(request.actions.shape[1] for request in requests)
    # Nothing depends on later actions, so shorter sequences may go on with anything.
    actions = np.concatenate([_lengthened(request.actions, longest) for request in requests])
    counts = [len(request.actions) for request in requests]
    rollout = model.imagine(
        model.context(frames, past, np.concatenate(states) if states else None),
        actions,
        sampling=requests[0].sampling,
        seed=torch.cat([torch.full((n,), r.seed) for r, n in zip(requests, counts, strict=True)]),
        noise_streams=torch.cat([torch.arange(count) for count in counts]),
    )
    results, first = [], 0
    for request, count in zip(requests, counts, strict=True):
        rows, steps = slice(first, first + count), slice(request.actions.shape[1])
        first += count
        tokens = rollout.frame_tokens[rows, steps]
        result = {
            "frame_tokens": tokens.cpu().numpy().astype(np.uint16),
            "reward": rollout.reward[rows, steps].cpu().numpy(),
            "termination_probability": rollout.termination_probability[rows, steps].cpu().numpy(),
            "frame_nll": rollout.frame_nll[rows, steps].cpu().numpy(),
            "frame_entropy": rollout.frame_entropy[rows, steps].cpu().numpy(),
        }
        if rollout.state_tokens is not None:
            result["states"] = model.decode_states(rollout.state_tokens[rows, steps])
        if request.pixels:
            context = rollout.context
            anchor = None if context.anchor is None else context.anchor[rows]
            pixels = model.decode_tokens(
                tokens[:, list(request.pixels)], context.tokens.frame[rows, -1], anchor
            )
            result["frames"] = pixels.cpu().numpy()
        results.append(result)
    return results


def encode(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> Arrays:
    """``frames`` ``(N, cameras, H, W, 3)`` uint8 → ``frame_tokens`` ``(N, K)`` uint16.

    Raises:
        TokenwmError: Something is missing, unknown, too large or of another shape.
    """
    _check_names("array", arrays, {"frames"})
    _check_names("option", options, set(), {"timeout"})
    frames = arrays["frames"]
    _check("frames", frames, (None, *model.tokenizer.frame_shape), np.uint8)
    if not 1 <= len(frames) <= limits.max_rows:
        raise TokenwmError(f"{len(frames)} frames; 1 to {limits.max_rows} are allowed")
    tokens = model.tokenizer.encode_frames(torch.from_numpy(frames).to(model.device))
    return {"frame_tokens": tokens.cpu().numpy().astype(np.uint16)}


def score(
    model: TokenWorldModel, arrays: Arrays, options: Mapping[str, Any], limits: Limits
) -> Arrays:
    """How likely what happened is: ``frames``, ``past_actions``, ``states`` as for imagining.

    Returns:
        ``frame_nll`` ``(B, C - 1)`` float32, nats per token of each frame after the first, given
        all before it.

    Raises:
        TokenwmError: Something is missing, unknown, too large or of another shape.
    """
    _check_names("option", options, set(), {"timeout"})
    actions = arrays.get("past_actions")
    if actions is None:
        raise TokenwmError("the array past_actions is missing")
    if actions.ndim > 1:
        positions = (actions.shape[1] + 1) * model.world_model.layout.positions_per_step
        if positions > limits.max_score_positions:
            raise TokenwmError(
                f"{actions.shape[1] + 1} steps are {positions} positions; at most "
                f"{limits.max_score_positions} are scored at once"
            )
    request = parse_imagine(model, {**arrays, "actions": actions}, options, limits)
    context = model.context(request.frames, request.past_actions, request.states)
    return {"frame_nll": model.score(context).cpu().numpy()}


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


def _lengthened(actions: NDArray[Any], num_steps: int) -> NDArray[Any]:
    last = np.repeat(actions[:, -1:], num_steps - actions.shape[1], axis=1)
    return np.concatenate([actions, last], axis=1)


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
    if top_k is not None:
        top_k = int(number_option(options, "top_k", 1, 1, 2**31))
    return SamplingConfig(
        temperature=float(number_option(options, "temperature", 1.0, 0.0, 1e6)),
        top_k=top_k,
        top_p=float(number_option(options, "top_p", 1.0, 1e-6, 1.0)),
    )
