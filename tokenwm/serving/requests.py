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
from tokenwm.serving import decisions, planning
from tokenwm.serving.checks import (
    check_array,
    check_at_most,
    check_names,
    number,
    whole_number,
)
from tokenwm.serving.decisions import GOAL, VERIFY, Question, parse_question
from tokenwm.serving.planning import PLAN, PlanQuestion, parse_plan

Arrays = dict[str, NDArray[Any]]

IMAGINE, SCORE, ENCODE = ("/v1/imagine", "/v1/score", "/v1/encode")
PATHS = (IMAGINE, SCORE, ENCODE, *decisions.PATHS, PLAN)
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
        question: What is asked of the actions, to rank or to verify them.
        plan: What is asked of a plan; ``actions`` then has as many rows and steps as a round of
            its search, and no numbers.
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
    question: Question | None = None
    plan: PlanQuestion | None = None

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
        num_futures = 1 if self.question is None else self.question.config.num_futures
        rows = len(self.actions) * num_futures
        return max(1, rows, math.prod(self.frames.shape[:-4]) // FRAMES_PER_ROW)

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
    timeout = number(options, "timeout", limits.timeout, 0.0, limits.timeout)
    check_names("array", arrays, arrays_of(path, model), [GOAL] if takes_goal(path) else [])
    check_names("option", options, (), OPTIONS[path])
    nothing = np.zeros((0, 1, 0))
    if path == ENCODE:
        frames = arrays["frames"]
        check_array("frames", frames, (None, *model.tokenizer.frame_shape), np.uint8)
        check_at_most(len(frames), limits.max_rows, "frames are encoded")
        return Request(
            path=path, timeout=timeout, frames=frames, past_actions=nothing, actions=nothing
        )
    frames = arrays["frames"]
    if path == SCORE:
        num_steps = frames.shape[1] if frames.ndim > 1 else 0
        positions = num_steps * model.world_model.layout.positions_per_step
        check_at_most(
            positions, limits.max_score_positions, f"positions ({num_steps} steps) are scored"
        )
    _check_observed(model, arrays, limits)
    observed: dict[str, Any] = {
        name: arrays[name] for name in arrays if name not in ("actions", GOAL)
    }
    if path == SCORE:
        check_at_most(len(frames), limits.max_rows, "rows are scored")
        if num_steps < 2:
            raise TokenwmError("frames has 1 step; at least 2 are needed, the first is not scored")
        return Request(path=path, timeout=timeout, actions=nothing, **observed)
    if len(frames) != 1 and path in (*decisions.PATHS, PLAN):
        raise TokenwmError(f"frames has {len(frames)} rows; ask from one state")
    if path == PLAN:
        plan = parse_plan(model, arrays, options, limits.max_steps)
        planner = plan.planner
        check_at_most(planner.num_candidates, limits.max_rows, "rows are imagined")
        steps = planner.num_candidates * planner.horizon * planner.num_rounds
        check_at_most(steps, limits.max_row_steps, "rows times steps are imagined")
        nothing = np.zeros((planner.num_candidates, planner.horizon, 0))
        return Request(path=path, timeout=timeout, actions=nothing, plan=plan, **observed)
    actions = arrays["actions"]
    check_array("actions", actions, (None, None, model.vocabulary.action.num_dimensions))
    if len(actions) % len(frames):
        raise TokenwmError(
            f"actions has {len(actions)} rows for {len(frames)} of frames; give a multiple"
        )
    num_steps, num_rows, question = actions.shape[1], len(actions), None
    if path in decisions.PATHS:
        question = parse_question(path, model, arrays, options)
        num_rows *= question.config.num_futures
        if path == VERIFY and len(actions) != 1:
            raise TokenwmError(f"actions has {len(actions)} rows; verify one chunk, or rank them")
    check_at_most(num_rows, limits.max_rows, "rows are imagined")
    if not 1 <= num_steps <= limits.max_steps:
        raise TokenwmError(f"{num_steps} actions; 1 to {limits.max_steps} each are allowed")
    check_at_most(num_rows * num_steps, limits.max_row_steps, "rows times steps are imagined")
    pixels = options.get("pixels", [])
    if not isinstance(pixels, list) or not all(
        type(step) is int and 0 <= step < num_steps for step in pixels
    ):
        raise TokenwmError(f"pixels={pixels!r}; a list of steps in [0, {num_steps})")
    request = Request(
        path=path,
        timeout=timeout,
        actions=actions,
        seed=whole_number(options, "seed", 0, -(2**62), 2**62),
        sampling=SamplingConfig(
            temperature=number(options, "temperature", 1.0, 0.0, 1e6),
            top_k=whole_number(options, "top_k", None, 1, 2**31),
            top_p=number(options, "top_p", 1.0, 1e-6, 1.0),
        ),
        pixels=tuple(pixels),
        question=question,
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
    **dict.fromkeys(decisions.PATHS, decisions.OPTIONS),
    PLAN: planning.OPTIONS,
}


def takes_goal(path: str) -> bool:
    """True if a question may come with a picture of what is wanted, the array ``goal``."""
    return path in (*decisions.PATHS, PLAN)


def arrays_of(path: str, model: TokenWorldModel) -> list[str]:
    """Return the names of the arrays that a request must have; ``goal`` may be there besides."""
    if path == ENCODE:
        return ["frames"]
    states = [] if model.vocabulary.state is None else ["states"]
    return ["frames", "past_actions", *states, *([] if path in (SCORE, PLAN) else ["actions"])]


def _check_observed(model: TokenWorldModel, arrays: Arrays, limits: Limits) -> None:
    vocabulary = model.vocabulary
    check_array("frames", arrays["frames"], (None, None, *model.tokenizer.frame_shape), np.uint8)
    num_rows, num_steps = arrays["frames"].shape[:2]
    if not 1 <= num_steps <= limits.max_steps:
        raise TokenwmError(f"frames has {num_steps} steps; 1 to {limits.max_steps} are allowed")
    shape = (num_rows, num_steps - 1, vocabulary.action.num_dimensions)
    check_array("past_actions", arrays["past_actions"], shape)
    if vocabulary.state is not None:
        shape = (num_rows, num_steps, vocabulary.state.num_dimensions)
        check_array("states", arrays["states"], shape)
