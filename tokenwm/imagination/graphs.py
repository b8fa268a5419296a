"""Work on fixed tensors, captured once as a CUDA graph and from then on started as one.

A pass of a small model is hundreds of kernels of a few microseconds each, and starting them one by
one takes longer than running them. A graph holds the addresses of what it reads and writes, so what
it works on is copied into tensors of its own first; and it belongs to the cache that it writes to.
"""

import logging
import threading
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast
from weakref import WeakSet

import torch
from torch import Tensor

from tokenwm.imagination.records import map_leaves
from tokenwm.transformer.cache import KVCache
from tokenwm.transformer.world_model import WorldModel

logger = logging.getLogger(__name__)

Arguments = TypeVar("Arguments")
Result = TypeVar("Result")
T = TypeVar("T")

WARM_UP_CALLS = 3
"""Calls that are run as they are: libraries choose kernels and compilers compile in the first."""


class GraphedCall(Generic[Arguments, Result]):
    """A function of fixed tensors.

    The first calls run it as it is (they count: nothing is done twice), the next captures it, those
    behind replay the graph. If it cannot be captured, that is logged and it goes on being run as it
    is.

    Args:
        function: Works on a CUDA device, looks at the value of no tensor, and overwrites at most
            tensors of its arguments and cells of their cache.
        arguments: Of which it gets a copy: dataclasses and tuples, nested, of tensors, a cache
            (whose memory is shared) and constants.

    Attributes:
        arguments: The copy; overwrite its tensors between calls, never replace them.
    """

    def __init__(self, function: Callable[[Arguments], Result], arguments: Arguments) -> None:
        self.arguments = map_leaves(_copy, arguments)
        self._function = function
        self._num_calls = 0
        self._replay: Callable[[], None] | None = None
        self._result: Result | None = None

    def __call__(self) -> Result:
        """Run the function, once. The next call overwrites the tensors of the result."""
        self._num_calls += 1
        if self._num_calls == WARM_UP_CALLS + 1:
            self._capture()
        if self._replay is None:
            return self._function(self.arguments)
        self._replay()
        return cast(Result, self._result)

    def _capture(self) -> None:
        def run() -> None:
            self._result = self._function(self.arguments)

        try:
            self._replay = capture(run, _device_of(self.arguments))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("decoding goes on without a CUDA graph: %s", error)


def run_graphed(
    model: WorldModel,
    function: Callable[[Arguments], Result],
    arguments: Arguments,
    cache: KVCache,
    key: Hashable,
) -> Result:
    """Call a function; as a CUDA graph, if the model's passes are.

    Args:
        model: The world model.
        function: See :class:`GraphedCall`.
        arguments: The same.
        cache: The cache that it writes to.
        key: Name of the function and the sizes it works on.

    Returns:
        The function's result, with tensors of its own and the same cache.
    """
    if not model.graph_passes:
        return function(arguments)

    def own(leaf: Any) -> Any:
        return cache if isinstance(leaf, KVCache) else _copy(leaf)

    graphed = cache.graph(key, lambda: GraphedCall(function, arguments))
    overwrite(graphed.arguments, arguments)
    return map_leaves(own, graphed())


class _OfThread(threading.local):
    """A stream to capture on and memory for intermediate values, shared by graphs of one thread.

    No two of them run at the same time. Memory belongs to the graphs that are alive: a pool whose
    graphs are gone cannot be captured to again.
    """

    def __init__(self) -> None:
        self.streams: dict[torch.device, torch.cuda.Stream] = {}
        self.graphs: dict[torch.device, WeakSet[torch.cuda.CUDAGraph]] = {}


_of_thread = _OfThread()


def capture(function: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Capture the kernels that a function starts on a device, without running them.

    Returns:
        What runs them.
    """
    if device not in _of_thread.streams:
        _of_thread.streams[device] = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    graphs = _of_thread.graphs.setdefault(device, WeakSet())
    pool = next((other.pool() for other in graphs), None)
    graph = torch.cuda.CUDAGraph()
    try:
        # Back to this stream also if capturing fails; other threads (a server's, a data loader's)
        # may go on using the device meanwhile.
        with (
            torch.cuda.device(device),
            torch.cuda.stream(torch.cuda.current_stream(device)),
            torch.cuda.graph(
                graph,
                pool=pool,
                stream=_of_thread.streams[device],
                capture_error_mode="thread_local",
            ),
        ):
            function()
    except RuntimeError:
        graphs.clear()  # their pool may count as being captured to for ever
        raise
    graphs.add(graph)
    return graph.replay


def overwrite(target: T, source: T) -> None:
    """Copy every tensor of one record into the same field of another of its kind."""
    tensors: list[Tensor] = []
    map_leaves(lambda leaf: tensors.append(leaf) if isinstance(leaf, Tensor) else None, source)
    remaining = iter(tensors)
    map_leaves(
        lambda leaf: leaf.copy_(next(remaining)) if isinstance(leaf, Tensor) else None, target
    )


def _copy(leaf: Any) -> Any:
    if isinstance(leaf, KVCache):
        return leaf.twin()
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _device_of(values: Any) -> torch.device:
    devices: list[torch.device] = []
    map_leaves(
        lambda leaf: devices.append(leaf.device) if isinstance(leaf, Tensor) else None, values
    )
    return devices[0]
