"""Changes of recorded actions, in words: what somebody would have done instead.

::

    grip=0.4        a dimension set to a number, in the units of the data
    grip+=0.1       … or moved by one; -= the other way
    1+=10%          … by so much of its range in the training data; dimensions have numbers, too
    EPISODE:STEP    what was done in an episode of the dataset from that step on
    FILE.npy        rows of actions in the units of the data
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.evaluation.starts import check_episode
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.synthesis.imagine import read_actions
from tokenwm.tokenizer.actions import BinTokenizer

_CHANGE = re.compile(r"(?P<name>[^=]+?)(?P<sign>[+-]?)=(?P<number>[^=%]+)(?P<percent>%?)")
_CHUNK = re.compile(r"(?P<key>[A-Za-z0-9_-]+):(?P<step>\d+)")


def changed_actions(
    model: TokenWorldModel, reader: ShardReader, own: NDArray[Any], changes: Sequence[str]
) -> NDArray[Any]:
    """Actions with which some of an episode's are replaced.

    Args:
        model: Says the range of the training data, and how many of the robot's actions make a step.
        reader: Dataset; names the dimensions, and holds the episodes that chunks are taken from.
        own: ``(n, A)``, what was done.
        changes: In words, see above: changes of dimensions, one after another, or a single chunk.

    Returns:
        ``(n, A)`` in the units of the data; a new array.

    Raises:
        TokenwmError: A change is none, or names what is not there; a chunk is too short.
    """
    if len(changes) == 1:
        (text,) = changes
        if text.endswith(".npy"):
            return read_actions(Path(text), model, len(own))
        chunk = _CHUNK.fullmatch(text)
        if chunk is not None:
            return _recorded(reader, chunk["key"], int(chunk["step"]), len(own))
    count = model.actions_per_step
    changed = own.reshape(len(own), count, -1).copy()  # (n, the robot's actions, dimensions)
    names = dimension_names(reader, changed.shape[-1], count)
    for text in changes:
        _change(changed, text, names, model)
    return changed.reshape(own.shape)


def dimension_names(reader: ShardReader, num_dimensions: int, count: int) -> tuple[str, ...]:
    """Names of the dimensions of the robot's action: those of the dataset, else their numbers."""
    names = reader.manifest.features["action"].names[:num_dimensions]
    if len(names) < num_dimensions:
        return tuple(map(str, range(num_dimensions)))
    return tuple(name.removesuffix("@0") for name in names) if count > 1 else names


def _change(
    changed: NDArray[Any], text: str, names: tuple[str, ...], model: TokenWorldModel
) -> None:
    """Change one dimension of ``(n, the robot's actions, dimensions)``, in place."""
    found = _CHANGE.fullmatch(text)
    try:
        number = float(found["number"]) if found else np.nan
    except ValueError:
        number = np.nan
    if found is None or not np.isfinite(number):
        raise TokenwmError(
            f"{text!r} is no other action; use NAME=VALUE, NAME+=VALUE, NAME-=10% (of its range), "
            "EPISODE:STEP or FILE.npy, the last two alone"
        )
    name, sign = found["name"], found["sign"]
    if name not in names and not (name.isdecimal() and int(name) < len(names)):
        numbers = "" if names[0] == "0" else f" or a number below {len(names)}"
        raise TokenwmError(
            f"{text!r}: the action has no dimension {name!r}; it has {', '.join(names)}{numbers}"
        )
    place = names.index(name) if name in names else int(name)
    is_whole = np.issubdtype(changed.dtype, np.integer)
    if is_whole and (sign or found["percent"] or number != round(number) or number < 0):
        raise TokenwmError(f"{text!r}: these actions are ids; use {name}=ID")
    if found["percent"] and not sign:
        raise TokenwmError(
            f"{text!r}: percent are of the range of the training data, and say by how much; use "
            f"{name}+={found['number']}% or {name}-={found['number']}%"
        )
    if found["percent"]:
        number *= _range(model, place, changed.shape[1]) / 100.0
    if sign:
        changed[..., place] += -number if sign == "-" else number
    else:
        changed[..., place] = number


def _range(model: TokenWorldModel, place: int, count: int) -> float:
    """Largest minus least value of a dimension of the robot's action in the training data."""
    tokenizer = model.vocabulary.action
    assert isinstance(tokenizer, BinTokenizer), "ids have no range"
    low, high = (end.reshape(count, -1)[:, place] for end in tokenizer.training_range)
    return float(high.max() - low.min())


def _recorded(reader: ShardReader, key: str, step: int, num_steps: int) -> NDArray[Any]:
    check_episode(reader, key)
    left = max(0, reader.episode(key).num_steps - 1 - step)  # the last step has no action
    if left < num_steps:
        raise TokenwmError(
            f"{key}:{step}: from step {step} on the episode has {left} action(s), {num_steps} are "
            "needed; use an earlier step, or change fewer"
        )
    return reader.arrays(key, ["action"], step, step + num_steps)["action"]
