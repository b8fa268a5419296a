"""Heads as folders: ``heads/NAME/`` in a world model's checkpoint folder.

``head.safetensors`` holds the weights and ``head.json`` all else; nothing in them can run code. A
head names the weights of the model that it was made for, and no other model gets it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from tokenwm.checkpoint import file_hash
from tokenwm.data.episode import NAME_PATTERN
from tokenwm.data.storage.atomic import make_folder_atomically
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import CheckpointError, TokenwmError
from tokenwm.heads.head import Head, HeadConfig, Meaning
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.strict import build

HEADS, HEAD, WEIGHTS = "heads", "head.json", "head.safetensors"
HEAD_VERSION = 1
KEYS = {"head_version", "base", "weights_sha256", "config", "meaning", "provenance"}


def head_folder(model: TokenWorldModel, name: str) -> Path | None:
    """Folder of a head of a model; None if the model was not loaded from a folder.

    Raises:
        TokenwmError: The name cannot be that of a folder.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise TokenwmError(f"a head is called {name!r}; letters, digits, '_' and '-' only")
    return None if model.folder is None else model.folder / HEADS / name


def has_head(model: TokenWorldModel, name: str) -> bool:
    """True if there is a head of this name beside a model, whole or damaged."""
    folder = head_folder(model, name)
    return folder is not None and folder.is_dir()


def save_head(model: TokenWorldModel, name: str, head: Head, provenance: Mapping[str, Any]) -> Path:
    """Write a head beside its model; an older one of this name is replaced.

    Args:
        model: The model it was made for, as loaded from a checkpoint folder.
        name: Name of the head.
        head: What is saved.
        provenance: What it was trained on and how well it does, JSON values.

    Returns:
        The folder.

    Raises:
        CheckpointError: The model was not loaded from a folder, or it cannot be written.
    """
    folder = head_folder(model, name)
    if folder is None:
        raise CheckpointError(f"head {name}: its model was not loaded from a folder")
    try:
        with make_folder_atomically(folder) as partial:
            state = {name: value.cpu().contiguous() for name, value in head.state_dict().items()}
            save_file(state, partial / WEIGHTS)
            values = {
                "head_version": HEAD_VERSION,
                "base": _base(model),
                "weights_sha256": file_hash(partial / WEIGHTS),
                "config": asdict(head.config),
                "meaning": asdict(head.meaning),
                "provenance": dict(provenance),
            }
            (partial / HEAD).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"head {folder} could not be written: {error}") from error
    return folder


def load_head(model: TokenWorldModel, name: str) -> Head:
    """A head that was trained for a model, on its device and in eval mode.

    ::

        head = tokenwm.load_head(model, "readout")
        head(frames)            # (B, outputs); head.meaning says what they are

    Raises:
        CheckpointError: There is none, it is damaged, or it was made for another model.
    """
    values = read_head(model, name)
    folder = head_folder(model, name)
    assert folder is not None, "read_head has refused a model without one"
    try:
        # Older heads lack what was added since.
        config = build(HeadConfig, values["config"], "config", allow_defaults=True)
        meaning = build(Meaning, values["meaning"], "meaning", allow_defaults=False)
        head = Head(config, meaning)
        head.load_state_dict(load_file(folder / WEIGHTS), strict=True)
    except (TokenwmError, SafetensorError, OSError, RuntimeError, TypeError) as error:
        raise CheckpointError(f"{folder} does not describe a head: {error}") from error
    if not all(bool(value.isfinite().all()) for value in head.state_dict().values()):
        raise CheckpointError(f"{folder}: a weight is NaN or infinite; train the head again")
    return head.to(model.device).eval()


def read_head(model: TokenWorldModel, name: str) -> dict[str, Any]:
    """Content of ``head.json``, after checking that it is of this model and its weights of it.

    Raises:
        CheckpointError: There is none, it is damaged, or it was made for another model.
    """
    folder = head_folder(model, name)
    if folder is None or not (folder / HEAD).is_file():
        where = (
            "the model, which was not loaded from a folder," if folder is None else folder.parent
        )
        raise CheckpointError(
            f"{where} has no head {name!r}; `tokenwm heads` trains prior, distance and doubt, and "
            "`tokenwm evaluate` on data with a task state the readout"
        )
    try:
        refuse_pointer(folder / WEIGHTS, CheckpointError)
        values = json.loads((folder / HEAD).read_text(encoding="utf-8"))
        digest = file_hash(folder / WEIGHTS)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("head_version") != HEAD_VERSION:
        found = values.get("head_version") if isinstance(values, dict) else None
        raise CheckpointError(
            f"{folder / HEAD} has head_version {found!r}; this tokenwm reads {HEAD_VERSION}"
        )
    if values.keys() != KEYS or values["weights_sha256"] != digest:
        raise CheckpointError(f"{folder} was changed or damaged; train the head again")
    if values["base"] != _base(model):
        raise CheckpointError(
            f"head {folder} was made for the world model with weights "
            f"{str(values['base'])[:12]}…, not for this one; train it again"
        )
    return values


def _base(model: TokenWorldModel) -> str:
    """Hash of the weights of a model that was loaded from a folder."""
    return str(model.provenance["weights_sha256"])
