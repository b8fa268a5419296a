"""From logits to ids: counter-based Gumbel-max sampling. Pure functions.

The noise of a decision is a function of (seed, stream, step, slot) and of nothing else. So one seed
gives one future whatever the batch size, the neighbours of a row or the order of decoding, and two
action sequences can be compared under the same noise. Greedy decoding draws none.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tokenwm.errors import TokenwmError
from tokenwm.shapes import check_type, is_number, is_whole, shown

# SplitMix64 (Steele, Lea & Flood 2014); constants as signed 64-bit integers, multiplication wraps.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64

LEAST_TEMPERATURE = 1e-4
"""Below it noise is lost in the rounding of ``logits / temperature``; far below, that overflows."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Settings for drawing ids from logits.

    Attributes:
        temperature: Logits are divided by it; 0 is greedy, anything else at least 1e-4.
        top_k: Keep only the ``top_k`` most likely ids; None keeps all.
        top_p: Keep the most likely ids whose probabilities sum to ``top_p`` (nucleus); 1 keeps all.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            TokenwmError: A value is out of range.
        """
        if not is_number(self.temperature) or not 0.0 <= self.temperature < math.inf:
            raise TokenwmError(
                f"temperature={shown(self.temperature)}; use 0 (greedy) or a positive number"
            )
        if 0.0 < self.temperature < LEAST_TEMPERATURE:
            raise TokenwmError(
                f"temperature={self.temperature} is below the limit of {LEAST_TEMPERATURE:g}, "
                "where float32 would no longer draw the right tokens; use 0, which is greedy"
            )
        if self.top_k is not None and not is_whole(self.top_k):
            raise TokenwmError(
                f"top_k={shown(self.top_k)}; use a whole number, at least 1, or None for all ids"
            )
        if not is_number(self.top_p) or not 0.0 < self.top_p <= 1.0:
            raise TokenwmError(f"top_p={shown(self.top_p)}; use a number in (0, 1]")

    @property
    def is_greedy(self) -> bool:
        """True if the best id is taken and no noise drawn."""
        return self.temperature == 0.0

    @property
    def keeps_all(self) -> bool:
        """True if no id is left out for being unlikely."""
        return self.top_k is None and self.top_p == 1.0


def check_sampling(sampling: SamplingConfig | None) -> None:
    """Check that a value is a :class:`SamplingConfig` or None.

    Raises:
        TokenwmError: It is not.
    """
    if sampling is not None:
        check_type("sampling", sampling, SamplingConfig)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's is arithmetic."""
    return (x >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = _mix_high_bits(x)
    return x ^ _shift_right(x, 31)


def _mix_high_bits(x: Tensor) -> Tensor:
    """``_mix`` but for its last step, which changes none of the highest 31 bits."""
    x = (x ^ _shift_right(x, 30)).mul_(_MIX_1)
    return x.bitwise_xor_(_shift_right(x, 27)).mul_(_MIX_2)


def gumbel_noise(
    seeds: Tensor, streams: Tensor, step: Tensor, slot: Tensor | int, num_values: int
) -> Tensor:
    """Standard Gumbel noise for one decision, or many.

    Args:
        seeds: int64, the seed of each row.
        streams: int64, the number of each row's stream.
        step: int64, the step the decision belongs to.
        slot: Number of the decision in its step.
        num_values: ``V``, how many ids there are to choose from.

    Returns:
        ``(..., V)`` float32, finite; in front of ``V`` the shape of seeds, streams, step and slot,
        broadcast together.
    """
    key = _mix(seeds + _GOLDEN)
    for part in (streams, step, slot):
        key = _mix((key ^ part) + _GOLDEN)
    counter = torch.arange(num_values, device=streams.device)
    bits = _mix_high_bits(key[..., None] + (counter + 1) * _GOLDEN)
    uniform = _shift_right(bits, 41).float()  # (..., V), 23 bits
    uniform.add_(0.5).mul_(2.0**-23)  # in (0, 1), both ends excluded also after rounding
    return uniform.log_().neg_().log_().neg_()


def transform_logits(logits: Tensor, config: SamplingConfig) -> Tensor:
    """Apply temperature, top-k and top-p.

    Args:
        logits: ``(..., V)`` float32.
        config: How to sample; not greedy.

    Returns:
        ``(..., V)``; ids that are not allowed have ``-inf``. At least the most likely id is always
        allowed.
    """
    if config.temperature != 1.0:
        logits = logits / config.temperature
    num_values = logits.shape[-1]
    if config.top_k is not None and config.top_k < num_values:
        threshold = logits.topk(config.top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < threshold, float("-inf"))
    if config.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probability = ordered.softmax(-1)
        # An id is dropped if those more likely than it already reach top_p; the first never is.
        dropped = probability.cumsum(-1) - probability >= config.top_p
        logits = logits.masked_fill(dropped.gather(-1, order.argsort(-1)), float("-inf"))
    return logits


def sample(logits: Tensor, noise: Tensor, config: SamplingConfig) -> Tensor:
    """Draw an id for every decision (Gumbel-max).

    Args:
        logits: ``(..., V)`` float32.
        noise: ``(..., V)`` from :func:`gumbel_noise`.
        config: How to sample; not greedy.

    Returns:
        ``(...)`` int64.
    """
    return (transform_logits(logits, config) + noise).argmax(-1)
