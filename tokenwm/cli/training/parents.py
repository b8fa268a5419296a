"""``fit --from MODEL``: the model that training begins from, and options that follow from it."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenwm.checkpoint import (
    REMOVED_OPTIONS,
    find_checkpoint,
    load_tokenizer,
    load_world_model,
    read_config,
    read_provenance,
)
from tokenwm.parent import Parent, lineage
from tokenwm.training import OptimizerConfig

KINDS = {"tokenizer": "frame_tokenizer", "world-model": "world_model"}
"""Verb → kind of the checkpoint that it trains."""
LEARNING_RATE_SHARE = 0.3
"""Peak learning rate of fine-tuning, as a share of the parent's own."""
WARMUP_STEPS = 20
VALIDATION = {"val_check_interval": 200}


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
    folder = find_checkpoint(path, KINDS[verb])
    return [argv[0], f"--config={json.dumps(_inherited(verb, folder))}", *argv[1:]]


def _inherited(verb: str, folder: Path) -> dict[str, Any]:
    config, origin = read_config(folder), read_provenance(folder)
    name = "tokenizer" if verb == "tokenizer" else "model"
    sizes = config["tokenizer" if verb == "tokenizer" else "world_model"]
    # The peak of the first of them, not a share of a share.
    rates = [each["learning_rate"] for each in lineage(origin) if "learning_rate" in each]
    rate = max(rates, default=OptimizerConfig.learning_rate)
    data = {key: origin[key] for key in ("num_steps", "batch_size") if key in origin}
    precision = {key: origin[key] for key in ("precision",) if key in origin}
    return {
        "model": {
            name: {k: v for k, v in sizes.items() if k not in REMOVED_OPTIONS},
            "optimizer": {
                "learning_rate": LEARNING_RATE_SHARE * rate,
                "warmup_steps": WARMUP_STEPS,
            },
        },
        "data": {**data, "num_val_batches": 8},
        "trainer": {**VALIDATION, **precision},
    }
