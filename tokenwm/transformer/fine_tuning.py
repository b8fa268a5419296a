"""Fine-tuning of a world model: it begins from the weights of a parent, if their tokens agree."""

from dataclasses import asdict

from tokenwm.data.shards.manifest import Manifest
from tokenwm.errors import CheckpointError
from tokenwm.parent import Parent
from tokenwm.resume import check_shapes, named_options
from tokenwm.transformer.world_model import WorldModel

FREE_OPTIONS = ("dropout", "_weight")
"""Ends of the names of options that are about training only."""


def begin_from(parent: Parent, model: WorldModel, data: Manifest) -> None:
    """Give a new model all weights of its parent.

    Bins are the parent's. The range of rewards is widened to hold those of the data too; what the
    head knows of the former range stays. Another frame tokenizer is none of the parent's business:
    its codes begin with what the parent knows of them.

    Args:
        parent: Holds a world model.
        model: Made for the data at hand.
        data: Manifest of the main dataset.

    Raises:
        CheckpointError: The two differ in sizes, or in what tokens, steps or cameras mean.
    """
    old = parent.model
    assert isinstance(old, WorldModel)
    remedy = f"make the tokens with 'tokenwm tokenize … --vocabulary-of {parent.folder}'"
    if parent.cameras is not None:
        prepare = "name the same cameras in the recipe, in the same order, and prepare again"
        parent.require_same("the cameras are", parent.cameras, data.cameras, prepare)
    if parent.control_rate is not None and not _near(parent.control_rate, data.control_rate):
        prepare = f"prepare with control_rate: {parent.control_rate:g}"
        parent.require_same("control_rate is", parent.control_rate, data.control_rate, prepare)
    apart_from = ("tokenizer_hash", "reward_range", "bins")
    for name, values in old.vocabulary.differences(model.vocabulary, apart_from).items():
        parent.require_same(f"{name} is", *values, remedy)
    theirs, ours = old.vocabulary.differences(model.vocabulary).get("bins", ({}, {}))
    others = [name for name in theirs if theirs[name] != ours[name]]
    if others:
        raise CheckpointError(
            f"training cannot begin from {parent.folder}: its bins of {' and '.join(others)} are "
            f"others than those of these tokens; {remedy}"
        )
    parent.require_same_sizes("model.model", _sizes(old), _sizes(model))
    check_shapes(old.state_dict(), model.state_dict())
    wanted = model.vocabulary.reward_range
    model.set_reward_range(old.vocabulary.reward_range)
    model.load_state_dict(old.state_dict())
    if wanted is not None:
        model.widen_reward_range(*wanted)


def _near(rate: float, other: float) -> bool:
    return abs(rate - other) <= 0.01 * rate


def _sizes(model: WorldModel) -> dict[str, object]:
    """Options that weights depend on, by dotted name."""
    options = named_options(asdict(model.config), "")
    return {k: v for k, v in options.items() if not k.endswith(FREE_OPTIONS)}
