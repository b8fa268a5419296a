"""Observed steps, as tokens: where imagination starts. What is given by hand is checked here."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tokenwm.errors import ShapeError, TokenwmError
from tokenwm.imagination.records import combine, map_tensors
from tokenwm.sequence.tokens import Tokens
from tokenwm.sequence.vocabulary import Vocabulary
from tokenwm.shapes import check_shape, check_type, shown
from tokenwm.tokenizer.actions import BinTokenizer


@dataclass(frozen=True, kw_only=True, repr=False)
class Context:
    """Observed steps that imagination starts from.

    Attributes:
        tokens: ``C`` steps of tokens, ``(B, C, ·)``.
        anchor: ``(B, cameras, H, W, 3)`` uint8, the last observed frame, or None if only its tokens
            are known.
        state: ``(B, state_dim)`` float32, the last observed state in the units of the data, or None
            if only its tokens are known, or none at all. Greedy decoding goes on from it.
        reference: ``(B, cameras, H, W, 3)`` uint8, the frame that tokens say the changes of, for a
            decoder that is conditioned on one; None for decoders that need none, as today's.
        encoder_memory: ``(B, ...)``, what an encoder of frames carries from step to step, such as
            the codes that it may keep; None for encoders that remember nothing, as today's.
    """

    tokens: Tokens
    anchor: Tensor | None = None
    state: Tensor | None = None
    reference: Tensor | None = None
    encoder_memory: Tensor | None = None

    def __repr__(self) -> str:
        num_rows, num_steps = self.tokens.frame.shape[:2]
        known = [name for name, part in vars(self).items() if part is not None]
        return f"Context({num_rows} row(s) of {num_steps} step(s); {', '.join(known)})"

    def rows(self, rows: slice | Tensor) -> "Context":
        """Some rows, by a slice, which is a view, or by their numbers, ``(n,)`` int64.

        Numbers may come several times.

        Raises:
            TokenwmError: Rows are no such numbers or, not on a GPU, out of range.
        """
        if not isinstance(rows, slice):
            check_ids("rows", rows, len(self.tokens.frame))
            check_shape("rows", rows, ("n",))
        return map_tensors(lambda tensor: tensor[rows], self)

    def repeat(self, num_candidates: int) -> "Context":
        """Every row ``num_candidates`` times: as many action sequences from the same start."""
        frame = self.tokens.frame
        rows = torch.arange(len(frame), device=frame.device)
        return self.rows(rows.repeat_interleave(num_candidates))

    def to(self, device: torch.device | str) -> "Context":
        """This context on a device."""
        return map_tensors(lambda tensor: tensor.to(device), self)


def cat_contexts(parts: Sequence[Context]) -> Context:
    """Concatenate contexts of equally many steps along the rows."""
    return combine(torch.cat, parts)


def check_context(vocabulary: Vocabulary, context: Context, frame_shape: Sequence[int]) -> None:
    """Check a context before it is read.

    Args:
        vocabulary: Vocabulary of the model that is to read it.
        context: A context, perhaps made by hand. Its tokens may wait for their device: a context
            is read once, not at every step.
        frame_shape: ``(cameras, H, W, 3)``.

    Raises:
        TokenwmError: It has no row or no step, the model's state is missing or it has one that the
            model has not, a shape or a type differs, or a token is outside its vocabulary.
    """
    check_type("context", context, Context)
    check_type("context.tokens", context.tokens, Tokens)
    frame, state, action = context.tokens
    sizes = check_shape("context.tokens.frame", frame, ("B", "C", vocabulary.tokens_per_frame))
    num_rows, num_steps = sizes["B"], sizes["C"]
    if num_rows < 1 or num_steps < 1:
        raise TokenwmError(
            f"the context has {num_rows} rows of {num_steps} steps; at least one row and one "
            "observed frame are needed: it has no " + ("row" if num_rows < 1 else "step")
        )
    if (state is None) != (vocabulary.state is None):
        wanted = "needs state tokens" if state is None else "does not take state tokens"
        raise TokenwmError(f"the model {wanted}; context.tokens.state is {_described(state)}")
    named: list[tuple[str, Any, int, int]] = [
        ("frame", frame, vocabulary.tokens_per_frame, vocabulary.codebook_size)
    ]
    for name, tokens, tokenizer in (
        ("action", action, vocabulary.action),
        ("state", state, vocabulary.state),
    ):
        if tokenizer is not None:
            named.append((name, tokens, tokenizer.num_dimensions, tokenizer.num_values))
    for name, tokens, count, num_values in named:
        check_shape(f"context.tokens.{name}", tokens, (num_rows, num_steps, count))
        check_ids(f"{name} tokens", tokens, num_values, may_wait=True)
    for name in ("anchor", "reference"):
        frames = getattr(context, name)
        if frames is None:
            continue
        check_shape(f"context.{name}", frames, (num_rows, *frame_shape))
        if getattr(frames, "dtype", None) != torch.uint8 or frames.is_meta:
            raise ShapeError(f"context.{name} is {_described(frames)}; expected uint8, as a tensor")
    memory: Any = context.encoder_memory
    if memory is not None and (not isinstance(memory, Tensor) or memory.shape[:1] != (num_rows,)):
        raise ShapeError(
            f"context.encoder_memory is {_described(memory)}; expected a tensor of {num_rows} rows"
        )
    if context.state is not None:
        if not isinstance(vocabulary.state, BinTokenizer):
            raise TokenwmError(
                "context.state is given, but the model has no state of real values; give None"
            )
        check_shape("context.state", context.state, (num_rows, vocabulary.state.num_dimensions))
        numbers: Any = context.state
        is_real = (
            isinstance(numbers, Tensor)
            and numbers.is_floating_point()
            and not (numbers.is_meta or numbers.is_sparse)
        )
        if not is_real or not bool(numbers.isfinite().all()):
            raise TokenwmError(
                f"context.state is {_described(context.state)}; give finite floating-point numbers"
            )


def check_ids(name: str, tokens: Any, num_values: int, *, may_wait: bool = False) -> None:
    """Check the type of ids, and their range where that waits for no device.

    Args:
        name: What they are, for the message.
        tokens: Should be an int64 tensor.
        num_values: Ids are in [0, num_values).
        may_wait: Whether the range is checked on any device.

    Raises:
        TokenwmError: Another type, or an id out of range.
    """
    if not isinstance(tokens, Tensor) or tokens.dtype != torch.int64 or tokens.is_meta:
        raise TokenwmError(
            f"{name}: expected an int64 tensor of ids in [0, {num_values}), got "
            f"{_described(tokens)}; values in the units of the data are encoded first"
        )
    if tokens.numel() and (may_wait or tokens.device.type == "cpu"):
        low, high = int(tokens.min()), int(tokens.max())
        if low < 0 or high >= num_values:
            raise TokenwmError(f"{name} span [{low}, {high}]; allowed is [0, {num_values})")


def noise_of(
    seed: Any, noise_streams: Any, num_rows: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Seed and stream of every row's noise, checked and on the device.

    Args:
        seed: A whole number, or one for every row.
        noise_streams: The same; None for 0, 1, 2, ….
        num_rows: ``B``.
        device: Device of the result.

    Returns:
        Seeds and streams, ``(B,)`` int64 each.

    Raises:
        TokenwmError: They are no whole numbers in [-2^63, 2^63), or not as many as rows.
    """
    if noise_streams is None:
        noise_streams = torch.arange(num_rows, device=device)
    seeds = _numbers("seed", seed, num_rows, device)
    return seeds, _numbers("noise_streams", noise_streams, num_rows, device)


def _numbers(name: str, given: Any, num_rows: int, device: torch.device) -> Tensor:
    wanted = f"one whole number, or a ({num_rows},) int64 tensor: one for every row of actions"
    if type(given) is not bool and isinstance(given, Integral):
        if not -(2**63) <= int(given) < 2**63:
            raise TokenwmError(f"{name}={given}; use {wanted}, in [-2^63, 2^63)")
        return torch.full((num_rows,), int(given), device=device)
    try:
        numbers = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TokenwmError(f"{name}={shown(given)}; use {wanted}") from error
    has_fractions = numbers.is_floating_point() or numbers.is_complex()
    if (
        has_fractions
        or numbers.dtype in (torch.bool, torch.uint64)
        or numbers.is_meta
        or (numbers.shape not in ((), (num_rows,)))
    ):
        what = shown(given) if numbers.ndim == 0 else _described(numbers)
        raise TokenwmError(f"{name} is {what}; use {wanted}")
    return numbers.to(device, torch.int64).expand(num_rows)


def as_array(name: str, values: Any) -> NDArray[Any]:
    """Convert numbers given by a caller to an array on the host.

    Args:
        name: What they are, for the message.
        values: An array, a tensor of any type and device, or nested lists.

    Raises:
        TokenwmError: They are no real numbers, or none that can be read.
    """
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            if values.dtype == torch.bfloat16:  # which numpy does not have
                values = values.float()
            values = values.numpy()
        array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TokenwmError(
            f"{name} is {shown(values)}; expected an array of real numbers"
        ) from error
    if array.dtype.kind not in "biuf":
        raise TokenwmError(f"{name} is {shown(values)}; expected an array of real numbers")
    return array


def as_tensor(name: str, values: Any) -> Tensor:
    """A tensor of real numbers as it is; anything else as :func:`as_array` takes it.

    Raises:
        TokenwmError: See :func:`as_array`.
    """
    if isinstance(values, Tensor):
        is_readable = values.layout == torch.strided and not values.is_meta
        if is_readable and not values.is_complex():
            return values
    array = np.require(as_array(name, values), requirements=["C", "W"])  # flipped, or read only
    try:
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
    except TypeError as error:  # whole numbers up to 2^64
        raise TokenwmError(f"{name} is {shown(values)}, a type that torch does not have") from error


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        on = f" on {value.device}" if value.is_meta else ""
        return f"{value.dtype} of shape {tuple(value.shape)}{on}"
    return "None" if value is None else type(value).__name__
