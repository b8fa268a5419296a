"""Folder of a training run: checkpoints, logs, and the model at the end."""

import math
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from tokenwm.checkpoint import read_provenance
from tokenwm.data.storage.atomic import older_of
from tokenwm.errors import CheckpointError
from tokenwm.resume import REMEDY

LAST_CHECKPOINT = "checkpoints/last.ckpt"
"""Place of Lightning's checkpoint for resuming in a run's folder."""
CONFIG_NAME = "training.yaml"
"""All options of a run, in the folder of its logs: as a --config they repeat it."""


def last_checkpoint(root: Path) -> Path | None:
    """The checkpoint to resume a run from: a file, or a folder with a part for each rank."""
    last = root / LAST_CHECKPOINT
    return next((path for path in (last, older_of(last)) if path.exists()), None)


def read_without_weights(path: Path) -> dict[str, Any]:
    """A checkpoint, whose tensors stay on the disk until somebody looks at them.

    Raises:
        CheckpointError: It cannot be read.
    """
    file = path / "meta.pt" if path.is_dir() else path  # where torch keeps all but tensors
    try:
        found: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} cannot be read: {reason}; {REMEDY}") from error
    return found


def steps_of_model(folder: Path) -> int | None:
    """Steps that a model in a run's folder was trained for; None if there is none, or a part."""
    weights = {folder / "model.safetensors", *folder.rglob("*.safetensors")}
    if any(parameters_of(path) is None for path in weights):
        return None
    return read_provenance(folder).get("steps")


def parameters_of(file: Path) -> int | None:
    """Numbers in a file of weights, by its header; None if it is not there or not whole."""
    try:
        with safe_open(file, "pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in weights.keys()]  # noqa: SIM118
    except (OSError, SafetensorError):
        return None
    return int(sum(math.prod(shape) for shape in shapes))


def keep_earlier(path: Path) -> None:
    """Rename a log of a run that is continued, which would be written over: name.NNN.suffix."""
    if path.exists():
        number = len(list(path.parent.glob(f"{path.stem}.*{path.suffix}")))
        path.rename(path.with_name(f"{path.stem}.{number:03d}{path.suffix}"))
