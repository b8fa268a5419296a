"""A preallocated ring buffer of keys and values over the last ``window`` steps.

Cell ``position % capacity`` holds the key and value of a position (``step * L + slot``), and the
ring has room for a few steps more than the window. So while the positions of new steps are written,
the steps that older ones attend to are still there; nothing is moved, nothing grows, and decoding
past the window equals the full forward pass with a sliding mask exactly.

What a cell holds follows from the positions of the pass alone. Positions that were fed and then
rejected (a wrong draft, a frame that was only scored) need no clean-up: until they are overwritten
they count as a step that has left the window.

Rows may be replaced one by one: a row that begins later than the others sees nothing from before
its beginning. A fork gives every row many continuations: what came before is stored and read once,
and each continuation has a ring of its own, as large as its steps need.

A cache is overwritten as decoding goes on, so it counts how often that began: who remembers an
earlier count holds something that is not there any more. The count is an int on the host, and to
compare it waits for no device.
"""

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple, TypeVar
from weakref import WeakSet

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError

T = TypeVar("T")

MOST_GRAPHS = 8
"""CUDA graphs that a cache keeps: planners and environments use one or two."""


class KVCache:
    """Keys and values of every layer.

    Args:
        ahead: Steps that the ring has room for besides those of the window.
        max_steps: Most steps that it will ever hold, if they are fewer.

    Attributes:
        keys: Of every layer ``(B, kv_heads, capacity, head_dim)``, rotated. Tensors of their own:
            what is compiled writes to them in place, but would copy all of a larger one.
        values: The same.
        capacity: Cells of a ring: ``(window + ahead) * L``, or fewer for few steps.
        max_span: Most positions that one pass may feed once the ring is full: ``ahead`` steps and
            one position.
        past: What a fork was forked from, or None.
        generation: Number of times it began to be overwritten.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        batch_size: int,
        num_kv_heads: int,
        head_dim: int,
        window: int,
        positions_per_step: int,
        ahead: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        max_steps: int | None = None,
    ) -> None:
        self.window = window
        self.positions_per_step = positions_per_step
        self.ahead = ahead
        num_steps = window + ahead
        if max_steps is not None:
            num_steps = min(num_steps, max_steps)
        self.capacity = num_steps * positions_per_step
        self.max_span = ahead * positions_per_step + 1
        shape = (batch_size, num_kv_heads, self.capacity, head_dim)
        self.keys, self.values = (
            [torch.zeros(shape, dtype=dtype, device=device) for _ in range(num_layers)]
            for _ in range(2)
        )
        self.past: KVCache | None = None
        self.generation = 0
        self._forks: WeakSet[KVCache] = WeakSet()  # those that are still held
        self._first = torch.zeros(batch_size, 1, dtype=torch.int64, device=device)
        self._steps_left: int | None = None
        self._cells = torch.arange(self.capacity, device=device)
        self._rings = self._rings_of(batch_size)
        self._written = self._cells[:0]
        self._graphs: dict[Hashable, Any] = {}

    def twin(self) -> "KVCache":
        """A second object on the same memory, for graphs: they must not keep this one alive."""
        twin = object.__new__(KVCache)
        twin.__dict__.update(self.__dict__, _graphs={})
        return twin

    def __getstate__(self) -> dict[str, Any]:
        """The state to copy or pickle, without graphs and forks: they belong to this memory."""
        return self.__dict__ | {"_graphs": {}, "_forks": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`__getstate__` gave, as a fork of its past if it was one."""
        self.__dict__.update(state, _forks=WeakSet())
        if self.past is not None:
            self.past._forks.add(self)

    def graph(self, key: Hashable, make: Callable[[], T]) -> T:
        """A captured graph (:mod:`tokenwm.imagination.graphs`) that works on this cache's memory.

        Args:
            key: Name of the work and its sizes. The last few are kept.
            make: Makes it if there is none.
        """
        graph = self._graphs.pop(key, None) or make()
        self._graphs[key] = graph  # the newest is the last
        while len(self._graphs) > MOST_GRAPHS:
            del self._graphs[next(iter(self._graphs))]
        return graph

    def fork(
        self, num_copies: int, first: Tensor, num_steps: int, cache: "KVCache | None" = None
    ) -> "KVCache":
        """A cache for ``num_copies`` continuations of every row, neighbours of one another.

        This cache can be read and forked again, and written to once nobody holds a fork of it.

        Args:
            num_copies: Continuations per row.
            first: Scalar int64, the first position that continuations feed.
            num_steps: Most steps that will be decoded.
            cache: An earlier fork of the same sizes, from this cache, that nobody needs any more,
                to be used again.

        Raises:
            TokenwmError: This is a fork itself.
        """
        if self.past is not None:
            raise TokenwmError(
                "a fork cannot be forked again; fork what it came from, more often, or select rows "
                "of the fork several times"
            )
        batch_size, num_kv_heads, _, head_dim = self.keys[0].shape
        forked = cache or KVCache(
            num_layers=len(self.keys),
            batch_size=batch_size * num_copies,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            window=self.window,
            positions_per_step=self.positions_per_step,
            ahead=self.ahead,
            dtype=self.keys[0].dtype,
            device=self.keys[0].device,
            max_steps=num_steps + 1 + self.ahead,  # the first position's step; drafts at the end
        )
        forked.past = self
        forked.begin(first, num_steps)
        self._forks.add(forked)
        return forked

    def begin(self, position: Tensor, num_steps: int | None = None) -> None:
        """Start every row anew at a position, with nothing before it.

        Args:
            position: Scalar int64.
            num_steps: Most steps that will be decoded, or None for no limit.
        """
        self._first.copy_(position.expand_as(self._first))
        self._steps_left = num_steps
        self._forks.clear()
        self.generation += 1

    def let_go(self) -> None:
        """Let the past of a fork go on: nobody reads it by this fork until it is forked anew."""
        if self.past is not None:
            self.past._forks.discard(self)

    def take_rows(self, rows: Tensor) -> "KVCache":
        """A copy of some rows, ``(n,)`` int64, with repeats; :meth:`replace_rows` puts them back.

        Rows of a fork whose parent has one row go on sharing what came before the fork; otherwise
        each gets a copy of its own, since which rows share it would have to be asked of the device.
        """
        past = self.past
        if past is not None and not self.has_rows_alike:
            past = past.take_rows(rows // (len(self._first) // len(past._first)))
        taken = self._copy(past, lambda tensor: tensor[rows])
        taken._rings = taken._rings_of(len(rows))
        return taken

    def snapshot(self) -> "KVCache":
        """A copy of all rows; those of a fork go on sharing what came before it."""
        return self._copy(self.past, torch.clone)

    def _copy(self, past: "KVCache | None", change: Callable[[Tensor], Tensor]) -> "KVCache":
        copied = self.twin()
        copied._forks = WeakSet()
        copied.keys = [change(keys) for keys in self.keys]
        copied.values = [change(values) for values in self.values]
        copied._first = change(self._first)
        copied.past = past
        if past is not None:
            past._forks.add(copied)
        return copied

    def _rings_of(self, batch_size: int) -> Tensor:
        """``(B, kv_heads, 1)`` int64, the number of each ring's first cell."""
        num_kv_heads = self.keys[0].shape[1]
        rings = torch.arange(batch_size * num_kv_heads, device=self.keys[0].device) * self.capacity
        return rings.view(batch_size, num_kv_heads, 1)

    def replace_rows(self, rows: Tensor, other: "KVCache") -> None:
        """Put the rows of another cache of the same sizes in the place of some of this one's.

        Args:
            rows: ``(n,)`` int64.
            other: A cache of ``n`` rows, written up to the same step.

        Raises:
            TokenwmError: One of the two is a fork, unless both are of the same single row; or a
                fork of this one is still held.
        """
        if self.past is not other.past or not self.has_rows_alike:
            raise TokenwmError("rows of a fork cannot be replaced: they share their past")
        self.reserve(0)
        mine, its = [*self.keys, *self.values], [*other.keys, *other.values]
        for held, new in zip(mine, its, strict=True):
            held.index_copy_(0, rows, new)
        self._first.index_copy_(0, rows, other._first)

    @property
    def has_rows_alike(self) -> bool:
        """True if any row could be in any other's place: no fork, or a fork of a single row."""
        return self.past is None or len(self.past._first) == 1

    def reserve(self, num_steps: int) -> None:
        """Reserve cells for so many more steps, which overwrite the oldest ones.

        Raises:
            TokenwmError: Room was made for fewer, or forks that are still held read what is here.
        """
        self.check_room(num_steps)
        self.check_no_forks()
        if self._steps_left is not None:
            self._steps_left -= num_steps
        self.generation += 1

    def check_no_forks(self) -> None:
        """Check that nobody reads what is here as the past of a fork.

        Raises:
            TokenwmError: Somebody does.
        """
        if self._forks:
            raise TokenwmError(
                f"{len(self._forks)} fork(s) of this state are still held, and stepping on would "
                "change their past; let go of them first (del), or step a copy: state.take_rows"
            )

    def check_room(self, num_steps: int) -> None:
        """Check that so many more steps can be fed without overwriting what they attend to.

        Raises:
            TokenwmError: Room was made for fewer.
        """
        if self._steps_left is not None and num_steps > self._steps_left:
            raise TokenwmError(
                f"{num_steps} more step(s) asked of a cache that has room for "
                f"{self._steps_left}; read the context or fork with a larger num_steps"
            )

    def seek(self, positions: Tensor) -> Tensor:
        """Choose the cells that the next pass writes, and say what it may attend to.

        Args:
            positions: ``(B, Q)`` int64, consecutive positions of every row, or ``(1, Q)`` if they
                are the same for all rows.

        Returns:
            ``(B, 1, Q, cells)`` bool mask for :meth:`Transformer.forward`; the cells of the
            past, if any, come before the ring's.
        """
        self._written = (self._rings + (positions % self.capacity)[:, None]).flatten()
        held = self._held(positions[:, -1:])
        mask = self._within_window(held, positions) & (held >= self._first)[:, None]
        if self.past is not None:
            held = self.past._held(self._first - 1)  # (B, cells)
            begun = self.past._first.repeat_interleave(len(held) // len(self.past._first), dim=0)
            before = self.past._within_window(held, positions) & (held >= begun)[:, None]
            mask = torch.cat([before, mask], dim=-1)
        return mask.unsqueeze(1)

    def layer(self, index: int) -> "LayerCache":
        """The part of one layer, for a pass over the cells sought."""
        past = None if self.past is None else (self.past.keys[index], self.past.values[index])
        return LayerCache(self.keys[index], self.values[index], self._written, past)

    def _held(self, last: Tensor) -> Tensor:
        """``(B, 1)`` newest position → ``(B, capacity)``, the position that each cell holds."""
        return last - (last - self._cells) % self.capacity

    def _within_window(self, held: Tensor, positions: Tensor) -> Tensor:
        """``(B or 1, Q, capacity)``: whether each position may attend to each cell."""
        held, query, length = held[:, None], positions[:, :, None], self.positions_per_step
        oldest = (query // length - (self.window - 1)) * length
        return (held <= query) & (held >= oldest)


class LayerCache(NamedTuple):
    """Keys and values of one layer and the cells that the current pass writes.

    Attributes:
        keys: ``(B, kv_heads, capacity, head_dim)``.
        values: The same.
        cells: ``(B * kv_heads * Q,)`` int64, numbered through rows and heads.
        past: Keys and values before a fork, ``(B / copies, kv_heads, cells, head_dim)``, or None.
    """

    keys: Tensor
    values: Tensor
    cells: Tensor
    past: tuple[Tensor, Tensor] | None

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store ``(B, kv_heads, Q, head_dim)`` in the cells sought; return all cells."""
        for held, new in ((self.keys, keys), (self.values, values)):
            held.flatten(0, 2).index_copy_(0, self.cells, new.flatten(0, 2).to(held.dtype))
        return self.keys, self.values
