"""The one legend of shape letters, and the checks used where values cross a border.

==========  =====================================================================
``B``       rows of a batch
``T``       environment steps
``C H W``   image channels, height, width; frames outside networks are ``(..., H, W, 3)`` uint8
``K``       tokens per frame, all cameras together
``P``       tokens of proprioception per step (one per state dimension)
``A``       tokens per action (one per action dimension)
``J``       predicted slots of a step: ``K``, and one for the state if there is one
``L``       positions per step: ``K`` frame slots, one state slot if ``P > 0``, one action slot
``S``       positions in a sequence, ``T * L``
``Q``       positions that go through the transformer in one pass
``D``       model width
``N``       attention heads
``V``       size of a vocabulary (frame codebook unless said otherwise)
``C``       in ``imagination`` and ``evaluation``: observed steps, the context
``H``       there: imagined steps, the horizon
==========  =====================================================================

The ``P`` state tokens (and the ``A`` action tokens) of a step share *one* position: they
are embedded together on the way in and the state's heads read one hidden state on the way out. See
``docs/architecture.md`` for why.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

from tokenwm.errors import ShapeError, TokenwmError


def check_shape(name: str, array: Any, expected: Sequence[int | str]) -> dict[str, int]:
    """Check ``array.shape`` against ``expected`` and return the sizes of the named axes.

    Args:
        name: Name of the array, for the message.
        array: Anything with a ``shape``.
        expected: One entry per axis; an int is a fixed size, a letter names an axis and must
            have the same size wherever it repeats.

    Returns:
        The size of every letter in ``expected``.

    Raises:
        ShapeError: The number of axes or a size differs, or it is no array.
    """
    wanted_text = "(" + ", ".join(str(w) for w in expected) + ")"
    if getattr(array, "shape", None) is None:
        raise ShapeError(f"{name} is {shown(array)}; expected an array of shape {wanted_text}")
    shape = tuple(array.shape)
    sizes: dict[str, int] = {}
    fits = len(shape) == len(expected)
    for want, got in zip(expected, shape, strict=False):
        wanted = want if isinstance(want, int) else sizes.setdefault(want, got)
        fits = fits and wanted == got
    if not fits:
        raise ShapeError(f"{name} has shape {shape}; expected {wanted_text}")
    return sizes


def check_type(name: str, value: Any, kind: type) -> None:
    """Check that a value is of a class of ours.

    Raises:
        TokenwmError: It is something else.
    """
    if not isinstance(value, kind):
        raise TokenwmError(f"{name} is {shown(value)}; expected a {kind.__name__}")


def is_whole(value: Any, least: int = 1) -> bool:
    """True if a value is a whole number in [least, 2^31); booleans are not."""
    is_integer = type(value) is not bool and isinstance(value, Integral)
    return is_integer and least <= int(value) < 2**31


def is_number(value: Any) -> bool:
    """True if a value is a real number, NaN and infinity included; booleans are not."""
    return type(value) is not bool and isinstance(value, Real)


def shown(value: Any) -> str:
    """A value, for a message of one line."""
    if getattr(value, "shape", ()) != ():
        return f"{type(value).__name__} of {value.dtype} and shape {tuple(value.shape)}"
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
