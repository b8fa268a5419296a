"""Sweeps of two sizes and two budgets that take seconds."""

from dataclasses import replace
from typing import Any

from tests.small_models import small_vocabulary
from tokenwm.scaling.sweep.sweep import Size, Sweep, TokenData, Training

TRAINING = Training(num_steps=3, window=2, batch_size=4, warmup_steps=2, num_val_windows=8)
TOKENS_PER_STEP = 4 * 2 * 9
"""Of ``small_vocabulary``: 8 frame tokens and a state in each of two predicted steps."""


def small_size(name: str = "n16k", **changes: Any) -> Size:
    values: dict[str, Any] = {
        "dim": 16,
        "num_layers": 2,
        "num_heads": 1,
        "learning_rate": 0.01,
        "token_budgets": (20 * TOKENS_PER_STEP, 40 * TOKENS_PER_STEP),
        "seconds_per_step": 0.02,
    }
    return Size(name=name, **{**values, **changes})


def small_sweep(data: str = "tokens", **changes: Any) -> Sweep:
    sizes = (small_size(), small_size("n44k", dim=32, seconds_per_step=0.05))
    values: dict[str, Any] = {"name": "small", "training": TRAINING, "sizes": sizes}
    return Sweep(data=data, **{**values, **changes})


def small_data(num_train_tokens: int = 10_000, **changes: Any) -> TokenData:
    vocabulary = replace(small_vocabulary("frame+state"), **changes)
    return TokenData(vocabulary=vocabulary, num_train_tokens=num_train_tokens)
