"""Checks that a dataset is of the kind that a model was trained on."""

from collections.abc import Sequence

from tokenwm.data.shards.reader import ShardReader
from tokenwm.errors import TokenwmError
from tokenwm.imagination.token_world_model import TokenWorldModel
from tokenwm.tokenizer.actions import BinTokenizer
from tokenwm.tokenizer.frames import FrameTokenizer


def check_data_fits(model: TokenWorldModel, reader: ShardReader) -> None:
    """Check that a dataset is of the kind a model was trained on.

    Raises:
        TokenwmError: Cameras, frame size, actions, state or control rate differ.
    """
    manifest, folder = reader.manifest, reader.root
    if manifest.kind != "frames":
        raise TokenwmError(
            f"{folder} holds {manifest.kind} shards; frames are needed to compare with: give the "
            "folder that 'tokenwm prepare' wrote"
        )
    tokenizer: FrameTokenizer = model.tokenizer
    if manifest.cameras != model.cameras:
        raise TokenwmError(
            f"{folder} has the cameras {_names(manifest.cameras)}; the model was trained on "
            f"{_names(model.cameras)}; prepare the data with the same `cameras` in the recipe"
        )
    height, width = tokenizer.image_size
    for camera in manifest.cameras:
        shape = manifest.features[f"frames.{camera}"].shape
        if shape != (height, width, 3):
            raise TokenwmError(
                f"{folder}: frames of camera {camera} are {shape[0]}×{shape[1]} pixels; the model "
                f"was trained on {height}×{width}; prepare the data with image_size: [{height}, "
                f"{width}]"
            )
    _check_scalars(model, reader)
    if abs(manifest.control_rate - model.control_rate) > 0.01 * model.control_rate:
        raise TokenwmError(
            f"{folder} has {manifest.control_rate:g} steps per second, the model was trained on "
            f"{model.control_rate:g}; prepare the data with control_rate: {model.control_rate:g}"
        )


def _check_scalars(model: TokenWorldModel, reader: ShardReader) -> None:
    vocabulary, features = model.vocabulary, reader.manifest.features
    wanted = {"action": vocabulary.action}
    if vocabulary.state is not None:
        wanted["state"] = vocabulary.state
    for name, scalar_tokenizer in wanted.items():
        if name not in features:
            raise TokenwmError(
                f"{reader.root} has no {name}, which the model needs; name it in the recipe and "
                "prepare again"
            )
        feature = features[name]
        size = feature.shape[0] if feature.shape else 1
        is_continuous = isinstance(scalar_tokenizer, BinTokenizer)
        if size != scalar_tokenizer.num_dimensions or is_continuous == (feature.kind == "discrete"):
            kind = "continuous" if is_continuous else "discrete"
            raise TokenwmError(
                f"{reader.root}: {name} is {feature.kind} with {size} dimension(s); the model "
                f"was trained on {kind} with {scalar_tokenizer.num_dimensions}"
            )


def _names(names: Sequence[str]) -> str:
    return ", ".join(names) if names else "(none)"
