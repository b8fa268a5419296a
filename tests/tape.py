"""CUDA graphs for a machine without CUDA: the operations of a function, to be run again.

Like a graph, a tape knows the operations and the memory they worked on and nothing of the Python
around them, and it refuses what cannot be recorded: looking at a value.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

LOOKS_AT_VALUES = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")


class Tape(TorchDispatchMode):
    """Runs operations and remembers them."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name in LOOKS_AT_VALUES or _has_boolean_index(name, args):
            raise RuntimeError(f"{name} cannot be recorded: it waits for the device")
        result = func(*args, **(kwargs or {}))
        self.operations.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        """Run the operations again, each into the memory it wrote to before."""
        for func, args, kwargs, recorded in self.operations:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(recorded), tree_leaves(again), strict=True):
                if isinstance(old, Tensor) and not _is_same_memory(old, new):
                    old.copy_(new)


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Stands in for :func:`tokenwm.imagination.graphs.capture`.

    A tape has to run what it records, so the first replay does nothing.
    """
    tape, is_first = Tape(), True
    with tape:
        function()

    def replay() -> None:
        nonlocal is_first
        if not is_first:
            tape.replay()
        is_first = False

    return replay


def _is_same_memory(old: Tensor, new: Tensor) -> bool:
    return old.untyped_storage().data_ptr() == new.untyped_storage().data_ptr()


def _has_boolean_index(name: str, args: tuple[Any, ...]) -> bool:
    if not name.startswith(("index.", "index_put")) and name != "index":
        return False
    return any(isinstance(a, Tensor) and a.dtype == torch.bool for a in tree_leaves(args[1]))
