"""Check whether a run can be continued: what was saved against what is given now.

A run is continued as it began, or refused in one line that names both values and what to do.
"""

from collections.abc import Mapping
from typing import Any

from tokenwm.errors import CheckpointError

REMEDY = "use another --trainer.default_root_dir, or --resume false"


def named_options(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Nested options by their dotted names, as the command line has them."""
    named: dict[str, Any] = {}
    for key, value in values.items():
        inner = isinstance(value, Mapping)
        named |= named_options(value, f"{prefix}{key}.") if inner else {prefix + key: value}
    return named


def check_options(before: Mapping[str, Any], now: Mapping[str, Any], step: int) -> None:
    """Check that all options which both sides know have the same values.

    Args:
        before: Options by name, as a checkpoint has them; an older one may have fewer.
        now: Options by name.
        step: Optimizer steps that the run has taken.

    Raises:
        CheckpointError: Names the first that differs.
    """
    for name in before:
        if name in now and before[name] != now[name]:
            raise CheckpointError(
                f"{name} is {now[name]}, but {before[name]} in the run to be continued "
                f"(step {step}): {REMEDY}"
            )


def check_shapes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Check that the tensors of a checkpoint are those of the model, by name and shape.

    Raises:
        CheckpointError: Says how many differ and shows the first of them.
    """
    before, now = (
        {name: tuple(value.shape) for name, value in tensors.items() if hasattr(value, "shape")}
        for tensors in (saved, here)
    )
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if before and differing:
        name = differing[0]
        raise CheckpointError(
            f"the checkpoint holds a model of other sizes: {len(differing)} tensors differ, the "
            f"first one, {name}, is {before.get(name, 'missing')} there and "
            f"{now.get(name, 'missing')} here; give the options and data that it was trained "
            f"with; to train another model, {REMEDY}"
        )
