"""A description of the service for tools, in OpenAPI's terms."""

from typing import Any

import tokenwm
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.serving import wire
from tokenwm.serving.decisions import GOAL, RANK, VERIFY
from tokenwm.serving.planning import PLAN
from tokenwm.serving.requests import (
    ENCODE,
    IMAGINE,
    OPTIONS,
    PATHS,
    SCORE,
    Limits,
    arrays_of,
    takes_goal,
)

ERRORS = {
    400: "wrong: a shape, an option, a value that is not finite, no safetensors at all",
    403: "asked by a web page of another origin",
    408: "the body did not come in time",
    411: "no Content-Length",
    413: "too large a body",
    415: f"a media type other than {wire.MEDIA_TYPE}",
    421: "asked under a name that is not the server's",
    500: "a defect; see the server's log",
    503: "no room now, or the server stops",
    504: "not computed in time",
}
SUMMARIES = {
    IMAGINE: "Futures of candidates.",
    SCORE: "How likely the observed frames are, in nats per token.",
    ENCODE: "Tokens of frames.",
    RANK: "Action chunks from one state, best first, each with a verdict.",
    PLAN: "Actions that an objective likes best, and what is expected of them.",
    VERIFY: "A verdict on one action chunk: accepted, rejected or unknown.",
}


def describe(model: TokenWorldModel, limits: Limits) -> dict[str, Any]:
    """Return the OpenAPI document of a server."""
    json_object = {"application/json": {"schema": {"type": "object"}}}
    paths: dict[str, Any] = {path: {"post": _operation(path, model, limits)} for path in PATHS}
    for path, summary, content in (
        ("/health", "The model's shapes, the limits, what runs and waits.", json_object),
        ("/metrics", "Counters in Prometheus's format.", {"text/plain": {"schema": _TEXT}}),
        ("/openapi.json", "This document.", json_object),
    ):
        answers = {"200": {"description": summary, "content": content}, **_errors(403, 421, 503)}
        paths[path] = {"get": {"summary": summary, "responses": answers}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tokenwm serve", "version": tokenwm.__version__},
        "paths": paths,
        "components": {
            "schemas": {
                "Error": {
                    "type": "object",
                    "required": ["error"],
                    "properties": {"error": _TEXT},
                    "additionalProperties": False,
                }
            }
        },
    }


_TEXT = {"type": "string"}


def _operation(path: str, model: TokenWorldModel, limits: Limits) -> dict[str, Any]:
    arrays = ", ".join(f"{name} {_shape(name, path, model)}" for name in arrays_of(path, model))
    if takes_goal(path):
        arrays += f" and, if wanted, {GOAL} {_shape(GOAL, path, model)}"
    body = {
        "description": f"safetensors with the arrays {arrays}; "
        f"options ({', '.join(OPTIONS[path])}) as JSON in the metadata entry `options`; at most "
        f"{limits.max_body_bytes} bytes, {limits.max_rows} rows, {limits.max_steps} steps",
        "required": True,
        "content": {wire.MEDIA_TYPE: {"schema": _TEXT | {"format": "binary"}}},
    }
    answer = {"description": "safetensors", "content": {wire.MEDIA_TYPE: {"schema": {}}}}
    return {
        "summary": SUMMARIES[path],
        "requestBody": body,
        "responses": {"200": answer, **_errors(*ERRORS)},
    }


def _errors(*statuses: int) -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": ERRORS[status], "content": content} for status in statuses}


def _shape(name: str, path: str, model: TokenWorldModel) -> str:
    vocabulary = model.vocabulary
    frame = ", ".join(map(str, model.tokenizer.frame_shape))
    state = 0 if vocabulary.state is None else vocabulary.state.num_dimensions
    return {
        "frames": f"(N, {frame}) uint8" if path == ENCODE else f"(B, C, {frame}) uint8",
        GOAL: f"({frame}) uint8",
        "past_actions": f"(B, C - 1, {vocabulary.action.num_dimensions})",
        "states": f"(B, C, {state})",
        "actions": f"(B * n, steps, {vocabulary.action.num_dimensions})",
    }[name]
