"""A number as short as people say it: ``34.3k``, ``1.25M``."""

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
