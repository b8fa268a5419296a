"""``fit --from MODEL``: the model that training begins from, and options that follow from it."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tokenwm.checkpoint import find_checkpoint, load_tokenizer, load_world_model, read_provenance
from tokenwm.cli.training.model_exports import AUGMENTATION
from tokenwm.parent import Parent, lineage
from tokenwm.tokenizer.frames import FrameTokenizer
from tokenwm.training import OptimizerConfig
from tokenwm.transformer.world_model import WorldModel

KINDS = {"tokenizer": "frame_tokenizer", "world-model": "world_model"}
"""Verb → kind of the checkpoint that it trains."""
LEARNING_RATE_SHARE = 0.3
"""Peak learning rate of fine-tuning, as a share of the parent's own."""
WARMUP_STEPS = 20
STEPS_BETWEEN_VALIDATIONS = 200


def load_parent(verb: str, path: str) -> Parent:
    """The model that a stage begins from.

    Args:
        verb: ``tokenizer`` or ``world-model``.
        path: A checkpoint, a training run, or the folder of a quick start.

    Raises:
        CheckpointError: There is none, or it cannot be read.
    """
    folder = find_checkpoint(path, KINDS[verb])
    if verb == "tokenizer":
        return Parent(folder=path, model=load_tokenizer(folder), provenance=read_provenance(folder))
    loaded = load_world_model(folder)
    return Parent(
        folder=path,
        model=loaded.world_model,
        provenance=loaded.provenance,
        cameras=loaded.cameras,
        control_rate=loaded.control_rate,
    )


def with_inherited_options(verb: str, argv: Sequence[str]) -> list[str]:
    """Arguments of a stage, with those that follow from ``--from`` before those that are given.

    Sizes, windows, batches and precision are the parent's, and the learning rate is a share of its.

    Args:
        verb: ``tokenizer`` or ``world-model``.
        argv: Arguments of LightningCLI, the subcommand first.

    Raises:
        CheckpointError: There is no such model.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--from")
    path = getattr(parser.parse_known_args(argv[1:])[0], "from")
    if path is None or argv[0] != "fit":
        return list(argv)
    options = _inherited(load_parent(verb, path))
    return [argv[0], f"--config={json.dumps(options)}", *argv[1:]]


def _inherited(parent: Parent) -> dict[str, Any]:
    """Options as LightningCLI has them: checked numbers and names, whatever the folder holds."""
    model, origin = parent.model, parent.provenance
    assert isinstance(model, FrameTokenizer | WorldModel)
    # The peak of the first of them, not a share of a share.
    rates = [rate for each in lineage(origin) if (rate := _number(each, "learning_rate"))]
    rate = max(rates, default=OptimizerConfig.learning_rate)
    sizes = {name: _number(origin, name) for name in ("num_steps", "batch_size")}
    is_tokenizer = isinstance(model, FrameTokenizer)
    augmentation = {name: _number(origin, name) or 0 for name in AUGMENTATION if is_tokenizer}
    precision = origin.get("precision")
    return {
        "model": {
            "tokenizer" if is_tokenizer else "model": asdict(model.config),
            **augmentation,
            "optimizer": {
                "learning_rate": LEARNING_RATE_SHARE * rate,
                "warmup_steps": WARMUP_STEPS,
            },
        },
        "data": {"num_val_batches": 8, **{name: size for name, size in sizes.items() if size}},
        "trainer": {
            "val_check_interval": STEPS_BETWEEN_VALIDATIONS,
            **({"precision": precision} if isinstance(precision, str) else {}),
        },
    }


def _number(origin: Mapping[str, Any], name: str) -> int | float | None:
    value = origin.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if 0 < value < math.inf else None
