"""Answers to requests: computations that pause, so that no request holds up the others."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.imagination.context import Context, cat_contexts
from tokenwm.imagination.pausing import Pausing
from tokenwm.imagination.token_world_model import Rollout, TokenWorldModel
from tokenwm.serving.decisions import decide
from tokenwm.serving.metrics import Metrics
from tokenwm.serving.planning import make_plan
from tokenwm.serving.requests import ENCODE, SCORE, Arrays, Request
from tokenwm.tokenizer.frames import slices

MOST_FRAMES = 64
"""Frames that are encoded or decoded between two pauses."""
LEAST_STEPS, MOST_STEPS = 2, 16
"""Imagined steps between two pauses: fewer cost more passes (docs/serving.md), more gain little."""


def compute(
    model: TokenWorldModel, asked: Sequence[Request], metrics: Metrics
) -> Pausing[list[Arrays]]:
    """Answer requests with one key, in order; each gets what it would get alone."""
    if asked[0].path == SCORE:
        return _score(model, asked[0])
    if asked[0].path == ENCODE:
        return _encode(model, asked[0])
    if asked[0].plan is not None:
        return _plan(model, asked[0])
    if asked[0].question is not None:
        return _decide(model, asked[0], metrics)
    return _imagine(model, asked, metrics)


def _imagine(
    model: TokenWorldModel, requests: Sequence[Request], metrics: Metrics
) -> Pausing[list[Arrays]]:
    states = [request.states for request in requests if request.states is not None]
    context = yield from _context(
        model,
        np.concatenate([request.frames for request in requests]),
        np.concatenate([request.past_actions for request in requests]),
        np.concatenate(states) if states else None,
    )
    longest = max(request.length for request in requests)
    # Nothing depends on later actions, so shorter sequences may go on with anything.
    actions = np.concatenate([_lengthened(request.actions, longest) for request in requests])
    counts = [len(request.actions) for request in requests]
    rollout = yield from model.imagine_pausing(
        context,
        actions,
        chunk_steps=_chunk_steps(model, len(actions)),
        sampling=requests[0].sampling,
        seed=torch.cat([torch.full((n,), r.seed) for r, n in zip(requests, counts, strict=True)]),
        noise_streams=torch.cat([torch.arange(count) for count in counts]),
    )
    _count(metrics, rollout)
    results, first = [], 0
    for request, count in zip(requests, counts, strict=True):
        result = yield from _answer(model, rollout, request, slice(first, first + count))
        results.append(result)
        first += count
    return results


def _plan(model: TokenWorldModel, request: Request) -> Pausing[list[Arrays]]:
    context = yield from _context(model, request.frames, request.past_actions, request.states)
    yield
    assert request.plan is not None
    return [make_plan(model, request.plan, context, request.past_actions)]


def _decide(model: TokenWorldModel, request: Request, metrics: Metrics) -> Pausing[list[Arrays]]:
    context = yield from _context(model, request.frames, request.past_actions, request.states)
    question = request.question
    assert question is not None

    def imagine(actions: Tensor, streams: Tensor) -> Pausing[Rollout]:
        rollout = yield from model.imagine_pausing(
            context,
            actions,
            chunk_steps=_chunk_steps(model, len(actions)),
            sampling=question.config.sampling,
            seed=request.seed,
            noise_streams=streams,
        )
        _count(metrics, rollout)
        return rollout

    answer = yield from decide(
        model, question, context, request.actions, request.past_actions, imagine
    )
    return [answer]


def _chunk_steps(model: TokenWorldModel, num_rows: int) -> int:
    """Imagined steps between two pauses: the fewer, the more rows."""
    rows_at_once = min(num_rows, model.max_rows)
    return min(MOST_STEPS, max(LEAST_STEPS, model.max_rows // rows_at_once))


def _count(metrics: Metrics, rollout: Rollout) -> None:
    metrics.add("imagined_steps_total", math.prod(rollout.frame_tokens.shape[:2]))
    metrics.add("passes_total", rollout.num_passes)
    metrics.add("row_tokens_total", rollout.frame_tokens[0].numel())


def _answer(
    model: TokenWorldModel, rollout: Rollout, request: Request, rows: slice
) -> Pausing[Arrays]:
    """A request's rows and steps of a rollout."""
    steps = slice(request.length)
    tokens = rollout.frame_tokens[rows, steps]
    result = {
        "frame_tokens": tokens.cpu().numpy().astype(np.uint16),
        "termination_probability": rollout.termination_probability[rows, steps].cpu().numpy(),
        "frame_nll": rollout.frame_nll[rows, steps].cpu().numpy(),
        "frame_entropy": rollout.frame_entropy[rows, steps].cpu().numpy(),
    }
    if rollout.reward is not None:
        result["reward"] = rollout.reward[rows, steps].cpu().numpy()
    if rollout.state is not None:
        result["states"] = rollout.state[rows, steps].cpu().numpy()
    if request.pixels:
        context, wanted = rollout.context, tokens[:, list(request.pixels)]
        shape = (*wanted.shape[:2], *request.frames.shape[2:])
        frames = np.empty(shape, dtype=np.uint8)
        last, starts = context.tokens.frame[:, -1], rollout.context_rows[rows]
        for row in slices(len(wanted), MOST_FRAMES):
            for step in slices(len(request.pixels), max(1, MOST_FRAMES // len(wanted[row]))):
                yield
                pixels = model.decode_tokens(wanted[row, step], last, context.anchor, starts[row])
                frames[row, step] = pixels.cpu().numpy()
        result["frames"] = frames
    return result


def _score(model: TokenWorldModel, request: Request) -> Pausing[list[Arrays]]:
    scores = []
    for row in range(len(request.frames)):
        yield
        rows = slice(row, row + 1)
        states = None if request.states is None else request.states[rows]
        context = model.context(request.frames[rows], request.past_actions[rows], states)
        scores.append(model.score(context).cpu().numpy())
    return [{"frame_nll": np.concatenate(scores)}]


def _encode(model: TokenWorldModel, request: Request) -> Pausing[list[Arrays]]:
    tokens: list[Tensor] = []
    for part in slices(len(request.frames), MOST_FRAMES):
        yield
        frames = torch.from_numpy(request.frames[part]).to(model.device)
        with torch.inference_mode():
            tokens.append(model.tokenizer.encode_frames(frames).cpu())
    return [{"frame_tokens": torch.cat(tokens).numpy().astype(np.uint16)}]


def _context(
    model: TokenWorldModel,
    frames: NDArray[np.uint8],
    past_actions: NDArray[Any],
    states: NDArray[Any] | None,
) -> Pausing[Context]:
    """:meth:`TokenWorldModel.context`, some rows at a time."""
    parts = []
    for rows in slices(len(frames), max(1, MOST_FRAMES // frames.shape[1])):
        yield
        some = None if states is None else states[rows]
        parts.append(model.context(frames[rows], past_actions[rows], some))
    return cat_contexts(parts)


def _lengthened(actions: NDArray[Any], num_steps: int) -> NDArray[Any]:
    last = np.repeat(actions[:, -1:], num_steps - actions.shape[1], axis=1)
    return np.concatenate([actions, last], axis=1)
