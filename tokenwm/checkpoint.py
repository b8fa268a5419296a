"""Checkpoint folders: ``model.safetensors``, ``config.yaml``, ``provenance.json``.

Nothing in them can run code. A world model's folder holds its tokenizer in ``tokenizer/``, so one
folder is all a robot needs. Lightning's own checkpoints are for resuming training only.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tokenwm.data.storage.atomic import make_folder_atomically
from tokenwm.data.storage.pointers import refuse_pointer
from tokenwm.errors import CheckpointError
from tokenwm.sequence.layout import LAYOUT_VERSION
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.tokenizer.frames import FrameTokenizer, FrameTokenizerConfig
from tokenwm.transformer.model import TransformerConfig
from tokenwm.transformer.world_model import WorldModel, WorldModelConfig

CHECKPOINT_VERSION = 2
WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.yaml", "provenance.json"
FILES = (CONFIG, WEIGHTS, PROVENANCE)
"""Files of every checkpoint folder; a tokenizer's holds nothing else."""
VOCABULARY = "vocabulary.json"
REMOVED_OPTIONS = ("token_noise", "scalar_noise")
"""They were about training only; folders of this version may still name them."""


def model_folder(path: Path | str) -> Path:
    """The checkpoint folder that a path means: itself, or ``model`` in a training run's folder."""
    path = Path(path)
    inside = path / "model"
    return inside if not (path / CONFIG).exists() and (inside / CONFIG).exists() else path


def find_checkpoint(path: Path | str, kind: str) -> Path:
    """The checkpoint folder of a kind that a path means, also inside a run of all stages.

    Args:
        path: A checkpoint, a training run, or the folder of a quick start.
        kind: ``world_model`` or ``frame_tokenizer``, which a world model's folder holds, too.

    Raises:
        CheckpointError: There is none.
    """
    places = ["", "model", "world_model", "world_model/model"]
    if kind == "frame_tokenizer":
        places = [*places, "tokenizer", "tokenizer/model", "model/tokenizer"]
    for folder in (Path(path) / place for place in places):
        if (folder / CONFIG).is_file() and read_config(folder).get("kind") == kind:
            return folder
    raise CheckpointError(
        f"{path} holds no {kind.replace('_', ' ')}; give the folder of a checkpoint, of a training "
        "run or of a quick start (of the hub: tokenwm pull first)"
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The config of a checkpoint folder: its kind and the sizes of its model.

    Raises:
        CheckpointError: It cannot be read, or is no mapping.
    """
    try:
        config = OmegaConf.to_container(OmegaConf.load(folder / CONFIG))
    except _UNREADABLE as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / CONFIG} is a {type(config).__name__}, no mapping")
    return {str(key): value for key, value in config.items()}


def read_vocabulary_of(folder: Path) -> Vocabulary:
    """The vocabulary of a world model's checkpoint folder.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    with _explaining(folder):
        return Vocabulary.from_dict(_read_object(folder / VOCABULARY))


def tokenizer_hash(tokenizer: FrameTokenizer) -> str:
    """SHA-256 of the tokenizer's config and weights, the identity that token shards carry."""
    digest = hashlib.sha256(json.dumps(_tokenizer_config(tokenizer), sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(folder: Path, tokenizer: FrameTokenizer, provenance: Mapping[str, Any]) -> str:
    """Write a tokenizer's checkpoint folder; returns its hash.

    Raises:
        CheckpointError: It cannot be written, for example because the disk is full.
    """
    with _writing(folder) as partial:
        return _write_tokenizer(partial, tokenizer, provenance)


def tokenizer_files(folder: Path) -> dict[str, bytes]:
    """Name → content of the files in a tokenizer's checkpoint folder (or that of a run's folder).

    Raises:
        OSError: One cannot be read.
    """
    return {name: (model_folder(folder) / name).read_bytes() for name in FILES}


def read_provenance(folder: Path) -> dict[str, Any]:
    """The provenance of a checkpoint: git commit, SHA-256 of the data, last figures.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return _read_object(model_folder(folder) / PROVENANCE)


def load_tokenizer(folder: Path, device: str | torch.device = "cpu") -> FrameTokenizer:
    """Load a tokenizer in eval mode.

    Raises:
        CheckpointError: A file is missing, damaged, of another kind or version, does not match
            its hash, or holds a weight that is not finite.
    """
    folder = model_folder(folder)
    config, weights, provenance = _read(folder, "frame_tokenizer")
    with _explaining(folder):
        tokenizer = FrameTokenizer(
            FrameTokenizerConfig(**_tuples(config["tokenizer"])),
            (int(config["image_size"][0]), int(config["image_size"][1])),
            int(config["num_cameras"]),
        )
        _load_state(tokenizer, weights)
    if provenance.get("tokenizer_hash") != tokenizer_hash(tokenizer):
        raise CheckpointError(
            f"{folder}: the weights do not have the hash that {PROVENANCE} names; "
            "the folder was changed or damaged"
        )
    return tokenizer.to(device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def save_world_model(
    folder: Path,
    model: WorldModel,
    tokenizer: FrameTokenizer,
    provenance: Mapping[str, Any],
    *,
    control_rate: float,
    cameras: tuple[str, ...],
    tokenizer_provenance: Mapping[str, Any] | None = None,
    weights: Mapping[str, Tensor] | None = None,
) -> None:
    """Write a world model's checkpoint folder with its tokenizer inside.

    Args:
        folder: The folder to write; an older one of this name is replaced.
        model: The world model to save.
        tokenizer: The tokenizer that made its tokens.
        provenance: Origin of model and data, JSON values; the tokenizer's hash is added.
        control_rate: Steps per second, Hz.
        cameras: Names of the cameras in order.
        tokenizer_provenance: Origin of the tokenizer, see :func:`read_provenance`.
        weights: The model's state dict, if the model itself holds only a share of it.

    Raises:
        CheckpointError: The tokenizer is not the one that made the model's tokens, or the folder
            cannot be written, for example because the disk is full.
    """
    check_tokenizer(model.vocabulary, tokenizer)
    config = {
        "kind": "world_model",
        "layout_version": LAYOUT_VERSION,
        "world_model": dataclasses.asdict(model.config),
        "control_rate": control_rate,
        "cameras": list(cameras),
    }
    with _writing(folder) as partial:
        identity = {"tokenizer_hash": model.vocabulary.tokenizer_hash}
        _write(partial, weights or model.state_dict(), config, {**provenance, **identity})
        # JSON, not YAML: the bins of a humanoid are more numbers than OmegaConf reads.
        (partial / VOCABULARY).write_text(json.dumps(model.vocabulary.to_dict()) + "\n")
        (partial / "tokenizer").mkdir()
        origin = {**(tokenizer_provenance or {}), "part_of": "world_model"}
        _write_tokenizer(partial / "tokenizer", tokenizer, origin)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedWorldModel:
    """A world model as loaded from its checkpoint folder, with its tokenizer.

    Attributes:
        world_model: In eval mode.
        tokenizer: In eval mode.
        control_rate: Steps per second, Hz.
        cameras: Names of the cameras in order.
        provenance: Origin of model and data.
        tokenizer_provenance: Origin of the tokenizer, with its last figures.
        folder: The checkpoint folder; None if it came from elsewhere.
    """

    world_model: WorldModel
    tokenizer: FrameTokenizer
    control_rate: float
    cameras: tuple[str, ...]
    provenance: Mapping[str, Any]
    tokenizer_provenance: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    folder: Path | None = None


def load_world_model(folder: Path, device: str | torch.device = "cpu") -> LoadedWorldModel:
    """Load a world model and its tokenizer.

    Raises:
        CheckpointError: A file is missing or damaged, a weight is not finite, or the tokenizer is
            not the one that made the tokens.
    """
    folder = model_folder(folder)
    config, weights, provenance = _read(folder, "world_model")
    if config.get("layout_version") != LAYOUT_VERSION:
        raise CheckpointError(
            f"{folder} has layout_version {config.get('layout_version')}; this tokenwm reads "
            f"{LAYOUT_VERSION}; see CHANGELOG.md"
        )
    if provenance.get("weights_sha256") != file_hash(folder / WEIGHTS):
        raise CheckpointError(
            f"{folder}: {WEIGHTS} does not have the hash that {PROVENANCE} names; "
            "the folder was changed or damaged"
        )
    with _explaining(folder):
        values = {k: v for k, v in config["world_model"].items() if k not in REMOVED_OPTIONS}
        transformer = TransformerConfig(**values.pop("transformer"))
        model = WorldModel(
            WorldModelConfig(transformer=transformer, **values),
            read_vocabulary_of(folder),
        )
        _load_state(model, weights)
        control_rate, cameras = float(config["control_rate"]), tuple(config["cameras"])
    tokenizer = load_tokenizer(folder / "tokenizer", device)
    check_tokenizer(model.vocabulary, tokenizer)
    return LoadedWorldModel(
        world_model=model.to(device).eval(),
        tokenizer=tokenizer,
        control_rate=control_rate,
        cameras=cameras,
        provenance=provenance,
        tokenizer_provenance=read_provenance(folder / "tokenizer"),
        folder=folder,
    )


def check_tokenizer(vocabulary: Vocabulary, tokenizer: FrameTokenizer) -> None:
    """Check that a tokenizer made the tokens of a vocabulary.

    Raises:
        CheckpointError: Its hash differs.
    """
    identity = tokenizer_hash(tokenizer)
    if identity != vocabulary.tokenizer_hash:
        raise CheckpointError(
            f"the tokenizer has hash {identity[:12]}…, but the tokens were made by "
            f"{vocabulary.tokenizer_hash[:12]}…; use the tokenizer that made the token shards, or "
            "run 'tokenwm tokenize' again and train on its output"
        )


def _tokenizer_config(tokenizer: FrameTokenizer) -> dict[str, Any]:
    config = _lists(dataclasses.asdict(tokenizer.config))
    if not config["code_margin"]:  # tokenizers from before there were margins keep their hash
        del config["code_margin"]
    return {
        "tokenizer": config,
        "image_size": list(tokenizer.image_size),
        "num_cameras": tokenizer.num_cameras,
    }


def _lists(values: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


@contextmanager
def _writing(folder: Path) -> Iterator[Path]:
    """Give a folder to write into that takes its place when it is whole; explain what fails."""
    try:
        with make_folder_atomically(folder) as partial:
            yield partial
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} could not be written: {error}. Nothing of it was kept, and what was there "
            "before still is; free space or choose another folder, then run again"
        ) from error


def _write(
    folder: Path,
    weights: Mapping[str, Tensor],
    config: Mapping[str, Any],
    provenance: Mapping[str, Any],
) -> None:
    """Write the three files that every checkpoint folder has."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    save_file(state, folder / WEIGHTS)
    versioned = {"checkpoint_version": CHECKPOINT_VERSION, **config}
    (folder / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(versioned)))
    checked = {**provenance, "weights_sha256": file_hash(folder / WEIGHTS)}
    (folder / PROVENANCE).write_text(json.dumps(checked, indent=2, default=str) + "\n")


def _write_tokenizer(folder: Path, tokenizer: FrameTokenizer, provenance: Mapping[str, Any]) -> str:
    identity = tokenizer_hash(tokenizer)
    config = {"kind": "frame_tokenizer", **_tokenizer_config(tokenizer)}
    _write(folder, tokenizer.state_dict(), config, {**provenance, "tokenizer_hash": identity})
    return identity


def file_hash(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(folder: Path, kind: str) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    for name in FILES:
        if not (folder / name).is_file():
            raise CheckpointError(
                f"{folder} has no {name}; a checkpoint folder holds {CONFIG}, {WEIGHTS} and "
                f"{PROVENANCE} and is written at the end of 'tokenwm tokenizer fit' or 'tokenwm "
                "world-model fit'"
            )
        refuse_pointer(folder / name, CheckpointError)
    config = read_config(folder)
    try:
        weights = load_file(folder / WEIGHTS)
    except _UNREADABLE as error:
        raise CheckpointError(f"{folder} cannot be read: {error}") from error
    provenance = _read_object(folder / PROVENANCE)
    if config.get("kind") != kind:
        raise CheckpointError(
            f"{folder / CONFIG} has kind {config.get('kind')!r}; expected {kind!r}"
        )
    if config.get("checkpoint_version") != CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{folder} has checkpoint_version {config.get('checkpoint_version')}; this "
            f"tokenwm reads {CHECKPOINT_VERSION}; see CHANGELOG.md"
        )
    _check_finite(folder / WEIGHTS, weights)
    return config, weights, provenance


def _check_finite(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity here, once: decoding would turn them into tokens like any other."""
    for name, tensor in weights.items():
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            count = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{path}: {count} of {tensor.numel()} weights of {name} are NaN or infinite; the "
                "training that wrote it diverged: train again with a lower learning rate, or load "
                "an earlier checkpoint"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object; the file is damaged")
    return values


_UNREADABLE = (
    SafetensorError,
    OmegaConfBaseException,
    yaml.YAMLError,
    ValueError,
    OSError,
    RecursionError,
)
"""Errors that reading damaged files can raise."""
_MALFORMED = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)
"""Errors of reading a config of the wrong shape, or weights of another model."""


@contextmanager
def _explaining(folder: Path) -> Iterator[None]:
    """Turn what goes wrong while a model is rebuilt into a CheckpointError with the folder."""
    try:
        yield
    except CheckpointError:
        raise
    except _MALFORMED as error:
        raise CheckpointError(f"{folder} does not describe a model: {error}") from error


def _load_state(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    module.load_state_dict(dict(weights), strict=True)
