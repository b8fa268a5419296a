"""Quantities as short as people say them, written and read: ``34.3k``, ``1.25M``, ``2T``."""

import math

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def number(value: float, digits: int = 3) -> str:
    """So many digits, with k, M, G, T up to 10¹⁵ and powers of ten beyond."""
    if not math.isfinite(value):
        return "–"
    if abs(value) >= 1e15 or 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    for scale, suffix in SUFFIXES:
        # What rounds up to the next suffix gets it.
        if float(f"{abs(value):.{digits - 1}e}") >= scale:
            return f"{value / scale:.{digits}g}{suffix}"
    return f"{value:.{digits}g}"


def parse_number(text: str) -> float:
    """The quantity that a text says, as :func:`number` writes it or as Python does (``3e15``).

    Raises:
        ValueError: It says none.
    """
    scale = {suffix: scale for scale, suffix in SUFFIXES}.get(text[-1:], 1.0)
    return float(text[:-1] if scale > 1 else text) * scale
