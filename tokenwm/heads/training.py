"""The one trainer of heads: batches of inputs and targets, and a loss."""

import math
import time
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from tokenwm.errors import TokenwmError

MOST_GRADIENT = 1.0
"""Norm that the gradient of a step is cut to: without, a single batch can undo what was learned."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""``(B, num_outputs)`` outputs and the targets of a batch → a number to be made small."""


def fit_head(
    head: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    loss: Loss,
    *,
    num_steps: int,
    seconds: float = math.inf,
    learning_rate: float = 2e-3,
    progress: Callable[[int, float], None] | None = None,
) -> float:
    """Train a head on frozen inputs, on the device it is on; leaves it in eval mode.

    The learning rate rises over the first tenth of the steps and falls to zero, as a cosine.

    Args:
        head: It is changed.
        batches: Inputs as :meth:`Head.forward` takes them, and what the loss compares with; at
            least ``num_steps`` of them.
        loss: What is made small.
        num_steps: Optimizer steps.
        seconds: Time after which training ends earlier; the learning rate then follows the clock.
        learning_rate: The highest.
        progress: Called after each step with steps done and the loss.

    Returns:
        Mean loss of the last tenth of the steps.

    Raises:
        TokenwmError: There are fewer batches, or the loss is not finite.
    """
    optimizer = torch.optim.AdamW(head.parameters(), lr=learning_rate, weight_decay=1e-4)
    warm_up, began = max(1, num_steps // 10), time.monotonic()

    def place(step: int) -> float:
        return max(float(step), num_steps * (time.monotonic() - began) / seconds)

    def share(step: int) -> float:
        at = place(step)
        if at < warm_up:
            return (at + 1) / warm_up
        through = (at - warm_up) / max(1, num_steps - warm_up)
        return 0.5 + 0.5 * math.cos(math.pi * min(1.0, through))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    device = next(head.parameters()).device
    head.train()
    losses: list[float] = []
    is_done = False
    for inputs, targets in batches:
        value = loss(head(inputs.to(device)), targets.to(device))
        optimizer.zero_grad(set_to_none=True)
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(head.parameters(), MOST_GRADIENT)
        optimizer.step()
        schedule.step()
        losses.append(float(value.detach()))
        if progress is not None:
            progress(len(losses), losses[-1])
        is_done = place(len(losses)) >= num_steps
        if is_done:
            break
    head.eval()
    ends = losses[-max(1, len(losses) // 10) :]
    last = sum(ends) / max(1, len(ends))
    if not is_done or not math.isfinite(last):
        raise TokenwmError(
            f"a head was trained for {len(losses)} of {num_steps} steps and ended at a loss of "
            f"{last:g}; give it enough batches of finite numbers"
        )
    return last
